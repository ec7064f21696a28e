"""The parts of a snapshot on disk: opened, listed, hashed, synced, linked, removed.

Every change goes through the seam of `files`, one operation a part, so that
tests can stop between any two parts.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from keikaku_snapshots.errors import SnapshotCorruptError
from keikaku_snapshots.progress import Progress, ProgressCallback
from keikaku_snapshots.snapshots.files import FileSystem, kind_of, link_or_copy, open_regular
from keikaku_snapshots.snapshots.hashing import FileHash, hash_descriptor
from keikaku_snapshots.snapshots.parts import Listing, is_part_name, problem_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_logger = logging.getLogger("keikaku_snapshots.snapshots")

#: A part is never changed again, and one that several snapshots share must not be: without the right
#: to write, an editor or a script says so before it damages all of them. Readable by the owner only.
PART_MODE: Final = 0o400


def open_directory(path: Path) -> int:
    """Open a directory once, without following a link; the caller closes it.

    Raises:
        SnapshotCorruptError: It is no directory.
        OSError: It cannot be opened.
    """
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in {errno.ENOTDIR, errno.ELOOP}:
            kind = kind_of(path.lstat().st_mode)
            raise SnapshotCorruptError(
                f"{path.name} is not a directory but a {kind}", found=str(path)
            ) from error
        raise


def open_data(path: Path, *, directory: bool, writable: bool = False) -> int:
    """Open a snapshot's data, a file or a directory, as `files.open_regular` does.

    Args:
        path: Where.
        directory: It is to be a directory.
        writable: For writing too; a directory cannot be opened so.
    """
    return open_directory(path) if directory else open_regular(path, writable=writable)


def entries(directory: int | Path) -> dict[str, os.stat_result]:
    """Return the status of everything in a directory, links not followed.

    Args:
        directory: Its descriptor or its path.
    """
    with os.scandir(directory) as found:
        return {entry.name: entry.stat(follow_symlinks=False) for entry in found}


def hash_parts(
    descriptor: int, *, progress: ProgressCallback | None = None, step: str = "checksum"
) -> Listing:
    """Return checksum and size of every part of an open directory.

    Args:
        descriptor: The directory.
        progress: Called after each part with the bytes read so far.
        step: Name of the step in the progress values.

    Raises:
        SnapshotCorruptError: Something in it is not a regular file.
        OSError: A part cannot be read.
    """
    begun = time.monotonic()
    present = entries(descriptor)
    total, done = sum(status.st_size for status in present.values()), 0
    found: Listing = {}
    for name in sorted(present):
        part = open_part(descriptor, name)
        try:
            found[name] = hash_descriptor(part)
        finally:
            os.close(part)
        done += found[name].size_bytes
        if progress is not None:
            progress(Progress(step, done, total, "bytes", time.monotonic() - begun))
    if progress is not None:
        progress(Progress(step, done, total, "bytes", time.monotonic() - begun, finished=True))
    return found


def open_part(directory: int, name: str) -> int:
    """Open a part of an open directory for reading; the caller closes it.

    Raises:
        SnapshotCorruptError: It is not a regular file.
        OSError: It cannot be opened.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(name, flags, dir_fd=directory)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENXIO}:
            raise SnapshotCorruptError(f"part {name} is not a regular file") from error
        raise
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise SnapshotCorruptError(f"part {name} is not a regular file but a {kind_of(mode)}")
    return descriptor


def sync_parts(files: FileSystem, descriptor: int, path: Path) -> None:
    """Bring every part and the directory's names to the disk, and take the right to write from the parts.

    Args:
        files: The seam.
        descriptor: The directory.
        path: Its path.
    """
    for name in sorted(entries(descriptor)):
        part = open_part(descriptor, name)
        try:
            if stat.S_IMODE(os.fstat(part).st_mode) != PART_MODE:
                files.chmod(part, PART_MODE, path / name)
            files.fsync(part, path / name)
        finally:
            os.close(part)
    files.fsync_directory(path)


def link_parts(files: FileSystem, source: Path, target: Path, parts: Mapping[str, object]) -> None:
    """Make ``target`` a directory of the same parts, hard links where the file system has them.

    Args:
        files: The seam.
        source: The directory that has them.
        target: The directory to be, which must not exist.
        parts: Which.
    """
    files.mkdir(target)
    for name in sorted(parts):
        link_or_copy(files, source / name, target / name)
    descriptor = open_directory(target)
    try:
        sync_parts(files, descriptor, target)
    finally:
        os.close(descriptor)


def remove_directory(files: FileSystem, path: Path) -> None:
    """Remove a directory under one of our temporary names, with the files in it.

    A directory inside it is nobody's making here, so it stays, and ``path`` with it.

    Raises:
        OSError: A file operation failed.
    """
    try:
        present = entries(path)
    except FileNotFoundError:
        return
    inner = [name for name, status in present.items() if stat.S_ISDIR(status.st_mode)]
    for name in sorted(set(present) - set(inner)):
        files.unlink(path / name)
    if inner:
        _logger.warning("%s is not removed: it holds the directory %s", path.name, inner[0])
        return
    files.rmdir(path)


def foreign_entries(path: Path, parts: Mapping[str, FileHash]) -> list[str]:
    """Return the names in a directory that are not files of the snapshot.

    Args:
        path: The directory.
        parts: What the manifest says; empty when there is none, then any regular file may be a part.
    """
    return sorted(
        name
        for name, status in entries(path).items()
        if not stat.S_ISREG(status.st_mode) or (name not in parts if parts else not is_part_name(name))
    )


def newest_change_s(path: Path, status: os.stat_result) -> float:
    """Return when a directory or one of its parts was last written to, in seconds since 1970."""
    try:
        return max([status.st_mtime, *(part.st_mtime for part in entries(path).values())])
    except OSError:
        return status.st_mtime


def _is_readable(path: Path, name: str, status: os.stat_result) -> bool:
    # Parts that this account made are readable by their mode; asking for each costs as much as looking.
    mine = status.st_uid == os.geteuid() and bool(status.st_mode & stat.S_IRUSR)
    return mine or os.access(path / name, os.R_OK)


class Look(NamedTuple):
    """What a directory's names and sizes say, without its content being read."""

    #: Why it is not what its manifest says; empty when nothing differs.
    problem: str
    #: Bytes of everything in it.
    size_bytes: int
    #: Bytes of files that have no other name: removing the directory would free them.
    own_bytes: int


def look(path: Path, parts: Mapping[str, FileHash]) -> Look:
    """Compare a directory's names and sizes with what its manifest says.

    Args:
        path: The directory.
        parts: What the manifest says.
    """
    try:
        present = entries(path)
    except PermissionError:
        return Look("the data directory cannot be read by this account", 0, 0)
    except OSError as error:
        return Look(f"the data directory cannot be read: {error.strerror}", 0, 0)
    size_bytes = sum(status.st_size for status in present.values())
    own_bytes = sum(status.st_size for status in present.values() if status.st_nlink == 1)
    problem = problem_of(present, parts)
    if not problem:
        unreadable = next(
            (name for name in sorted(parts) if not _is_readable(path, name, present[name])), None
        )
        problem = f"part {unreadable} cannot be read by this account" if unreadable else ""
    return Look(problem, size_bytes, own_bytes)
