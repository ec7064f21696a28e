"""The difference of two streams of COPY text rows, in flat memory.

Rows arrive in blocks of whole lines, in any order. What both sides have at the
same places at the beginning is dropped unread; the rest are two sets of lines,
whose difference is computed without looking into a row. Only rows that differ
are taken apart and matched by their key. Sides that do not fit in memory are
first spread over temporary files by the hash of the key, as often as needed.
"""

from __future__ import annotations

import contextlib
import heapq
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from itertools import chain
from typing import IO, TYPE_CHECKING, Final, NamedTuple, TypeAlias

from keikaku_snapshots.snapshots.files import translate_os_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

#: Whole lines of COPY text, each ending with a newline.
Blocks: TypeAlias = "Iterator[bytes]"

#: Bytes of a block: small beside the limit, large enough that work per block does not count.
BLOCK_BYTES: Final = 1 << 20
#: Bytes of each side that are held in memory, `_ROW_BYTES` added for every row.
MEMORY_BYTES: Final = 48 << 20
#: What Python adds to a row that it holds in a set, bytes.
_ROW_BYTES: Final = 100
#: Files that each side is spread over, and the bits that choose among them.
_PARTS: Final = 32
_PART_BITS: Final = 5
#: Spreading more often helps only against rows of one and the same key, which there are none of.
_DEEPEST: Final = 4


class ChangedRow(NamedTuple):
    """A row that differs, as lines of COPY text without their newline."""

    #: The row as it was; None when it is new.
    before: bytes | None
    #: The row as it is; None when it is gone.
    after: bytes | None
    #: How often, for rows without a key.
    times: int


@dataclass(slots=True)
class RowDifference:
    """How the rows of a table differ."""

    #: Rows of either side.
    rows_before: int = 0
    rows_after: int = 0
    #: Rows that differ, by what happened to them.
    added: int = 0
    removed: int = 0
    changed: int = 0
    #: Changed rows by the position of the column.
    changed_columns: Counter[int] = field(default_factory=Counter)
    #: The first of the rows that differ, sorted by key.
    rows: list[ChangedRow] = field(default_factory=list)


