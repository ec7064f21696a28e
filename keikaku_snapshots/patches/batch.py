"""One batch: one transaction with the work, its undo, the cursor and a line in the log."""

from __future__ import annotations

import gc
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import sql

from keikaku_snapshots.patches import apply
from keikaku_snapshots.patches.definition import RowPatch, SqlPatch
from keikaku_snapshots.patches.keyset import Key, Range, key_values, next_range
from keikaku_snapshots.patches.points import reached
from keikaku_snapshots.patches.row_based import read_rows, transform
from keikaku_snapshots.patches.set_based import Counts, SetBased

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from psycopg.sql import Composable

    from keikaku_snapshots.patches.context import PatchContext
    from keikaku_snapshots.patches.plan import Plan
    from keikaku_snapshots.patches.settings import PatchSettings
    from keikaku_snapshots.postgres.connect import Connection

#: Rows keep their key, so that inserting a row that refers to them does not have to wait.
_LOCKING: Final = "FOR NO KEY UPDATE"
#: The index of the key is always the right way here, whatever the statistics say of a table in change;
#: compiling expressions anew for each statement costs more than it saves.
_PLANNER: Final = "SET LOCAL enable_seqscan = off; SET LOCAL jit = off"


@contextmanager
def _collector_at_rest() -> Iterator[None]:
    """Do not look for cycles among the rows of a batch again and again; the limit of memory still holds."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class CommitInDoubtError(Exception):
    """The connection was lost after COMMIT had been sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchResult:
    """What a batch did."""

    #: When it began.
    started_at: datetime
    #: Seconds it took; with the commit, where it was committed.
    seconds: float
    #: Rows that it was allowed.
    size: int
    #: Key of the last row that was looked at; None for a batch of rows that had been put off.
    cursor: Key | None
    #: What became of the rows.
    counts: Counts
    #: Keys of rejected rows and why.
    rejects: tuple[tuple[Key, str], ...] = ()
    #: Keys of rows that others had locked and that are put off.
    deferred: tuple[Key, ...] = ()


