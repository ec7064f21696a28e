"""Differences of two snapshots, or of a snapshot and the live database.

The schema is compared by its fingerprint, rows by their COPY text: by primary
key (or a unique constraint over NOT NULL columns), else as they are, each as
often as it occurs. Values are given back only where they are asked for,
because they may be personal data; counts, tables and columns always.
"""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

from keikaku_snapshots.errors import LockBusyError, ParameterTypeError, UsageError
from keikaku_snapshots.postgres import catalog
from keikaku_snapshots.postgres.rewrites import were_rewritten
from keikaku_snapshots.snapshots.compare_sources import live_side, snapshot_side
from keikaku_snapshots.snapshots.compare_tables import table_differences
from keikaku_snapshots.snapshots.compare_test_rows import check_sides, rows_side
from keikaku_snapshots.snapshots.comparison import (
    ComparedSide,
    Comparison,
    LargeObjectDifference,
    SequenceDifference,
    TableDifference,
)
from keikaku_snapshots.snapshots.manifest import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.progress import ProgressCallback
    from keikaku_snapshots.snapshots.compare_side import Side
    from keikaku_snapshots.snapshots.store import SnapshotStore

log = logging.getLogger("keikaku_snapshots.compare")

_Read: TypeAlias = "tuple[Side, Side, list[TableDifference]]"

#: What stands for the database instead of a snapshot.
LIVE: Final = "live"
#: How often the rows are read when each time a table is emptied before it was its turn.
_READINGS: Final = 3


@dataclass(frozen=True, slots=True)
class CompareOptions:
    """What the caller asked for, and where things are."""

    #: Rows that are given back of each table.
    rows: int = 0
    #: Where the programs are.
    pg_bin: Path | None = None
    #: Seconds to wait for a snapshot that is being replaced.
    lock_wait_s: float = 0
    #: Seconds to wait for a table that is being altered.
    lock_timeout_s: float = 3.0
    #: Megabytes that must stay free where an archive is unpacked.
    minimum_free_mb: int = 0


def compare(
    store: SnapshotStore,
    url: DatabaseURL | None,
    sides: tuple[object, object],
    options: CompareOptions,
    progress: ProgressCallback | None = None,
) -> Comparison:
    """Compare; see `SnapshotManager.compare_snapshots`.

    Args:
        store: Where the snapshots are.
        url: The database, for the side "live".
        sides: Names, ``name@version``, snapshots or "live".
        options: What the caller asked for.
        progress: Told the tables compared.

    Returns:
        The difference.

    Raises:
        UsageError: A side cannot be understood, or both are the database.
        SnapshotNotFoundError: There is no such snapshot.
        SnapshotCorruptError: A file is damaged.
        LockBusyError: Tables of the database are emptied again and again.
    """
    begun = time.monotonic()
    if isinstance(options.rows, bool) or not isinstance(options.rows, int):
        raise ParameterTypeError(f"rows must be a whole number, not {type(options.rows).__name__}")
    if options.rows < 0:
        raise UsageError(f"rows cannot be negative: {options.rows}")
    found = [resolve(store, side) for side in sides]
    if found == [None, None]:
        raise UsageError("both sides are the live database", hint="Name a snapshot for one of them.")
    before, after, tables = _read_again(partial(_read, store, url, found, options, progress))
    schema = schema_lines(before, after)
    sequences = sequence_differences(before.sequences, after.sequences)
    large_objects = large_object_difference(before.large_objects, after.large_objects)
    differs = schema or sequences or large_objects != LargeObjectDifference(0, 0, 0)
    comparison = Comparison(
        same=not differs and all(table.status == "same" for table in tables),
        before=_told(before),
        after=_told(after),
        schema=tuple(schema),
        tables=tuple(tables),
        sequences=tuple(sequences),
        large_objects=large_objects,
        seconds=time.monotonic() - begun,
    )
    log.info("compared %s and %s in %.2f s", before.name, after.name, comparison.seconds)
    return comparison


def resolve(store: SnapshotStore, side: object) -> Snapshot | None:
    """Find what a side names.

    Args:
        store: Where the snapshots are.
        side: A name, ``name@version``, a snapshot or "live".

    Returns:
        The snapshot; None for the database.

    Raises:
        SnapshotNotFoundError: There is none.
        ParameterTypeError: It is something else.
    """
    if isinstance(side, Snapshot):
        return side
    if not isinstance(side, str):
        raise ParameterTypeError(
            f"a side of a comparison is a name, a snapshot or {LIVE!r}, not {type(side).__name__}"
        )
    if side == LIVE:
        return None
    name, at, version = side.partition("@")
    return store.find(name, version if at else None)


