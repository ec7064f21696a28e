"""The sessions of a process that works on a run: for batches, for records, for signs of life."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import psycopg

from keikaku_snapshots.errors import LockBusyError, OutcomeUnknownError
from keikaku_snapshots.patches import auditing, records
from keikaku_snapshots.patches.lease import Heartbeat, beat, free_locks, take_locks
from keikaku_snapshots.postgres.connect import is_transient, translated

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from keikaku_snapshots.patches.execution import Execution
    from keikaku_snapshots.patches.surroundings import Surroundings
    from keikaku_snapshots.patches.watchdog import Watchdog
    from keikaku_snapshots.postgres.connect import Connection

_log = logging.getLogger("keikaku_snapshots.patches")
#: Seconds to wait until the server has noticed that an old connection of ours is gone.
_OLD_SESSION_S: Final = 30.0


class Worker:
    """Holds the locks and the lease of a run.

    Args:
        around: The database and the parts around the engine.
        execution: The run.
        watch: Memory and time of this process.
    """

    def __init__(self, around: Surroundings, execution: Execution, watch: Watchdog) -> None:
        self.around = around
        #: The run as it was last read or written.
        self.execution = execution
        self._watch = watch
        self._control: Connection | None = None
        # Once a run is under way, a server that restarts is waited for; a wrong address is told at once.
        self._is_under_way = False
        self._work: Connection | None = None
        self._keys: Sequence[int] = ()
        self._heartbeat: Heartbeat | None = None

    @property
    def work(self) -> Connection:
        """The connection of the batches; its session holds the locks."""
        assert self._work is not None
        return self._work

    @property
    def control(self) -> Connection:
        """The connection of the records, in autocommit."""
        if self._control is None or self._control.closed:
            self._control = self.around.connect(
                f"{self.execution.execution_id} control", patient=self._is_under_way
            )
        return self._control

    def lock(self, keys: Sequence[int], *, take_over: bool = False) -> None:
        """Take the locks and the lease, and begin to give signs of life.

        Args:
            keys: From `lease.lock_keys`.
            take_over: Whether a session of this same run that holds them is ended.

        Raises:
            LockBusyError: Another run holds one of them.
        """
        self._keys = keys
        self._work = self.around.connect(str(self.execution.execution_id))
        with translated(self.around.url, "taking the locks of a data patch"):
            if take_over:
                self._take_from_old_session()
            else:
                take_locks(self._work, keys)
            self.execution = records.take_lease(self.control, self.execution)
            self._beat()
        self._heartbeat = Heartbeat(
            self.around.url, self.execution.execution_id, self.around.engine.heartbeat_s, self._state
        )
        self._heartbeat.start()
        self._is_under_way = True

    def reconnect(self) -> None:
        """Get a new work connection after the old one was lost, and read how far the run is.

        Waits until the old session has ended, so that nothing of it can be committed any more.

        Raises:
            ConnectError: The server cannot be reached.
            LeaseLostError: Another worker has taken the run over meanwhile.
            OutcomeUnknownError: The old session goes on and on.
        """
        if self._work is not None:
            self._work.close()
        self._work = self.around.connect(str(self.execution.execution_id), patient=True)
        with translated(self.around.url, "going on after a lost connection"):
            self._take_from_old_session()
            # The row is locked by a batch that is still being committed; this waits for it.
            self.control.execute("SET lock_timeout = '30s'")
            try:
                self.execution = records.take_lease(self.control, self.execution)
            except psycopg.errors.LockNotAvailable as error:
                raise OutcomeUnknownError(
                    "the last batch of a data patch is still being committed",
                    found=f"Execution: {self.execution.execution_id}",
                    hint="`keikaku patch resume ID` goes on when the server has ended it.",
                    hint_ja="サーバー側の処理が終わってから `keikaku patch resume ID` で再開してください。",
                ) from error
            finally:
                with suppress(psycopg.Error):
                    self.control.execute("SET lock_timeout = 0")
            self._beat()

    def _take_from_old_session(self) -> None:
        deadline = time.monotonic() + _OLD_SESSION_S
        while True:
            try:
                take_locks(self.work, self._keys)
            except LockBusyError as error:
                holder = error.details.get("holder")
                # A session that ends is no longer shown a moment before its locks are free.
                is_ending = not holder
                ours = holder == str(self.execution.execution_id)
                if not (ours or is_ending) or time.monotonic() > deadline:
                    raise
                if ours:
                    # It may be a session of the worker that has taken the run over from us.
                    records.check_lease(self.control, self.execution)
                    pid = error.details["holder_pid"]
                    self.work.execute("SELECT pg_catalog.pg_terminate_backend(%s)", [pid])
                time.sleep(0.05)
            else:
                return

    def record(self, event: str | None = None, facts: dict[str, Any] | None = None, **values: Any) -> None:
        """Write a change of state, with its message, in one transaction.

        Args:
            event: Message that belongs to it; None for none.
            facts: Further facts of the message.
            values: New values by column.

        Raises:
            LeaseLostError: Another worker has taken the run over.
        """

        def write() -> Execution:
            with self.control.transaction():
                return self._change(self.control, event, facts, values)

        with translated(self.around.url, "recording the state of a data patch"):
            self.execution = self.controlled(write)
        if "sub_state" in values:
            auditing.changed(self.around, self.execution)

    def record_in(
        self,
        connection: Connection,
        event: str | None = None,
        facts: dict[str, Any] | None = None,
        **values: Any,
    ) -> None:
        """Write a change of state in a transaction that the caller commits.

        Args:
            connection: In the transaction.
            event: Message that belongs to it; None for none.
            facts: Further facts of the message.
            values: New values by column.

        Raises:
            LeaseLostError: Another worker has taken the run over.
        """
        self._change(connection, event, facts, values)

    def _change(
        self, connection: Connection, event: str | None, facts: dict[str, Any] | None, values: dict[str, Any]
    ) -> Execution:
        measured = {
            "active_s": self._watch.active_s,
            "peak_memory_bytes": max(self._watch.peak_bytes, self.execution.peak_memory_bytes),
        }
        changed = records.update(
            connection,
            self.execution.execution_id,
            lease_token=self.execution.lease_token,
            **measured | values,
        )
        if event is not None and self.around.notify is not None:
            self.around.notify(connection, changed, event, facts or {})
        return changed

    def tell(self, event: str, facts: dict[str, Any]) -> None:
        """Put a message into the outbox that belongs to no change of state.

        Args:
            event: What happened.
            facts: Further facts.
        """
        if self.around.notify is not None:
            with suppress(psycopg.Error):
                self.around.notify(self.control, self.execution, event, facts)

    def tell_news(self) -> None:
        """Put what the watchdog has noticed into the outbox."""
        watch = self._watch
        for warning in watch.news():
            if warning == "memory_high":
                self.tell("memory", {"used_bytes": watch.peak_bytes, "limit_bytes": watch.memory_limit_bytes})
            else:
                times = 2 if warning == "time_twice" else 3
                self.tell(
                    "overtime",
                    {"active_s": watch.active_s, "estimated_s": watch.estimate_s, "times": times},
                )

    def controlled(self, call: Callable[[], Any]) -> Any:
        """Do something on the control connection, once more when that was lost.

        Args:
            call: Writes nothing that may not be written twice.

        Returns:
            What it returns.
        """
        try:
            return call()
        except psycopg.Error as error:
            if not is_transient(error):
                raise
            if self._control is not None:
                self._control.close()
            return call()

    def close(self) -> None:
        """End the sessions, and with them the locks."""
        if self._heartbeat is not None:
            self._heartbeat.stop()
        for connection in (self._work, self._control):
            if connection is not None and not connection.closed:
                if connection is self._work:
                    with suppress(psycopg.Error):
                        free_locks(connection)
                connection.close()

    def _state(self) -> tuple[int, int, int]:
        return self.execution.lease_token, self.work.info.backend_pid, self._watch.memory_bytes

    def _beat(self) -> None:
        beat(self.control, self.execution.execution_id, *self._state())
