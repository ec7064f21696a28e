"""Make a snapshot anew without anybody watching: data, dump, publish, verify, prune, under one lock."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from keikaku_snapshots.errors import RefusedError, UsageError
from keikaku_snapshots.generate import find_scale, generate_snapshot
from keikaku_snapshots.snapshots.lock import FileLock
from keikaku_snapshots.snapshots.names import check_name
from keikaku_snapshots.snapshots.store import SnapshotStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import date

    from keikaku_snapshots.config import Settings
    from keikaku_snapshots.datasets import Dataset, Generated, Scale
    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.progress import ProgressCallback
    from keikaku_snapshots.snapshots.manager import SnapshotManager
    from keikaku_snapshots.snapshots.manifest import Snapshot
    from keikaku_snapshots.snapshots.retention import PrunePlan, RetentionPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshOptions:
    """What one refresh makes."""

    #: Name of the snapshot; the dataset's own when None.
    name: str | None = None
    #: Dump the database as it is instead of generating data.
    dump_only: bool = False
    #: With ``dump_only``: a database without a single row is no mistake.
    allow_empty: bool = False
    #: Name of the dataset, or ``package.module:attribute``.
    dataset: str = "keikaku"
    #: Name of the scale.
    scale: str = "medium"
    #: The same seed, scale and reference date give the same data.
    seed: int = 0
    #: The day that dates hang on; today when None.
    reference_date: date | None = None
    #: Work on a database that looks like production.
    allow_protected: bool = False
    #: Format of the snapshot.
    format: str = "plain"
    #: ``gzip`` or ``zstd``, for ``plain``; None.
    compression: str | None = None
    #: Level of it, or of an archive's own compression; the default if None.
    level: int | None = None
    #: Tables that ``directory`` dumps at once.
    jobs: int = 1
    #: Seconds to wait for another refresh of this name or database.
    lock_wait_s: float = 0.0
    #: What is kept; the manager's own policy when None.
    policy: RetentionPolicy | None = None
    #: False keeps everything.
    prune: bool = True
    #: Further options of `generate_snapshot`.
    generate: dict[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Refreshed:
    """A refresh that is done."""

    #: The new snapshot, published and read back.
    snapshot: Snapshot
    #: What was generated; None with ``dump_only``.
    generated: Generated | None
    #: What was kept and deleted; None when nothing was pruned.
    pruned: PrunePlan | None
    #: Seconds from the call to the end.
    seconds: float


def refresh(
    manager: SnapshotManager,
    settings: Settings,
    options: RefreshOptions,
    progress: ProgressCallback | None = None,
) -> Refreshed:
    """Generate or dump, publish, verify, prune, in this order; a step that fails ends it.

    Earlier snapshots are deleted only when the new one was published and read
    back, so a run that fails leaves at least what was there.

    Args:
        manager: The database and the directory.
        settings: The configuration.
        options: What is made.
        progress: Called as the work goes on.

    Returns:
        What was made, and what was deleted.

    Raises:
        UsageError: Without a name there is nothing to call a dump by.
        LockBusyError: Another refresh of this name or database runs.
        RefusedError: The database to dump has not a single row.
        SnapshotCorruptError: What was written cannot be read back; nothing was deleted.
        PruneIncompleteError: The snapshot is there; some old ones could not be deleted.
        KeikakuError: Generating or dumping failed; earlier snapshots are untouched.
    """
    begun = time.monotonic()
    chosen = None if options.dump_only else _find(settings, options)
    name = _name(options, chosen)
    with _alone(manager, name, options.lock_wait_s):
        if chosen is None:
            _refuse_empty(manager.url, options)
            generated = None
            snapshot = manager.create_snapshot(
                name,
                format=options.format,
                compression=options.compression,
                level=options.level,
                jobs=options.jobs,
                progress=progress,
            )
        else:
            generated, snapshot = _generate(manager, settings, options, chosen, name, progress)
        manager.verify_snapshot(name, snapshot.version)
        pruned = manager.prune(options.policy, name=name) if options.prune else None
    return Refreshed(snapshot, generated, pruned, time.monotonic() - begun)


def _find(settings: Settings, options: RefreshOptions) -> tuple[Dataset, Scale]:
    from keikaku_snapshots.datasets import find_dataset

    dataset = find_dataset(options.dataset)
    return dataset, find_scale(dataset, options.scale, settings)


def _name(options: RefreshOptions, chosen: tuple[Dataset, Scale] | None) -> str:
    if options.name is not None:
        return check_name(options.name)
    if chosen is None:
        raise UsageError("a dump needs a name", hint="Say keikaku refresh NAME --dump-only.")
    dataset, scale = chosen
    return dataset.snapshot_name(scale)


@contextlib.contextmanager
def _alone(manager: SnapshotManager, name: str, wait_s: float) -> Iterator[None]:
    """Hold the one lock of a refresh; the locks of its steps are taken inside it."""
    SnapshotStore(manager.directory).prepare()
    path = manager.directory / ".locks" / f"refresh.{name}.lock"
    with FileLock(path, subject=f"the refresh of {name!r}", operation="refresh", wait_s=wait_s):
        yield


def _generate(
    manager: SnapshotManager,
    settings: Settings,
    options: RefreshOptions,
    chosen: tuple[Dataset, Scale],
    name: str,
    progress: ProgressCallback | None,
) -> tuple[Generated, Snapshot]:
    # What `generate` keeps would be deleted before the new one was read back.
    settings = dataclasses.replace(settings, generate=dataclasses.replace(settings.generate, keep=None))
    result = generate_snapshot(
        manager,
        manager.url,
        *chosen,
        settings=settings,
        seed=options.seed,
        reference_date=options.reference_date,
        allow_protected=options.allow_protected,
        name=name,
        format=options.format,
        compression=options.compression,
        level=options.level,
        jobs=options.jobs,
        lock_wait_s=options.lock_wait_s,
        progress=progress,
        **options.generate,
    )
    return result.generated, result.snapshot


def _refuse_empty(url: DatabaseURL, options: RefreshOptions) -> None:
    """Refuse to push good snapshots out by empty ones, as after a migration that failed (FAULTS 42)."""
    if options.allow_empty:
        return
    from psycopg import sql

    from keikaku_snapshots.postgres import catalog
    from keikaku_snapshots.postgres.connect import connect, translated

    with connect(url, autocommit=True, lock_timeout_s=60) as connection, translated(url, "looking for rows"):
        for table in catalog.tables(connection):
            name = sql.Identifier(table.name.schema, table.name.name)
            if (
                table.holds_rows
                and connection.execute(sql.SQL("SELECT 1 FROM ONLY {} LIMIT 1").format(name)).fetchone()
            ):
                return
    raise RefusedError(
        "the database has not a single row",
        found=f"Database: {url.location}",
        hint="Check the URL. If an empty snapshot is meant, say --allow-empty.",
    )
