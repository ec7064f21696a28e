"""The statements of a rollback: lock rows, tell what is to become of each, and bring it about.

Rows are named by their numbers in the table of net effects. ``f`` is the image
to go back to, ``l`` the one that the run left, ``t`` the row as it is now.
"""
# ruff: noqa: S608 - SQL is put together from names that are quoted and constants of this package

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from keikaku_snapshots.patches.rollback_net import net_name
from keikaku_snapshots.patches.undo_image import SAME, differs, kept_image, row_image, same
from keikaku_snapshots.postgres.capture import kept_value, literal
from keikaku_snapshots.postgres.capture_net import match
from keikaku_snapshots.postgres.url import quote_identifier

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from keikaku_snapshots.postgres.capture import CaptureNames
    from keikaku_snapshots.postgres.capture_owner import Cascade
    from keikaku_snapshots.postgres.capture_tables import CapturedColumn, CapturedTable

#: The run added the row, removed it, or changed it.
Kind: TypeAlias = Literal["a", "r", "c"]


@dataclass(frozen=True, slots=True)
class TableSql:
    """Makes the statements of one table."""

    #: Names of the capture.
    names: CaptureNames
    #: The table as it is now, with the columns that were kept.
    table: CapturedTable
    #: Foreign keys that refer to it.
    references: tuple[Cascade, ...]

    def _images(self, kind: Kind, numbers: Sequence[int], *, join: str = "") -> str:
        """FROM and WHERE: net effects with their images, and the rows as they are."""
        log = self.names.log(self.table)
        key = "l" if kind == "a" else "f"
        joins = {"a": ("l",), "r": ("f",), "c": ("f", "l")}[kind]
        seq = {"f": "first", "l": "last"}
        images = "".join(f" JOIN {log} {one} ON {one}.seq = n.{seq[one]}" for one in joins)
        on = match(self.table, "t", key)
        return (
            f"FROM {net_name(self.names, self.table)} n{images} {join} JOIN {self.table.only} t ON {on}"
            f" WHERE n.kind = '{kind}' AND n.number = ANY ({_array(numbers)})"
        )

    def lock(self, kind: Kind, numbers: Sequence[int], *, for_keys: bool) -> str:
        """Lock the rows that are there, in the order of their numbers.

        Args:
            kind: What the run did.
            numbers: Which rows.
            for_keys: They will go, or change where other rows may refer to.
        """
        strength = "UPDATE" if for_keys else "NO KEY UPDATE"
        rows = self._images(kind, numbers)
        return f"SELECT count(*) FROM (SELECT 1 {rows} ORDER BY n.number FOR {strength} OF t) locked"

    def lockable(self, kind: Kind, numbers: Sequence[int]) -> str:
        """Lock the rows that nobody else has locked, and return their numbers.

        Args:
            kind: What the run did.
            numbers: Which rows.
        """
        return f"SELECT n.number {self._images(kind, numbers)} ORDER BY n.number FOR UPDATE OF t SKIP LOCKED"

    def present(self, kind: Kind, numbers: Sequence[int]) -> str:
        """Return the numbers of the rows that are there.

        Args:
            kind: What the run did.
            numbers: Which rows.
        """
        return f"SELECT n.number {self._images(kind, numbers)}"

    def changed_columns(self, numbers: Sequence[int]) -> str:
        """Ask which columns the run changed in any of these rows; a Boolean for each column."""
        log = self.names.log(self.table)
        parts = ", ".join(
            f"coalesce(bool_or({differs(column, f'f.{column.kept}', f'l.{column.kept}')}), false)"
            for column in self.table.columns
        )
        return (
            f"SELECT {parts} FROM {net_name(self.names, self.table)} n JOIN {log} f ON f.seq = n.first"
            f" JOIN {log} l ON l.seq = n.last WHERE n.kind = 'c' AND n.number = ANY ({_array(numbers)})"
        )

    def classify(self, kind: Kind, numbers: Sequence[int], changed: Sequence[CapturedColumn]) -> str:
        """Tell of each row: its number, whether it is there, what is to be done, what stands against it.

        Args:
            kind: What the run did.
            numbers: Which rows.
            changed: Columns that the run changed in any of them; for rows that it changed.

        Returns:
            A query of number, is_there, is_to_do, is_done, the conflicting columns, is_referred_to, key.
        """
        table = self.table
        key = "l" if kind == "a" else "f"
        here = f"t.{table.key_columns()[0].identifier} IS NOT NULL"
        columns, referred = "'{}'::text[]", "false"
        if kind == "a":
            unchanged = f"({row_image(table, 't')} {SAME} {kept_image(table, 'l')} AND NOT n.is_broken)"
            to_do, done = f"({here} AND {unchanged})", f"NOT ({here})"
            referred = self._referred_to()
        elif kind == "r":
            to_do, done = (
                f"NOT ({here})",
                f"({here} AND {row_image(table, 't')} {SAME} {kept_image(table, 'f')})",
            )
        else:
            ours = [differs(column, f"f.{column.kept}", f"l.{column.kept}") for column in changed]
            left = [same(column, kept_value(column, "t."), f"l.{column.kept}") for column in changed]
            back = [same(column, kept_value(column, "t."), f"f.{column.kept}") for column in changed]
            to_do = f"({here} AND {_any(f'{o} AND {n}' for o, n in zip(ours, left, strict=True))})"
            # Where nothing differs in the end, it does not matter either whether the row is there.
            done = f"({_all(f'NOT {o} OR ({here} AND {b})' for o, b in zip(ours, back, strict=True))})"
            columns = _texts(
                f"CASE WHEN {here} AND {o} AND NOT {n} AND NOT {b} THEN {literal(_bare(column))} END"
                for column, o, n, b in zip(changed, ours, left, back, strict=True)
            )
        keys = ", ".join(f"pg_catalog.concat({key}.{column.kept})" for column in table.key_columns())
        rows = self._images(kind, numbers, join="LEFT")
        return (
            f"SELECT n.number, {here}, {to_do}, {done}, {columns}, {referred}, ARRAY[{keys}]::text[] {rows}"
            " ORDER BY n.number"
        )

    def _referred_to(self) -> str:
        """Whether rows of other tables refer to ``t``."""
        parts = []
        for reference in self.references:
            if reference.child_oid == self.table.oid:
                continue
            on = " AND ".join(
                f"t.{quote_identifier(theirs)} {operator} child.{quote_identifier(mine)}"
                for theirs, operator, mine in reference.columns
            )
            parts.append(f"EXISTS (SELECT FROM {reference.child} child WHERE {on})")
        return _any(parts)

    def kept_by_own_rows(self, numbers: Sequence[int]) -> str:
        """Ask which rows that the run added are referred to by rows of their own table that would stay.

        Args:
            numbers: Rows that would go, all together.

        Returns:
            A query of numbers; empty without a foreign key of the table to itself.
        """
        table = self.table
        own = [one for one in self.references if one.child_oid == table.oid]
        if not own:
            return ""
        log, net = self.names.log(table), net_name(self.names, table)
        refers = _any(
            " AND ".join(
                f"t.{quote_identifier(theirs)} {operator} child.{quote_identifier(mine)}"
                for theirs, operator, mine in one.columns
            )
            for one in own
        )
        goes = (
            f"SELECT FROM {net} g JOIN {log} gl ON gl.seq = g.last WHERE g.kind = 'a'"
            f" AND g.number = ANY ({_array(numbers)}) AND {match(table, 'child', 'gl')}"
        )
        rows = self._images("a", numbers)
        return (
            f"SELECT n.number {rows} AND EXISTS (SELECT FROM {table.only} child"
            f" WHERE {refers} AND NOT EXISTS ({goes}))"
        )

    def delete(self, numbers: Sequence[int]) -> str:
        """Delete rows that the run added.

        Args:
            numbers: Which rows.
        """
        log = self.names.log(self.table)
        return (
            f"DELETE FROM {self.table.only} t USING {net_name(self.names, self.table)} n"
            f" JOIN {log} l ON l.seq = n.last"
            f" WHERE n.kind = 'a' AND n.number = ANY ({_array(numbers)}) AND {match(self.table, 't', 'l')}"
        )

    def insert(self, kind: Kind, numbers: Sequence[int]) -> str:
        """Put back rows that are not there; one whose unique value is taken is passed over.

        Args:
            kind: What the run did.
            numbers: Which rows.
        """
        table = self.table
        columns = ", ".join(column.identifier for column in table.columns)
        values = ", ".join(f"f.{column.kept}{column.cast}" for column in table.columns)
        return (
            f"INSERT INTO {table.identifier} ({columns}) OVERRIDING SYSTEM VALUE"
            f" SELECT {values} FROM {net_name(self.names, table)} n JOIN {self.names.log(table)} f"
            f" ON f.seq = n.first WHERE n.kind = '{kind}' AND n.number = ANY ({_array(numbers)})"
            " ORDER BY n.number ON CONFLICT DO NOTHING"
        )

    def update(
        self, kind: Kind, numbers: Sequence[int], columns: Sequence[CapturedColumn], *, force: bool
    ) -> str:
        """Set columns of rows back.

        Args:
            kind: What the run did.
            numbers: Which rows.
            columns: Columns that may be set.
            force: Set them whatever they are; otherwise only what is as the run left it.
        """
        table, log = self.table, self.names.log(self.table)
        last = f" JOIN {log} l ON l.seq = n.last" if kind == "c" else ""
        sets = []
        for column in columns:
            value = f"f.{column.kept}{column.cast}"
            if not force:
                ours = differs(column, f"f.{column.kept}", f"l.{column.kept}")
                left = same(column, kept_value(column, "t."), f"l.{column.kept}")
                value = f"CASE WHEN {ours} AND {left} THEN {value} ELSE t.{column.identifier} END"
            sets.append(f"{column.identifier} = {value}")
        return (
            f"UPDATE {table.only} t SET {', '.join(sets)} FROM {net_name(self.names, table)} n"
            f" JOIN {log} f ON f.seq = n.first{last}"
            f" WHERE n.kind = '{kind}' AND n.number = ANY ({_array(numbers)}) AND {match(table, 't', 'f')}"
        )

    def replace(self, numbers: Sequence[int], columns: Sequence[CapturedColumn]) -> str:
        """Set columns back by taking all rows away and putting them there again, in one statement.

        For unique values that go round: no order of updates brings them back. A foreign key without an
        action of its own looks when the statement is over, and finds the rows where they were.

        Args:
            numbers: Which rows; the run changed them.
            columns: Columns that may be set.
        """
        table, log = self.table, self.names.log(self.table)
        settable = {column.identifier for column in columns}
        values = []
        for column in table.columns:
            value = f"t.{column.identifier}"
            if column.identifier in settable:
                ours = differs(column, f"f.{column.kept}", f"l.{column.kept}")
                left = same(column, kept_value(column, "t."), f"l.{column.kept}")
                value = f"CASE WHEN {ours} AND {left} THEN f.{column.kept}{column.cast} ELSE {value} END"
            values.append(f"{value} AS {column.kept}")
        into = ", ".join(column.identifier for column in table.columns)
        kept = ", ".join(f"w.{column.kept}" for column in table.columns)
        return (
            f"WITH gone AS (DELETE FROM {table.only} t USING {net_name(self.names, table)} n"
            f" JOIN {log} f ON f.seq = n.first JOIN {log} l ON l.seq = n.last WHERE n.kind = 'c'"
            f" AND n.number = ANY ({_array(numbers)}) AND {match(table, 't', 'f')}"
            f" RETURNING n.number, {', '.join(values)})"
            f" INSERT INTO {table.identifier} ({into}) OVERRIDING SYSTEM VALUE"
            # Sorting reads all of them before the first one is put back.
            f" SELECT {kept} FROM gone w ORDER BY w.number"
        )

    def mark(self, kind: Kind, numbers: Sequence[int], state: str) -> str:
        """Note the state of net effects: ``d`` put off, ``c`` conflict, empty for done.

        Args:
            kind: What the run did.
            numbers: Which rows.
            state: The state.
        """
        value = f"'{state}'" if state else "NULL"
        return (
            f"UPDATE {net_name(self.names, self.table)} SET state = {value}"
            f" WHERE kind = '{kind}' AND number = ANY ({_array(numbers)}) AND state IS DISTINCT FROM {value}"
        )


def _array(numbers: Sequence[int]) -> str:
    return f"'{{{','.join(map(str, numbers))}}}'::bigint[]"


def _any(conditions: Iterable[str]) -> str:
    parts = [f"({one})" for one in conditions]
    return f"({' OR '.join(parts)})" if parts else "false"


def _all(conditions: Iterable[str]) -> str:
    parts = [f"({one})" for one in conditions]
    return f"({' AND '.join(parts)})" if parts else "true"


def _texts(values: Iterable[str]) -> str:
    parts = list(values)
    return f"array_remove(ARRAY[{', '.join(parts)}]::text[], NULL)" if parts else "'{}'::text[]"


def _bare(column: CapturedColumn) -> str:
    """The column's name without the quotes of SQL."""
    return column.identifier[1:-1].replace('""', '"')
