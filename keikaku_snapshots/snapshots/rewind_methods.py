"""The methods of `SnapshotManager` that go back to a checkpoint."""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from keikaku_snapshots.errors import KeikakuError, SchemaDriftError, UnsafeRestoreError
from keikaku_snapshots.snapshots.parameters import check_number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.snapshots.audit import AuditLog
    from keikaku_snapshots.snapshots.checkpoint import Checkpoint, SnapshotReference
    from keikaku_snapshots.snapshots.manifest import Snapshot
    from keikaku_snapshots.snapshots.restore import Restored
    from keikaku_snapshots.snapshots.rewind import Rewinder, Rewound

log = logging.getLogger("keikaku_snapshots.rewind")

#: Seconds that open transactions of other sessions are waited for.
WAIT_S = 5.0


class RewindMethods:
    """A part of `SnapshotManager`: checkpoint, rewind, and the connection kept for them."""

    _rewinder: Rewinder | None = None

    if TYPE_CHECKING:
        _audit: AuditLog
        _allow_protected: bool
        _protected_words: tuple[str, ...]
        _allowed_databases: tuple[str, ...]
        restore_snapshot: Callable[..., Restored]

        @property
        def url(self) -> DatabaseURL: ...  # noqa: D102
        @property
        def directory(self) -> Path: ...  # noqa: D102
        def get_snapshot(self, name: str, version: str | None = None) -> Snapshot: ...  # noqa: D102

    def checkpoint(
        self,
        *,
        snapshot: str | None = None,
        version: str | None = None,
        wait_s: float = WAIT_S,
        keep_connection: bool = False,
    ) -> Checkpoint:
        """Make the present state of the database the one that `rewind` goes back to.

        From here on the changes of every session are kept, until
        `drop_checkpoint`. An earlier checkpoint is replaced.

        Args:
            snapshot: The snapshot that the database was restored from and still equals. It is
                restored when a change of the schema makes rewinding impossible.
            version: Its version; the newest valid one if None.
            wait_s: Seconds to wait for transactions that have written and are still open.
            keep_connection: Leave the connection open until `close`, for rewinds that follow soon: the first
                is several times as fast.

        Returns:
            The checkpoint; its warnings say what will not go back.

        Raises:
            ProtectedDatabaseError: The database looks like production.
            AccessDeniedError: The role does not own every table, or row security hides rows from it.
            DatabaseInUseError: A transaction stayed open; the text says which.
            SnapshotNotFoundError: There is no such snapshot.
        """
        from keikaku_snapshots.snapshots.checkpoint import SnapshotReference, make_checkpoint

        check_number("wait_s", wait_s)
        with self._audit.recording("checkpoint", snapshot, version=version) as record:
            self._check_protected()
            reference = None
            if snapshot is not None:
                found = self.get_snapshot(snapshot, version)
                reference = SnapshotReference(found.name, found.version, str(self.directory))
            keep = self._kept_rewinder().keep if keep_connection else None
            made = make_checkpoint(self.url, wait_s=wait_s, snapshot=reference, keep=keep)
            record.note(tables=made.tables, sequences=made.sequences)
        return made

    def rewind(self, *, wait_s: float = WAIT_S) -> Rewound:
        """Undo every change that was committed since the checkpoint, whoever made it.

        Nobody is disconnected. The connection that does it is kept until `close`.

        Args:
            wait_s: Seconds to wait for transactions that have written and are still open.

        Returns:
            How many rows and tables went back, how long it took, and in which way.

        Raises:
            SnapshotNotFoundError: There is no checkpoint.
            DatabaseInUseError: A transaction stayed open; the text says which. Nothing was changed.
            SchemaDriftError: The schema was changed since, and no snapshot is known that could be restored.
            UnsafeRestoreError: The server refuses a row that was there; no snapshot is known either.
            ProtectedDatabaseError: The database looks like production.
        """
        check_number("wait_s", wait_s)
        self._check_protected()
        try:
            return self._kept_rewinder().rewind(wait_s=wait_s)
        except (SchemaDriftError, UnsafeRestoreError) as error:
            source = error.details.get("snapshot")
            if source is None or Path(source.directory) != self.directory:
                raise
            return self._restored_instead(error, source, wait_s)

    def _restored_instead(self, error: KeikakuError, source: SnapshotReference, wait_s: float) -> Rewound:
        """The slow way: the snapshot that the checkpoint was made from, and a new checkpoint."""
        from keikaku_snapshots.snapshots.rewind import Rewound

        begun = time.monotonic()
        log.warning("%s; restoring %s %s", error.what, source.name, source.version)
        restored = self.restore_snapshot(source.name, source.version, on_schema_mismatch="ignore")
        self.checkpoint(snapshot=source.name, version=source.version, wait_s=wait_s, keep_connection=True)
        counts = restored.snapshot.row_counts or {}
        warning = (
            f"{error.what}, so the snapshot was restored ({restored.strategy}): {error.found.splitlines()[0]}"
        )
        return Rewound(
            rows=sum(counts.values()),
            tables=len(counts),
            seconds=time.monotonic() - begun,
            path="restored",
            warnings=(warning, *restored.warnings),
        )

    def drop_checkpoint(self, *, wait_s: float = WAIT_S) -> bool:
        """Remove everything that `checkpoint` put into the database.

        Args:
            wait_s: Seconds to wait for sessions that use the tables, readers too.

        Returns:
            False if there was nothing.

        Raises:
            DatabaseInUseError: A session held a table; the text says which.
        """
        from keikaku_snapshots.snapshots.checkpoint import drop_checkpoint

        check_number("wait_s", wait_s)
        with self._audit.recording("drop checkpoint", None):
            return drop_checkpoint(self.url, wait_s=wait_s)

    @contextmanager
    def rewinding(self, *, wait_s: float = WAIT_S) -> Iterator[Checkpoint]:
        """Make a checkpoint before the block and go back to it after, also when the block fails.

        A connection to the database is kept from the checkpoint on, until `close`.

        Args:
            wait_s: Seconds to wait for open transactions, each time.

        Yields:
            The checkpoint.
        """
        made = self.checkpoint(wait_s=wait_s, keep_connection=True)
        try:
            yield made
        finally:
            self.rewind(wait_s=wait_s)

    def _check_protected(self) -> None:
        from keikaku_snapshots.snapshots.guards import check_protected

        check_protected(
            self.url,
            allow_protected=self._allow_protected,
            protected_words=self._protected_words,
            allowed_databases=self._allowed_databases,
        )

    def _kept_rewinder(self) -> Rewinder:
        if self._rewinder is None:
            from keikaku_snapshots.snapshots.rewind import Rewinder

            self._rewinder = Rewinder(self.url)
        return self._rewinder

    def _close_rewinder(self) -> None:
        if self._rewinder is not None:
            self._rewinder.close()
            self._rewinder = None
