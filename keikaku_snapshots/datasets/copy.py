"""Rows into tables: batches, limits, and errors that name table, batch, column and key.

`copy_rows` is the one way in; `generate` and the ``bulk_create_*`` functions use it::

    def unit(attempt: Attempt) -> Steps[int]:
        return (yield from copy_rows("offices", ("id", "name"), lambda: rows, batch_size=500))
"""

from __future__ import annotations

import re
import sys
import time
import warnings
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from keikaku_snapshots.datasets.dataset import Row, check_count
from keikaku_snapshots.datasets.encoding import Kind, encode_rows
from keikaku_snapshots.datasets.steps import Copy, Pending, Steps
from keikaku_snapshots.errors import DataError, KeikakuError, MemoryLimitError, ParameterTypeError, UsageError
from keikaku_snapshots.postgres.failures import report_of, translate
from keikaku_snapshots.progress import Progress, ProgressCallback

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

#: Rows of one COPY statement. Foreign keys are checked at the end of each, so this bounds the
#: server's list of pending checks, and the time without progress that the stall limit must allow.
ROWS_PER_COPY = 100_000
#: Rows in a batch above which the library warns: memory grows, speed does not.
LARGE_BATCH = 1000

_LINE = re.compile(r"(?:line|行|行番号)\s*(\d+)")


@dataclass(frozen=True, slots=True)
class Block:
    """COPY text of some rows."""

    #: The text, lines ended.
    text: bytes
    #: Rows in it.
    rows: int


def check_batch_size(batch_size: object) -> int:
    """The batch size, when it is an integer greater than 0; warns above 1,000.

    Raises:
        ParameterTypeError: It is no integer.
        UsageError: It is 0 or less.
    """
    size = check_count("batch_size", batch_size)
    if size > LARGE_BATCH:
        text = f"batch_size={size} is more than {LARGE_BATCH}: it takes more memory and is not faster"
        warnings.warn(text, UserWarning, stacklevel=3)
    return size


def memory_check(limit_mb: float | None) -> Callable[[], None]:
    """A function that raises when this process has more memory resident than allowed.

    Args:
        limit_mb: Megabytes (1,000,000 bytes); None never raises.

    Returns:
        Raises `MemoryLimitError` when called above the limit.
    """
    if limit_mb is None:
        return lambda: None
    given: object = limit_mb
    if not isinstance(given, int | float) or isinstance(given, bool):
        raise ParameterTypeError(f"memory_limit_mb must be a number, not {type(given).__name__}: {given!r}")
    if not limit_mb > 0:
        raise UsageError(f"memory_limit_mb must be greater than 0, not {limit_mb!r}")
    import psutil

    process = psutil.Process()

    def check() -> None:
        used_mb = process.memory_info().rss / 1e6
        if used_mb > limit_mb:
            what = f"the process uses {used_mb:,.0f} MB of memory, the limit is {limit_mb:,.0f} MB"
            raise MemoryLimitError(what, found="Nothing was written.", used_mb=used_mb, limit_mb=limit_mb)

    return check


class StepProgress:
    """Counts the rows of one step and tells the callback, at most ten times a second.

    Args:
        callback: Who is told; None for nobody.
        step: The step in words.
        total: Rows expected.
    """

    # Ten calls a second look fluent; more of them cost time.
    _INTERVAL_S = 0.1

    def __init__(self, callback: ProgressCallback | None, step: str, total: int | None) -> None:
        self._callback, self._step, self._total = callback, step, total
        self._began = self._told = time.monotonic()
        self.done = 0

    def add(self, rows: int) -> None:
        """Rows that were sent."""
        self.done += rows
        if self._callback is not None and (now := time.monotonic()) - self._told >= self._INTERVAL_S:
            self._told = now
            self._callback(Progress(self._step, self.done, self._total, "rows", now - self._began))

    def finish(self) -> None:
        """The step has ended."""
        if self._callback is not None:
            seconds = time.monotonic() - self._began
            self._callback(Progress(self._step, self.done, self._total, "rows", seconds, finished=True))


