"""Named places of a run; tests put a process to death there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

Point: TypeAlias = Literal[
    "before_arm",
    "after_arm",
    "before_dml",
    "after_dml",
    "before_cursor",
    "after_cursor",
    "before_commit",
    "after_commit",
    "before_verify",
    "in_verify",
    "after_verify",
    "before_rollback",
    "in_rollback",
    "after_rollback",
    "before_disarm",
    "before_completed",
]

#: What is called at each place; nothing in a real run.
_visitors: Final[list[Callable[[Point], None]]] = []


def reached(point: Point) -> None:
    """Say that a run has come to this place.

    Args:
        point: The place.
    """
    for visitor in _visitors:
        visitor(point)


def visit(visitor: Callable[[Point], None]) -> Callable[[], None]:
    """Have a function called at each place.

    Args:
        visitor: Gets the place.

    Returns:
        What ends it.
    """
    _visitors.append(visitor)
    return lambda: _visitors.remove(visitor)
