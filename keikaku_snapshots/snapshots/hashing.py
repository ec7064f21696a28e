"""SHA-256 of files: of one that lies still, and of one that is growing."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from keikaku_snapshots.progress import Progress, ProgressCallback

if TYPE_CHECKING:
    from types import TracebackType

#: Bytes read at once: large enough that hashlib lets other threads run, small
#: enough to stay in the cache.
_BLOCK_BYTES: Final = 1024 * 1024
#: Bytes between two calls of a progress callback.
_REPORT_BYTES: Final = 64 * 1024 * 1024
#: Seconds between two looks at a file that has not grown.
_POLL_S: Final = 0.02


class FileHash(NamedTuple):
    """Checksum and size of a file."""

    #: SHA-256, 64 hexadecimal digits.
    sha256: str
    #: Bytes that were read for it.
    size_bytes: int


def hash_descriptor(
    descriptor: int, *, progress: ProgressCallback | None = None, step: str = "checksum"
) -> FileHash:
    """Return checksum and size of an open file, read from its beginning; its position is not moved.

    Args:
        descriptor: A descriptor open for reading.
        progress: Called about every 64 MB and once at the end.
        step: Name of the step in the progress values.

    Raises:
        OSError: The file cannot be read.
    """
    begun = time.monotonic()
    total = os.fstat(descriptor).st_size
    digest = hashlib.sha256()
    position = reported = 0
    while block := os.pread(descriptor, _BLOCK_BYTES, position):
        digest.update(block)
        position += len(block)
        if progress is not None and position - reported >= _REPORT_BYTES:
            reported = position
            progress(Progress(step, position, total, "bytes", time.monotonic() - begun))
    if progress is not None:
        progress(Progress(step, position, total, "bytes", time.monotonic() - begun, finished=True))
    return FileHash(digest.hexdigest(), position)


class GrowingFileHash:
    """Hashes a file while another program writes it, so that the hash is ready when the file is.

    Only for files that are written from beginning to end, such as plain
    dumps. ``pg_dump -Fc`` goes back and rewrites its table of contents: use
    `hash_descriptor` when it has ended.

    Args:
        path: The file; it must exist. It is opened once, here.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._descriptor = os.open(Path(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._digest = hashlib.sha256()
        self._position = 0
        self._complete = threading.Event()
        self._abandoned = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="keikaku-hash", daemon=True)
        self._thread.start()

    def finish(self) -> FileHash:
        """Hash what is left and return the result; call it when the writer has ended.

        Raises:
            OSError: The file could not be read.
        """
        self._complete.set()
        self._join()
        if self._error is not None:
            raise self._error
        return FileHash(self._digest.hexdigest(), self._position)

    def abandon(self) -> None:
        """Stop without a result; harmless after `finish`."""
        self._abandoned = True
        self._complete.set()
        self._join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abandon()

    def _join(self) -> None:
        self._thread.join()
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _run(self) -> None:
        try:
            while not self._abandoned:
                # Asked before reading: what was written before it was set is then read for certain.
                complete = self._complete.is_set()
                if self._read_on() or os.fstat(self._descriptor).st_size > self._position:
                    continue
                if complete:
                    return
                self._complete.wait(_POLL_S)
        except BaseException as error:  # noqa: BLE001 - handed to the caller of finish()
            self._error = error

    def _read_on(self) -> int:
        if os.fstat(self._descriptor).st_size < self._position:
            # The writer emptied the file and began again.
            self._digest = hashlib.sha256()
            self._position = 0
        block = os.pread(self._descriptor, _BLOCK_BYTES, self._position)
        self._digest.update(block)
        self._position += len(block)
        return len(block)