class BatchProcessor:
    """Runs single batches of a patch; knows nothing of the run as a whole.

    Args:
        plan: Patch, tables and parameters.
        context: What the patch gets to know.
        settings: Timeouts of the patch.
        switch: Statement that turns undo capture on for a transaction; None for no capture.
        advance: Moves the cursor in the batch's transaction; raises when this worker may not go on.
        check: Raises when memory or time is used up; called while Python is at work.
        idle_timeout_s: Seconds after which the server ends a transaction whose worker is silent.
    """

    def __init__(
        self,
        plan: Plan,
        context: PatchContext,
        settings: PatchSettings,
        *,
        switch: Composable | None = None,
        advance: Callable[[Connection, BatchResult], None] | None = None,
        check: Callable[[], None] = lambda: None,
        idle_timeout_s: float = 30.0,
    ) -> None:
        self.plan = plan
        self._context = context
        self._check = check
        self._advance = advance
        patch = plan.patch
        self._set_based = (
            SetBased(patch, plan.targets[0], plan.walked) if isinstance(patch, SqlPatch) else None
        )
        wrong = patch.verify_batch() if isinstance(patch, RowPatch) else ""
        self._wrong = sql.SQL("({}) IS NOT TRUE").format(sql.SQL(wrong)) if wrong else None
        self._opening = opening(settings, idle_timeout_s, switch)

    def process(
        self,
        connection: Connection,
        after: Key | None,
        upper: Key,
        size: int,
        *,
        skip_locked: bool = False,
    ) -> BatchResult | None:
        """Do the next batch in a transaction of its own.

        Args:
            connection: In autocommit.
            after: Key of the last row that was worked on.
            upper: Greatest key of the run.
            size: Most rows.
            skip_locked: Whether rows that others have locked are put off in place of being waited for.

        Returns:
            What it did, committed; None at the end of the table, when nothing was done.

        Raises:
            psycopg.Error: The server refused something; nothing of the batch is left.
            CommitInDoubtError: Nobody knows whether it was committed.
        """
        return transaction(
            connection,
            self._opening,
            lambda: self.apply(connection, after, upper, size, skip_locked=skip_locked),
            self._advance,
        )

    def process_keys(self, connection: Connection, keys: Sequence[Key]) -> BatchResult:
        """Do a batch of rows that had been put off, in a transaction of its own.

        Args:
            connection: In autocommit.
            keys: Their keys.

        Returns:
            What it did, committed.

        Raises:
            psycopg.Error: The server refused something; nothing of the batch is left.
            CommitInDoubtError: Nobody knows whether it was committed.
        """
        result = transaction(
            connection, self._opening, lambda: self.apply_keys(connection, keys), self._advance
        )
        assert result is not None
        return result

    def apply(
        self, connection: Connection, after: Key | None, upper: Key, size: int, *, skip_locked: bool = False
    ) -> BatchResult | None:
        """Do the next batch in the caller's transaction.

        Args:
            connection: In a transaction.
            after: Key of the last row that was worked on.
            upper: Greatest key of the run.
            size: Most rows.
            skip_locked: Whether rows that others have locked are put off.

        Returns:
            What it did; None at the end of the table.
        """
        began, started_at = time.monotonic(), datetime.now(UTC)
        keyset = self.plan.walked
        found = next_range(connection, keyset, after, upper, size)
        if found is None:
            return None
        rows, matched = found
        deferred: tuple[Key, ...] = ()
        counts = Counts(0, 0, 0, 0)
        rejects: tuple[tuple[Key, str], ...] = ()
        if matched:
            condition: Composable = keyset.matching(rows)
            values = dict(keyset.values)
            if skip_locked:
                deferred, condition, values = self._free(connection, rows)
            still_to_come = keyset.matching(Range(rows.upper, upper))
            counts, rejects = self._work(connection, condition, values, still_to_come)
        return BatchResult(
            started_at=started_at,
            seconds=time.monotonic() - began,
            size=size,
            cursor=rows.upper,
            counts=counts,
            rejects=rejects,
            deferred=deferred,
        )

    def apply_keys(self, connection: Connection, keys: Sequence[Key]) -> BatchResult:
        """Do a batch of given rows in the caller's transaction; those that no longer match are left out.

        Args:
            connection: In a transaction.
            keys: Their keys.

        Returns:
            What it did.
        """
        began, started_at = time.monotonic(), datetime.now(UTC)
        condition, values = self._among(keys)
        counts, rejects = self._work(connection, condition, values)
        return BatchResult(
            started_at=started_at,
            seconds=time.monotonic() - began,
            size=len(keys),
            cursor=None,
            counts=counts,
            rejects=rejects,
        )

    @_collector_at_rest()
    def _work(
        self,
        connection: Connection,
        condition: Composable,
        values: dict[str, Any],
        still_to_come: Composable | None = None,
    ) -> tuple[Counts, tuple[tuple[Key, str], ...]]:
        reached("before_dml")
        if self._set_based is not None:
            counts = self._set_based.run(connection, condition, values)
            rejects: tuple[tuple[Key, str], ...] = ()
        else:
            patch = self.plan.patch
            assert isinstance(patch, RowPatch)
            rows = read_rows(connection, patch, self.plan.walked, condition, values, _LOCKING)
            self._check()
            transformed = transform(self.plan, patch, rows, self._context, self._check)
            counts = apply.write(connection, self.plan, transformed, self._wrong, still_to_come)
            rejects = tuple(transformed.rejects)
        self._check()
        reached("after_dml")
        return counts, rejects

    def _free(
        self, connection: Connection, rows: Range
    ) -> tuple[tuple[Key, ...], Composable, dict[str, Any]]:
        """Lock what is free of a range: the keys that are not, and the condition of those that are."""
        keyset = self.plan.walked
        base = sql.SQL("SELECT {} FROM {} WHERE {}{}").format(
            keyset.key_texts, keyset.table, keyset.matching(rows), keyset.order()
        )
        locked = connection.execute(base + sql.SQL(f" {_LOCKING} SKIP LOCKED"), keyset.values)
        free = [tuple(row) for row in locked]
        every = [tuple(row) for row in connection.execute(base, keyset.values)]
        condition, values = self._among(free)
        return tuple(sorted(set(every) - set(free))), condition, values

    def _among(self, keys: Sequence[Key]) -> tuple[Composable, dict[str, Any]]:
        keyset = self.plan.walked
        if not keys:
            return sql.SQL("false"), dict(keyset.values)
        source, values = key_values(keys, keyset)
        condition = sql.SQL("({}) IN (SELECT {} FROM {}) AND ({})").format(
            keyset.key,
            sql.SQL(", ").join(
                sql.SQL("v.{}::{}").format(name, sql.SQL(kind))
                for name, kind in zip(keyset.names, keyset.types, strict=True)
            ),
            source,
            keyset.where,
        )
        return condition, keyset.values | values


