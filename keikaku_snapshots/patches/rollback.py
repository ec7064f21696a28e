"""Take a run back: compensation row by row, which keeps what others have written since.

Rows that the run added are deleted, children first; rows that it removed are
put back, parents first; then changed columns. What stands in each other's way
is put off and tried again when the rest is done. Every batch is a transaction
that notes how far it came, so a rollback that was interrupted is called again
and goes on.
"""
# ruff: noqa: S608 - SQL is put together from names that are quoted and constants of this package

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from keikaku_snapshots.errors import PatchRollbackError
from keikaku_snapshots.patches.points import reached
from keikaku_snapshots.patches.ports import RolledBack
from keikaku_snapshots.patches.records import BatchRecord, lease_lost, log_batch
from keikaku_snapshots.patches.records_schema import SCHEMA
from keikaku_snapshots.patches.rollback_net import has_net, make_net
from keikaku_snapshots.patches.rollback_prepare import tables_to_roll_back
from keikaku_snapshots.patches.rollback_table import BUSY, TAKEN, TableRollback, Tally
from keikaku_snapshots.patches.undo import UndoTable, undo_tables
from keikaku_snapshots.postgres.capture import STYLES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from keikaku_snapshots.patches.execution import Execution
    from keikaku_snapshots.patches.rollback_sql import Kind
    from keikaku_snapshots.patches.settings import OnConflict
    from keikaku_snapshots.postgres.connect import Connection

_KINDS: Final[tuple[Kind, ...]] = ("a", "r", "c")
_END: Final = "end"
#: Keys that an error shows.
_SHOWN: Final = 20
_WHY: Final = {
    "23001": "other rows refer to it",
    "23503": "a row that it refers to, or that refers to it, stands in the way",
    "23505": "its unique value is taken",
}


def roll_back(
    connection: Connection,
    execution: Execution,
    *,
    on_conflict: OnConflict = "skip_and_report",
    batch_size: int = 1000,
    before_batch: Callable[[], None] = lambda: None,
    lock_wait_s: float = 30.0,
) -> RolledBack:
    """Take back what an execution has committed; called again, it goes on, and in the end does nothing.

    Args:
        connection: In autocommit; nobody else works on the execution.
        execution: The execution, with the lease of this worker.
        on_conflict: What to do where somebody else has changed since what the run had changed: leave and
            note it; do nothing at all (one transaction, all or nothing); or restore what was before the run.
        batch_size: Rows of a transaction.
        before_batch: Called ahead of each transaction; may raise to stop.
        lock_wait_s: Seconds to go on trying while nothing but rows that others have locked is left.

    Returns:
        What was done; conflicts are all that the execution has.

    Raises:
        PatchRollbackError: Nothing was done because of conflicts ("abort"), rows stayed locked, a table was
            altered, or its undo is no longer kept.
        LeaseLostError: Another worker has taken the execution over.
    """
    known = undo_tables(connection, execution.execution_id)
    if not known:
        if execution.batch_number == 0:
            return RolledBack(0, 0, 0, 0)
        raise PatchRollbackError(
            "the undo of this execution is no longer kept",
            found=f"Execution: {execution.execution_id}",
            hint="Use the dump that was made before the run, if there is one (its backup reference).",
            hint_ja="実行前のダンプ(バックアップ参照)があれば、それを使用してください。",
        )
    work = _Rollback(connection, execution, batch_size, before_batch, lock_wait_s)
    work.prepare(known, force=on_conflict == "force")
    if on_conflict == "abort":
        work.all_or_nothing()
    else:
        work.batches()
    return RolledBack(work.tally.restored, work.tally.already, work.conflicts(), work.transactions)


