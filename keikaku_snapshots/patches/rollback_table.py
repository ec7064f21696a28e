"""One table's part of a rollback: a group of rows goes back in a savepoint, or by halves, or is put off."""
# ruff: noqa: S608 - SQL is put together from names that are quoted and constants of this package

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import psycopg

from keikaku_snapshots.patches.records_schema import SCHEMA
from keikaku_snapshots.patches.rollback_net import net_name
from keikaku_snapshots.postgres.url import quote_identifier

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from keikaku_snapshots.patches.rollback_sql import Kind, TableSql
    from keikaku_snapshots.postgres.connect import Connection

#: Row locks that others hold, and deadlocks with them.
BUSY: Final = frozenset({"55P03", "40P01", "40001"})
_REFERRED_TO: Final = "23001"
TAKEN: Final = "23505"


class Verdict(NamedTuple):
    """What a look at a row said."""

    #: Its number.
    number: int
    #: Whether it is there.
    is_there: bool
    #: Whether something of it is as the run left it and can go back.
    is_to_do: bool
    #: Whether all is as it was before the run.
    is_done: bool
    #: Columns that somebody else changed since.
    columns: list[str]
    #: Whether rows refer to it that the rollback has not taken away.
    is_referred_to: bool
    #: Its key, as texts.
    key: list[str]


@dataclass(slots=True)
class Tally:
    """What was done with rows."""

    #: Changed back.
    restored: int = 0
    #: Found as they were before the run.
    already: int = 0
    #: Put off: number of the row and why.
    put_off: dict[int, str] = field(default_factory=dict)

    def add(self, other: Tally) -> None:
        """Count the rows of another group too."""
        self.restored += other.restored
        self.already += other.already
        self.put_off |= other.put_off