def transaction(
    connection: Connection,
    begin: sql.Composed,
    work: Callable[[], BatchResult | None],
    advance: Callable[[Connection, BatchResult], None] | None,
) -> BatchResult | None:
    """Run some work, the move of the cursor and COMMIT as one transaction.

    Args:
        connection: In autocommit.
        begin: From `opening`.
        work: Does the batch; None when there was nothing to do.
        advance: Moves the cursor; raises when this worker may not go on.

    Returns:
        What the work returned, with the time of the commit.

    Raises:
        psycopg.Error: The server refused something; nothing of the batch is left.
        CommitInDoubtError: Nobody knows whether it was committed.
    """
    began = time.monotonic()
    try:
        connection.execute(begin)
        result = work()
        if result is not None:
            reached("before_cursor")
            if advance is not None:
                advance(connection, result)
            reached("after_cursor")
    except BaseException:
        _roll_back(connection)
        raise
    if result is None:
        _roll_back(connection)
        return None
    commit(connection)
    return replace(result, seconds=time.monotonic() - began)


def commit(connection: Connection) -> None:
    """Commit a transaction.

    Args:
        connection: In a transaction.

    Raises:
        psycopg.Error: The server refused; nothing is left.
        CommitInDoubtError: The connection was lost, and nobody knows whether it was committed.
    """
    reached("before_commit")
    try:
        connection.execute("COMMIT")
    except psycopg.Error as error:
        if connection.broken or error.sqlstate is None or error.sqlstate.startswith(("08", "57P")):
            raise CommitInDoubtError from error
        raise
    reached("after_commit")


def _roll_back(connection: Connection) -> None:
    # A connection that is lost while it rolls back has rolled back; the first error tells more.
    if not connection.broken:
        with suppress(psycopg.Error):
            connection.execute("ROLLBACK")


def opening(settings: PatchSettings, idle_timeout_s: float, switch: Composable | None) -> sql.Composed:
    """Return the statements that begin a batch's transaction, sent in one go.

    Args:
        settings: Timeouts of the patch.
        idle_timeout_s: Seconds after which the server ends a transaction whose worker is silent.
        switch: Statement that turns undo capture on; None for no capture.
    """
    limits = {
        "lock_timeout": settings.lock_timeout_s,
        "statement_timeout": settings.statement_timeout_s,
        "idle_in_transaction_session_timeout": idle_timeout_s,
    }
    statements: list[Composable] = [sql.SQL("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE")]
    statements += [
        sql.SQL("SET LOCAL {} = {}").format(sql.SQL(name), sql.Literal(round(seconds * 1000)))
        for name, seconds in limits.items()
    ]
    statements.append(sql.SQL(_PLANNER))
    if switch is not None:
        statements.append(switch)
    return sql.SQL("; ").join(statements)
