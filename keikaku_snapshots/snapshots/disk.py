"""Looking before writing: room, inodes and the right to write.

The estimate is a hint and no promise: a dump can be a hundred times the size
of its database (FAULTS 9). `ReserveWatcher` stops a dump before the disk is full.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import Final

from keikaku_snapshots.errors import DiskFullError
from keikaku_snapshots.snapshots.files import FileSystem, temporary_path, translate_os_error

MEGABYTE: Final = 1024 * 1024
#: Megabytes that must stay free beside a new snapshot, unless configured.
DEFAULT_MINIMUM_FREE_MB: Final = 1_000
#: Free inodes needed: data, manifest, links and their temporary names.
MINIMUM_FREE_INODES: Final = 16
#: The next dump of a database is rarely more than half again as large as the last.
_GROWTH: Final = 1.5
#: Dump bytes for each byte of the database, when there is no earlier dump: text
#: without indexes is usually smaller, packed text larger.
_FACTORS: Final = {"plain": 1.2, "custom": 0.6, "directory": 0.6, "json": 2.0}
_PACKED: Final = 0.5
_NETWORK_FILE_SYSTEMS: Final = frozenset(
    {
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "9p",
        "afs",
        "ceph",
        "glusterfs",
        "lustre",
        "fuse.sshfs",
        "fuse.s3fs",
    }
)


def estimate_bytes(
    *,
    database_bytes: int,
    last_snapshot_bytes: int | None = None,
    format_name: str = "plain",
    compressed: bool = False,
) -> int:
    """Return how many bytes a new snapshot will probably take.

    Args:
        database_bytes: What the server says the database takes.
        last_snapshot_bytes: Size of the last snapshot of the same database and format.
        format_name: ``plain``, ``custom``, ``directory`` or ``json``.
        compressed: A compression is on that is not the format's own.
    """
    if last_snapshot_bytes is not None:
        return int(last_snapshot_bytes * _GROWTH)
    factor = _FACTORS.get(format_name, 1.0) * (_PACKED if compressed else 1.0)
    return int(database_bytes * factor)


def check_space(
    directory: str | os.PathLike[str],
    estimated_bytes: int = 0,
    *,
    minimum_free_mb: int = DEFAULT_MINIMUM_FREE_MB,
    parts: int = 0,
    files: FileSystem | None = None,
) -> None:
    """Make sure that a snapshot can be written; nothing is left behind.

    Parts that will be shared with earlier snapshots count too: they are on the disk until they are.

    Args:
        directory: The snapshot directory, which exists.
        estimated_bytes: What the snapshot will probably take.
        minimum_free_mb: Megabytes that must stay free beside it.
        parts: Files of a directory snapshot; each needs an inode.
        files: The seam for file operations.

    Raises:
        DiskFullError: Bytes or inodes are too few; the text names need and free.
        AccessDeniedError: The directory is read-only or not ours to write in.
    """
    path = Path(directory)
    needed_bytes = estimated_bytes + minimum_free_mb * MEGABYTE
    try:
        # Looked up at call time, so that a test or a mount in between counts.
        free_bytes = shutil.disk_usage(path).free
        limits = os.statvfs(path)
    except OSError as error:
        raise translate_os_error(error, doing="looking at the disk", path=path) from error
    if free_bytes < needed_bytes:
        raise DiskFullError(
            "there is too little room for a snapshot",
            found=(
                f"{path}: needed {_megabytes(needed_bytes)} (estimated {_megabytes(estimated_bytes)} and "
                f"{minimum_free_mb:,} MB that must stay free), free {_megabytes(free_bytes)}."
            ),
            needed_bytes=needed_bytes,
            free_bytes=free_bytes,
        )
    # A file system without a fixed number of inodes (btrfs) says 0 of 0.
    needed_inodes = MINIMUM_FREE_INODES + parts
    if limits.f_files and limits.f_favail < needed_inodes:
        raise DiskFullError(
            "there are too few free inodes for a snapshot",
            found=f"{path}: needed {needed_inodes}, free {limits.f_favail}.",
            hint="Delete files there (many small ones use up inodes), or use another --snapshot-dir.",
            needed_inodes=needed_inodes,
            free_inodes=limits.f_favail,
        )
    _try_to_write(path, files or FileSystem())


def _try_to_write(directory: Path, files: FileSystem) -> None:
    """Make, fill and remove a small file: the only sure sign of quota, read-only and missing rights."""
    path = temporary_path(directory, "check")
    try:
        descriptor = files.create(path)
        try:
            files.write(descriptor, b"\0" * 4096, path)
        finally:
            os.close(descriptor)
            files.unlink(path)
    except OSError as error:
        raise translate_os_error(
            error, doing="trying to write in the snapshot directory", path=directory
        ) from error


class ReserveWatcher:
    """Tells a running program's watcher when the disk is nearly full; for ``run_tool(watch=…)``.

    Args:
        directory: Where the program writes.
        reserve_mb: Megabytes that must stay free.
    """

    def __init__(self, directory: str | os.PathLike[str], reserve_mb: int = DEFAULT_MINIMUM_FREE_MB) -> None:
        self.directory = Path(directory)
        self.reserve_bytes = reserve_mb * MEGABYTE

    def __call__(self) -> str | None:
        """Return why the program must stop, ``None`` to let it go on."""
        free_bytes = shutil.disk_usage(self.directory).free
        if free_bytes >= self.reserve_bytes:
            return None
        return (
            f"{self.directory}: only {_megabytes(free_bytes)} are free, "
            f"{_megabytes(self.reserve_bytes)} must stay free"
        )

    def error(self, found: str) -> DiskFullError:
        """Return the error for a program that was stopped with the text ``found``."""
        return DiskFullError("the disk became too full while the snapshot was written", found=found)


def network_file_system(path: str | os.PathLike[str]) -> str | None:
    """Return the kind of network file system that ``path`` lies on, ``None`` when it is local or unknown.

    Locks are not always kept between hosts there; correctness then rests on
    the lock in the database.
    """
    target = os.path.realpath(path)
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    best, kind = "", ""
    for line in lines:
        left, _, right = line.partition(" - ")
        mount = left.split()[4].replace("\\040", " ")
        inside = target == mount or target.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):
            best, kind = mount, right.split()[0]
    return kind if kind in _NETWORK_FILE_SYSTEMS else None


def weaknesses(directory: str | os.PathLike[str]) -> list[str]:
    """Return in words what makes a snapshot directory less safe than it could be; empty when nothing does."""
    found = []
    mode = Path(directory).stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        found.append(f"{directory} can be written by every account; chmod 700 keeps others out")
    kind = network_file_system(directory)
    if kind:
        found.append(f"{directory} is on {kind}: locks between hosts rest on the lock in the database there")
    return found


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / MEGABYTE:,.1f} MB"
