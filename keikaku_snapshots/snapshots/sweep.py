"""What a crash left behind: finished where it was decided, removed where it was not.

Nothing is removed that is not proven to be ours: a temporary file by its name,
kind and owner, and by nobody holding its lock; a data file without manifest
only when a leftover of our own names it. A dump that somebody put there by hand
stays. Called with the directory lock held.
"""

from __future__ import annotations

import fcntl
import logging
import os
import stat
from typing import TYPE_CHECKING

from keikaku_snapshots.errors import KeikakuError
from keikaku_snapshots.snapshots.directory import (
    Leftover,
    SnapshotDirectory,
    canonical_name,
    is_data_of,
)
from keikaku_snapshots.snapshots.part_files import newest_change_s, open_data
from keikaku_snapshots.snapshots.publish import finish_replacement, remove_data

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_logger = logging.getLogger("keikaku_snapshots.snapshots")


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
    leftovers = [item for item in directory.leftovers() if item.path not in in_use]
    stale = [item for item in leftovers if _is_stale(item, now_s, grace_s)]
    # A deletion was decided by the rename, so it needs no grace.
    decided = [
        item
        for item in leftovers
        if item not in stale
        and (item.kind == "deleted" or (item.kind == "doomed" and not _is_locked(item.path, directory=True)))
    ]
    for data in _ownerless_data(directory, stale, decided):
        removed.append(data)
        if not dry_run:
            remove_data(directory, data)
    for item in [*stale, *(item for item in decided if item.manifest() or item.is_directory)]:
        removed.append(item.path)
        if not dry_run:
            remove_data(directory, item.path)
    if removed and not dry_run:
        directory.files.fsync_directory(directory.path)
        _logger.info("removed what an interrupted run left: %s", ", ".join(path.name for path in removed))
    return removed


def _is_stale(item: Leftover, now_s: float, grace_s: float) -> bool:
    changed_s = newest_change_s(item.path, item.status) if item.is_directory else item.status.st_mtime
    if now_s - changed_s < grace_s:
        return False
    return stat.S_ISLNK(item.status.st_mode) or not _is_locked(item.path, directory=item.is_directory)


def _is_locked(path: Path, *, directory: bool) -> bool:
    """Tell whether a living process writes or reads the data: stages and readers hold a flock on it."""
    try:
        descriptor = open_data(path, directory=directory)
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
    inodes = {(item.status.st_dev, item.status.st_ino) for item in stale if item.kind == ""}
    named = {canonical_name(found): found for item in [*stale, *decided] if (found := item.manifest())}
    for path in directory.data_without_manifest():
        status = path.lstat()
        if (status.st_dev, status.st_ino) in inodes:
            yield path
            continue
        manifest = named.get(path.name)
        if (
            manifest is not None
            and is_data_of(manifest, path, status)
            and not _is_locked(path, directory=manifest.format == "directory")
        ):
            yield path


def _finish_replacements(directory: SnapshotDirectory) -> None:
    """End every interrupted overwrite: the new data takes its lasting name."""
    for snapshot in directory.snapshots():
        manifest = snapshot.manifest
        if manifest is None or not snapshot.is_valid or manifest.data_file == canonical_name(manifest):
            continue
        if not _is_locked(snapshot.path, directory=manifest.format == "directory"):
            finish_replacement(directory, manifest)
