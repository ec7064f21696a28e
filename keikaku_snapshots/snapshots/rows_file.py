"""The bytes of a JSON snapshot: written through checksum and compression in a thread, read back unpacked."""

from __future__ import annotations

import collections
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, Self

from keikaku_snapshots.errors import JSONCorruptError
from keikaku_snapshots.snapshots.compression import Unpacked, compression_of
from keikaku_snapshots.snapshots.disk import ReserveWatcher
from keikaku_snapshots.snapshots.packed_file import PackedFile, PackedHash
from keikaku_snapshots.snapshots.rows_json import RowsReader

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

#: Levels when none is asked for. Measured on the keikaku dataset: gzip 13.7 % of the JSON (level 1 15.6 %,
#: level 6 13.6 %), while the thread still keeps up with the rows, so that the time is that without gzip.
#: zstd 11.8 % at level 1, 12.8 % at level 3.
JSON_LEVELS: Final = {"gzip": 5, "zstd": 1}
#: Blocks of text that may wait for the thread; bounds the memory.
_WAITING: Final = 4
#: Bytes between two looks at the free space.
_WATCH_BYTES: Final = 16 * 1024 * 1024


class RowsFile:
    """Writes text into an open file; a context manager.

    A thread compresses, hashes and writes, while the caller makes the next block.

    Args:
        descriptor: The file, empty; stays open and the caller's.
        path: Where it is, for messages and for the free space.
        compression: ``gzip``, ``zstd`` or None.
        level: Its level; the default for JSON if None.
        minimum_free_mb: Megabytes that must stay free.
    """

    def __init__(
        self, descriptor: int, path: Path, *, compression: str | None, level: int | None, minimum_free_mb: int
    ) -> None:
        if compression is not None and level is None:
            level = JSON_LEVELS[compression]
        self._file = PackedFile(descriptor, path, compression=compression, level=level)
        self._watcher = ReserveWatcher(path.parent, minimum_free_mb)
        self._watched_bytes = 0
        self._thread = ThreadPoolExecutor(1, "keikaku-rows")
        self._waiting: collections.deque[Future[None]] = collections.deque()

    def write(self, text: str) -> None:
        """Hand a block over; waits when the thread is behind.

        Raises:
            DiskFullError: The disk is full, or nearly.
            CreateFailedError: The file cannot be written.
        """
        if len(self._waiting) >= _WAITING:
            self._waiting.popleft().result()
        self._waiting.append(self._thread.submit(self._put, text.encode()))

    def finish(self) -> PackedHash:
        """Write what is left.

        Returns:
            Checksum and size of the file, and of the JSON in it; it is not synced yet.

        Raises:
            DiskFullError: As for `write`.
        """
        while self._waiting:
            self._waiting.popleft().result()
        return self._thread.submit(self._file.finish).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _put(self, block: bytes) -> None:
        if self._file.file_bytes - self._watched_bytes >= _WATCH_BYTES:
            self._watched_bytes = self._file.file_bytes
            full = self._watcher()
            if full:
                raise self._watcher.error(full)
        self._file.write(block)


def rows_bytes(descriptor: int, place: str) -> Unpacked:
    """Read an open file from its beginning, unpacking it where its first bytes say so.

    Args:
        descriptor: The file; its position is not moved.
        place: What to call it in errors: its path.

    Returns:
        What gives the text; a damaged file is a `JSONCorruptError`.
    """
    return Unpacked(descriptor, compression_of(descriptor), place, JSONCorruptError)


def check_rows_file(descriptor: int, place: str, wanted: Mapping[str, int] | None) -> None:
    """Read a JSON snapshot as a whole and count its rows.

    Args:
        descriptor: The open file.
        place: What to call it in errors: its path.
        wanted: Rows of each table as the manifest says; None when there is none.

    Raises:
        JSONCorruptError: It is broken, or has other rows.
    """
    found = {
        name: sum(1 for _ in rows)
        for name, rows in RowsReader(rows_bytes(descriptor, place).read, place).tables()
    }
    if wanted is not None and found != dict(wanted):
        lines = [f"{name}: {found.get(name, 0)} rows" for name in found.keys() | wanted.keys()]
        raise JSONCorruptError(
            "the JSON file has not the rows that its manifest says",
            found="\n".join([place, *sorted(lines)]),
        )
