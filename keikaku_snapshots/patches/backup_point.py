"""The backup point as the engine calls it: capture, its proof, its end, and the way back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keikaku_snapshots.patches import undo, undo_check, undo_clean, undo_size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from uuid import UUID

    from psycopg.sql import Composed

    from keikaku_snapshots.patches.execution import Execution
    from keikaku_snapshots.patches.ports import RolledBack
    from keikaku_snapshots.patches.settings import OnConflict
    from keikaku_snapshots.postgres.connect import Connection


class BackupPoint:
    """Implements `ports.Undo` by triggers and logs in the database itself."""

    def arm(self, connection: Connection, execution_id: UUID, tables: Sequence[str]) -> None:
        """Make undo tables and triggers, committed; harmless when repeated.

        Args:
            connection: In autocommit.
            execution_id: The execution, which has its record already.
            tables: Tables that the patch may change, as ``schema.table``.
        """
        undo.arm(connection, execution_id, tables)

    def check(self, connection: Connection, execution_id: UUID) -> None:
        """Prove that a change is captured and can be undone; raise when not.

        Args:
            connection: In autocommit.
            execution_id: The execution, armed.
        """
        undo_check.check(connection, execution_id)

    def switch(self, execution_id: UUID) -> Composed:
        """Return the statement that turns capture on for the present transaction.

        Args:
            execution_id: The execution.
        """
        return undo.switch(execution_id)

    def guard(
        self, connection: Connection, execution_id: UUID, tables: Sequence[str]
    ) -> AbstractContextManager[None]:
        """Watch over a step of own SQL: what must not be done there raises inside the transaction.

        Args:
            connection: In the transaction of the step.
            execution_id: The execution.
            tables: Tables that it may change.
        """
        from keikaku_snapshots.patches.step_guard import guarded

        return guarded(connection, execution_id, tables)

    def confirm(self, connection: Connection, execution_id: UUID) -> None:
        """Raise, before COMMIT, when what the present transaction has written may not have been kept.

        Args:
            connection: In the transaction, after its work.
            execution_id: The execution.
        """
        undo_check.confirm(connection, execution_id)

    def disarm(self, connection: Connection, execution_id: UUID) -> None:
        """Drop triggers and functions; the undo itself stays.

        Args:
            connection: In autocommit.
            execution_id: The execution.
        """
        undo_clean.disarm(connection, execution_id)

    def drop(self, connection: Connection, execution_id: UUID) -> None:
        """Drop everything that was kept; the execution cannot be taken back any more.

        Args:
            connection: In autocommit.
            execution_id: The execution.
        """
        undo_clean.drop(connection, execution_id)

    def size_bytes(self, connection: Connection, execution_id: UUID) -> int:
        """Return how much the undo takes.

        Args:
            connection: The database.
            execution_id: The execution.
        """
        return undo_size.size_bytes(connection, execution_id)

    def check_disk(self, connection: Connection, tables: Sequence[str], rows: int) -> int:
        """Refuse a run whose undo does not fit on the server's disk, where that is known.

        Args:
            connection: The database.
            tables: Tables that the run may change, the one that it walks over first.
            rows: Rows that it will change.

        Returns:
            The estimated size in bytes.
        """
        return undo_size.check_disk(connection, tables, rows)

    def roll_back(
        self,
        connection: Connection,
        execution: Execution,
        *,
        on_conflict: OnConflict,
        batch_size: int,
        before_batch: Callable[[], None],
    ) -> RolledBack:
        """Take everything back in batches.

        Args:
            connection: In autocommit; holds the locks.
            execution: The execution, with the lease of this worker.
            on_conflict: What to do with rows that others have changed since.
            batch_size: Rows of a transaction.
            before_batch: Called ahead of each transaction; may raise to stop.

        Returns:
            What was done.
        """
        from keikaku_snapshots.patches.rollback import roll_back

        return roll_back(
            connection,
            execution,
            on_conflict=on_conflict,
            batch_size=batch_size,
            before_batch=before_batch,
        )
