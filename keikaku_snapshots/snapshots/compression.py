"""gzip and zstd: levels, packing in a stream, and reading back without believing the file.

A packed file of ours depends on nothing but its content and level: the header
of gzip holds neither time nor name. Reading is bounded: a block is never larger than
was asked for, however well it is packed.
"""

from __future__ import annotations

import importlib
import os
import zlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from keikaku_snapshots.errors import SnapshotCorruptError, ToolMissingError, UsageError
from keikaku_snapshots.snapshots.names import format_of_suffix

if TYPE_CHECKING:
    from collections.abc import Callable

    from keikaku_snapshots.errors import KeikakuError
    from keikaku_snapshots.snapshots.manifest import Snapshot


class Levels(NamedTuple):
    """The levels of a compression."""

    #: Fastest.
    lowest: int
    #: Smallest.
    highest: int
    #: When none is asked for.
    default: int


#: Measured with the benchmarks: what the default costs is in docs/design.md, Compression.
LEVELS: Final = {"gzip": Levels(1, 9, 1), "zstd": Levels(1, 19, 1)}
#: pg_dump's own compression of an archive; its default of 6 takes twice the time of a plain dump.
CUSTOM_LEVELS: Final = Levels(0, 9, 1)

_INSTALL: Final = "pip install 'keikaku_snapshots[zstd]'"
#: zlib's code for a gzip header and trailer.
_GZIP: Final = 31
_READ_BYTES: Final = 256 * 1024
_MAGICS: Final = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd"}
#: First four bytes of a zstd frame that holds no data, but for the lowest half byte.
_SKIPPABLE: Final = 0x184D2A50
_BLOCK_RAW, _BLOCK_RUN, _BLOCK_PACKED = 0, 1, 2


class Packer(Protocol):
    """Packs a stream."""

    def compress(self, data: bytes | memoryview, /) -> bytes:
        """Take more; what is returned goes into the file."""

    def flush(self) -> bytes:
        """Return the end of the file."""


def packed_as(snapshot: Snapshot) -> str | None:
    """Tell how the file of a plain snapshot is packed.

    Args:
        snapshot: A snapshot, with or without manifest.

    Returns:
        ``gzip`` or ``zstd``; None when its bytes are read as they are, also for other formats.
    """
    if snapshot.format != "plain":
        return None
    if snapshot.manifest is not None:
        return snapshot.manifest.compression
    return format_of_suffix(snapshot.suffix)[1]


def check_level(level: object, levels: Levels, label: str) -> None:
    """Check a level.

    Args:
        level: What the caller passed; None for the default.
        levels: What there is.
        label: What it is the level of.

    Raises:
        UsageError: It is none of these.
    """
    if level is None:
        return
    if type(level) is not int or not levels.lowest <= level <= levels.highest:
        raise UsageError(
            f"level must be a whole number from {levels.lowest} to {levels.highest} for {label}, "
            f"not {level!r}"
        )


def require(compression: str | None) -> None:
    """Make sure that a compression can be used, before anything is touched.

    Args:
        compression: ``gzip``, ``zstd`` or None.

    Raises:
        ToolMissingError: The library for it is not installed; the text says how to.
    """
    if compression == "zstd":
        _zstandard()


def packer(compression: str, level: int | None = None) -> Packer:
    """Begin a packed stream.

    Args:
        compression: ``gzip`` or ``zstd``.
        level: One of `LEVELS`; the default if None.

    Returns:
        The packer.

    Raises:
        ToolMissingError: The library for it is not installed.
    """
    wanted = LEVELS[compression].default if level is None else level
    if compression == "gzip":
        return zlib.compressobj(wanted, zlib.DEFLATED, _GZIP)
    made: Packer = _zstandard().ZstdCompressor(level=wanted, write_checksum=True).compressobj()
    return made


def compression_of(descriptor: int) -> str | None:
    """Tell from its first bytes how an open file is packed.

    Args:
        descriptor: The file.

    Returns:
        ``gzip``, ``zstd`` or None.
    """
    head = os.pread(descriptor, 4, 0)
    return next((name for name, magic in _MAGICS.items() if head.startswith(magic)), None)


