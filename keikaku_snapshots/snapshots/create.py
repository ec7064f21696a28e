"""Make one version of a snapshot: look first, dump, publish."""

from __future__ import annotations

import contextlib
import logging
import os
from typing import TYPE_CHECKING, Any

from keikaku_snapshots.postgres import catalog
from keikaku_snapshots.postgres.capacity import check_free_connections
from keikaku_snapshots.postgres.connect import connect, retrying, server_info, translated
from keikaku_snapshots.postgres.tools import Tools, find_tools
from keikaku_snapshots.snapshots.creating import created_by, is_worth_another_try
from keikaku_snapshots.snapshots.disk import check_space, estimate_bytes
from keikaku_snapshots.snapshots.dump import Dump, DumpOptions, take_dump
from keikaku_snapshots.snapshots.guards import check_create_identity, check_row_security
from keikaku_snapshots.snapshots.manifest import Manifest, Snapshot
from keikaku_snapshots.snapshots.names import suffix_of
from keikaku_snapshots.snapshots.parts import to_manifest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from keikaku_snapshots.postgres.connect import Connection, RetryPolicy
    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.progress import ProgressCallback
    from keikaku_snapshots.snapshots.lock import FileLock
    from keikaku_snapshots.snapshots.stage import Stage
    from keikaku_snapshots.snapshots.store import SnapshotStore

log = logging.getLogger("keikaku_snapshots.create")


class Create:
    """One create; `run` does it."""

    def __init__(
        self,
        url: DatabaseURL,
        store: SnapshotStore,
        options: DumpOptions,
        fields: dict[str, Any],
        *,
        pg_bin: Path | None = None,
        retry: RetryPolicy | None = None,
    ) -> None:
        """Prepare; nothing is touched yet.

        Args:
            url: The database.
            store: Where the snapshot goes.
            options: Format and contents.
            fields: What the caller says for the manifest, the name among it.
            pg_bin: Where the programs are.
            retry: Tries when the connection is lost.
        """
        self._url = url
        self._store = store
        self._options = options
        self._fields = fields
        self._pg_bin = pg_bin
        self._retry = retry

    def run(
        self,
        version: str | None,
        *,
        overwrite: bool = False,
        lock_wait_s: float = 0,
        progress: ProgressCallback | None = None,
    ) -> Snapshot:
        """Make the snapshot, or nothing.

        Args:
            version: Its version; the time if None.
            overwrite: Replace that version if it exists.
            lock_wait_s: Seconds to wait for another create of this name.
            progress: Told the bytes written.

        Returns:
            The snapshot.

        Raises:
            KeikakuError: Nothing was published.
        """
        name = self._fields["name"]

        with self._store.writing(name, operation="create", wait_s=lock_wait_s) as lock:
            if version is not None:
                self._store.check_free(name, version, overwrite=overwrite)
            # A dump only reads: a lost connection is tried again, with a new temporary file (design, Retry).
            snapshot: Snapshot = retrying(self._retry, should_retry=is_worth_another_try)(
                self._attempt, lock, version, overwrite, progress
            )
        log.info("created %s (%d bytes)", snapshot, snapshot.size_bytes)
        return snapshot

    def _attempt(
        self,
        lock: FileLock,
        version: str | None,
        overwrite: bool,
        progress: ProgressCallback | None,
    ) -> Snapshot:
        suffix = suffix_of(self._options.format, self._options.compression)
        with contextlib.ExitStack() as stack:
            connection = stack.enter_context(self._connect())
            tools = self._look(connection)
            stage = stack.enter_context(self._store.stage(self._fields["name"], suffix))
            held = stack.enter_context(_copy_of(lock.fileno()))
            dump = take_dump(
                connection, self._url, tools, stage, self._options, pass_fds=(held,), progress=progress
            )
            return self._publish(stage, dump, tools, version, overwrite=overwrite)

    def _connect(self) -> contextlib.closing[Connection]:
        """One connection for looking and for the dump's snapshot: what it has learnt of the catalog stays."""
        timeout_s = self._options.lock_wait_timeout_s
        return contextlib.closing(
            connect(self._url, autocommit=True, statement_timeout_s=0, lock_timeout_s=timeout_s)
        )

    def _look(self, connection: Connection) -> Tools:
        """Look at everything that can be known beforehand: tools, disk, whose name it is."""
        name, format_name = self._fields["name"], self._options.format
        tools = find_tools(server_info(connection).major, configured=self._pg_bin)
        with translated(self._url, "looking at the database"):
            tables = [table.name.text for table in catalog.tables(connection) if table.holds_rows]
            size = catalog.database_size_bytes(connection)
            check_row_security(connection, self._url)
            if self._options.jobs > 1:
                # Beside the workers the one that leads them; ours is there already.
                check_free_connections(connection, self._url, self._options.jobs, beside=1)
        earlier = [
            item.manifest for item in self._store.list(name) if item.is_valid and item.manifest is not None
        ]
        check_create_identity(name, earlier[0] if earlier else None, tables, self._url)
        suffix = suffix_of(format_name, self._options.compression)
        same = [one for one in earlier if one.suffix == suffix and one.database == self._url.database]
        estimate = estimate_bytes(
            database_bytes=size,
            last_snapshot_bytes=same[0].size_bytes if same else None,
            format_name=format_name,
            compressed=self._options.compression is not None,
        )
        self._store.prepare()
        check_space(
            self._store.directory,
            estimate,
            minimum_free_mb=self._options.minimum_free_mb,
            parts=max(len(tables), len(same[0].parts) if same else 0) if format_name == "directory" else 0,
        )
        return tools

    def _publish(
        self, stage: Stage, dump: Dump, tools: Tools, version: str | None, *, overwrite: bool
    ) -> Snapshot:
        from keikaku_snapshots import __version__

        manifest = Manifest(
            **self._fields,
            **dump.facts,
            version=version or self._store.next_version(self._fields["name"], dump.created_at),
            created_at=dump.created_at,
            finished_at=dump.finished_at,
            data_file=stage.path.name,
            size_bytes=dump.file.size_bytes,
            sha256=dump.file.sha256,
            format=self._options.format,
            compression=self._options.compression,
            uncompressed_bytes=dump.content.size_bytes if dump.content else None,
            uncompressed_sha256=dump.content.sha256 if dump.content else "",
            parts=to_manifest(dump.parts),
            owners=self._options.owners,
            clean=self._options.clean,
            tool_versions={"pg_dump": tools.version},
            keikaku_version=__version__,
            created_by=created_by(),
        )
        return self._store.publish(stage, manifest, overwrite=overwrite)


@contextlib.contextmanager
def _copy_of(descriptor: int) -> Iterator[int]:
    """A second descriptor of a lock for a child: a fork closes the first one in the child (`lock`)."""
    copy = os.dup(descriptor)
    try:
        yield copy
    finally:
        os.close(copy)
