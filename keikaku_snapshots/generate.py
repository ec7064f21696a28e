"""Generate a dataset, then snapshot it: the door that joins the two rooms.

``python -m keikaku_snapshots.generate --scale medium`` is the same as
``keikaku generate --scale medium``.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import date

    from keikaku_snapshots.config import Settings
    from keikaku_snapshots.datasets import Dataset, Generated, Scale, Timeouts
    from keikaku_snapshots.postgres.connect import RetryPolicy
    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.progress import ProgressCallback
    from keikaku_snapshots.snapshots.manager import SnapshotManager
    from keikaku_snapshots.snapshots.manifest import Snapshot

log = logging.getLogger("keikaku_snapshots.generate")


@dataclass(frozen=True, slots=True)
class GeneratedSnapshot:
    """What `generate_snapshot` made."""

    #: The generated data: rows of each table, seconds.
    generated: Generated
    #: The snapshot of the database afterwards.
    snapshot: Snapshot
    #: Older versions that were deleted because of ``keep``.
    deleted: tuple[Snapshot, ...]


def find_scale(dataset: Dataset, name: str, settings: Settings) -> Scale:
    """Find a scale: the configuration's own before the dataset's.

    Args:
        dataset: The dataset.
        name: The name of the scale.
        settings: The configuration; its scales may leave out what the
            dataset's own scales say for each unit.

    Returns:
        The scale.

    Raises:
        UnknownScaleError: There is none of this name; those there are are listed.
    """
    from keikaku_snapshots.datasets import Scale

    usual = dict(dataset.scales[0].per_unit) if dataset.scales else {}
    extra = [
        Scale(own, scale.count, limit_s=scale.limit_s, per_unit={**usual, **scale.per_unit})
        for own, scale in settings.scales.items()
    ]
    return dataset.scale(name, extra=extra)


def generate_snapshot(
    manager: SnapshotManager,
    url: DatabaseURL,
    dataset: Dataset,
    scale: Scale,
    *,
    settings: Settings,
    seed: int = 0,
    reference_date: date | None = None,
    batch_size: int | None = None,
    memory_limit_mb: int | None = None,
    create_tables: bool = True,
    allow_protected: bool = False,
    name: str | None = None,
    keep: int | None = None,
    format: str = "plain",  # noqa: A002 - the name of the manager's parameter
    compression: str | None = None,
    level: int | None = None,
    jobs: int = 1,
    lock_wait_s: float = 0.0,
    progress: ProgressCallback | None = None,
) -> GeneratedSnapshot:
    """Generate a dataset into a database and make a snapshot of it.

    Test rows that are there are replaced, all other rows stay; safe to run
    every night. Older versions are deleted only after the new one is complete.

    Args:
        manager: Makes the snapshot.
        url: The database; the manager's own.
        dataset: What is generated.
        scale: How much.
        settings: Defaults for what is None below, and the retry policy.
        seed: The same seed, scale and reference date give the same bytes.
        reference_date: The day that dates hang on; today when None.
        batch_size: Rows handed to PostgreSQL at a time.
        memory_limit_mb: Resident memory at which the work stops, in megabytes.
        create_tables: Create tables that are missing.
        allow_protected: Also work on a database that looks like production.
        name: Name of the snapshot; such as ``medium_100_offices`` when None.
        keep: Versions of this name to keep; None keeps all.
        format: Format of the snapshot.
        compression: ``gzip`` or ``zstd``, for ``plain``; None.
        level: Level of it, or of an archive's own compression; the default if None.
        jobs: Tables that ``directory`` dumps at once.
        lock_wait_s: Seconds to wait for another process that works on the database.
        progress: Called as the work goes on.

    Returns:
        What was generated, the snapshot, what was deleted.

    Raises:
        LockBusyError: Another process generates into, refreshes or restores this database.
        InvalidNameError: No snapshot can have this name; nothing was touched.
        UsageError: No snapshot can have this format, compression or level; nothing was touched.
    """
    from keikaku_snapshots.datasets import generate
    from keikaku_snapshots.snapshots.names import check_name
    from keikaku_snapshots.snapshots.parameters import check_create

    # Before the database is touched: what no snapshot can have is found too late afterwards.
    check_create(format, compression, level, "database", jobs, clean=False)
    snapshot_name = check_name(name or dataset.snapshot_name(scale))
    # Another run between the two would put its rows under our name.
    with _alone(url, lock_wait_s, retry_policy(settings)):
        generated = generate(
            dataset,
            scale,
            url,
            seed=seed,
            reference_date=reference_date,
            batch_size=settings.generate.batch_size if batch_size is None else batch_size,
            create_tables=create_tables,
            retry=retry_policy(settings),
            timeouts=_timeouts(settings),
            memory_limit_mb=settings.generate.memory_limit_mb if memory_limit_mb is None else memory_limit_mb,
            allow_protected=allow_protected,
            protected_words=settings.protected_words,
            allowed_databases=settings.allowed_databases,
            progress=progress,
        )
        snapshot = manager.create_snapshot(
            snapshot_name,
            description=f"{dataset.name} {scale.name}: {scale.units:,} {dataset.unit}, seed {seed}",
            format=format,
            compression=compression,
            level=level,
            jobs=jobs,
            metadata=_metadata(dataset, scale, generated),
            progress=progress,
        )
    wanted = settings.generate.keep if keep is None else keep
    deleted = manager.delete_old_snapshots(snapshot_name, keep_count=wanted) if wanted else []
    return GeneratedSnapshot(generated, snapshot, tuple(deleted))


@contextlib.contextmanager
def _alone(url: DatabaseURL, wait_s: float, policy: RetryPolicy) -> Iterator[None]:
    """Hold the lock of the database; a role that cannot take it is told, and works without."""
    from keikaku_snapshots.errors import AccessDeniedError, ConnectError
    from keikaku_snapshots.postgres.connect import retrying
    from keikaku_snapshots.postgres.locks import target_lock

    with contextlib.ExitStack() as stack:
        try:
            retrying(policy)(lambda: stack.enter_context(target_lock(url, wait_s, "generate")))
        except (AccessDeniedError, ConnectError) as error:
            if "maintenance database" not in error.what:
                raise
            log.warning(
                "working without the lock of the database, so another run may change it meanwhile: %s",
                error.what,
            )
        yield


def retry_policy(settings: Settings) -> RetryPolicy:
    """Return the configured retry policy as the foundation takes it."""
    from keikaku_snapshots.postgres.connect import RetryPolicy

    retry = settings.retry
    return RetryPolicy(attempts=retry.attempts, wait_min_s=retry.wait_min_s, wait_max_s=retry.wait_max_s)


def _timeouts(settings: Settings) -> Timeouts:
    from keikaku_snapshots.datasets import Timeouts

    given = settings.timeouts
    return Timeouts(given.connect_s, given.statement_s, given.lock_s, given.stall_s)


def _metadata(dataset: Dataset, scale: Scale, generated: Generated) -> dict[str, Any]:
    return {
        "dataset": dataset.name,
        "scale": scale.name,
        "units": scale.units,
        "seed": generated.seed,
        "reference_date": generated.reference_date.isoformat(),
        "rows": dict(generated.rows),
        "checksum": generated.checksum,
    }


if __name__ == "__main__":
    import sys

    from keikaku_snapshots.cli import main

    main(["generate", *sys.argv[1:]], program="python -m keikaku_snapshots")
