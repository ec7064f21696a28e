"""What the engine asks of the parts around it: undo, messages, the audit log, windows, dumps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from uuid import UUID

    from psycopg.sql import Composable

    from keikaku_snapshots.patches.execution import Execution
    from keikaku_snapshots.patches.settings import OnConflict
    from keikaku_snapshots.postgres.connect import Connection


@dataclass(frozen=True, slots=True)
class RolledBack:
    """What a rollback did."""

    #: Rows that are as they were again.
    restored: int
    #: Rows that were so already.
    already: int
    #: Rows that somebody else had changed since and that were left.
    conflicts: int
    #: Transactions it took.
    batches: int


class Undo(Protocol):
    """The backup point of a run: capture in the database, and the way back."""

    def arm(self, connection: Connection, execution_id: UUID, tables: Sequence[str]) -> None:
        """Make undo tables and triggers, committed; the connection is in autocommit."""

    def check(self, connection: Connection, execution_id: UUID) -> None:
        """Prove that a change is captured and can be undone; raise when not."""

    def switch(self, execution_id: UUID) -> Composable:
        """Return the statement that turns capture on for the present transaction."""

    def guard(
        self, connection: Connection, execution_id: UUID, tables: Sequence[str]
    ) -> AbstractContextManager[None]:
        """Watch over a step of own SQL: what must not be done there raises inside the transaction."""

    def confirm(self, connection: Connection, execution_id: UUID) -> None:
        """Raise, before COMMIT, when what the present transaction has written may not have been kept."""

    def disarm(self, connection: Connection, execution_id: UUID) -> None:
        """Drop triggers and functions; the undo itself stays."""

    def drop(self, connection: Connection, execution_id: UUID) -> None:
        """Drop everything that was kept."""

    def check_disk(self, connection: Connection, tables: Sequence[str], rows: int) -> int:
        """Return how many bytes the undo of so many rows will take; raise when the disk has no room."""

    def size_bytes(self, connection: Connection, execution_id: UUID) -> int:
        """Return how much the undo takes."""

    def roll_back(
        self,
        connection: Connection,
        execution: Execution,
        *,
        on_conflict: OnConflict,
        batch_size: int,
        before_batch: Callable[[], None],
    ) -> RolledBack:
        """Take everything back in batches; the connection is in autocommit and holds the locks."""


#: Puts a message of a run into the outbox, in the transaction of the state change: connection, the
#: execution as it is now, event, further facts.
Notify: TypeAlias = "Callable[[Connection, Execution, str, dict[str, Any]], None]"
#: Writes a line into the audit log: event, facts.
Audit: TypeAlias = Callable[[str, dict[str, Any]], None]
#: Dumps tables in a way that can be restored, checks the dump and tells where it lies.
Backup: TypeAlias = "Callable[[UUID, Sequence[str]], str]"
