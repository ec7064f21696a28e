"""Undo as the engine asks for it, from the modules that make, check, use and drop it."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

from keikaku_snapshots.errors import PatchRollbackError
from keikaku_snapshots.patches import undo, undo_check, undo_clean
from keikaku_snapshots.patches.ports import RolledBack

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from uuid import UUID

    from psycopg.sql import Composable

    from keikaku_snapshots.patches.execution import Execution
    from keikaku_snapshots.patches.settings import OnConflict
    from keikaku_snapshots.postgres.connect import Connection


class DatabaseUndo:
    """Triggers in the database that keep what a run changes."""

    def arm(self, connection: Connection, execution_id: UUID, tables: Sequence[str]) -> None:
        """Make undo tables and triggers, committed."""
        undo.arm(connection, execution_id, tables)

    def check(self, connection: Connection, execution_id: UUID) -> None:
        """Prove that a change is captured and can be undone."""
        undo_check.check(connection, execution_id)

    def switch(self, execution_id: UUID) -> Composable:
        """Return the statement that turns capture on for the present transaction."""
        return undo.switch(execution_id)

    def guard(
        self, connection: Connection, execution_id: UUID, tables: Sequence[str]
    ) -> AbstractContextManager[None]:
        """Watch over a step of own SQL."""
        del connection, execution_id, tables
        return nullcontext()

    def disarm(self, connection: Connection, execution_id: UUID) -> None:
        """Drop triggers and functions; the undo itself stays."""
        undo_clean.disarm(connection, execution_id)

    def size_bytes(self, connection: Connection, execution_id: UUID) -> int:
        """Return how much disk the undo takes."""
        return undo.size_bytes(connection, execution_id)

    def roll_back(
        self,
        connection: Connection,
        execution: Execution,
        *,
        on_conflict: OnConflict,
        batch_size: int,
        before_batch: Callable[[], None],
    ) -> RolledBack:
        """Take everything back in batches."""
        del connection, on_conflict, batch_size, before_batch
        if execution.changed_records:
            raise PatchRollbackError("nothing can be taken back yet")
        return RolledBack(0, 0, 0, 0)
