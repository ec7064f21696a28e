"""Sending what is in the outbox: bounded in time, never twice at once, never the run's problem.

A message is claimed and the claim committed before it is sent, so two senders
never send the same one. A sender that dies between sending and writing that
down leaves its claim to end, and the message is sent again: at least once.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import psycopg

from keikaku_snapshots import _process
from keikaku_snapshots.errors import KeikakuError
from keikaku_snapshots.patches import notify_child, outbox
from keikaku_snapshots.patches.notify_rules import HOW_TO_INSTALL, backoff_s, decide, url_of
from keikaku_snapshots.patches.records import has_schema
from keikaku_snapshots.patches.settings import NotifySettings
from keikaku_snapshots.postgres.connect import connect, translated

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from keikaku_snapshots.patches.execution import Execution
    from keikaku_snapshots.patches.outbox import Claimed
    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.postgres.url import DatabaseURL

log = logging.getLogger("keikaku_snapshots.notify")

#: Seconds by which a claim outlasts the time that sending may take.
_CLAIM_MARGIN_S: Final = 30.0
#: Seconds a statement of the outbox may take or wait: a busy server must not hold a run up.
_STATEMENT_S: Final = 5.0
#: Seconds that the connection may take.
_CONNECT_S: Final = 5.0
#: Seconds between two looks into the outbox while a run is going on and nothing wakes the sender.
_LOOK_S: Final = 30.0
#: Seconds between being woken and looking.
_SETTLE_S: Final = 0.5
#: Less time than this is not worth starting a process for.
_LEAST_S: Final = 0.2
#: What the sending process inherits: to be found, certificates, proxies, its clock and language.
_INHERITED: Final = frozenset(
    {"PATH", "HOME", "TZ", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"}
    | {"SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"}
    | {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"}
    | {"http_proxy", "https_proxy", "all_proxy", "no_proxy"}
)


@dataclass(frozen=True, slots=True)
class Delivered:
    """What one look into the outbox came to."""

    #: Messages that a channel took.
    sent: int = 0
    #: Tries that failed.
    failed: int = 0
    #: Messages that are not over.
    waiting: int = 0
    #: What kept it from looking; empty when nothing did.
    problem: str = ""


class Sender:
    """Sends the messages of one database.

    Args:
        url: The database with the outbox.
        settings: Channels and times.
        environ: Where the channels' URLs are; the process's environment if None.
    """

    def __init__(
        self,
        url: DatabaseURL,
        settings: NotifySettings | None = None,
        *,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._url = url
        self._settings = settings or NotifySettings()
        self._environ = os.environ if environ is None else environ
        self._channels = {
            channel.name: found
            for channel in self._settings.channels
            if (found := url_of(channel, self._environ))
        }

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels that are switched on here."""
        return tuple(self._channels)

    def deliver_due(self, budget_s: float | None = None) -> Delivered:
        """Send what is due, and come back in time; whatever goes wrong is a warning of the log.

        Args:
            budget_s: Seconds that it may take in all; about six times the time of one message if None.

        Returns:
            What it came to.
        """
        budget_s = self._settings.timeout_s * 6 if budget_s is None else budget_s
        deadline = time.monotonic() + budget_s
        try:
            with (
                translated(self._url, "sending messages"),
                connect(
                    self._url,
                    autocommit=True,
                    application_name="keikaku_snapshots notify",
                    connect_timeout_s=min(budget_s, _CONNECT_S),
                    statement_timeout_s=_STATEMENT_S,
                    lock_timeout_s=_STATEMENT_S,
                ) as connection,
            ):
                if not has_schema(connection):
                    return Delivered()
                return self._deliver(connection, deadline)
        except KeikakuError as error:
            log.warning("no messages could be sent now: %s", error.headline)
            return Delivered(problem=error.headline)

    @contextmanager
    def in_background(self) -> Iterator[Background]:
        """Send beside a run: at once when woken, and now and then; at the end for `linger_s` at most.

        Yields:
            What wakes it.
        """
        background = Background(self, self._settings.linger_s)
        try:
            yield background
        finally:
            background.finish()

    def _deliver(self, connection: Connection, deadline: float) -> Delivered:
        sent = failed = 0
        usable = list(self._channels)
        self._decide(connection)
        while usable and time.monotonic() < deadline - _LEAST_S:
            timeout_s = min(self._settings.timeout_s, deadline - time.monotonic())
            claimed = [
                found
                for channel in usable
                if (found := outbox.claim(connection, channel, timeout_s + _CLAIM_MARGIN_S))
            ]
            if not claimed:
                break
            # Side by side: a channel that hangs does not use up the time of the others.
            for each, error in self._send_all(claimed, timeout_s):
                self._record(connection, each, error)
                sent, failed = (sent, failed + 1) if error else (sent + 1, failed)
                if error:
                    usable.remove(each.channel)
            # What was given up just now may go to the next channel.
            self._decide(connection)
        return Delivered(sent, failed, outbox.waiting(connection))

    def _decide(self, connection: Connection) -> None:
        with connection.transaction():
            for message in outbox.take_open(connection):
                decision = decide(message, self._settings, self.channels)
                outbox.apply_decision(connection, message.number, decision)

    def _record(self, connection: Connection, claimed: Claimed, error: str) -> None:
        give_up = claimed.tries >= self._settings.attempts
        if error:
            what = "given up" if give_up else "tried again later"
            log.warning(
                "message %d was not delivered to %s: %s (%s)", claimed.message, claimed.channel, error, what
            )
        wait_s = backoff_s(claimed.tries, self._settings)
        outbox.record(connection, claimed, error, next_try_s=wait_s, give_up=give_up)

    def _send_all(self, claimed: list[Claimed], timeout_s: float) -> list[tuple[Claimed, str]]:
        """Send on several channels at once; why not, or nothing, for each."""
        if not sys.executable:
            return [(each, "this program cannot start a Python process") for each in claimed]
        until = time.monotonic() + timeout_s
        running: list[tuple[Claimed, _process.RunningTool | KeikakuError]] = []
        for each in claimed:
            try:
                running.append((each, self._start(each, max(0.1, until - time.monotonic()))))
            except KeikakuError as error:
                running.append((each, error))
        return [(each, _outcome(tool, timeout_s)) for each, tool in running]

    def _start(self, claimed: Claimed, timeout_s: float) -> _process.RunningTool:
        message = {
            "url": self._channels[claimed.channel],
            "title": claimed.title,
            "body": claimed.body,
            "urgent": claimed.urgent,
        }
        environment = {name: value for name, value in os.environ.items() if name in _INHERITED}
        environment |= {
            "PYTHONPATH": os.pathsep.join(part for part in sys.path if part),
            notify_child.VARIABLE: json.dumps(message),
        }
        return _process.start_tool(
            # -P: a file of the working directory is not taken for a library.
            [sys.executable, "-P", "-m", notify_child.__name__],
            env=environment,
            timeout_s=timeout_s,
            grace_s=0.5,
            capture_stdout=True,
            # Libraries write URLs into their error output.
            redact=lambda _: "",
        )


