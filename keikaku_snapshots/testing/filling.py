"""A database for tests gets its contents: from the snapshot, which is made first where it has to be."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from keikaku_snapshots.errors import (
    SchemaDriftError,
    SnapshotCorruptError,
    SnapshotNotFoundError,
    UsageError,
)
from keikaku_snapshots.snapshots.lock import FileLock

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from keikaku_snapshots.config import Settings
    from keikaku_snapshots.datasets import Dataset, Scale
    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.snapshots.manager import SnapshotManager
    from keikaku_snapshots.snapshots.manifest import Snapshot

log = logging.getLogger("keikaku_snapshots.testing")

#: Seconds to wait for another worker that generates, or restores.
WAIT_S = 3600.0
#: Snapshots that are damaged again as soon as they were made are not made a third time.
_TRIES = 3


@dataclass(frozen=True, slots=True)
class Choice:
    """What a test asked for."""

    #: Name of the snapshot; None: that of dataset and scale.
    snapshot: str | None = None
    #: Name of the scale; None: what the snapshot says, or small.
    scale: str | None = None


class Filler:
    """Fills databases from the snapshots of one directory."""

    def __init__(
        self,
        directory: Path,
        settings: Settings,
        dataset: str,
        *,
        prepare: Callable[[str], object] | None = None,
        warn: Callable[[str], None] = log.warning,
    ) -> None:
        """Prepare; nothing is read yet.

        Args:
            directory: Of the snapshots.
            settings: The configuration.
            dataset: Name of the dataset that is generated.
            prepare: Called with the URL of an empty database before data is generated into it,
                to make the tables, such as by Alembic; None: the dataset makes its own.
            warn: Told why a snapshot was made anew.
        """
        self._directory = directory
        self._settings = settings
        self._dataset_name = dataset
        self._prepare = prepare
        self._warn = warn

    def manager(self, url: DatabaseURL) -> SnapshotManager:
        """Make a manager of a database.

        Args:
            url: The database.

        Returns:
            The manager; to be closed.
        """
        from keikaku_snapshots.generate import retry_policy
        from keikaku_snapshots.snapshots.manager import SnapshotManager
        from keikaku_snapshots.snapshots.retention import RetentionPolicy

        settings = self._settings
        return SnapshotManager(
            url,
            self._directory,
            lock_wait_s=WAIT_S,
            lock_timeout_s=settings.lock_timeout_s,
            minimum_free_mb=settings.minimum_free_mb,
            protected_words=settings.protected_words,
            pg_bin=settings.pg_bin,
            retry=retry_policy(settings),
            retention=RetentionPolicy(**dataclasses.asdict(settings.retention)),
            audit=settings.audit,
            latest=settings.latest,
            templates=settings.templates,
            spare=settings.spare,
        )

    def fill(
        self, manager: SnapshotManager, choice: Choice, renew: Callable[[DatabaseURL], None] | None = None
    ) -> Snapshot:
        """Restore the snapshot; make it first where there is none, or none that can be used.

        Args:
            manager: Of the database.
            choice: What was asked for.
            renew: Makes the database empty, where tables of an older schema may be in the way.

        Returns:
            What was restored.

        Raises:
            KeikakuError: It cannot be restored, nor made anew.
        """
        wanted = _Wanted(choice, self._dataset_name, self._settings)
        for _ in range(_TRIES):
            snapshot = self._usable(manager, wanted)
            try:
                restored = manager.restore_snapshot(
                    snapshot.name, snapshot.version, on_schema_mismatch="ignore", from_other_database=True
                )
                wanted.check_tables(manager.url, restored.snapshot)
            except (SnapshotCorruptError, SchemaDriftError) as error:
                is_drifted = isinstance(error, SchemaDriftError)
                if not wanted.is_ours(snapshot) or (is_drifted and renew is None):
                    raise
                problem = "\n".join(filter(None, [error.headline, error.found]))
                if is_drifted and renew is not None:
                    renew(manager.url)
            except SnapshotNotFoundError:
                continue  # deleted by somebody in this moment
            else:
                return restored.snapshot
            self._make_anew(manager, wanted, snapshot, problem)
        raise SnapshotCorruptError(
            f"snapshot {wanted.name!r} cannot be used, although it was made anew", found=problem
        )

    def _usable(self, manager: SnapshotManager, wanted: _Wanted) -> Snapshot:
        with self._alone(manager, wanted.name):
            snapshot = _newest(manager, wanted.name)
            problem = wanted.problem(snapshot)
            if not problem and snapshot is not None:
                return snapshot
            return self._make(manager, wanted, problem)

    def _make_anew(self, manager: SnapshotManager, wanted: _Wanted, damaged: Snapshot, problem: str) -> None:
        with self._alone(manager, wanted.name):
            newest = _newest(manager, wanted.name)
            if newest is not None and newest.version == damaged.version:
                self._make(manager, wanted, f"{damaged}: {problem}")

    def _alone(self, manager: SnapshotManager, name: str) -> FileLock:
        """All workers of all runs come here one after the other, so that a snapshot is made once."""
        from keikaku_snapshots.snapshots.store import SnapshotStore

        SnapshotStore(manager.directory).prepare()
        path = manager.directory / ".locks" / f"pytest.{name}.lock"
        return FileLock(path, subject=f"snapshot {name!r}", operation="pytest", wait_s=WAIT_S)

    def _make(self, manager: SnapshotManager, wanted: _Wanted, problem: str) -> Snapshot:
        from keikaku_snapshots.generate import generate_snapshot

        self._warn(f"the snapshot {wanted.name!r} is generated: {problem}")
        if self._prepare is not None:
            from keikaku_snapshots.testing.urls import URLText

            self._prepare(URLText.of(manager.url))
        made = generate_snapshot(
            manager,
            manager.url,
            wanted.dataset,
            wanted.scale,
            settings=dataclasses.replace(self._settings, allowed_databases=()),
            name=wanted.name,
            create_tables=self._prepare is None,
            lock_wait_s=WAIT_S,
        )
        return made.snapshot


class _Wanted:
    """A choice with its dataset and scale."""

    def __init__(self, choice: Choice, dataset: str, settings: Settings) -> None:
        from keikaku_snapshots.datasets import find_dataset
        from keikaku_snapshots.generate import find_scale
        from keikaku_snapshots.snapshots.names import check_name

        self.dataset: Dataset = find_dataset(dataset)
        self.scale: Scale = find_scale(self.dataset, choice.scale or "small", settings)
        self.name = check_name(choice.snapshot or self.dataset.snapshot_name(self.scale))
        self._named = choice.snapshot is not None
        self._scale_said = choice.scale is not None or choice.snapshot is None

    def is_ours(self, snapshot: Snapshot) -> bool:
        """Tell whether this dataset made it, so that it can be made anew."""
        if not self._named or snapshot.manifest is None:
            return True
        return self._metadata(snapshot).get("dataset") == self.dataset.name

    def problem(self, snapshot: Snapshot | None) -> str:
        """Say why a snapshot cannot be used, as far as its manifest tells; empty if it can.

        Raises:
            SnapshotCorruptError: It cannot, and was not generated.
        """
        if snapshot is None:
            return "there is none yet"
        if not snapshot.is_valid:
            if not self.is_ours(snapshot):
                raise SnapshotCorruptError(
                    f"snapshot {snapshot} cannot be used", found=f"{snapshot.problem}\nFile: {snapshot.path}"
                )
            return f"{snapshot}: {snapshot.problem}"
        if snapshot.format == "json":
            raise UsageError(
                f"snapshot {snapshot} holds test rows only, no database",
                hint="Make one with --format plain, custom or directory.",
            )
        if not self._scale_said or not self.is_ours(snapshot):
            return ""
        short = self._short(snapshot)
        return f"{snapshot} is short of the rows of scale {self.scale.name}: {short}" if short else ""

    def _short(self, snapshot: Snapshot) -> str:
        present = {name.partition(".")[2]: count for name, count in snapshot.row_counts.items()}
        present |= snapshot.row_counts
        missing = []
        for table in self.dataset.tables:
            expected = table.expected_rows(self.scale)
            found = present.get(table.name, 0)
            if expected is not None and found < expected:
                missing.append(f"{table.name} has {found:,} of {expected:,}")
        return ", ".join(missing)

    def check_tables(self, url: DatabaseURL, snapshot: Snapshot) -> None:
        """Compare the restored tables with the dataset.

        Raises:
            SchemaDriftError: The snapshot was made of an older form of them.
        """
        if not self.is_ours(snapshot):
            return
        from keikaku_snapshots.datasets.schema import prepare_tables
        from keikaku_snapshots.datasets.targets import run

        run(url, lambda _attempt: prepare_tables(self.dataset, create=False, schema=None))

    @staticmethod
    def _metadata(snapshot: Snapshot) -> dict[str, Any]:
        return snapshot.manifest.metadata if snapshot.manifest else {}


def _newest(manager: SnapshotManager, name: str) -> Snapshot | None:
    """The newest version that can be restored; else the newest damaged one."""
    try:
        return manager.get_snapshot(name)
    except (SnapshotNotFoundError, SnapshotCorruptError):
        found = manager.list_snapshots(name)
        return found[0] if found else None
