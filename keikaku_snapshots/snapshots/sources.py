"""What a restore loads: a snapshot as one script, or as an archive for several connections."""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from keikaku_snapshots.errors import (
    AccessDeniedError,
    CreateFailedError,
    FileOperationError,
    RefusedError,
)
from keikaku_snapshots.postgres.capacity import capacity, check_free_connections
from keikaku_snapshots.postgres.connect import connect, server_info
from keikaku_snapshots.postgres.tools import Tools, find_tools, pg_restore_script, translate_tool_failure
from keikaku_snapshots.snapshots.archive import chosen
from keikaku_snapshots.snapshots.compression import packed_as
from keikaku_snapshots.snapshots.disk import ReserveWatcher
from keikaku_snapshots.snapshots.dump_script import Script
from keikaku_snapshots.snapshots.parallel_load import open_archive
from keikaku_snapshots.snapshots.temporary import temporary_file
from keikaku_snapshots.snapshots.unpack import unpack_into
from keikaku_snapshots.snapshots.verify import check_shape

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.snapshots.parallel_load import Archive
    from keikaku_snapshots.snapshots.reading import OpenSnapshot
    from keikaku_snapshots.snapshots.store import SnapshotStore

#: Most connections that load at once unless more are asked for.
_USUAL_JOBS = 4
#: Below this a load by one connection is as fast: two programs less are started (docs/design.md, Directory).
_WORTH_BYTES = 2 << 20
#: Connections that a swap has beside those that load: loading, analysing, locking.
_OWN_CONNECTIONS = 3


class Sources:
    """An open snapshot, in the forms that can be loaded."""

    def __init__(
        self,
        opened: OpenSnapshot,
        store: SnapshotStore,
        url: DatabaseURL,
        *,
        jobs: int | None = None,
        pg_bin: str | Path | None = None,
        minimum_free_mb: int = 0,
    ) -> None:
        """Prepare; nothing is read yet.

        Args:
            opened: The snapshot, held so that nobody deletes it.
            store: Where it is, and where it is unpacked.
            url: The database that it goes into.
            jobs: Connections that load a directory; as many as are worthwhile, at most 4, if None.
            pg_bin: Where the programs are.
            minimum_free_mb: Megabytes that must stay free where it is unpacked.
        """
        self._opened = opened
        self._store = store
        self._url = url
        self._jobs = jobs
        self._pg_bin = pg_bin
        self._minimum_free_mb = minimum_free_mb

    @contextlib.contextmanager
    def fastest(self) -> Iterator[Script | Archive]:
        """The snapshot as what loads fastest into a database that nobody else sees.

        Raises:
            SnapshotCorruptError: It is damaged.
            DiskFullError: There is too little room to unpack it.
        """
        if self._opened.snapshot.format == "directory":
            tools, jobs = self._look()
            entries = functools.partial(self._entries, tools)
            with open_archive(self._opened, tools, jobs=jobs, script=entries) as archive:
                if archive is not None:
                    yield archive
                    return
        with self.script() as script:
            yield script

    @contextlib.contextmanager
    def script(self) -> Iterator[Script]:
        """The snapshot as plain SQL; one that is packed is unpacked into a temporary file first.

        Raises:
            SnapshotCorruptError: It is damaged.
            DiskFullError: There is too little room to unpack it.
        """
        opened = self._opened
        name = opened.path.name
        if packed_as(opened.snapshot) is None and opened.snapshot.format == "plain":
            with Script(opened.fileno(), name) as script:
                yield script
            return
        with self._temporary() as (path, descriptor):
            if opened.snapshot.format == "plain":
                unpack_into(opened, descriptor, path, minimum_free_mb=self._minimum_free_mb)
            else:
                self._write_script(self._tools(), path, descriptor)
            with Script(descriptor, name) as script:
                yield script

    def _look(self) -> tuple[Tools, int]:
        """The programs of the server's version, and how many connections shall load."""
        with connect(self._url, autocommit=True) as connection:
            tools = find_tools(server_info(connection).major, configured=self._pg_bin)
            if self._jobs is not None:
                check_free_connections(connection, self._url, self._jobs, beside=_OWN_CONNECTIONS)
                return tools, self._jobs
            if self._opened.snapshot.size_bytes < _WORTH_BYTES:
                return tools, 1
            free = capacity(connection).free - _OWN_CONNECTIONS
        return tools, max(1, min(_USUAL_JOBS, len(os.sched_getaffinity(0)), free))

    def _tools(self) -> Tools:
        with connect(self._url, autocommit=True) as connection:
            return find_tools(server_info(connection).major, configured=self._pg_bin)

    @contextlib.contextmanager
    def _entries(self, tools: Tools, ids: Sequence[int]) -> Iterator[Script]:
        """Some entries of an archive as plain SQL."""
        with self._temporary() as (path, descriptor):
            with chosen(ids) as only:
                self._write_script(tools, path, descriptor, only=only)
            with Script(descriptor, self._opened.path.name) as script:
                yield script

    def _write_script(self, tools: Tools, path: Path, descriptor: int, *, only: int | None = None) -> None:
        """Have pg_restore write an archive out as SQL."""
        watcher = ReserveWatcher(path.parent, self._minimum_free_mb)
        archive = self._opened.fileno()
        result = pg_restore_script(
            tools,
            f"/dev/fd/{archive}",
            descriptor,
            list_file=None if only is None else f"/dev/fd/{only}",
            single_transaction=False,
            pass_fds=(archive,) if only is None else (archive, only),
            watch=watcher,
        )
        if result.stopped:
            raise watcher.error(result.stopped)
        if not result.ok:
            raise translate_tool_failure(result, None, doing=f"reading {self._opened.path.name}")
        # The keys come last: without them the rows would still be counted and right.
        check_shape(descriptor, "plain", f"{self._opened.path.name}, unpacked,")

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[tuple[Path, int]]:
        """An empty file of our own beside the snapshots; elsewhere when they are mounted read-only."""
        with contextlib.ExitStack() as stack:
            try:
                stage = stack.enter_context(self._store.stage(self._opened.snapshot.name, "sql"))
                place = stage.path, stage.fileno()
            except CreateFailedError as error:
                # Nobody makes a snapshot here.
                raise FileOperationError(
                    f"a file operation failed while unpacking snapshot {self._opened.snapshot}",
                    found=error.found,
                ) from error
            except (AccessDeniedError, RefusedError):
                # Without a name, which a kill would leave with all the rows.
                file = stack.enter_context(temporary_file())
                place = Path(tempfile.gettempdir(), "unpacked.sql"), file.fileno()
            yield place
