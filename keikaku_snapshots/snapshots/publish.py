"""The order in which files appear and go, so that a crash at any instant leaves only whole snapshots.

A snapshot begins to exist with the rename of its manifest and ends with the
rename of its manifest; everything else happens before or after (docs/design.md, Publish order).
All functions here are called with the directory lock held.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import stat
from dataclasses import replace
from typing import TYPE_CHECKING

from keikaku_snapshots.errors import (
    RefusedError,
    SnapshotCorruptError,
    SnapshotExistsError,
    SnapshotInUseError,
)
from keikaku_snapshots.snapshots.directory import (
    DIRECTORY_KINDS,
    TEMPORARY,
    SnapshotDirectory,
    canonical_name,
    identity,
    lstat,
)
from keikaku_snapshots.snapshots.files import (
    link_or_copy,
    move_directory,
    move_without_clobber,
    temporary_path,
)
from keikaku_snapshots.snapshots.lock import holders
from keikaku_snapshots.snapshots.names import MANIFEST_SUFFIX
from keikaku_snapshots.snapshots.part_files import foreign_entries, link_parts, open_data, remove_directory
from keikaku_snapshots.snapshots.parts import from_manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from keikaku_snapshots.snapshots.manifest import Manifest, Snapshot

_logger = logging.getLogger("keikaku_snapshots.snapshots")


def publish_new(directory: SnapshotDirectory, source: Path, manifest: Manifest) -> None:
    """Make a complete, synced temporary file a snapshot; on any error nothing has appeared.

    Args:
        directory: Where.
        source: The data under its temporary name, in that directory.
        manifest: Its manifest.

    Raises:
        SnapshotExistsError: A file of this name is there.
        OSError: A file operation failed.
    """
    files = directory.files
    data = directory.path / canonical_name(manifest)
    beside = data.with_name(data.name + MANIFEST_SUFFIX)
    if lstat(data) and not lstat(beside) and directory.is_unfinished(data.name):
        # Of a run that died: under the directory lock no living one is here.
        remove_data(directory, data)
    if lstat(data) or lstat(beside):
        raise _exists(manifest, data)
    mine = identity(source)
    note = _write_manifest(directory, manifest)
    try:
        try:
            if manifest.format == "directory":
                move_directory(files, source, data)
            else:
                move_without_clobber(files, source, data)
        except FileExistsError as error:
            raise _exists(manifest, data) from error
        files.replace(note, beside)
        files.fsync_directory(directory.path)
    except BaseException:
        _take_back(directory, data, beside, note, mine)
        raise
    if manifest.format != "directory":
        remove_quietly(directory, source)


def publish_over(directory: SnapshotDirectory, source: Path, manifest: Manifest, old: Snapshot) -> None:
    """Replace a version by a complete, synced temporary file; at each instant one of the two is whole.

    The manifest is switched to the new data under its temporary name (the
    commit), then the data takes the lasting name, then the manifest says so.
    A crash in between leaves the new version usable; `finish_replacement` ends it.
    From here on ``source`` is removed by nobody else: it may be the snapshot's data.

    Raises:
        SnapshotInUseError: The old version is being read.
        RefusedError: The old version's directory holds what is not the snapshot's.
        OSError: A file operation failed before the new version was in place.
    """
    files = directory.files
    beside = directory.path / (canonical_name(manifest) + MANIFEST_SUFFIX)
    with contextlib.ExitStack() as lock:
        before = _content(beside)
        try:
            lock.enter_context(locked_for_removal(old))
            refuse_foreign(old)
            note = _write_manifest(directory, replace(manifest, data_file=source.name))
        except BaseException:
            remove_data_quietly(directory, source)
            raise
        try:
            files.replace(note, beside)
            files.fsync_directory(directory.path)
        except BaseException:
            remove_quietly(directory, note)
            if _content(beside) != before:
                _put_back(directory, beside, before)
            if _content(beside) == before:
                remove_data_quietly(directory, source)
            raise
        try:
            finish_replacement(directory, replace(manifest, data_file=source.name))
        except OSError as error:
            _logger.warning(
                "snapshot %s %s is complete; its file is renamed by the next command (%s)",
                manifest.name,
                manifest.version,
                error,
            )


def finish_replacement(directory: SnapshotDirectory, manifest: Manifest) -> None:
    """Give the data of a replaced version its lasting name.

    Raises:
        OSError: A file operation failed; the snapshot stays usable.
    """
    files = directory.files
    data = directory.path / canonical_name(manifest)
    interim = directory.path / manifest.data_file
    if lstat(interim):
        if manifest.format == "directory" and lstat(data):
            # A directory cannot be renamed over another one; the manifest names the interim one so long.
            remove_data(directory, data)
        files.replace(interim, data)
    rewrite_manifest(directory, replace(manifest, data_file=data.name))


def rewrite_manifest(directory: SnapshotDirectory, manifest: Manifest) -> None:
    """Replace a manifest in one step.

    Raises:
        OSError: A file operation failed; the manifest is as before, or the new one.
    """
    beside = directory.path / (canonical_name(manifest) + MANIFEST_SUFFIX)
    note = _write_manifest(directory, manifest)
    try:
        directory.files.replace(note, beside)
    except BaseException:
        remove_quietly(directory, note)
        raise
    directory.files.fsync_directory(directory.path)


def remove_snapshot(
    directory: SnapshotDirectory, snapshot: Snapshot, *, first: Callable[[], None] = lambda: None
) -> None:
    """Remove a snapshot: first it ceases to exist, then its data goes.

    The manifest is renamed, not unlinked: if the work stops here, the sweep
    finds in it which data file was ours to remove.

    Args:
        directory: Where.
        snapshot: What to remove.
        first: Called when it is certain that nobody reads it, before anything goes.

    Raises:
        SnapshotInUseError: It is being read.
        RefusedError: Its directory holds what is not the snapshot's.
        OSError: A file operation failed.
    """
    with locked_for_removal(snapshot):
        refuse_foreign(snapshot)
        first()
        _remove_files(directory, snapshot)


def _remove_files(directory: SnapshotDirectory, snapshot: Snapshot) -> None:
    files = directory.files
    data = directory.path / canonical_name(snapshot)
    beside = data.with_name(data.name + MANIFEST_SUFFIX)
    tombstone = temporary_path(directory.path, snapshot.name, "deleted")
    if lstat(beside):
        files.replace(beside, tombstone)
        files.fsync_directory(directory.path)
    for path in {snapshot.path: None, data: None}:
        if lstat(path):
            remove_data(directory, path)
    if lstat(tombstone):
        files.unlink(tombstone)
    files.fsync_directory(directory.path)


def publish_renamed(directory: SnapshotDirectory, old: Snapshot, manifest: Manifest) -> None:
    """Give a snapshot the name in ``manifest``; until the new one is complete the old one stays.

    Raises:
        SnapshotExistsError: Another snapshot of the new name and version exists.
        SnapshotInUseError: The old one is being read.
        OSError: A file operation failed; the old one, the new one, or both are there.
    """
    present = directory.load(canonical_name(manifest))
    with locked_for_removal(old):
        if present is None:
            is_directory = manifest.format == "directory"
            source = temporary_path(directory.path, manifest.name, "parts" if is_directory else "")
            try:
                if is_directory:
                    link_parts(directory.files, old.path, source, manifest.parts)
                else:
                    link_or_copy(directory.files, old.path, source)
                publish_new(directory, source, manifest)
            finally:
                if lstat(source):
                    remove_data_quietly(directory, source)
        elif not (present.is_valid and present.manifest and present.manifest.sha256 == manifest.sha256):
            raise _exists(manifest, present.path)
        # Else a run before this one was stopped here.
        _remove_files(directory, old)


def refuse_foreign(snapshot: Snapshot) -> None:
    """Keep what somebody put into a snapshot's directory from going with it.

    Raises:
        RefusedError: There is something; nothing was removed.
    """
    status = lstat(snapshot.path)
    if snapshot.format != "directory" or status is None or not stat.S_ISDIR(status.st_mode):
        return
    parts = from_manifest(snapshot.manifest.parts) if snapshot.manifest else {}
    if foreign := foreign_entries(snapshot.path, parts):
        raise RefusedError(
            f"the directory of snapshot {snapshot} holds what is not the snapshot's",
            found=f"{snapshot.path}: {', '.join(foreign[:10])}",
            hint="Move that elsewhere, then try again.",
        )


@contextlib.contextmanager
def locked_for_removal(snapshot: Snapshot) -> Iterator[None]:
    """Hold the data file exclusively, so that no restore is reading or begins to read it.

    Raises:
        SnapshotInUseError: A restore reads it.
    """
    try:
        is_directory = snapshot.format == "directory"
        try:
            # Writable where possible: NFS gives exclusive locks on such descriptors only.
            descriptor = open_data(snapshot.path, directory=is_directory, writable=True)
        except PermissionError:
            descriptor = open_data(snapshot.path, directory=is_directory)
    except (FileNotFoundError, PermissionError, SnapshotCorruptError):
        # No data, or nothing that anybody could be restoring.
        yield
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SnapshotInUseError(
                f"snapshot {snapshot.name} {snapshot.version} is being read", found=holders(descriptor)
            ) from error
        yield
    finally:
        os.close(descriptor)


def remove_data(directory: SnapshotDirectory, path: Path) -> None:
    """Remove a data file, or a data directory, which first gets a name that any sweep finishes off.

    Raises:
        OSError: A file operation failed.
    """
    status = lstat(path)
    if status is None or not stat.S_ISDIR(status.st_mode):
        directory.files.unlink(path)
        return
    match = TEMPORARY.fullmatch(path.name)
    doomed = path if match and match["kind"] in DIRECTORY_KINDS else _doom(directory, path)
    remove_directory(directory.files, doomed)


def remove_data_quietly(directory: SnapshotDirectory, path: Path) -> None:
    """Remove data under a temporary name; when that fails the sweep does it later."""
    try:
        remove_data(directory, path)
    except OSError as error:
        _logger.warning("temporary data %s could not be removed yet: %s", path.name, error)


def _doom(directory: SnapshotDirectory, path: Path) -> Path:
    """Give a data directory a temporary name that says that it goes."""
    doomed = temporary_path(directory.path, path.name, "doomed")
    directory.files.replace(path, doomed)
    return doomed


def remove_quietly(directory: SnapshotDirectory, path: Path) -> None:
    """Remove a temporary name; when that fails the sweep does it later."""
    try:
        directory.files.unlink(path)
    except OSError as error:
        _logger.warning("temporary file %s could not be removed yet: %s", path.name, error)


def _write_manifest(directory: SnapshotDirectory, manifest: Manifest) -> Path:
    """Write a manifest under a temporary name and sync it."""
    files = directory.files
    content = manifest.to_json()
    path = temporary_path(directory.path, manifest.name, "manifest")
    descriptor = files.create(path)
    try:
        files.write(descriptor, content, path)
        files.fsync(descriptor, path)
    except BaseException:
        remove_quietly(directory, path)
        raise
    finally:
        os.close(descriptor)
    return path


def _take_back(
    directory: SnapshotDirectory, data: Path, beside: Path, note: Path, mine: tuple[int, int] | None
) -> None:
    """Undo an unfinished publication, manifest first; never touches a file that is not ours."""
    if lstat(note) is None:
        remove_quietly(directory, beside)
        with contextlib.suppress(OSError):
            directory.files.fsync_directory(directory.path)
    if lstat(beside) is None and mine is not None and identity(data) == mine:
        remove_data_quietly(directory, data)
    remove_quietly(directory, note)


def _put_back(directory: SnapshotDirectory, beside: Path, content: bytes | None) -> None:
    """Bring back the manifest of the old version."""
    if content is None:
        remove_quietly(directory, beside)
        return
    path = temporary_path(directory.path, beside.name.removesuffix(MANIFEST_SUFFIX), "manifest")
    try:
        descriptor = directory.files.create(path)
        try:
            directory.files.write(descriptor, content, path)
            directory.files.fsync(descriptor, path)
        finally:
            os.close(descriptor)
        directory.files.replace(path, beside)
    except OSError as error:
        _logger.warning("the old manifest %s could not be put back: %s", beside.name, error)


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _exists(manifest: Manifest, data: Path) -> SnapshotExistsError:
    return SnapshotExistsError(f"snapshot {manifest.name} {manifest.version} exists already", found=str(data))
