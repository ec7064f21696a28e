"""What a comparison says: frozen values, ready for JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from datetime import datetime


@dataclass(frozen=True, slots=True)
class ComparedSide:
    """What was compared."""

    #: ``snapshot`` or ``live``.
    kind: str
    #: Name of the snapshot or of the database.
    name: str
    #: Version of the snapshot; empty for the database.
    version: str
    #: Path of the file, or host, port and name of the database.
    location: str
    #: When the data were so; aware UTC.
    at: datetime


@dataclass(frozen=True, slots=True)
class RowChange:
    """A row that differs, values as PostgreSQL writes them, None for NULL."""

    #: What happened to it on the way from the one side to the other.
    change: Literal["added", "removed", "changed"]
    #: Columns that identify it; empty for a table without key.
    key: dict[str, str | None] = field(hash=False)
    #: The row as it was; of a changed one only the columns that changed. None when it is new.
    old: dict[str, str | None] | None = field(hash=False)
    #: The row as it is, likewise; None when it is gone.
    new: dict[str, str | None] | None = field(hash=False)
    #: How many such rows; other than 1 only for a table without key.
    times: int = 1


@dataclass(frozen=True, slots=True)
class TableDifference:
    """How one table differs; a partitioned table counts as one."""

    #: ``schema.table``.
    name: str
    #: ``changed`` when rows or columns differ.
    status: Literal["same", "added", "removed", "changed"]
    #: Rows of the one side; None when it has no such table.
    rows_before: int | None
    #: Rows of the other side, likewise.
    rows_after: int | None
    #: Rows that only the other side has.
    added: int
    #: Rows that only the one side has.
    removed: int
    #: Rows of the same key whose other columns differ.
    changed: int
    #: Columns by which rows were matched; empty when whole rows were compared.
    key: tuple[str, ...]
    #: Changed rows by column.
    changed_columns: dict[str, int] = field(hash=False)
    #: Columns that only the other side has; rows are compared by the common ones.
    columns_added: tuple[str, ...]
    #: Columns that only the one side has.
    columns_removed: tuple[str, ...]
    #: The first rows that differ, by key; as many as were asked for.
    rows: tuple[RowChange, ...] = ()


@dataclass(frozen=True, slots=True)
class SequenceDifference:
    """A sequence that stands elsewhere; None where there is no such sequence."""

    #: ``schema.sequence``.
    name: str
    #: Value last given out on the one side, or the next one when it was never called.
    before: int | None
    #: The same of the other side.
    after: int | None
    #: Whether the value of the one side was given out.
    called_before: bool | None
    #: The same of the other side.
    called_after: bool | None


@dataclass(frozen=True, slots=True)
class LargeObjectDifference:
    """How many large objects differ, matched by their number."""

    #: Large objects that only the other side has.
    added: int
    #: Large objects that only the one side has.
    removed: int
    #: Large objects whose content differs.
    changed: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """How two snapshots, or a snapshot and the database, differ."""

    #: True when nothing differs: schema, rows, sequences and large objects.
    same: bool
    #: The one side.
    before: ComparedSide
    #: The other side.
    after: ComparedSide
    #: What differs in the schema, in words, sorted by object.
    schema: tuple[str, ...]
    #: Every table of either side, sorted by name.
    tables: tuple[TableDifference, ...]
    #: Sequences that stand elsewhere.
    sequences: tuple[SequenceDifference, ...]
    #: Large objects that differ.
    large_objects: LargeObjectDifference
    #: Seconds it took.
    seconds: float