class RowComparison:
    """Compares the rows of one table; `run` does it once."""

    def __init__(
        self,
        key: tuple[int, ...],
        *,
        keep: int = 0,
        directory: Path | None = None,
        memory_bytes: int | None = None,
    ) -> None:
        """Prepare.

        Args:
            key: Positions of the columns that identify a row; empty for rows
                that are compared as they are, each as often as it occurs.
            keep: How many of the differing rows are given back.
            directory: Where temporary files go; the system's place if None.
            memory_bytes: Bytes of each side that may be held at once; `MEMORY_BYTES` if None.
        """
        self._keyed = bool(key)
        self._key_of = _reader_of(key)
        self._keep = keep
        self._directory = directory
        self._memory_bytes = MEMORY_BYTES if memory_bytes is None else memory_bytes
        self._found = RowDifference()
        self._kept: list[tuple[tuple[object, ...], ChangedRow]] = []

    def run(self, before: Blocks, after: Blocks) -> RowDifference:
        """Compare; both streams are read to their end.

        Args:
            before: The one side.
            after: The other side, with the same columns in the same order.

        Returns:
            The difference.

        Raises:
            DiskFullError: There is no room for the temporary files.
        """
        found = self._found

        def counted(blocks: Blocks, label: str) -> Blocks:
            for block in blocks:
                setattr(found, label, getattr(found, label) + block.count(b"\n"))
                yield block

        self._compare(*_without_common_start(counted(before, "rows_before"), counted(after, "rows_after")), 0)
        found.rows = [row for _, row in self._kept]
        return found

    def _compare(self, before: Blocks, after: Blocks, depth: int) -> None:
        old, more_old = self._load(before)
        new, more_new = self._load(after)
        is_one_sided = (not old and more_old is None) or (not new and more_new is None)
        # Equal rows without a key are put together where they are given back, and so must be held.
        if is_one_sided and (self._keyed or not self._keep):
            self._one_side(chain(old, more_old or ()), chain(new, more_new or ()))
        elif (more_old is None and more_new is None) or depth >= _DEEPEST:
            self._in_memory(chain(old, more_old or ()), chain(new, more_new or ()))
        else:
            self._on_disk(chain(old, more_old or ()), chain(new, more_new or ()), depth)

    def _load(self, blocks: Blocks) -> tuple[list[bytes], Blocks | None]:
        """Read what fits in memory; the rest is given back, None when there is none."""
        held, size = [], 0
        for block in blocks:
            held.append(block)
            size += len(block) + _ROW_BYTES * block.count(b"\n")
            if size > self._memory_bytes:
                return held, blocks
        return held, None

    # -- the three ways ------------------------------------------------------------

    def _one_side(self, before: Iterable[bytes], after: Iterable[bytes]) -> None:
        """All rows are new, or all are gone: nothing to match, so nothing to hold."""
        for block in before:
            self._found.removed += block.count(b"\n")
            self._remember(ChangedRow(line, None, 1) for line in _lines(block))
        for block in after:
            self._found.added += block.count(b"\n")
            self._remember(ChangedRow(None, line, 1) for line in _lines(block))

    def _in_memory(self, before: Iterable[bytes], after: Iterable[bytes]) -> None:
        if not self._keyed:
            self._as_multisets(before, after)
            return
        old: set[bytes] = set()
        for block in before:
            old.update(_lines(block))
        new: set[bytes] = set()
        for block in after:
            lines = set(_lines(block))
            common = lines & old
            old -= common
            new |= lines - common
        self._match(old, new)

    def _as_multisets(self, before: Iterable[bytes], after: Iterable[bytes]) -> None:
        old: Counter[bytes] = Counter()
        new: Counter[bytes] = Counter()
        for counter, blocks in ((old, before), (new, after)):
            for block in blocks:
                counter.update(_lines(block))
        if old == new:
            return
        gone, come = old - new, new - old
        self._found.removed += gone.total()
        self._found.added += come.total()
        self._remember(ChangedRow(line, None, times) for line, times in gone.items())
        self._remember(ChangedRow(None, line, times) for line, times in come.items())

    def _match(self, old: set[bytes], new: set[bytes]) -> None:
        """Pair the rows that differ by their key."""
        found = self._found
        by_key = {self._key_of(line): line for line in old}
        rows: list[ChangedRow] = []
        for line in new:
            before = by_key.pop(self._key_of(line), None)
            rows.append(ChangedRow(before, line, 1))
            if before is None:
                found.added += 1
            else:
                found.changed += 1
                found.changed_columns.update(different_fields(before, line))
        found.removed += len(by_key)
        rows += [ChangedRow(line, None, 1) for line in by_key.values()]
        self._remember(rows)

    def _on_disk(self, before: Iterable[bytes], after: Iterable[bytes], depth: int) -> None:
        with contextlib.ExitStack() as stack:
            try:
                old, new = (self._spread(blocks, depth, stack) for blocks in (before, after))
            except OSError as error:
                raise translate_os_error(
                    error, doing="writing temporary files of a comparison", path=self._directory
                ) from error
            for part_of_old, part_of_new in zip(old, new, strict=True):
                self._compare(_read(part_of_old), _read(part_of_new), depth + 1)
                part_of_old.close()
                part_of_new.close()

    def _spread(self, blocks: Iterable[bytes], depth: int, stack: contextlib.ExitStack) -> list[IO[bytes]]:
        """Write lines to files so that lines of one key come to the same file on both sides."""
        place, shift = self._key_of, depth * _PART_BITS
        files: list[IO[bytes]] = [
            stack.enter_context(tempfile.TemporaryFile(buffering=0, dir=self._directory))  # noqa: SIM115
            for _ in range(_PARTS)
        ]
        buckets: list[list[bytes]] = [[] for _ in range(_PARTS)]
        for block in blocks:
            for line in _lines(block):
                buckets[hash(place(line)) >> shift & (_PARTS - 1)].append(line)
            for file, bucket in zip(files, buckets, strict=True):
                if bucket:
                    _write(file, b"\n".join(bucket) + b"\n")
                    bucket.clear()
        return files

    def _remember(self, rows: Iterable[ChangedRow]) -> None:
        """Keep the first rows in the order of their keys."""
        if self._keep:
            keyed = ((self._order(row), row) for row in rows)
            self._kept = heapq.nsmallest(self._keep, chain(self._kept, keyed), key=lambda pair: pair[0])

    def _order(self, row: ChangedRow) -> tuple[object, ...]:
        line = row.before if row.after is None else row.after
        key = self._key_of(line or b"")
        return (*(_natural(part) for part in key.split(b"\t")), row.after is not None)