@dataclass(slots=True)
class TableRollback:
    """Takes back what a run did to one table."""

    #: Where to; the caller holds a transaction.
    connection: Connection
    #: The execution.
    execution_id: UUID
    #: Number of the table within it.
    number: int
    #: Its statements.
    sql: TableSql
    #: Restore the row as it was, whatever others made of it.
    force: bool
    #: Whether triggers of the user may change what is written.
    has_triggers: bool
    #: Whether it has columns by now that were not kept.
    has_more_columns: bool = False

    @property
    def name(self) -> str:
        """The table's name for people."""
        return self.sql.table.name.text

    def next_numbers(self, kind: Kind, after: int | None, limit: int) -> list[int]:
        """Return the rows of the next batch: those that were added from behind, the others from the front.

        Args:
            kind: What the run did.
            after: The last row of the batch before; None at the start.
            limit: How many.
        """
        # A row that refers to another of its own table is usually the younger one.
        order, beyond = ("DESC", "<") if kind == "a" else ("ASC", ">")
        condition = f" AND number {beyond} {after}" if after is not None else ""
        return self._numbers(
            f"SELECT number FROM {self._net} WHERE kind = '{kind}' AND state IS NULL{condition}"
            f" ORDER BY number {order} LIMIT {limit}"
        )

    def put_off(self, kind: Kind, *, backwards: bool = False) -> list[int]:
        """Return the rows that were put off.

        Args:
            kind: What the run did.
            backwards: The greatest number first.
        """
        order = "DESC" if backwards else "ASC"
        return self._numbers(
            f"SELECT number FROM {self._net} WHERE kind = '{kind}' AND state = 'd' ORDER BY number {order}"
        )

    def forget_conflicts(self) -> None:
        """Look again at rows that were conflicts when the rollback ran before."""
        self.connection.execute(f"UPDATE {self._net} SET state = 'd' WHERE state = 'c'".encode())
        self.connection.execute(
            f"DELETE FROM {SCHEMA}.conflict WHERE execution_id = %s AND table_name = %s",
            [self.execution_id, self.name],
        )

    def take_back(self, kind: Kind, numbers: Sequence[int]) -> Tally:
        """Take back a group of rows; what stands in the way of one is noted and does not stop the others.

        Args:
            kind: What the run did.
            numbers: Which rows.

        Returns:
            What was done. Rows that were put off are marked so.
        """
        try:
            with self.connection.transaction():
                tally = self._group(kind, numbers)
                # A deferred constraint would speak at COMMIT, when it is too late to put the row off.
                self.connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
        except psycopg.Error as error:
            state = error.sqlstate or ""
            if not (state in BUSY or state.startswith("23")):
                raise
            if len(numbers) == 1:
                return self._put_off(kind, {numbers[0]: state})
            locked = self._locked(kind, numbers) if state in BUSY else set()
            if locked:
                tally = self._put_off(kind, dict.fromkeys(locked, state))
                if rest := [number for number in numbers if number not in locked]:
                    tally.add(self.take_back(kind, rest))
                return tally
            half = len(numbers) // 2
            tally = self.take_back(kind, numbers[:half])
            tally.add(self.take_back(kind, numbers[half:]))
            return tally
        self.connection.execute("SET CONSTRAINTS ALL DEFERRED")
        return tally

    def _locked(self, kind: Kind, numbers: Sequence[int]) -> set[int]:
        """Find the rows that others have locked; from now on this batch waits no longer for any."""
        self.connection.execute("SET LOCAL lock_timeout = '100ms'")
        free = self._numbers(self.sql.lockable(kind, numbers))
        return set(self._numbers(self.sql.present(kind, numbers))) - set(free)

    def turn_round(self, numbers: Sequence[int]) -> int:
        """Take back changed rows all at once whose unique values have gone round.

        Args:
            numbers: Rows that were put off because a unique value is taken.

        Returns:
            How many were taken back: all, or none when that could change more than these rows.
        """
        acts = any(one.on_delete for one in self.sql.references)
        if acts or self.has_triggers or self.has_more_columns or len(numbers) < 2:
            return 0
        try:
            with self.connection.transaction():
                changed = self._changed("c", numbers)
                self._run(self.sql.lock("c", numbers, for_keys=True))
                verdicts = self.look("c", numbers)
                if not all(one.is_there and one.is_to_do for one in verdicts):
                    return 0
                written = self._run(self.sql.replace(numbers, changed))
                for verdict, why in self.conflicts_of("c", verdicts).values():
                    self.record("c", verdict, why)
                clean = [one.number for one in verdicts if not one.columns]
                self._run(self.sql.mark("c", clean, ""))
                self.connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
                return written
        except psycopg.Error as error:
            if error.sqlstate in BUSY or (error.sqlstate or "").startswith("23"):
                return 0
            raise

    def look(self, kind: Kind, numbers: Sequence[int]) -> list[Verdict]:
        """Tell what is to be done with rows, and change nothing.

        Args:
            kind: What the run did.
            numbers: Which rows.
        """
        rows = self._fetch(self.sql.classify(kind, numbers, self._changed(kind, numbers)))
        return [Verdict(*row) for row in rows]

    def conflicts_of(self, kind: Kind, verdicts: Sequence[Verdict]) -> dict[int, tuple[Verdict, str]]:
        """Pick the rows that others have changed since, with what happened to them.

        Args:
            kind: What the run did.
            verdicts: Rows.
        """
        found = {}
        for one in verdicts:
            if kind == "c" and not one.is_there and not one.is_done:
                found[one.number] = (one, "deleted since")
            elif one.columns:
                found[one.number] = (one, "changed since")
            elif kind == "a" and one.is_there and not one.is_to_do:
                found[one.number] = (one, "added by the run, changed since")
            elif kind == "r" and one.is_there and not one.is_done:
                found[one.number] = (one, "removed by the run, added again since")
        return found

    def record(self, kind: Kind, verdict: Verdict, why: str) -> None:
        """Note a conflict: the key and the names of columns, never values.

        Args:
            kind: What the run did.
            verdict: The row.
            why: What happened to it.
        """
        self.connection.execute(
            f"INSERT INTO {SCHEMA}.conflict (execution_id, table_name, key, columns, why)"
            " VALUES (%s, %s, %s, %s, %s)",
            [self.execution_id, self.name, verdict.key, verdict.columns, why],
        )
        self._run(self.sql.mark(kind, [verdict.number], "c"))

    def _group(self, kind: Kind, numbers: Sequence[int]) -> Tally:
        changed = self._changed(kind, numbers)
        referred = {quote_identifier(name) for one in self.sql.references for name, _, _ in one.columns}
        for_keys = kind != "c" or any(column.identifier in referred for column in changed)
        self._run(self.sql.lock(kind, numbers, for_keys=for_keys))
        verdicts = [Verdict(*row) for row in self._fetch(self.sql.classify(kind, numbers, changed))]
        conflicts = {} if self.force else self.conflicts_of(kind, verdicts)
        tally = Tally(already=sum(one.is_done for one in verdicts))
        # With force, everything but a row that was to go and is gone already.
        todo = [one for one in verdicts if not one.is_done and (one.is_to_do or self.force)]
        waiting = self._referred_to(todo) if kind == "a" else {}
        todo = [one for one in todo if one.number not in waiting]
        tally.restored = self._do(kind, todo, changed)
        missing = self._look_again(kind, todo, conflicts)
        for verdict, why in conflicts.values():
            self.record(kind, verdict, why)
        settled = [one.number for one in verdicts if one.number not in {*conflicts, *waiting, *missing}]
        self._run(self.sql.mark(kind, settled, ""))
        tally.add(self._put_off(kind, waiting | missing))
        return tally

    def _referred_to(self, todo: Sequence[Verdict]) -> dict[int, str]:
        """Find rows that cannot go, or would take others along that stay."""
        waiting = {one.number for one in todo if one.is_referred_to}
        while True:
            going = [one.number for one in todo if one.number not in waiting]
            query = self.sql.kept_by_own_rows(going) if going else ""
            kept = self._numbers(query) if query else []
            if not kept:
                return dict.fromkeys(waiting, _REFERRED_TO)
            waiting.update(kept)

    def _do(self, kind: Kind, todo: Sequence[Verdict], changed: Sequence[Any]) -> int:
        """Bring rows back; returns how many were written."""
        there = [one.number for one in todo if one.is_there]
        absent = [one.number for one in todo if not one.is_there]
        written = 0
        if there and kind == "a":
            written += self._run(self.sql.delete(there))
        elif there:
            settable = [
                column
                for column in (changed if kind == "c" else self.sql.table.columns)
                if not column.is_identity_always
            ]
            written += self._run(self.sql.update(kind, there, settable, force=self.force))
        if absent and kind != "a":
            written += self._run(self.sql.insert(kind, absent))
        return written

    def _look_again(
        self, kind: Kind, todo: Sequence[Verdict], conflicts: dict[int, tuple[Verdict, str]]
    ) -> dict[int, str]:
        """Find rows that were not put back as a unique value is taken, or that a trigger changed again."""
        absent = {one.number for one in todo if not one.is_there}
        numbers = [one.number for one in todo] if self.has_triggers else sorted(absent)
        if not numbers or kind == "a":
            return {}
        missing = {}
        for one in self.look(kind, numbers):
            if one.number in absent and not one.is_there:
                missing[one.number] = TAKEN
            elif not one.is_done and one.number not in conflicts:
                conflicts[one.number] = (one, "changed again by a trigger of the table")
        return missing

    def _put_off(self, kind: Kind, rows: dict[int, str]) -> Tally:
        if rows:
            self._run(self.sql.mark(kind, sorted(rows), "d"))
        return Tally(put_off=dict(rows))

    def _changed(self, kind: Kind, numbers: Sequence[int]) -> list[Any]:
        if kind != "c":
            return []
        flags = self._fetch(self.sql.changed_columns(numbers))[0]
        return [
            column for column, is_changed in zip(self.sql.table.columns, flags, strict=True) if is_changed
        ]

    @property
    def _net(self) -> str:
        return net_name(self.sql.names, self.sql.table)

    def _run(self, statement: str) -> int:
        # As bytes: a percent sign in a name is no placeholder.
        return self.connection.execute(statement.encode()).rowcount

    def _fetch(self, query: str) -> list[Any]:
        return self.connection.execute(query.encode()).fetchall()

    def _numbers(self, query: str) -> list[int]:
        return [row[0] for row in self._fetch(query)]
