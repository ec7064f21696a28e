"""References between test rows and others: what stands in the way of deleting test rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from keikaku_snapshots.errors import TestDataReferencedError

if TYPE_CHECKING:
    from collections.abc import Sequence


class Counted(NamedTuple):
    """Rows of a table that refer to rows of another one."""

    #: The table that refers, as a person reads it.
    child: str
    #: The table referred to.
    parent: str
    #: Name of the foreign key.
    constraint: str
    #: How many rows refer.
    rows: int


def refusal(counts: Sequence[Counted]) -> TestDataReferencedError:
    """Return the error for rows that stay and refer to test rows that would go (A12).

    Args:
        counts: At least one.
    """
    lines = [
        f"{one.child}: {one.rows:,} rows refer to test rows of {one.parent} (constraint {one.constraint})"
        for one in counts
    ]
    return TestDataReferencedError(
        "rows that are not test data refer to test rows that would be deleted; nothing was changed",
        found="\n".join(lines),
        table=counts[0].child,
        rows=counts[0].rows,
        constraint=counts[0].constraint,
    )
