"""What a row-wise patch says about a row: values without any SQL in them.

`RowPatch.transform` yields them; the engine alone decides when and how they
are written. So a dry run is exact, and a patch is tested without a database.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


class Row:
    """A row as it was read: columns as attributes and as keys, in no way changeable.

    A column whose name is no identifier, or that of a method here, is read as
    ``row["name"]``.
    """

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> None:
        object.__setattr__(self, "_values", dict(values))

    def __getattr__(self, name: str) -> Any:
        try:
            return self._values[name]
        except KeyError:
            known = ", ".join(self._values)
            raise AttributeError(f"the row has no column {name!r}; it was read with {known}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a row cannot be changed; yield Update(row, {name}=…)")

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Row) and self._values == other._values

    def __hash__(self) -> int:
        return hash(tuple(self._values))

    def __repr__(self) -> str:
        # Values may be personal data; a traceback must not show them.
        return f"Row({', '.join(self._values)})"

    def as_dict(self) -> dict[str, Any]:
        """Return the columns and values as a new dictionary."""
        return dict(self._values)


@dataclass(frozen=True, slots=True, init=False, repr=False)
class Update:
    """Give columns of a row new values.

    Args:
        row: The row as `transform` got it.
        values: New values by column.
    """

    #: The row as it was read.
    row: Row
    #: New values by column.
    values: dict[str, Any]

    def __init__(self, row: Row, /, **values: Any) -> None:
        object.__setattr__(self, "row", row)
        object.__setattr__(self, "values", values)

    def __repr__(self) -> str:
        return f"Update({', '.join(self.values)})"


@dataclass(frozen=True, slots=True, init=False, repr=False)
class Insert:
    """Add a row to a target table.

    Args:
        table: One of the patch's target tables, such as ``public.inventory_logs``.
        values: Values by column; what is left out gets its default.
    """

    #: Target table.
    table: str
    #: Values by column.
    values: dict[str, Any]

    def __init__(self, table: str, /, **values: Any) -> None:
        object.__setattr__(self, "table", table)
        object.__setattr__(self, "values", values)

    def __repr__(self) -> str:
        return f"Insert({self.table}: {', '.join(self.values)})"


@dataclass(frozen=True, slots=True, repr=False)
class Delete:
    """Remove a row."""

    #: The row as it was read.
    row: Row

    def __repr__(self) -> str:
        return "Delete()"


@dataclass(frozen=True, slots=True, repr=False)
class Skip:
    """Leave a row as it is; saying nothing about a row means the same."""

    #: The row as it was read.
    row: Row

    def __repr__(self) -> str:
        return "Skip()"


@dataclass(frozen=True, slots=True, repr=False)
class Reject:
    """Leave a row as it is because something is wrong with it; counts as inconsistent."""

    #: The row as it was read.
    row: Row
    #: What is wrong with it; shown in reports, so no personal data.
    why: str

    def __repr__(self) -> str:
        return f"Reject({self.why!r})"


Change: TypeAlias = Update | Insert | Delete | Skip | Reject