def _outcome(tool: _process.RunningTool | KeikakuError, timeout_s: float) -> str:
    """Wait for a sending process; say why nothing was delivered, or nothing."""
    if isinstance(tool, KeikakuError):
        return "the process that sends could not be started"
    try:
        with tool:
            result = tool.wait()
    except TimeoutError:
        return f"no answer within {timeout_s:.1f} s"
    except KeikakuError:
        return "the process that sends failed"
    said = result.stdout.strip()
    if said == notify_child.DELIVERED:
        return ""
    if said == notify_child.NOT_INSTALLED:
        return f"{said}: {HOW_TO_INSTALL}"
    # Only words of ours are repeated, whatever the process wrote.
    return said if notify_child.is_ours(said) else "the process that sends failed"


class Background:
    """Sends in a thread of its own.

    Args:
        sender: What sends.
        linger_s: Seconds that `finish` waits at most.
    """

    def __init__(self, sender: Sender, linger_s: float) -> None:
        self._sender = sender
        self._linger_s = linger_s
        self._wake = threading.Event()
        self._over = threading.Event()
        # A daemon: what hangs must not keep the program from ending.
        self._thread = threading.Thread(target=self._run, name="keikaku-notify", daemon=True)
        if sender.channels:
            self._thread.start()

    def enqueue(
        self, connection: Connection, execution: Execution, event: str, facts: Mapping[str, Any] | None = None
    ) -> None:
        """Put a message into the outbox, as `outbox.enqueue` does, and wake the sender."""
        outbox.enqueue(connection, execution, event, facts)
        self.wake()

    def wake(self) -> None:
        """Let it look into the outbox soon; returns at once."""
        self._wake.set()

    def finish(self) -> None:
        """Give it a last look, and wait until it has ended, for `linger_s` at most."""
        self._over.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(self._linger_s)
        if self._thread.is_alive():
            log.warning(
                "messages were not delivered within %g s; `keikaku patch worker --once` tries again",
                self._linger_s,
            )

    def _run(self) -> None:
        over = False
        while not over:
            # Asked for before the look, so that the last look sees what was written before `finish`.
            over = self._over.is_set()
            self._wake.clear()
            try:
                self._sender.deliver_due(self._linger_s if over else None)
            except (KeikakuError, psycopg.Error, OSError, RuntimeError) as error:
                log.warning("no messages could be sent now: %s", type(error).__name__)
            if not over:
                self._wake.wait(_LOOK_S)
                # What wakes it is written just before its transaction is committed.
                self._over.wait(_SETTLE_S)
