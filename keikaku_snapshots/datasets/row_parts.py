"""What the row functions of every built-in dataset have in common."""

from __future__ import annotations

from itertools import chain, repeat
from typing import TYPE_CHECKING, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable

#: A row as text that PostgreSQL reads; None is NULL.
Row: TypeAlias = tuple[str | None, ...]
ItemT = TypeVar("ItemT")

#: The columns that every table ends with; `bookkeeping` fills them.
BOOKKEEPING_COLUMNS = ("is_test_data", "created_at", "updated_at")


def bookkeeping(recorded_at: str) -> tuple[Iterable[str], ...]:
    """The values of `BOOKKEEPING_COLUMNS`, without end: marked as test data, made at this time."""
    return repeat("t"), repeat(recorded_at), repeat(recorded_at)


def each(items: Iterable[ItemT], times: int) -> Iterable[ItemT]:
    """Every item so many times in a row: the parents of children that stand in order."""
    return chain.from_iterable(repeat(item, times) for item in items)
