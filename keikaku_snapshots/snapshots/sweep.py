"""What a crash left behind: finished where it was decided, removed where it was not.

Nothing is removed that is not proven to be ours: a temporary file by its name,
kind and owner, and by nobody holding its lock; a data file without manifest
only when a leftover of our own names it. A dump that somebody put there by hand
stays. Called with the directory lock held.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from keikaku_snapshots.errors import KeikakuError
from keikaku_snapshots.snapshots.directory import (
    MANIFEST_LIMIT_BYTES,
    TEMPORARY,
    SnapshotDirectory,
    canonical_name,
    identity,
    lstat,
)
from keikaku_snapshots.snapshots.files import open_regular, read_regular
from keikaku_snapshots.snapshots.manifest import Manifest
from keikaku_snapshots.snapshots.names import MANIFEST_SUFFIX
from keikaku_snapshots.snapshots.publish import finish_replacement

if TYPE_CHECKING:
    from collections.abc import Iterator

_logger = logging.getLogger("keikaku_snapshots.snapshots")


@dataclass(frozen=True, slots=True)
class Leftover:
    """A temporary file of ours."""

    #: Where it lies.
    path: Path
    #: Its status when it was found.
    status: os.stat_result
    #: ``""`` for data, ``manifest``, ``deleted`` or ``latest``.
    kind: str


def sweep(directory: SnapshotDirectory, *, now_s: float, grace_s: float, dry_run: bool = False) -> list[Path]:
    """Remove and finish what dead processes left.

    Args:
        directory: Where.
        now_s: The time, in seconds since 1970.
        grace_s: Seconds that an unfinished file must not have been written to.
        dry_run: Change nothing.

    Returns:
        The files that were, or would be, removed.

    Raises:
        OSError: A file operation failed; the rest is done by the next sweep.
    """
    removed: list[Path] = []
    if not dry_run:
        _finish_replacements(directory)
    in_use = {item.path for item in directory.snapshots()}
    leftovers = [item for item in find_leftovers(directory) if item.path not in in_use]
    stale = [item for item in leftovers if _is_stale(item, now_s, grace_s)]
    # A deletion was decided by the rename, so it needs no grace.
    decided = [item for item in leftovers if item.kind == "deleted" and item not in stale]
    for data in _ownerless_data(directory, stale, decided):
        removed.append(data)
        if not dry_run:
            directory.files.unlink(data)
    for item in [*stale, *(item for item in decided if _manifest_in(item.path))]:
        removed.append(item.path)
        if not dry_run:
            directory.files.unlink(item.path)
    if removed and not dry_run:
        directory.files.fsync_directory(directory.path)
        _logger.info("removed what an interrupted run left: %s", ", ".join(path.name for path in removed))
    return removed


def find_leftovers(directory: SnapshotDirectory) -> list[Leftover]:
    """Return the temporary files of this account in a directory, oldest first."""
    found = []
    with contextlib.suppress(FileNotFoundError), os.scandir(directory.path) as entries:
        for entry in entries:
            match = TEMPORARY.fullmatch(entry.name)
            status = lstat(Path(entry.path)) if match else None
            if match is None or status is None or status.st_uid != os.geteuid():
                continue
            if stat.S_ISREG(status.st_mode) or (stat.S_ISLNK(status.st_mode) and match["kind"] == "latest"):
                found.append(Leftover(Path(entry.path), status, match["kind"] or ""))
    return sorted(found, key=lambda item: (item.status.st_mtime, item.path.name))


def _is_stale(item: Leftover, now_s: float, grace_s: float) -> bool:
    if now_s - item.status.st_mtime < grace_s:
        return False
    return stat.S_ISLNK(item.status.st_mode) or not _is_locked(item.path)


def _is_locked(path: Path) -> bool:
    """Tell whether a living process writes or reads the file: stages and readers hold a flock on it."""
    try:
        descriptor = open_regular(path)
    except (OSError, KeikakuError):
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _ownerless_data(
    directory: SnapshotDirectory, stale: list[Leftover], decided: list[Leftover]
) -> Iterator[Path]:
    """Data files without manifest that a leftover of ours proves to be ours."""
    seen: set[Path] = set()
    inodes = {(item.status.st_dev, item.status.st_ino) for item in stale if item.kind == ""}
    candidates = [item.path for item in directory.snapshots() if item.manifest is None]
    for path in candidates:
        if identity(path) in inodes and not _has_manifest(path):
            seen.add(path)
            yield path
    for item in [*stale, *decided]:
        manifest = _manifest_in(item.path) if item.kind in {"manifest", "deleted"} else None
        if manifest is None:
            continue
        path = directory.path / canonical_name(manifest)
        status = lstat(path)
        if status is None or path in seen or _has_manifest(path) or not stat.S_ISREG(status.st_mode):
            continue
        # Empty: the name was being held for a file system without hard links.
        if status.st_size in {manifest.size_bytes, 0} and not _is_locked(path):
            seen.add(path)
            yield path


def _has_manifest(data: Path) -> bool:
    return lstat(data.with_name(data.name + MANIFEST_SUFFIX)) is not None


def _manifest_in(path: Path) -> Manifest | None:
    try:
        return Manifest.from_json(read_regular(path, MANIFEST_LIMIT_BYTES))
    except (OSError, KeikakuError):
        return None


def _finish_replacements(directory: SnapshotDirectory) -> None:
    """End every interrupted overwrite: the new data takes its lasting name."""
    for snapshot in directory.snapshots():
        manifest = snapshot.manifest
        if manifest is None or not snapshot.is_valid or manifest.data_file == canonical_name(manifest):
            continue
        if not _is_locked(snapshot.path):
            finish_replacement(directory, manifest)
