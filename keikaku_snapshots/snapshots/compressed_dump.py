"""Pack a plain dump while pg_dump writes it: through a pipe, on the other core.

A pipe on the writing side is safe because the end of the data proves nothing
here: a dump counts only when pg_dump ended with 0 *and* its text ends with the
end marker that carries the key of its header (FAULTS 8, 10). Who dies, dies
visibly: without a reader pg_dump gets EPIPE, and a dump cut by the death of
pg_dump has no end marker.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import threading
from typing import TYPE_CHECKING, Final, Self

from keikaku_snapshots.snapshots.packed_file import PackedFile, PackedHash
from keikaku_snapshots.snapshots.verify import EDGE_BYTES, check_edges

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

#: What Linux lets a pipe hold: pg_dump need not wait for every 64 kB.
_PIPE_BYTES: Final = 1024 * 1024
#: Bytes read at once; large enough that hashing and packing let other threads run.
_READ_BYTES: Final = 256 * 1024
#: Milliseconds between two questions whether the writer has ended.
_POLL_MS: Final = 200


class PackingPipe:
    """A pipe that pg_dump writes into, and the thread that packs what comes out; a context manager.

    Args:
        descriptor: The file, empty; stays open and the caller's.
        path: Where it is, for messages.
        compression: ``gzip`` or ``zstd``.
        level: Its level; the default if None.

    Raises:
        ToolMissingError: The library for the compression is not installed.
    """

    def __init__(self, descriptor: int, path: Path, *, compression: str, level: int | None) -> None:
        self._file = PackedFile(descriptor, path, compression=compression, level=level)
        self._hash: PackedHash | None = None
        self._head = b""
        self._tail = b""
        self._error: BaseException | None = None
        self._writer_ended = threading.Event()
        self._abandoned = False
        self._reading, self._writing = os.pipe()
        # Other systems have no such call, and a system may refuse it.
        with contextlib.suppress(AttributeError, OSError):
            fcntl.fcntl(self._writing, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        os.set_blocking(self._reading, False)
        self._thread = threading.Thread(target=self._run, name="keikaku-pack", daemon=True)

    @property
    def target(self) -> int:
        """The writing end, for the program that is about to be started."""
        return self._writing

    @property
    def written_bytes(self) -> int:
        """Bytes of SQL that came so far, for progress."""
        return self._file.content_bytes

    def started(self) -> None:
        """Begin to read; call it when the program has the writing end."""
        self._close_writing()
        self._thread.start()

    def problem(self) -> str | None:
        """Return why the program must stop, ``None`` to let it go on; for ``run_tool(watch=…)``."""
        return "the snapshot cannot be written" if self._error is not None else None

    def check(self) -> None:
        """Raise what ended the packing.

        Raises:
            DiskFullError: The disk is full.
            CreateFailedError: The file cannot be written.
        """
        if self._error is not None:
            raise self._error

    def finish(self, name: str) -> PackedHash:
        """Pack what is left; call it when the program has ended with 0.

        Args:
            name: What to call the file in errors.

        Returns:
            Checksums and sizes; the file is not synced yet.

        Raises:
            SnapshotCorruptError: What came is no whole dump.
            DiskFullError: As for `check`.
        """
        self._writer_ended.set()
        self._thread.join()
        self.check()
        check_edges(self._head, self._tail, name)
        if self._hash is None:
            raise ValueError("the pipe was given up")
        return self._hash

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._abandoned = True
        self._close_writing()
        if self._thread.ident is not None:
            self._thread.join()
        self._close_reading()

    def _close_writing(self) -> None:
        descriptor, self._writing = self._writing, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _close_reading(self) -> None:
        descriptor, self._reading = self._reading, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _run(self) -> None:
        try:
            while not self._abandoned and (block := self._next()):
                self._take(block)
            if not self._abandoned:
                self._hash = self._file.finish()
        except BaseException as error:  # noqa: BLE001 - handed to the caller of check() and finish()
            self._error = error
        finally:
            # The program must not wait for a reader that is gone.
            self._close_reading()

    def _next(self) -> bytes:
        """The next block; none at the end.

        A child that another thread forks at the wrong moment holds the writing end too, and then the
        end of the file never comes: what counts is that the program has ended and the pipe is empty.
        """
        waiting = select.poll()
        waiting.register(self._reading, select.POLLIN)
        while not self._abandoned:
            ended = self._writer_ended.is_set()
            if waiting.poll(0 if ended else _POLL_MS):
                return os.read(self._reading, _READ_BYTES)
            if ended:
                break
        return b""

    def _take(self, block: bytes) -> None:
        self._head += block[: EDGE_BYTES - len(self._head)]
        self._tail = (self._tail + block)[-EDGE_BYTES:]
        self._file.write(block)