class Unpacked:
    """Reads a packed file from its beginning; one that is not packed as it is.

    Args:
        descriptor: The file; its position is not moved.
        compression: ``gzip``, ``zstd`` or None.
        place: What to call the file in errors.
        damaged: Makes the error for a damaged file from a headline and what was found.

    Raises:
        ToolMissingError: The library for it is not installed.
        SnapshotCorruptError: A zstd file is cut; what ``damaged`` makes.
    """

    def __init__(
        self,
        descriptor: int,
        compression: str | None,
        place: str,
        damaged: Callable[..., KeikakuError] = SnapshotCorruptError,
    ) -> None:
        self._descriptor = descriptor
        self._compression = compression
        self._place = place
        self._damaged_error = damaged
        #: Bytes of the file that were read, for progress.
        self.position = 0
        self._rest = b""
        self._unpacker: Any = None
        if compression == "gzip":
            self._unpacker = zlib.decompressobj(_GZIP)
        elif compression == "zstd":
            library = _zstandard()
            self._zstd_error: type[Exception] = library.ZstdError
            # The library takes a cut file for a short one, so the frames are looked at first.
            self._check_frames()
            self._unpacker = library.ZstdDecompressor().stream_reader(
                SimpleNamespace(read=self._read_file),
                read_size=_READ_BYTES,
                read_across_frames=True,
                closefd=False,
            )

    def read(self, count: int) -> bytes:
        """Return the next bytes, at most ``count``; none at the end.

        Raises:
            SnapshotCorruptError: The file is damaged or cut; what ``damaged`` makes.
            OSError: The file cannot be read.
        """
        if self._compression == "gzip":
            return self._read_gzip(count)
        if self._compression == "zstd":
            return self._read_zstd(count)
        return self._read_file(count)

    def _read_file(self, count: int) -> bytes:
        block = os.pread(self._descriptor, count, self.position)
        self.position += len(block)
        return block

    # -- gzip ------------------------------------------------------------------------

    def _read_gzip(self, count: int) -> bytes:
        while True:
            if not self._rest:
                self._rest = self._read_file(_READ_BYTES)
                if not self._rest:
                    return self._end_of_gzip()
            try:
                block = self._unpacker.decompress(self._rest, count)
            except zlib.error as error:
                raise self._damaged(str(error)) from error
            self._rest = self._unpacker.unconsumed_tail
            if self._unpacker.eof:
                self._next_member()
            if block:
                return bytes(block)

    def _next_member(self) -> None:
        """A gzip file may be several, one behind the other."""
        self._rest = self._unpacker.unused_data
        more = self._rest or os.pread(self._descriptor, 1, self.position)
        if more:
            self._unpacker = zlib.decompressobj(_GZIP)

    def _end_of_gzip(self) -> bytes:
        if self._unpacker.eof:
            return b""
        block = self._unpacker.flush()
        if not block and not self._unpacker.eof:
            raise self._damaged("it ends too early")
        return bytes(block)

    # -- zstd ------------------------------------------------------------------------

    def _read_zstd(self, count: int) -> bytes:
        try:
            return bytes(self._unpacker.read(count))
        except self._zstd_error as error:
            raise self._damaged(str(error)) from error

    def _check_frames(self) -> None:
        """Go from frame to frame and block to block by their lengths (RFC 8878, section 3.1)."""
        size = os.fstat(self._descriptor).st_size
        position = 0
        if not size:
            raise self._damaged("it is empty")
        while position < size:
            magic = self._number(position, 4)
            if magic & 0xFFFFFFF0 == _SKIPPABLE:
                position += 8 + self._number(position + 4, 4)
                continue
            if magic.to_bytes(4, "little") != _MAGICS["zstd"]:
                raise self._damaged("there is something else than zstd in it", position)
            position = self._frame_end(position + 4)
        if position > size:
            raise self._damaged("it ends too early", size)

    def _frame_end(self, position: int) -> int:
        flags = self._number(position, 1)
        single, checksum = flags >> 5 & 1, flags >> 2 & 1
        dictionary = (0, 1, 2, 4)[flags & 3]
        content_size = (single, 2, 4, 8)[flags >> 6]
        position += 1 + (1 - single) + dictionary + content_size
        last = 0
        while not last:
            header = self._number(position, 3)
            last, kind, length = header & 1, header >> 1 & 3, header >> 3
            if kind not in {_BLOCK_RAW, _BLOCK_RUN, _BLOCK_PACKED}:
                raise self._damaged("a block is of no known kind", position)
            position += 3 + (1 if kind == _BLOCK_RUN else length)
        return position + (4 if checksum else 0)

    def _number(self, position: int, count: int) -> int:
        data = os.pread(self._descriptor, count, position)
        if len(data) < count:
            raise self._damaged("it ends too early", position)
        return int.from_bytes(data, "little")

    def _damaged(self, reason: str, position: int | None = None) -> KeikakuError:
        near = self.position if position is None else position
        return self._damaged_error(
            f"the {self._compression} file of the snapshot cannot be unpacked",
            found=f"{self._place}, near byte {near}: {reason}",
        )


def _zstandard() -> Any:
    try:
        return importlib.import_module("zstandard")
    except ImportError as error:
        raise ToolMissingError(
            "zstd files need the library zstandard, which is not installed",
            found=str(error),
            hint=f"Install it: {_INSTALL}. Or make snapshots with gzip, which needs nothing.",
            hint_ja=f"{_INSTALL} で導入するか、追加導入の要らない gzip をお使いください。",
        ) from error