@dataclass(slots=True)
class _Rollback:
    """A rollback at work."""

    connection: Connection
    execution: Execution
    batch_size: int
    before_batch: Callable[[], None]
    lock_wait_s: float
    #: Tables, those that others refer to first.
    tables: list[TableRollback] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    #: Why a row was put off, by table, kind and number.
    put_off: dict[tuple[int, str, int], str] = field(default_factory=dict)
    transactions: int = 0
    #: True while all is one transaction.
    is_single: bool = False

    def prepare(self, known: tuple[UndoTable, ...], *, force: bool) -> None:
        """Read the catalog, and make the net effect of each log where this is not done yet."""
        self.tables = tables_to_roll_back(self.connection, self.execution.execution_id, known, force=force)
        for one in self.tables:
            if not has_net(self.connection, one.sql.names, one.sql.table):
                with self._transaction(by_index=False):
                    make_net(self.connection, one.sql.names, one.sql.table)

    def batches(self) -> None:
        """Take everything back in batches."""
        with self._transaction():
            for one in self.tables:
                one.forget_conflicts()
        for kind in _KINDS:
            for one in self._in_order(kind):
                while self._batch(one, kind):
                    reached("in_rollback")
        self._try_again()
        if self._turn_round():
            self._try_again()
        self._leave_rest()
        with self._transaction():
            self.connection.execute(
                f"UPDATE {SCHEMA}.undo SET rollback_done = true WHERE execution_id = %s",
                [self.execution.execution_id],
            )

    def all_or_nothing(self) -> None:
        """Take everything back in one transaction, unless there is a conflict."""
        self._refuse_conflicts([key for one in self.tables for key in self._look(one)])
        with self.connection.transaction():
            self.is_single = True
            try:
                self.batches()
                self._refuse_conflicts(self._conflict_keys())
            finally:
                self.is_single = False
            self._fence()

    def _look(self, one: TableRollback) -> Iterator[str]:
        """Yield what would be a conflict, and change nothing."""
        for kind in _KINDS:
            after: int | None = None
            while True:
                with self._settings():
                    numbers = one.next_numbers(kind, after, self.batch_size)
                    found = one.conflicts_of(kind, one.look(kind, numbers)) if numbers else {}
                for verdict, why in found.values():
                    yield f"{one.name} {', '.join(verdict.key)}: {why}"
                if not numbers:
                    break
                after = numbers[-1]

    def _conflict_keys(self) -> list[str]:
        rows = self.connection.execute(
            f"SELECT table_name, key, why FROM {SCHEMA}.conflict WHERE execution_id = %s",
            [self.execution.execution_id],
        ).fetchall()
        return [f"{table} {', '.join(key)}: {why}" for table, key, why in rows]

    def _refuse_conflicts(self, found: list[str]) -> None:
        if found:
            raise PatchRollbackError(
                f"{len(found):,} rows were changed by others since; nothing was taken back",
                found=_shown(found),
                hint="Decide about these rows, then roll back with on_conflict=skip_and_report (keeps newer "
                "values) or force (restores the values from before the run).",
                hint_ja="対象行を確認し、on_conflict=skip_and_report(新しい値を保持)または "
                "force(実行前の値に戻す)でロールバックしてください。",
            )

    def _in_order(self, kind: Kind) -> list[TableRollback]:
        return self.tables[::-1] if kind == "a" else self.tables

    def _batch(self, one: TableRollback, kind: Kind) -> bool:
        """Take back one batch; returns False when there was nothing left."""
        with self._transaction() as report:
            after = self._cursor(one, kind)
            if after == _END:
                return False
            numbers = one.next_numbers(kind, int(after) if after else None, self.batch_size)
            if numbers:
                self._take_back(one, kind, numbers, report)
            self.connection.execute(
                f"UPDATE {SCHEMA}.undo SET rollback_cursor = %s WHERE execution_id = %s AND number = %s",
                [[kind, str(numbers[-1]) if numbers else _END], self.execution.execution_id, one.number],
            )
        return bool(numbers)

    def _cursor(self, one: TableRollback, kind: Kind) -> str:
        row = self.connection.execute(
            f"SELECT rollback_cursor FROM {SCHEMA}.undo WHERE execution_id = %s AND number = %s",
            [self.execution.execution_id, one.number],
        ).fetchone()
        if row is None or row[0] is None:
            return ""
        at, number = row[0]
        if at == kind:
            return str(number)
        return _END if _KINDS.index(kind) < _KINDS.index(at) else ""

    def _take_back(self, one: TableRollback, kind: Kind, numbers: list[int], report: _Report) -> None:
        done = one.take_back(kind, numbers)
        report.processed += len(numbers)
        report.changed += done.restored
        self.tally.restored += done.restored
        self.tally.already += done.already
        for number in numbers:
            if number not in done.put_off:
                self.put_off.pop((one.number, kind, number), None)
        for number, state in done.put_off.items():
            self.put_off[one.number, kind, number] = state

    def _try_again(self) -> None:
        """Try rows that were put off until none of them moves any more."""
        progress_at = time.monotonic()
        waiting, backwards, pause_s = self._waiting(), False, 0.05
        while waiting:
            backwards = not backwards
            for kind in _KINDS:
                for one in self._in_order(kind):
                    with self._settings():
                        numbers = one.put_off(kind, backwards=backwards)
                    for start in range(0, len(numbers), self.batch_size):
                        with self._transaction() as report:
                            self._take_back(one, kind, numbers[start : start + self.batch_size], report)
            left = self._waiting()
            if left < waiting:
                progress_at, pause_s = time.monotonic(), 0.05
            elif not self._is_locked():
                # Once more from the other side, for rows that wait for each other in that order.
                if backwards:
                    continue
                return
            elif time.monotonic() > progress_at + self.lock_wait_s:
                return
            else:
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, 1.0)
            waiting = left

    def _turn_round(self) -> int:
        """Take back rows whose unique values have gone round, which no order of updates could."""
        turned = 0
        for one in self.tables:
            ring = sorted(
                number
                for (table, kind, number), state in self.put_off.items()
                if (table, kind, state) == (one.number, "c", TAKEN)
            )
            if len(ring) > 1:
                with self._transaction() as report:
                    report.changed = report.processed = one.turn_round(ring)
                    turned += report.changed
        self.tally.restored += turned
        return turned

    def _waiting(self) -> int:
        with self._settings():
            return sum(len(one.put_off(kind)) for one in self.tables for kind in _KINDS)

    def _is_locked(self) -> bool:
        return any(state in BUSY for state in self.put_off.values())

    def _leave_rest(self) -> None:
        """Note as conflicts the rows that cannot go back; rows that are only locked are no conflicts."""
        locked: list[str] = []
        for one in self.tables:
            for kind in _KINDS:
                with self._settings():
                    numbers = one.put_off(kind)
                for start in range(0, len(numbers), self.batch_size):
                    with self._transaction():
                        for verdict in one.look(kind, numbers[start : start + self.batch_size]):
                            state = self.put_off.get((one.number, kind, verdict.number), "")
                            if state in BUSY:
                                locked.append(f"{one.name} {', '.join(verdict.key)}")
                            else:
                                why = _WHY.get(state, f"a constraint forbids it (SQLSTATE {state})")
                                one.record(kind, verdict, why)
        if locked:
            raise PatchRollbackError(
                f"{len(locked):,} rows stayed locked by other sessions; all others were taken back",
                found=_shown(locked),
                hint="End the transactions that hold them, then run `keikaku patch rollback ID` again.",
                hint_ja="行をロックしているトランザクションを終了し、`keikaku patch rollback ID` を"
                "再度実行してください。",
            )

    def conflicts(self) -> int:
        """Count the conflicts that the execution has."""
        row = self.connection.execute(
            f"SELECT count(*) FROM {SCHEMA}.conflict WHERE execution_id = %s", [self.execution.execution_id]
        ).fetchone()
        return int(row[0]) if row else 0

    @contextmanager
    def _transaction(self, *, by_index: bool = True) -> Iterator[_Report]:
        """A batch: settings, work, its line in the log, and the proof that the execution is still ours."""
        self.before_batch()
        report = _Report(datetime.now(UTC), time.monotonic())
        with self._settings(by_index=by_index):
            yield report
            if report.processed:
                self._log(report)
            if not self.is_single:
                # Last, so that nobody who looks at the execution waits for the work.
                self._fence()
        self.transactions += 1

    @contextmanager
    def _settings(self, *, by_index: bool = True) -> Iterator[None]:
        with self.connection.transaction():
            settings = STYLES | _SETTINGS | (_BY_INDEX if by_index else {})
            calls = ", ".join("pg_catalog.set_config(%s, %s, true)" for _ in settings)
            self.connection.execute(f"SELECT {calls}", [text for pair in settings.items() for text in pair])
            self.connection.execute("SET CONSTRAINTS ALL DEFERRED")
            yield

    def _fence(self) -> None:
        row = self.connection.execute(
            f"SELECT FROM {SCHEMA}.execution WHERE execution_id = %s AND lease_token = %s FOR NO KEY UPDATE",
            [self.execution.execution_id, self.execution.lease_token],
        ).fetchone()
        if row is None:
            raise lease_lost(self.execution.execution_id)

    def _log(self, report: _Report) -> None:
        import psutil

        row = self.connection.execute(
            f"SELECT coalesce(max(number), 0) + 1 FROM {SCHEMA}.batch_log"
            " WHERE execution_id = %s AND phase = 'rollback'",
            [self.execution.execution_id],
        ).fetchone()
        record = BatchRecord(
            phase="rollback",
            number=row[0] if row else 1,
            started_at=report.started_at,
            seconds=time.monotonic() - report.begun,
            batch_size=self.batch_size,
            processed=report.processed,
            changed=report.changed,
            inconsistent=0,
            memory_bytes=psutil.Process().memory_info().rss,
        )
        log_batch(self.connection, self.execution.execution_id, record)


_SETTINGS: Final = {
    "lock_timeout": "1s",
    "statement_timeout": "0",
    "synchronous_commit": "on",
    "row_security": "off",
    "jit": "off",
}
#: The joins of a batch find few rows in large tables, whatever the statistics say.
_BY_INDEX: Final = {
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}


@dataclass(slots=True)
class _Report:
    """What a batch did."""

    started_at: datetime
    begun: float
    processed: int = 0
    changed: int = 0


def _shown(lines: list[str]) -> str:
    rest = len(lines) - _SHOWN
    return "\n".join([*lines[:_SHOWN], *([f"and {rest:,} more"] if rest > 0 else [])])
