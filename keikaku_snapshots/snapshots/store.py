"""The store: everything that is done to a snapshot directory, under the right locks.

Three kinds of locks, so that a long nightly create blocks no restore: one for
each snapshot name while a version of it is written; the directory lock for the
milliseconds in which files appear or go; and a shared lock on the data file
itself while it is read. The first two are files in ``.locks/`` that stay.
"""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from keikaku_snapshots.errors import (
    CreateFailedError,
    FileOperationError,
    KeikakuError,
    ParameterTypeError,
    RefusedError,
    SnapshotExistsError,
    SnapshotInUseError,
    UsageError,
)
from keikaku_snapshots.snapshots.directory import SnapshotDirectory, canonical_name
from keikaku_snapshots.snapshots.disk import weaknesses
from keikaku_snapshots.snapshots.files import FileSystem, translate_os_error
from keikaku_snapshots.snapshots.latest import LATEST_MODES, LatestLink, LatestMode
from keikaku_snapshots.snapshots.lock import FileLock
from keikaku_snapshots.snapshots.manifest import Manifest, Snapshot
from keikaku_snapshots.snapshots.names import check_name, check_version, next_version
from keikaku_snapshots.snapshots.publish import (
    finish_replacement,
    locked_for_removal,
    publish_new,
    publish_over,
    publish_renamed,
    remove_snapshot,
    rewrite_manifest,
)
from keikaku_snapshots.snapshots.reading import OpenSnapshot, open_snapshot
from keikaku_snapshots.snapshots.stage import Stage, make_stage
from keikaku_snapshots.snapshots.sweep import sweep

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

#: What lists return; named because a method of the store is called ``list``.
Snapshots: TypeAlias = list[Snapshot]
Paths: TypeAlias = list[Path]
Outcomes: TypeAlias = list[tuple[Snapshot, KeikakuError | None]]

_logger = logging.getLogger("keikaku_snapshots.snapshots")

#: Seconds to wait for the directory lock: it is held for milliseconds only, so
#: a longer wait means that something is stuck.
DIRECTORY_WAIT_S: Final = 10.0
#: Seconds after which an unfinished file that nobody holds is taken for dead.
DEFAULT_GRACE_S: Final = 3600.0


def _now() -> datetime:
    return datetime.now(UTC)


