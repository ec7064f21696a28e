"""Bring a compressed plain snapshot back to text: into a checked file, never through a pipe (FAULTS 3).

Nothing reads the text before its size, checksum, header and end are known to be
right, and never more is written than the manifest says.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from typing import TYPE_CHECKING, Final

from keikaku_snapshots.errors import DiskFullError, KeikakuError, SnapshotCorruptError
from keikaku_snapshots.snapshots.compression import Unpacked, compression_of, packed_as
from keikaku_snapshots.snapshots.disk import ReserveWatcher
from keikaku_snapshots.snapshots.files import translate_os_error
from keikaku_snapshots.snapshots.hashing import FileHash
from keikaku_snapshots.snapshots.verify import EDGE_BYTES, check_edges

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from keikaku_snapshots.snapshots.manifest import Manifest
    from keikaku_snapshots.snapshots.reading import OpenSnapshot

_BLOCK_BYTES: Final = 1024 * 1024
#: Bytes between two looks at the free space.
_WATCH_BYTES: Final = 16 * 1024 * 1024
#: What the text of a dump without manifest is thought to take, for each byte of the packed file.
_GUESS: Final = 5


def unpack_into(opened: OpenSnapshot, descriptor: int, path: Path, *, minimum_free_mb: int) -> FileHash:
    """Write the text of a packed plain snapshot into a file, and check it against the manifest.

    Args:
        opened: The snapshot, held so that nobody deletes it.
        descriptor: The file, empty, ours alone.
        path: Where it is.
        minimum_free_mb: Megabytes that must stay free beside it.

    Returns:
        Checksum and size of the text.

    Raises:
        DiskFullError: There is too little room.
        SnapshotCorruptError: The file is damaged, cut, or not what the manifest says.
        ToolMissingError: The library for its compression is not installed.
    """
    watcher = ReserveWatcher(path.parent, minimum_free_mb)
    _check_room(opened, watcher)
    written = watched = 0

    def write(block: bytes) -> None:
        nonlocal written, watched
        if written - watched >= _WATCH_BYTES:
            watched = written
            full = watcher()
            if full:
                raise DiskFullError("the disk became too full while the snapshot was unpacked", found=full)
        rest = memoryview(block)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        written += len(block)

    try:
        return read_packed(opened, write)
    except KeikakuError:
        raise
    except OSError as error:
        raise translate_os_error(error, doing="unpacking the snapshot", path=path) from error


def read_packed(opened: OpenSnapshot, take: Callable[[bytes], None] = lambda _: None) -> FileHash:
    """Read a packed plain snapshot as a whole and check its text.

    Args:
        opened: The snapshot.
        take: Given each block of text.

    Returns:
        Checksum and size of the text.

    Raises:
        SnapshotCorruptError: As for `unpack_into`.
        ToolMissingError: As for `unpack_into`.
        OSError: The file cannot be read, or what ``take`` raises.
    """
    name, manifest = opened.path.name, opened.snapshot.manifest
    limit = manifest.uncompressed_bytes if manifest else None
    compression = packed_as(opened.snapshot)
    found = compression_of(opened.fileno())
    if found != compression:
        raise SnapshotCorruptError(f"{name} is not packed with {compression}", found=str(opened.path))
    packed = Unpacked(opened.fileno(), compression, str(opened.path))
    digest, size, head, tail = hashlib.sha256(), 0, b"", b""
    while block := packed.read(_BLOCK_BYTES):
        size += len(block)
        if limit is not None and size > limit:
            raise _differs(opened, f"more than the {limit} bytes that the manifest says")
        digest.update(block)
        head += block[: EDGE_BYTES - len(head)]
        tail = (tail + block)[-EDGE_BYTES:]
        take(block)
    content = FileHash(digest.hexdigest(), size)
    if manifest is not None:
        _compare(opened, manifest, content)
    check_edges(head, tail, name)
    return content


def _compare(opened: OpenSnapshot, manifest: Manifest, content: FileHash) -> None:
    if content.size_bytes != manifest.uncompressed_bytes:
        raise _differs(opened, f"{content.size_bytes} bytes, the manifest says {manifest.uncompressed_bytes}")
    if content.sha256 != manifest.uncompressed_sha256:
        raise _differs(opened, f"SHA-256 {content.sha256}, the manifest says {manifest.uncompressed_sha256}")


def _differs(opened: OpenSnapshot, found: str) -> SnapshotCorruptError:
    return SnapshotCorruptError(
        f"what is packed in snapshot {opened.snapshot} is not what was put in",
        found=f"{opened.path}, unpacked: {found}.",
    )


def _check_room(opened: OpenSnapshot, watcher: ReserveWatcher) -> None:
    manifest = opened.snapshot.manifest
    known = manifest.uncompressed_bytes if manifest else None
    needed_bytes = os.fstat(opened.fileno()).st_size * _GUESS if known is None else known
    # Looked up at call time, so that a test or a mount in between counts.
    free_bytes = shutil.disk_usage(watcher.directory).free
    if free_bytes < needed_bytes + watcher.reserve_bytes:
        raise DiskFullError(
            f"there is too little room to unpack snapshot {opened.snapshot}",
            found=(
                f"{watcher.directory}: needed {needed_bytes:,} bytes and {watcher.reserve_bytes:,} that "
                f"must stay free, free {free_bytes:,}."
            ),
            needed_bytes=needed_bytes + watcher.reserve_bytes,
            free_bytes=free_bytes,
        )