def different_fields(before: bytes, after: bytes) -> list[int]:
    """Tell which fields of two rows differ.

    Args:
        before: A row as COPY text.
        after: Another one with the same columns.

    Returns:
        Positions.
    """
    pairs = zip(before.split(b"\t"), after.split(b"\t"), strict=True)
    return [position for position, (old, new) in enumerate(pairs) if old != new]


def _lines(block: bytes) -> list[bytes]:
    return block[:-1].split(b"\n")


def _natural(part: bytes) -> tuple[int, int, bytes]:
    """Numbers in their own order, before everything else."""
    if len(part) <= 40 and part.removeprefix(b"-").isdigit():
        return 0, int(part), part
    return 1, 0, part


def _reader_of(key: tuple[int, ...]) -> Callable[[bytes], bytes]:
    """What gives the key of a line; the whole line where there is none."""
    if not key:
        return lambda line: line
    if key == (0,):
        return lambda line: line.partition(b"\t")[0]
    count = max(key) + 1

    def read(line: bytes) -> bytes:
        fields = line.split(b"\t", count)
        return b"\t".join([fields[position] for position in key])

    return read


def _write(file: IO[bytes], content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]


def _read(file: IO[bytes]) -> Blocks:
    """The file from its beginning, in blocks of whole lines."""
    file.seek(0)
    pieces: list[bytes] = []
    while chunk := file.read(BLOCK_BYTES):
        whole, newline, tail = chunk.rpartition(b"\n")
        if newline:
            yield b"".join([*pieces, whole, newline])
            pieces = []
        if tail:
            pieces.append(tail)


def _without_common_start(before: Blocks, after: Blocks) -> tuple[Blocks, Blocks]:
    """Drop the lines that both have at the same places until the first that differ."""
    old = new = b""
    while True:
        old = old or next(before, b"")
        new = new or next(after, b"")
        shorter = min(len(old), len(new))
        if not shorter:
            break
        if old[:shorter] != new[:shorter]:
            cut = old.rfind(b"\n", 0, _first_difference(old, new, shorter)) + 1
            old, new = old[cut:], new[cut:]
            break
        old, new = old[shorter:], new[shorter:]
    return chain([old] if old else [], before), chain([new] if new else [], after)


def _first_difference(old: bytes, new: bytes, end: int) -> int:
    start = 0
    while end - start > 1:
        middle = (start + end) // 2
        if old[start:middle] == new[start:middle]:
            start = middle
        else:
            end = middle
    return start


def blocks_of(lines: Iterable[bytes]) -> Blocks:
    """Put lines together into blocks.

    Args:
        lines: Rows, each ending with a newline.

    Yields:
        Blocks of about `BLOCK_BYTES`.
    """
    held: list[bytes] = []
    size = 0
    for line in lines:
        held.append(line)
        size += len(line)
        if size >= BLOCK_BYTES:
            yield b"".join(held)
            held, size = [], 0
    if held:
        yield b"".join(held)


def project(blocks: Blocks, positions: tuple[int, ...], width: int) -> Blocks:
    """Choose and reorder the columns of rows.

    Args:
        blocks: Rows.
        positions: The columns to give, in this order.
        width: How many columns the rows have.

    Returns:
        The blocks themselves where that changes nothing.
    """
    if positions == tuple(range(width)):
        return blocks
    return _projected(blocks, positions)


def _projected(blocks: Iterable[bytes], positions: tuple[int, ...]) -> Iterator[bytes]:
    for block in blocks:
        rows = (line.split(b"\t") for line in _lines(block))
        yield b"".join([b"\t".join([row[position] for position in positions]) + b"\n" for row in rows])
