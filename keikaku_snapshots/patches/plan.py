"""A patch, its tables as the catalog has them, and its parameters: what all who run it share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg import sql

from keikaku_snapshots.errors import PatchRefusedError
from keikaku_snapshots.patches.definition import RowPatch, SqlPatch
from keikaku_snapshots.patches.keyset import Keyset, hidden_orders
from keikaku_snapshots.patches.targets import check_targets, read_name, read_targets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keikaku_snapshots.patches.definition import Patch
    from keikaku_snapshots.patches.parameters import Parameters
    from keikaku_snapshots.patches.targets import Target
    from keikaku_snapshots.postgres.connect import Connection


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be run on what."""

    #: The patch.
    patch: Patch
    #: Its parameters.
    parameters: Parameters
    #: Its tables, its own first.
    targets: tuple[Target, ...]
    #: How its own table is walked over; None for a `StepPatch`.
    keyset: Keyset | None

    @property
    def oids(self) -> list[int]:
        """Object ids of its tables."""
        return [target.oid for target in self.targets]

    @property
    def walked(self) -> Keyset:
        """How its own table is walked over."""
        assert self.keyset is not None
        return self.keyset

    def target(self, name: str) -> Target | None:
        """Find one of its tables.

        Args:
            name: As the patch names it.

        Returns:
            The table; None when the patch has not declared it, or several are called so.
        """
        exact = read_name(name)
        found = [target for target in self.targets if target.name == exact]
        # Without its schema, where it can be no other one.
        found = found or [target for target in self.targets if target.name.name == name]
        return found[0] if len(found) == 1 else None


def make_plan(
    connection: Connection, patch: Patch, parameters: Parameters, more_tables: Sequence[str] = ()
) -> Plan:
    """Read the tables of a patch from the catalog and refuse what could not be run safely.

    Args:
        connection: The database.
        patch: The patch.
        parameters: Its parameters.
        more_tables: Tables that the configuration adds.

    Returns:
        The plan.

    Raises:
        PatchDefinitionError: The patch does not fit the tables.
        PatchRefusedError: They do not allow it.
    """
    names = tuple(dict.fromkeys((*patch.tables(), *more_tables)))
    targets = read_targets(connection, names)
    check_targets(patch, targets)
    keyset = None
    if isinstance(patch, SqlPatch | RowPatch):
        _check_order(connection, patch, targets[0])
        keyset = Keyset(
            table=targets[0].name.identifier,
            columns=patch.key,
            types=tuple(targets[0].columns[column].cast_type for column in patch.key),
            where=sql.SQL(patch.where or "true"),
            values=parameters.values,
        )
    return Plan(patch, parameters, targets, keyset)


def _check_order(connection: Connection, patch: SqlPatch | RowPatch, target: Target) -> None:
    hidden = hidden_orders(connection, target.oid, patch.key)
    if hidden:
        raise PatchRefusedError(
            f"the order of the key of {target.name} is not the one that its comparisons follow",
            found="\n".join(
                f"Column {column}: the operators of its type are in schema {schema}, not on the search path"
                for column, schema in hidden
            ),
            hint=f"Add {hidden[0][1]} to the search_path of the role or database, or use another key.",
            hint_ja=f"search_path に {hidden[0][1]} を追加するか、別のキーを使用してください。",
        )