class SnapshotStore:
    """A directory of snapshots.

    Args:
        directory: The directory; made with mode 0700 when something is first written.
        latest_mode: ``symlink``, ``hardlink`` or ``copy``.
        grace_s: Seconds before an unfinished file is taken for dead.
        files: The seam for file operations; tests put failures there.
        clock: The time, aware.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        latest_mode: LatestMode = "symlink",
        grace_s: float = DEFAULT_GRACE_S,
        files: FileSystem | None = None,
        clock: Callable[[], datetime] = _now,
    ) -> None:
        if latest_mode not in LATEST_MODES:
            raise UsageError(
                f"latest_mode {latest_mode!r} is not known", found=f"known: {', '.join(LATEST_MODES)}"
            )
        #: The directory, absolute.
        self.directory = Path(os.path.abspath(directory))  # noqa: PTH100 - links in the path are kept
        self.grace_s = grace_s
        self.clock = clock
        self._files = files or FileSystem()
        self._warned = False
        self._disk = SnapshotDirectory(self.directory, self._files)
        self._latest = LatestLink(self._disk, latest_mode)

    @property
    def files(self) -> FileSystem:
        """The seam for file operations."""
        return self._files

    # -- reading -------------------------------------------------------------

    def list(self, name: str | None = None) -> Snapshots:
        """Return all snapshots, or those of one name, newest first.

        Links are left out. A damaged one is listed with its problem, and so is
        a data file without manifest; neither hides the others.

        Raises:
            AccessDeniedError: The directory cannot be read.
        """
        if name is not None:
            check_name(name)
        with self._translated("reading the snapshot directory"):
            return self._disk.snapshots(name)

    def find(self, name: str, version: str | None = None) -> Snapshot:
        """Return the newest valid snapshot of a name, or an exact version, valid or not.

        Raises:
            SnapshotNotFoundError: There is none.
            SnapshotCorruptError: There are complete ones, and all of them were damaged since.
        """
        newest = self.latest(name) if version is None else None
        if newest is not None:
            return newest
        if version is not None:
            check_version(version)
        found = self.list(name)
        wanted = [item for item in found if (item.is_valid if version is None else item.version == version)]
        if wanted:
            return next((item for item in wanted if item.is_valid), wanted[0])
        raise self._disk.not_found(name, version, found)

    def latest(self, name: str) -> Snapshot | None:
        """Return the newest valid snapshot of a name, if there is one; never looks at the link."""
        check_name(name)
        with self._translated("reading the snapshot directory"):
            return self._disk.newest_valid(name)

    def reading(
        self, snapshot: Snapshot, *, wait_s: float = 0.0, trust: bool = False
    ) -> contextlib.AbstractContextManager[OpenSnapshot]:
        """Open a snapshot for reading; while it is open it cannot be deleted or replaced.

        Needs no right to write: works in a directory that is mounted read-only.

        Args:
            snapshot: What to read.
            wait_s: Seconds to wait while it is being deleted or replaced.
            trust: Read a file without manifest too.

        Raises:
            SnapshotNotFoundError: It is gone.
            SnapshotCorruptError: It is damaged, or no regular file.
            LockBusyError: It is being deleted or replaced.
        """
        return open_snapshot(self._disk, snapshot, wait_s=wait_s, trust=trust)

    def not_found(self, name: str, version: str | None, found: Snapshots) -> KeikakuError:
        """Return the error for a snapshot that is not there, with what is there instead."""
        return self._disk.not_found(name, version, found)

    # -- writing -------------------------------------------------------------

    def writing(self, name: str, *, operation: str = "create", wait_s: float = 0.0) -> FileLock:
        """Return the lock of a snapshot name, not yet taken; hold it while a version of it is made.

        Raises:
            LockBusyError: On taking it: another process makes one of this name.
        """
        check_name(name)
        self.prepare()
        return FileLock(
            self._lock_path(f"name.{name}"), subject=f"snapshot {name!r}", operation=operation, wait_s=wait_s
        )

    def prepare(self) -> None:
        """Make the directory and its ``.locks`` folder, mode 0700, when they are missing.

        Raises:
            AccessDeniedError: Not allowed.
            UsageError: There is something else of that name.
            RefusedError: The ``.locks`` folder is a link.
        """
        with self._translated("making the snapshot directory"):
            for path in (self.directory, self.directory / ".locks"):
                try:
                    if not path.is_dir():
                        self._files.before("mkdir", path)
                        path.mkdir(mode=0o700, parents=True)
                        path.chmod(0o700)  # a umask may have taken our own rights
                except (FileExistsError, NotADirectoryError) as error:
                    if path.is_dir():  # another process was first
                        continue
                    raise UsageError(
                        "the snapshot directory is not a directory",
                        found=str(path),
                        hint="Use another --snapshot-dir.",
                    ) from error
            self._warn_of_directory()
            # Somebody else's link would let locks and new files land elsewhere.
            if (self.directory / ".locks").is_symlink():
                raise RefusedError("the lock folder is a link", found=str(self.directory / ".locks"))

    def next_version(self, name: str, now: datetime | None = None) -> str:
        """Return the version for a snapshot begun now: sorts after every other of its name.

        Hold the name's lock, so that nobody else gets the same.
        """
        found = self.list(name)
        return next_version(now or self.clock(), max((item.order for item in found), default=None))

    def check_free(self, name: str, version: str, *, overwrite: bool = False) -> None:
        """Refuse a version that exists, before any work is done.

        Raises:
            SnapshotExistsError: It exists, and ``overwrite`` is off.
        """
        check_version(version)
        found = next((item for item in self.list(name) if item.version == version), None)
        if found is not None and not overwrite:
            raise SnapshotExistsError(f"snapshot {name} {version} exists already", found=str(found.path))

    def stage(self, name: str, suffix: str) -> Stage:
        """Make a new temporary file, or a directory for the suffix ``dir``, to be filled and published.

        Raises:
            UsageError: A directory is asked for, and the ``latest`` link is to be a hard link or a copy.
            RefusedError: The place of the ``latest`` link is taken by a foreign file.
            DiskFullError: No room, no inodes.
            AccessDeniedError: Not allowed.
        """
        check_name(name)
        self.prepare()
        with self._translated(f"beginning snapshot {name!r}", CreateFailedError):
            self._latest.check_mode(suffix)
            self._latest.check(name, suffix)
            return make_stage(self._disk, name, suffix)

    def publish(self, stage: Stage, manifest: Manifest, *, overwrite: bool = False) -> Snapshot:
        """Make a staged file a snapshot and move the ``latest`` link, in the order of docs/design.md.

        Args:
            stage: The complete file or directory; its writer has ended.
            manifest: What is known of it; sequence and data file are filled in here.
            overwrite: Replace the version if it exists.

        Returns:
            The snapshot. That the link could not be moved is only logged: it is
            computed again by the next command.

        Raises:
            SnapshotExistsError: The version exists and ``overwrite`` is off.
            SnapshotInUseError: The version to replace is being read.
            DiskFullError: No room; nothing has appeared.
            CreateFailedError: A file operation failed; nothing has appeared.
        """
        with self._translated(f"publishing snapshot {manifest.name!r}", CreateFailedError):
            stage.complete(manifest)
            with self._directory_lock(f"publish {manifest.name} {manifest.version}"):
                self._latest.check(manifest.name, manifest.suffix)
                others = self._disk.snapshots(manifest.name)
                same = [item for item in others if item.version == manifest.version]
                if same and not overwrite:
                    raise SnapshotExistsError(
                        f"snapshot {manifest.name} {manifest.version} exists already", found=str(same[0].path)
                    )
                highest = max((item.manifest.sequence for item in others if item.manifest), default=0)
                manifest = replace(manifest, data_file=canonical_name(manifest), sequence=highest + 1)
                stage.unlock()
                self._put_in_place(stage, manifest, same)
                stage.published()
                self._refresh_link_or_log(manifest.name)
                published = self._disk.load(manifest.data_file)
        if published is None or not published.is_valid:
            problem = published.problem if published else "it is gone"
            raise CreateFailedError(f"snapshot {manifest.name} {manifest.version} is damaged: {problem}")
        return published

    def delete(self, snapshot: Snapshot) -> None:
        """Delete a snapshot: the link moves first, then the manifest goes, then the data.

        Raises:
            SnapshotInUseError: A restore reads it.
            SnapshotNotFoundError: It is gone already.
            LockBusyError: The directory is locked for long.
        """
        doing = f"deleting snapshot {snapshot.name} {snapshot.version}"
        with self._translated(doing), self._directory_lock(doing):
            self._delete(snapshot)

    def delete_old(self, name: str, keep_count: int = 3, *, dry_run: bool = False) -> Snapshots:
        """Delete all but the newest valid snapshots of a name.

        Damaged ones neither count nor go; pinned ones and those being
        restored stay.

        Args:
            name: Exactly this name; ``app`` never touches ``app2``.
            keep_count: How many to keep, at least 1.
            dry_run: Delete nothing.

        Returns:
            What was, or would be, deleted, newest first.
        """
        if isinstance(keep_count, bool) or not isinstance(keep_count, int):
            raise ParameterTypeError(f"keep_count must be a whole number, not {type(keep_count).__name__}")
        if keep_count < 1:
            raise UsageError(f"keep_count must be at least 1, not {keep_count}")
        check_name(name)
        from keikaku_snapshots.snapshots.retention import old_ones

        doing = f"deleting old snapshots of {name!r}"
        if dry_run:
            return old_ones(self.list(name), keep_count)
        if not self.directory.is_dir():
            return []
        results = self.delete_chosen(lambda found: old_ones(found, keep_count), doing=doing, name=name)
        for snapshot, error in results:
            if isinstance(error, SnapshotInUseError):
                _logger.warning("%s %s is kept: %s", snapshot.name, snapshot.version, error.found)
            elif error is not None:
                raise error
        return [snapshot for snapshot, error in results if error is None]

    def delete_chosen(
        self, choose: Callable[[Snapshots], Iterable[Snapshot]], *, doing: str, name: str | None = None
    ) -> Outcomes:
        """Delete what is chosen from all there is, under one lock, so that nothing changes in between.

        One that cannot be deleted does not keep the others.

        Args:
            choose: Given all snapshots, or those of one name, newest first, returns which go.
            doing: What this is, for messages.
            name: Only this name.

        Returns:
            Each chosen one with the error that kept it, or None when it was deleted.
        """
        outcomes: Outcomes = []
        gone: set[str] = set()
        with self._translated(doing), self._directory_lock(doing):
            for snapshot in choose(self._disk.snapshots(name)):
                try:
                    if canonical_name(snapshot) not in gone:
                        gone |= self._delete(snapshot)
                except (KeikakuError, OSError) as error:
                    outcomes.append((snapshot, _known(error, doing, snapshot.path)))
                else:
                    outcomes.append((snapshot, None))
        return outcomes

    def sweep(self, *, dry_run: bool = False) -> Paths:
        """Remove what dead processes left and bring every ``latest`` link up to date.

        Returns:
            The files that were, or would be, removed; never one that is not ours.
        """
        if not self.directory.is_dir():
            return []
        doing = "sweeping the snapshot directory"
        with self._translated(doing), self._directory_lock(doing):
            removed = sweep(self._disk, now_s=self.clock().timestamp(), grace_s=self.grace_s, dry_run=dry_run)
            if not dry_run:
                for name in sorted({item.name for item in self._disk.snapshots()} | self._latest.names()):
                    self._refresh_link_or_log(name)
        return removed

    def change(
        self,
        snapshot: Snapshot,
        compute: Callable[[Manifest], dict[str, Any]] | None = None,
        **changes: Any,
    ) -> Snapshot:
        """Change what is recorded about a snapshot, such as ``pinned`` or ``tags``.

        Args:
            snapshot: Which.
            compute: Given the manifest as it is, under the lock, returns further changes.
            changes: Fields of the manifest.

        Returns:
            The snapshot as it is now.

        Raises:
            SnapshotNotFoundError: It is gone, or has no manifest.
        """
        doing = f"changing snapshot {snapshot.name} {snapshot.version}"
        with self._translated(doing), self._directory_lock(doing):
            current = self._disk.load(canonical_name(snapshot))
            if current is None or current.manifest is None:
                raise self._disk.not_found(
                    snapshot.name, snapshot.version, self._disk.snapshots(snapshot.name)
                )
            changes |= compute(current.manifest) if compute else {}
            rewrite_manifest(self._disk, replace(current.manifest, **changes))
            changed = self._disk.load(canonical_name(snapshot))
        return changed or snapshot

    def rename(self, old_name: str, new_name: str, *, wait_s: float = 0.0) -> Snapshot:
        """Give all versions of a snapshot another name; calling it again ends an interrupted rename.

        Args:
            old_name: Its name now. Damaged versions keep it, which is logged.
            new_name: The name to be, which no other snapshot has.
            wait_s: Seconds to wait for another process that writes one of the two.

        Returns:
            The newest version under its new name.

        Raises:
            SnapshotNotFoundError: There is no valid snapshot of the old name.
            SnapshotExistsError: There are others of the new name.
            SnapshotInUseError: A version is being restored; none is renamed.
        """
        if check_name(old_name) == check_name(new_name):
            raise UsageError(f"the snapshot is called {old_name!r} already")
        doing = f"renaming snapshot {old_name!r} to {new_name!r}"
        with contextlib.ExitStack() as locks:
            locks.enter_context(self._translated(doing))
            for name in sorted((old_name, new_name)):
                locks.enter_context(self.writing(name, operation="rename", wait_s=wait_s))
            locks.enter_context(self._directory_lock(doing))
            sweep(self._disk, now_s=self.clock().timestamp(), grace_s=self.grace_s)
            self._check_rename(old_name, new_name)
            found = self._disk.snapshots(old_name)
            for snapshot in found:  # one in use keeps all of them from being renamed, not only the rest
                with locked_for_removal(snapshot):
                    pass
            # Oldest first, so that the newest of the two names is right at each instant.
            for snapshot in reversed(found):
                if not snapshot.is_valid or snapshot.manifest is None:
                    _logger.warning("%s keeps its name: %s", snapshot, snapshot.problem)
                    continue
                metadata = {**snapshot.manifest.metadata, "renamed_from": old_name}
                manifest = replace(snapshot.manifest, name=new_name, metadata=metadata)
                publish_renamed(self._disk, snapshot, replace(manifest, data_file=canonical_name(manifest)))
            self._refresh_link_or_log(new_name)
            self._refresh_link_or_log(old_name)
        return self.find(new_name)

    # -- inside --------------------------------------------------------------

    def _warn_of_directory(self) -> None:
        """Say once what makes this directory less safe than it could be."""
        if self._warned:
            return
        self._warned = True
        for weakness in weaknesses(self.directory):
            _logger.warning("%s", weakness)

    def _check_rename(self, old_name: str, new_name: str) -> None:
        """Refuse a new name that has snapshots of its own; copies of ours are of an interrupted rename."""
        ours = self._disk.snapshots(old_name)
        if not any(item.is_valid for item in ours):
            raise self._disk.not_found(old_name, None, ours)
        for item in self._disk.snapshots(new_name):
            if item.manifest is None or item.manifest.metadata.get("renamed_from") != old_name:
                raise SnapshotExistsError(
                    f"there are snapshots called {new_name!r} already",
                    found=str(item.path),
                    hint="Choose another name.",
                )

    def _put_in_place(self, stage: Stage, manifest: Manifest, same: Snapshots) -> None:
        old = next((item for item in same if canonical_name(item) == manifest.data_file), None)
        if old is None:
            publish_new(self._disk, stage.path, manifest)
        else:
            if old.manifest and old.is_valid and old.manifest.data_file != manifest.data_file:
                finish_replacement(self._disk, old.manifest)
                old = self._disk.load(manifest.data_file) or old
            stage.published()
            publish_over(self._disk, stage.path, manifest, old)
        for other in same:
            # The same version in another format is replaced as well, once the new one is whole.
            if canonical_name(other) != manifest.data_file:
                try:
                    self._delete(other)
                except (OSError, KeikakuError) as error:
                    _logger.warning(
                        "%s %s is still there in its old format: %s", other.name, other.version, error
                    )

    def _delete(self, snapshot: Snapshot) -> set[str]:
        """Delete a version, and first what it replaced in another format, which must not count again.

        Returns:
            The lasting names of the data that is gone.
        """
        current = self._disk.load(canonical_name(snapshot))
        if current is None:
            raise self._disk.not_found(snapshot.name, snapshot.version, self._disk.snapshots(snapshot.name))
        doomed = [*self._replaced_by(current), current]
        for item in doomed:
            without = partial(self._refresh_link_or_log, snapshot.name, without=item)
            remove_snapshot(self._disk, item, first=without)
        return {canonical_name(item) for item in doomed}

    def _replaced_by(self, current: Snapshot) -> Snapshots:
        """What an overwrite in another format left of the version before when it was stopped.

        A file without manifest is not that: somebody put it there.
        """
        return [
            item
            for item in self._disk.snapshots(current.name)
            if item.version == current.version
            and item.manifest is not None
            and current.manifest is not None
            and item.manifest.sequence < current.manifest.sequence
        ]

    def _refresh_link_or_log(self, name: str, without: Snapshot | None = None) -> None:
        """Bring every link of a name up to date; it is a cache, so failing is only logged."""
        found = [item for item in self._disk.snapshots(name) if without is None or item.path != without.path]
        for suffix in sorted({item.suffix for item in found} | self._latest.suffixes(name)):
            newest = next((item for item in found if item.is_valid and item.suffix == suffix), None)
            try:
                self._latest.refresh(name, suffix, newest)
            except (OSError, KeikakuError) as error:
                _logger.warning("the link to the latest %s was not updated: %s", name, error)

    def _directory_lock(self, operation: str) -> FileLock:
        self.prepare()
        return FileLock(
            self._lock_path("directory"),
            subject=f"snapshot directory {self.directory}",
            operation=operation,
            wait_s=DIRECTORY_WAIT_S,
        )

    def _lock_path(self, what: str) -> Path:
        return self.directory / ".locks" / f"{what}.lock"

    @contextlib.contextmanager
    def _translated(self, doing: str, otherwise: type[KeikakuError] = FileOperationError) -> Iterator[None]:
        """Turn system errors into the library's."""
        try:
            yield
        except KeikakuError:
            raise
        except OSError as error:
            raise translate_os_error(error, doing=doing, path=self.directory, otherwise=otherwise) from error


def _known(error: KeikakuError | OSError, doing: str, path: Path) -> KeikakuError:
    return error if isinstance(error, KeikakuError) else translate_os_error(error, doing=doing, path=path)
