"""Parts that did not change since an earlier snapshot are stored once, as hard links of one file.

A hard link needs no bookkeeping: a part is there as long as one snapshot has
it, in whatever order they are deleted, and each snapshot is a directory that
pg_restore reads by itself (docs/design.md, Incremental snapshots).
"""

from __future__ import annotations

import contextlib
import logging
import os
from typing import TYPE_CHECKING, Final, TypeAlias

from keikaku_snapshots.errors import KeikakuError
from keikaku_snapshots.snapshots.directory import SnapshotDirectory, canonical_name, identity, lstat
from keikaku_snapshots.snapshots.files import open_regular
from keikaku_snapshots.snapshots.hashing import FileHash, hash_descriptor
from keikaku_snapshots.snapshots.part_files import entries, open_part
from keikaku_snapshots.snapshots.parts import Listing, from_manifest
from keikaku_snapshots.snapshots.publish import remove_quietly

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from keikaku_snapshots.snapshots.manifest import Snapshot

#: Device and inode of a file.
Inode: TypeAlias = tuple[int, int]

_logger = logging.getLogger("keikaku_snapshots.snapshots")

#: Bytes compared at once.
_BLOCK_BYTES: Final = 1024 * 1024
#: Name of the new link until it takes the part's place; cannot be that of a part.
_LINK_NAME: Final = ".link"


def share_parts(directory: SnapshotDirectory, path: Path, descriptor: int, parts: Listing) -> int:
    """Replace each part that an earlier snapshot has by a hard link to that one's file.

    Found by checksum and size, the newest snapshot first, and linked only after every byte was
    compared: a file that rotted since it was hashed is never linked to, and never changed. Whatever
    keeps a part from being linked (too many links, none on this file system, another device, a
    snapshot deleted meanwhile) leaves it a file of its own. Needs no lock.

    Args:
        directory: Where the snapshots are.
        path: The new snapshot's directory, complete, under its temporary name.
        descriptor: The same, open.
        parts: What is in it.

    Returns:
        Bytes that are shared now.

    Raises:
        OSError: A link was made and could not take its part's place.
    """
    shared = 0
    earlier = _files_by_content(directory, set(parts.values()))
    for name in sorted(parts):
        tried: set[Inode] = set()
        candidates = earlier.get(parts[name], []) if parts[name].size_bytes else []
        if any(_link(directory, one, path, descriptor, name, tried) for one in candidates):
            shared += parts[name].size_bytes
    return shared


def also_hurt(directory: SnapshotDirectory, snapshot: Snapshot, damaged: Iterable[str]) -> list[str]:
    """Return the other snapshots that damaged parts of one hurt too, in words.

    Those that have the very file, and those that have another file of what should be the same
    content, when that one is damaged as well.

    Args:
        directory: Where the snapshots are.
        snapshot: The one found damaged; it has a manifest.
        damaged: Names of its damaged parts.
    """
    if snapshot.manifest is None:
        return []
    mine = from_manifest(snapshot.manifest.parts)
    damaged = [name for name in damaged if name in mine]
    inodes = {_inode_of(snapshot.path / name) for name in damaged} - {None}
    contents = {mine[name] for name in damaged}
    hurt = []
    for other in directory.snapshots():
        if other.manifest is None or canonical_name(other) == canonical_name(snapshot):
            continue
        for name, wanted in from_manifest(other.manifest.parts).items():
            part = other.path / name
            if _inode_of(part) in inodes or (wanted in contents and not _is_whole(part, wanted)):
                hurt.append(f"{other} ({name})")
    return hurt