def batches(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """The rows in lists of `size`, the last one shorter."""
    iterator = iter(rows)
    while batch := list(islice(iterator, min(size, sys.maxsize))):
        yield batch


def encode_batches(
    rows: Iterable[Row], columns: Sequence[str], kinds: Sequence[Kind], batch_size: int
) -> Iterator[Block]:
    """The rows as blocks of COPY text, one for each batch."""
    for batch in batches(rows, batch_size):
        yield Block(encode_rows(batch, columns, kinds), len(batch))


def copy_rows(
    table: str,
    columns: Sequence[str],
    rows: Callable[[], Iterable[Row]],
    *,
    batch_size: int = 500,
    schema: str | None = None,
    kinds: Sequence[Kind] = (),
    progress: ProgressCallback | None = None,
    total: int | None = None,
    check_memory: Callable[[], None] = lambda: None,
    stall_timeout_s: float | None = 60.0,
) -> Steps[int]:
    """Copy rows into one table.

    Args:
        table: Its name, not quoted.
        columns: The columns, not quoted, in the order of the values.
        rows: Makes the rows; called again to find the batch of a row that a constraint refused.
        batch_size: Rows encoded at a time; errors name the batch.
        schema: The table's schema; the search path decides when None.
        kinds: How each column turns dict and list into text.
        progress: Told about the rows sent.
        total: Rows expected, for `progress`.
        check_memory: Called for each batch; raises to stop the work.
        stall_timeout_s: Seconds without progress after which the COPY is cancelled.

    Returns:
        Rows copied.

    Raises:
        DataError: The server refused a row: `ForeignKeyError`, `UniqueError`,
            `NotNullError`, `CheckError`, or a value of the wrong form.
    """
    return copy_blocks(
        table,
        columns,
        lambda: encode_batches(rows(), columns, kinds, batch_size),
        schema=schema,
        rows_again=rows,
        batch_size=batch_size,
        progress=progress,
        total=total,
        check_memory=check_memory,
        stall_timeout_s=stall_timeout_s,
    )


def copy_blocks(
    table: str,
    columns: Sequence[str],
    blocks: Callable[[], Iterable[Block | Pending]],
    *,
    batch_size: int,
    schema: str | None = None,
    rows_again: Callable[[], Iterable[Row]] | None = None,
    progress: ProgressCallback | None = None,
    total: int | None = None,
    check_memory: Callable[[], None] = lambda: None,
    stall_timeout_s: float | None = 60.0,
) -> Steps[int]:
    """Copy rows that are COPY text already.

    Args:
        table: As for `copy_rows`, like all that is not said here.
        columns: The columns of the text.
        blocks: Makes the text; see `Copy.blocks` for what else may come.
        batch_size: Rows in each block, to name the batch of a refused row.
        schema: The table's schema.
        rows_again: Makes the same rows as values, to find a refused one.
        progress: Told about the rows sent.
        total: Rows expected.
        check_memory: Called for each block.
        stall_timeout_s: Seconds without progress that are allowed.

    Returns:
        Rows copied.
    """
    counter = StepProgress(progress, f"copy {table}", total)
    source = iter(blocks())
    ahead: list[Block | Pending] = []

    def one_statement(start: int) -> Iterator[bytes | Pending]:
        while counter.done - start < ROWS_PER_COPY:
            block = ahead.pop() if ahead else next(source, None)
            if block is None:
                return
            if not isinstance(block, Block):
                yield block
                continue
            check_memory()
            yield block.text
            counter.add(block.rows)

    while True:
        start = counter.done
        first = next(source, None)
        if first is None:
            break
        ahead.append(first)
        try:
            copied = yield Copy(table, schema, tuple(columns), partial(one_statement, start), stall_timeout_s)
        except Exception as error:
            raise _explained(error, table, columns, rows_again, start, batch_size) from error
        _check_copied(table, counter.done - start, copied)
    counter.finish()
    return counter.done


def _check_copied(table: str, sent: int, copied: int) -> None:
    if sent != copied:
        what = f"the server stored {copied:,} of {sent:,} rows that were copied into {table!r}"
        hint = "A BEFORE INSERT trigger drops rows, or row security hides them: disable it for the load."
        raise DataError(what, hint=hint, table=table)


def _explained(
    error: Exception,
    table: str,
    columns: Sequence[str],
    rows_again: Callable[[], Iterable[Row]] | None,
    start: int,
    batch_size: int,
) -> Exception:
    """The error in plain words when the server refused a row; any other as it is."""
    report = report_of(error)
    if isinstance(error, KeikakuError) or report.sqlstate[:2] not in {"22", "23", "P0"}:
        return error
    row = _row_of_context(report.context, start)
    if row is None and rows_again is not None and report.sqlstate == "23503":
        row = _row_of_key(report.detail, columns, rows_again())
    batch = None if row is None else (row - 1) // batch_size + 1
    explained = translate(error, doing=f"copying {table}", batch=batch, table=table)
    if isinstance(explained, DataError) and row is not None:
        explained.details.setdefault("row_number", row)
    return explained


def _row_of_context(context: str, start: int) -> int | None:
    """The number of the row (from 1) from ``COPY staffs, line 7, column email``."""
    found = _LINE.search(context)
    return start + int(found.group(1)) if found else None


def _row_of_key(detail: str, columns: Sequence[str], rows: Iterable[Row]) -> int | None:
    """The number of the first row with the key of ``Key (a, b)=(1, 2) is not present``.

    Foreign keys are checked at the end of COPY, where the server knows no line any
    more; the rows are made again instead, which costs nothing while all goes well.
    """
    found = re.search(r"\(([^()]+)\)=\((.*?)\)(?=[^()]*$)", detail, re.DOTALL)
    if found is None:
        return None
    names = [name.strip().strip('"') for name in found.group(1).split(",")]
    if not set(names) <= set(columns):
        return None
    places = [columns.index(name) for name in names]
    wanted: Any = found.group(2)
    for number, row in enumerate(rows, start=1):
        if ", ".join(str(row[place]) for place in places) == wanted:
            return number
    return None