def _read_again(read: Callable[[], _Read]) -> _Read:
    """Read again when a table was emptied and filled under our eyes; who did it has ended by then."""
    for _ in range(_READINGS - 1):
        try:
            return read()
        except LockBusyError as error:
            if not were_rewritten(error):
                raise
            log.info("comparing again: %s", error.what)
    return read()


def _read(
    store: SnapshotStore,
    url: DatabaseURL | None,
    found: list[Snapshot | None],
    options: CompareOptions,
    progress: ProgressCallback | None,
) -> _Read:
    with contextlib.ExitStack() as stack:
        before, after = _open_sides(stack, store, url, found, options)
        tables = table_differences(
            before, after, keep=options.rows, directory=store.directory, progress=progress
        )
    return before, after, tables


def _open_sides(
    stack: contextlib.ExitStack,
    store: SnapshotStore,
    url: DatabaseURL | None,
    found: list[Snapshot | None],
    options: CompareOptions,
) -> tuple[Side, Side]:
    """Open both; files are checked before the database is asked, whose transaction should be short."""
    sides: dict[int, Side] = {}
    test_rows = check_sides(found)
    for place, snapshot in enumerate(found):
        if snapshot is not None:
            sides[place] = stack.enter_context(_open(store, snapshot, options))
    for place, snapshot in enumerate(found):
        if snapshot is None and url is not None:
            sides[place] = stack.enter_context(
                live_side(url, lock_timeout_s=options.lock_timeout_s, test_rows=test_rows)
            )
    return sides[0], sides[1]


@contextlib.contextmanager
def _open(store: SnapshotStore, snapshot: Snapshot, options: CompareOptions) -> Iterator[Side]:
    with store.reading(snapshot, wait_s=options.lock_wait_s) as opened:
        if snapshot.format == "json":
            with rows_side(opened, minimum_free_mb=options.minimum_free_mb) as side:
                yield side
            return
        with snapshot_side(opened, pg_bin=options.pg_bin, minimum_free_mb=options.minimum_free_mb) as side:
            yield side


def _told(side: Side) -> ComparedSide:
    return ComparedSide(side.kind, side.name, side.version, side.location, side.at)


# -- schema, sequences, large objects -----------------------------------------------------


def schema_lines(before: Side, after: Side) -> list[str]:
    """Say in words what differs in the schema.

    Args:
        before: The one side.
        after: The other side.

    Returns:
        Lines; empty when the schemas agree. Servers of different major
        versions word definitions differently, so names and types count there.
    """
    lines = []
    heads = [", ".join(side.alembic_heads) or "none" for side in (before, after)]
    if heads[0] != heads[1]:
        lines.append(f"Alembic revision: {heads[0]} → {heads[1]}")
    if before.server_major == after.server_major:
        return lines + catalog.difference(before.objects, after.objects)
    return lines + catalog.difference(catalog.portable(before.objects), catalog.portable(after.objects))


def sequence_differences(
    before: Mapping[str, tuple[int, bool]], after: Mapping[str, tuple[int, bool]]
) -> list[SequenceDifference]:
    """List the sequences that stand elsewhere.

    Args:
        before: States of the one side by name.
        after: States of the other side.

    Returns:
        Differences, sorted by name.
    """
    found = []
    for name in sorted({*before, *after}):
        old, new = before.get(name), after.get(name)
        if old != new:
            values = (old[0] if old else None, new[0] if new else None)
            called = (old[1] if old else None, new[1] if new else None)
            found.append(SequenceDifference(name, *values, *called))
    return found


def large_object_difference(before: Mapping[int, bytes], after: Mapping[int, bytes]) -> LargeObjectDifference:
    """Count the large objects that differ.

    Args:
        before: Digests of the one side by number.
        after: Digests of the other side.

    Returns:
        Numbers.
    """
    return LargeObjectDifference(
        added=len(after.keys() - before.keys()),
        removed=len(before.keys() - after.keys()),
        changed=sum(before[oid] != after[oid] for oid in before.keys() & after.keys()),
    )
