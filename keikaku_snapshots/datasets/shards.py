"""The rows of a table as COPY text, shard by shard, in this process or by an executor.

Every shard has its own SHA-256, so the checksum of the data is the same whoever
encoded it, in batches of whatever size, for any kind of caller.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from pickle import PicklingError
from typing import TYPE_CHECKING

from keikaku_snapshots.datasets.copy import Block, encode_batches
from keikaku_snapshots.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Executor, Future

    from keikaku_snapshots.datasets.dataset import Row, Shard
    from keikaku_snapshots.datasets.schema import Found
    from keikaku_snapshots.datasets.steps import Pending


@dataclass(frozen=True, slots=True)
class Task:
    """What an executor needs to encode one shard; small, because it travels to the worker."""

    #: Makes the rows.
    rows: Callable[[Shard], Iterable[Row]]
    #: Columns, and how each turns dict and list into text.
    columns: tuple[str, ...]
    kinds: tuple[str, ...]
    #: The shard.
    shard: Shard
    #: Rows encoded at a time.
    batch_size: int
    #: The table, for errors.
    table: str


@dataclass(frozen=True, slots=True)
class Encoded:
    """One shard as COPY text."""

    #: The text.
    text: bytes
    #: Rows in it.
    rows: int
    #: SHA-256 of the text.
    digest: bytes


def encode_shard(task: Task) -> Encoded:
    """Make and encode the rows of one shard; runs in a worker."""
    parts = []
    count = 0
    for block in _blocks(task):
        parts.append(block.text)
        count += block.rows
    text = b"".join(parts)
    return Encoded(text, count, hashlib.sha256(text).digest())


def _blocks(task: Task) -> Iterator[Block]:
    try:
        yield from encode_batches(task.rows(task.shard), task.columns, task.kinds, task.batch_size)  # type: ignore[arg-type]
    except Exception as error:
        error.add_note(f"while making the rows of table {task.table!r}, shard {task.shard.index}")
        raise


class TableSource:
    """All rows of one table at one scale; counts and hashes what goes by.

    Args:
        found: The table.
        shards: The shards of the scale, as often as asked.
        batch_size: Rows encoded at a time.
        executor: Who encodes; this thread when None.
    """

    def __init__(
        self, found: Found, shards: Callable[[], Iterable[Shard]], batch_size: int, executor: Executor | None
    ) -> None:
        self._found, self._shards, self._batch_size, self._executor = found, shards, batch_size, executor
        self._digests = hashlib.sha256()

    @property
    def checksum(self) -> str:
        """SHA-256 over the table's name, its columns and the hashes of its shards, in hexadecimal."""
        name = "\t".join((self._found.table.name, *self._found.columns)) + "\n"
        return hashlib.sha256(name.encode() + self._digests.digest()).hexdigest()

    def rows(self) -> Iterator[Row]:
        """The rows as values; made anew."""
        for shard in self._shards():
            yield from self._found.table.rows(shard)

    def blocks(self) -> Iterator[Block | Pending]:
        """The rows as COPY text; before a shard that an executor still makes, what to wait for."""
        self._digests = hashlib.sha256()
        return self._here() if self._executor is None else self._elsewhere(self._executor)

    def _tasks(self) -> Iterator[Task]:
        for shard in self._shards():
            yield Task(
                self._found.table.rows,
                self._found.columns,
                self._found.kinds,
                shard,
                self._batch_size,
                self._found.table.name,
            )

    def _here(self) -> Iterator[Block]:
        for task in self._tasks():
            digest = hashlib.sha256()
            for block in _blocks(task):
                digest.update(block.text)
                yield block
            self._digests.update(digest.digest())

    def _elsewhere(self, executor: Executor) -> Iterator[Block | Pending]:
        # Enough in flight to keep every worker busy, few enough for flat memory.
        limit = 2 * (getattr(executor, "_max_workers", None) or os.cpu_count() or 2)
        waiting: deque[Future[Encoded]] = deque()
        try:
            for task in self._tasks():
                waiting.append(self._submitted(executor, task))
                if len(waiting) >= limit:
                    yield from self._taken(waiting.popleft())
            while waiting:
                yield from self._taken(waiting.popleft())
        finally:
            for future in waiting:
                future.cancel()

    def _submitted(self, executor: Executor, task: Task) -> Future[Encoded]:
        try:
            return executor.submit(encode_shard, task)
        except (BrokenExecutor, RuntimeError) as error:  # RuntimeError: it was shut down
            raise self._executor_error(error) from error

    def _taken(self, future: Future[Encoded]) -> Iterator[Block | Pending]:
        if not future.done():
            yield future
        try:
            encoded = future.result()
        except (BrokenExecutor, PicklingError) as error:
            raise self._executor_error(error) from error
        self._digests.update(encoded.digest)
        yield Block(encoded.text, encoded.rows)

    def _executor_error(self, error: Exception) -> UsageError:
        what = f"the executor's workers cannot make the rows of table {self._found.table.name!r}"
        hint = (
            "Row functions must be functions of a module that the workers can import: "
            "no lambda, no function inside another, and the module on their sys.path. "
            "The executor must not be shut down before the work has ended."
        )
        return UsageError(what, found=f"{type(error).__name__}: {error}", hint=hint)