class DiskUse:
    """What snapshots take on the disk, a part that several of them share counted once.

    Args:
        snapshots: Looked at now, so that it can still be asked when they are deleted.
    """

    def __init__(self, snapshots: Iterable[Snapshot]) -> None:
        self._files = {snapshot.path: dict(_files_of(snapshot)) for snapshot in snapshots}

    @property
    def total_bytes(self) -> int:
        """Bytes of all of them."""
        return sum(
            {inode: size for files in self._files.values() for inode, (size, _) in files.items()}.values()
        )

    def freed_bytes(self, snapshots: Iterable[Snapshot]) -> int:
        """Return the bytes that deleting all of these frees: of files that have no name elsewhere.

        Args:
            snapshots: Some of those that were looked at.
        """
        names: dict[Inode, list[tuple[int, int]]] = {}
        for snapshot in snapshots:
            for inode, found in self._files.get(snapshot.path, {}).items():
                names.setdefault(inode, []).append(found)
        return sum(found[0][0] for found in names.values() if len(found) >= found[0][1])


def _files_of(snapshot: Snapshot) -> Iterator[tuple[Inode, tuple[int, int]]]:
    """Inode of each file of a snapshot, with its bytes and the number of its names."""
    try:
        if snapshot.format == "directory":
            for status in entries(snapshot.path).values():
                yield (status.st_dev, status.st_ino), (status.st_size, status.st_nlink)
        else:
            status = snapshot.path.lstat()
            # Its other name can only be the link to the latest, which moves.
            yield (status.st_dev, status.st_ino), (status.st_size, 1)
    except OSError:
        return


def _inode_of(part: Path) -> Inode | None:
    try:
        return identity(part)
    except OSError:
        return None


def _files_by_content(directory: SnapshotDirectory, wanted: set[FileHash]) -> dict[FileHash, list[Path]]:
    """Parts of the valid snapshots that should have a wanted content, the newest snapshot first."""
    found: dict[FileHash, list[Path]] = {}
    snapshots = sorted(directory.snapshots(), key=lambda item: item.sort_key, reverse=True)
    for snapshot in snapshots:
        if not snapshot.is_valid or snapshot.manifest is None:
            continue
        for name, content in from_manifest(snapshot.manifest.parts).items():
            if content in wanted:
                found.setdefault(content, []).append(snapshot.path / name)
    return found


def _link(
    directory: SnapshotDirectory, old: Path, path: Path, descriptor: int, name: str, tried: set[Inode]
) -> bool:
    """Put a link to ``old`` in the place of part ``name`` when they are equal; tell whether it was done."""
    link = path / _LINK_NAME
    with contextlib.ExitStack() as stack:
        try:
            theirs = _opened(stack, open_regular(old))
            ours = _opened(stack, open_part(descriptor, name))
            status = os.fstat(theirs)
            inode = (status.st_dev, status.st_ino)
            # Another account could change a file of its own afterwards.
            if inode in tried or status.st_uid != os.geteuid():
                return False
            tried.add(inode)
            if not _are_equal(ours, theirs):
                _logger.warning("%s is damaged and is not shared; run `keikaku verify`", old)
                return False
            stack.callback(_remove_link, directory, link)
            directory.files.link(old, link)
            # Deleted and made anew since it was opened: then this is not what was compared.
            if identity(link) != inode:
                return False
        except (OSError, KeikakuError) as error:
            _logger.debug("%s is stored as a file of its own, not shared with %s: %s", name, old, error)
            return False
        directory.files.replace(link, path / name)
    return True


def _opened(stack: contextlib.ExitStack, descriptor: int) -> int:
    stack.callback(os.close, descriptor)
    return descriptor


def _remove_link(directory: SnapshotDirectory, link: Path) -> None:
    if lstat(link):
        remove_quietly(directory, link)


def _are_equal(one: int, other: int) -> bool:
    """Compare two open files byte by byte."""
    position = 0
    while True:
        block = os.pread(one, _BLOCK_BYTES, position)
        if block != os.pread(other, _BLOCK_BYTES, position):
            return False
        if not block:
            return True
        position += len(block)


def _is_whole(part: Path, wanted: FileHash) -> bool:
    """Read a part and tell whether it is what its manifest says; one that is not there is not."""
    try:
        descriptor = open_regular(part)
    except (OSError, KeikakuError):
        return False
    try:
        return hash_descriptor(descriptor) == wanted
    except OSError:
        return False
    finally:
        os.close(descriptor)
