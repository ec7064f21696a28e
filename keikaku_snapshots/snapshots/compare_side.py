"""One side of a comparison: its schema, and where the rows of its tables are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from keikaku_snapshots.postgres.catalog import TableName
    from keikaku_snapshots.snapshots.compare_rows import Blocks


@dataclass(frozen=True, slots=True)
class Source:
    """Some rows of a table: a COPY block, or a table or partition of the database."""

    #: Columns in the order of the rows.
    columns: tuple[str, ...]
    #: Gives the rows with these columns, in this order.
    read: Callable[[tuple[str, ...]], Blocks]
    #: Checksum of the file that has these rows and nothing else; empty where there is no such file.
    sha256: str = ""
    #: Rows in that file, where that is known.
    rows: int | None = None


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a comparison."""

    #: ``snapshot`` or ``live``.
    kind: str
    #: Name of the snapshot or of the database.
    name: str
    #: Version of the snapshot; empty for the database.
    version: str
    #: Path of the file, or host, port and name of the database.
    location: str
    #: When the data were as they are compared; aware UTC.
    at: datetime
    #: Major version of the server.
    server_major: int
    #: Digest of the schema.
    fingerprint: str
    #: Definitions by kind and name.
    objects: Mapping[str, str]
    #: Alembic revisions.
    alembic_heads: Sequence[str]
    #: Last value and whether it was called, by sequence.
    sequences: Mapping[str, tuple[int, bool]]
    #: Where the rows of each table are; partitions count for their root.
    tables: Mapping[TableName, list[Source]]
    #: Digest of each large object by its number.
    large_objects: Mapping[int, bytes] = field(default_factory=dict)


def in_order(sources: list[tuple[TableName, Source]]) -> list[Source]:
    """In the order of the partitions' names, so that equal sides have equal streams."""
    return [source for _, source in sorted(sources, key=lambda pair: pair[0])]
