"""Patch runs without undo, to measure what capture costs."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

from psycopg import sql

from keikaku_snapshots.errors import PatchRollbackError
from keikaku_snapshots.patches.ports import RolledBack

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from uuid import UUID

    from psycopg.sql import Composable

    from keikaku_snapshots.patches.execution import Execution
    from keikaku_snapshots.patches.settings import OnConflict
    from keikaku_snapshots.postgres.connect import Connection


class NoUndo:
    """Captures nothing; a run that has committed a batch cannot be taken back."""

    def arm(self, connection: Connection, execution_id: UUID, tables: Sequence[str]) -> None:
        """Do nothing."""

    def check(self, connection: Connection, execution_id: UUID) -> None:
        """Do nothing."""

    def switch(self, execution_id: UUID) -> Composable:
        """Return the statement that marks a batch's transaction."""
        return sql.SQL("SET LOCAL keikaku.patch = {}").format(sql.Literal(str(execution_id)))

    def guard(
        self, connection: Connection, execution_id: UUID, tables: Sequence[str]
    ) -> AbstractContextManager[None]:
        """Watch over nothing."""
        del connection, execution_id, tables
        return nullcontext()

    def confirm(self, connection: Connection, execution_id: UUID) -> None:
        """Do nothing."""

    def disarm(self, connection: Connection, execution_id: UUID) -> None:
        """Do nothing."""

    def drop(self, connection: Connection, execution_id: UUID) -> None:
        """Do nothing."""

    def check_disk(self, connection: Connection, tables: Sequence[str], rows: int) -> int:
        """Return 0."""
        del connection, tables, rows
        return 0

    def size_bytes(self, connection: Connection, execution_id: UUID) -> int:
        """Return 0."""
        del connection, execution_id
        return 0

    def roll_back(
        self,
        connection: Connection,
        execution: Execution,
        *,
        on_conflict: OnConflict,
        batch_size: int,
        before_batch: Callable[[], None],
    ) -> RolledBack:
        """Fail unless nothing was committed."""
        del connection, on_conflict, batch_size, before_batch
        if execution.changed_records:
            raise PatchRollbackError("nothing was captured, so nothing can be taken back")
        return RolledBack(0, 0, 0, 0)
