"""What a patch gets to know and may do while it runs."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from keikaku_snapshots.postgres.connect import Connection

#: Types that JSON does not have, by the name under which they are remembered.
_REMEMBERED: dict[str, tuple[type, Callable[[str], Any]]] = {
    "decimal": (Decimal, Decimal),
    "datetime": (datetime, datetime.fromisoformat),
    "date": (date, date.fromisoformat),
    "uuid": (UUID, UUID),
}


@dataclass(slots=True, kw_only=True)
class PatchContext:
    """Parameters, queries that only read, and a memory between `validate` and `verify`."""

    #: Number of the run.
    execution_id: UUID
    #: The patch's parameters as its model; None when it has none.
    params: Any
    #: Who runs it.
    actor: str
    #: When the run began, with a time zone; the same in all batches, also after a pause.
    now: datetime
    #: True when nothing will be changed.
    dry_run: bool
    #: Gives a connection whose transaction cannot write, for as long as a query takes.
    reader: Callable[[], AbstractContextManager[Connection]] = field(repr=False)
    #: What was remembered, as JSON.
    remembered: dict[str, Any] = field(default_factory=dict, repr=False)

    def fetch(self, query: str, parameters: Mapping[str, Any] | Sequence[Any] | None = None) -> list[Any]:
        """Ask the database something; writing is refused by the server.

        Args:
            query: SQL.
            parameters: Values for its placeholders.

        Returns:
            Rows as tuples.
        """
        with self.reader() as connection:
            cursor = connection.execute(query, parameters)
            return cursor.fetchall() if cursor.description else []

    def value(self, query: str, parameters: Mapping[str, Any] | Sequence[Any] | None = None) -> Any:
        """Ask for one value.

        Args:
            query: SQL with one column.
            parameters: Values for its placeholders.

        Returns:
            The value of the first row; None when there is none.
        """
        rows = self.fetch(query, parameters)
        return rows[0][0] if rows else None

    def remember(self, name: str, value: Any) -> None:
        """Keep a value of the start for `verify`, also over a pause or a crash.

        Args:
            name: What it is called.
            value: JSON, or a decimal, date, datetime or UUID by itself.
        """
        self.remembered[name] = _to_json(value)

    def recall(self, name: str) -> Any:
        """Return what was remembered.

        Args:
            name: What it is called.

        Returns:
            The value.

        Raises:
            KeyError: Nothing was remembered under this name.
        """
        kept = self.remembered[name]
        if isinstance(kept, dict) and len(kept) == 1:
            ((kind, text),) = kept.items()
            if kind in _REMEMBERED:
                return _REMEMBERED[kind][1](text)
        return kept


def _to_json(value: Any) -> Any:
    for kind, (remembered_type, _) in _REMEMBERED.items():
        if isinstance(value, remembered_type):
            return {kind: value.isoformat() if isinstance(value, date) else str(value)}
    json.dumps(value)  # a TypeError here names the place in the patch, not the end of validation
    return value


@dataclass(slots=True, kw_only=True)
class StepContext(PatchContext):
    """What a step of a `StepPatch` gets: it may also write, on the declared tables."""

    #: Runs a statement in the step's transaction.
    run: Callable[[str, Any], tuple[int, list[Any]]] = field(repr=False)

    def execute(self, query: str, parameters: Mapping[str, Any] | Sequence[Any] | None = None) -> int:
        """Run a statement in the step's transaction.

        Args:
            query: SQL on the declared tables.
            parameters: Values for its placeholders.

        Returns:
            Rows that it changed.
        """
        return self.run(query, parameters)[0]

    def fetch(self, query: str, parameters: Mapping[str, Any] | Sequence[Any] | None = None) -> list[Any]:
        """Run a query in the step's transaction, so that it sees what the step has done.

        Args:
            query: SQL.
            parameters: Values for its placeholders.

        Returns:
            Rows as tuples.
        """
        return self.run(query, parameters)[1]
