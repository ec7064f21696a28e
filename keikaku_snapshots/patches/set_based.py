"""A batch of a `SqlPatch`: the rows are locked in the order of the key, then changed by one UPDATE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from psycopg import sql

if TYPE_CHECKING:
    from keikaku_snapshots.patches.definition import SqlPatch
    from keikaku_snapshots.patches.keyset import Keyset
    from keikaku_snapshots.patches.targets import Target
    from keikaku_snapshots.postgres.connect import Connection


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of the rows of a batch."""

    #: Rows that met the condition.
    processed: int
    #: Rows that were changed, added or removed.
    changed: int
    #: Rows that were as they should be already.
    unchanged: int
    #: Rows that are not as they should be: rejected ones, and violations of `verify_batch`.
    inconsistent: int
    #: Rows that the patch rejected.
    rejected: int = 0


class SetBased:
    """The statements of a `SqlPatch`.

    Args:
        patch: The patch.
        target: Its table.
        keyset: How it is walked over.
    """

    def __init__(self, patch: SqlPatch, target: Target, keyset: Keyset) -> None:
        self._keyset = keyset
        self._expressions = {
            target.columns[name]: sql.SQL("({})").format(sql.SQL(text)) for name, text in patch.set.items()
        }
        wrong = patch.verify_batch()
        #: Whether a row is not as it should be.
        self.wrong: sql.Composable = (
            sql.SQL("({}) IS NOT TRUE").format(sql.SQL(wrong)) if wrong else sql.SQL("false")
        )

    @property
    def differs(self) -> sql.Composed:
        """Whether the patch would change a row, compared as texts: 1.0 and 1.00, 0 and -0 are different."""
        return sql.SQL(" OR ").join(
            sql.SQL("{}::text IS DISTINCT FROM ({}::{})::text").format(
                sql.Identifier(column.name),
                expression,
                sql.SQL(column.compare_type),
            )
            for column, expression in self._expressions.items()
        )

    @property
    def expressions(self) -> dict[str, sql.Composable]:
        """The new value of each changed column, of the column's type."""
        return {
            column.name: sql.SQL("{}::{}").format(expression, sql.SQL(column.compare_type))
            for column, expression in self._expressions.items()
        }

    @property
    def new_values(self) -> dict[str, sql.Composable]:
        """The new value of each changed column as text."""
        return {
            column.name: sql.SQL("({}::{})::text").format(expression, sql.SQL(column.compare_type))
            for column, expression in self._expressions.items()
        }

    def change(self, condition: sql.Composable) -> sql.Composed:
        """Return the UPDATE of a batch.

        Args:
            condition: Which rows.
        """
        return sql.SQL("UPDATE {} SET {} WHERE {} AND ({})").format(
            self._keyset.table,
            sql.SQL(", ").join(
                sql.SQL("{} = {}").format(sql.Identifier(column.name), expression)
                for column, expression in self._expressions.items()
            ),
            condition,
            self.differs,
        )

    def run(self, connection: Connection, condition: sql.Composable, values: dict[str, Any]) -> Counts:
        """Change the rows of a batch in the caller's transaction.

        Args:
            connection: The work connection.
            condition: Which rows.
            values: Values of the condition's placeholders.

        Returns:
            What became of them.
        """
        lock = sql.SQL(
            "SELECT count(*), count(*) FILTER (WHERE NOT differs),"
            " count(*) FILTER (WHERE NOT differs AND wrong)"
            " FROM (SELECT ({}) AS differs, {} AS wrong FROM {} WHERE {}{} FOR NO KEY UPDATE) l"
        ).format(self.differs, self.wrong, self._keyset.table, condition, self._keyset.order())
        locked = connection.execute(lock, values).fetchone()
        assert locked is not None
        if locked[0] == locked[1]:
            return Counts(locked[0], 0, locked[1], locked[2])
        # A statement of its own: its snapshot sees what the rows have become while it waited for them.
        change = sql.SQL(
            "WITH changed AS ({} RETURNING {} AS wrong)"
            " SELECT count(*), count(*) FILTER (WHERE wrong) FROM changed"
        ).format(self.change(condition), self.wrong)
        changed = connection.execute(change, values).fetchone()
        assert changed is not None
        # A row may have come to meet the condition between the two statements.
        processed = max(locked[0], locked[1] + changed[0])
        return Counts(processed, changed[0], locked[1], locked[2] + changed[1])
