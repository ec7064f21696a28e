"""Write a data file block by block: packed or not, both checksums taken on the way."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, NamedTuple

from keikaku_snapshots.errors import CreateFailedError
from keikaku_snapshots.snapshots.compression import packer
from keikaku_snapshots.snapshots.files import translate_os_error
from keikaku_snapshots.snapshots.hashing import FileHash

if TYPE_CHECKING:
    from pathlib import Path


class PackedHash(NamedTuple):
    """Checksums of a data file and of what is in it."""

    #: Of the file.
    file: FileHash
    #: Of what is packed in it; None when it is not packed.
    content: FileHash | None


class PackedFile:
    """Packs and writes into an open file; used by one thread.

    Args:
        descriptor: The file, empty; stays open and the caller's.
        path: Where it is, for messages.
        compression: ``gzip``, ``zstd`` or None.
        level: Its level; the default if None.

    Raises:
        ToolMissingError: The library for the compression is not installed.
    """

    def __init__(self, descriptor: int, path: Path, *, compression: str | None, level: int | None) -> None:
        self._descriptor = descriptor
        self._path = path
        self._packer = packer(compression, level) if compression is not None else None
        self._file = hashlib.sha256()
        self._content = hashlib.sha256()
        #: Bytes of the file so far.
        self.file_bytes = 0
        #: Bytes of what is packed in it so far.
        self.content_bytes = 0

    def write(self, block: bytes) -> None:
        """Take more.

        Raises:
            DiskFullError: The disk is full.
            CreateFailedError: The file cannot be written.
        """
        self.content_bytes += len(block)
        if self._packer is None:
            self._put(block)
            return
        self._content.update(block)
        self._put(self._packer.compress(block))

    def finish(self) -> PackedHash:
        """Write what is left.

        Returns:
            Checksums and sizes; the file is not synced yet.

        Raises:
            DiskFullError: As for `write`.
        """
        if self._packer is None:
            return PackedHash(FileHash(self._file.hexdigest(), self.file_bytes), None)
        self._put(self._packer.flush())
        return PackedHash(
            FileHash(self._file.hexdigest(), self.file_bytes),
            FileHash(self._content.hexdigest(), self.content_bytes),
        )

    def _put(self, block: bytes) -> None:
        self._file.update(block)
        self.file_bytes += len(block)
        rest = memoryview(block)
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError as error:
            raise translate_os_error(
                error, doing="writing the snapshot", path=self._path, otherwise=CreateFailedError
            ) from error
