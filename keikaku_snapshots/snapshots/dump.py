"""Take a dump: pg_dump in an exported snapshot, with everything else beside it (C2).

One transaction of ours exports its snapshot, so that the schema, the counts
and the dump all describe the same instant. While pg_dump writes, the counts
run on our connection and the checksum follows the growing file.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

import psycopg

from keikaku_snapshots.errors import (
    AccessDeniedError,
    AuthenticationError,
    ConnectError,
    CreateFailedError,
    DatabaseInUseError,
    DiskFullError,
    KeikakuError,
    OperationTimeoutError,
    ToolError,
)
from keikaku_snapshots.postgres import catalog
from keikaku_snapshots.postgres.connect import server_info, translated
from keikaku_snapshots.postgres.filters import OUR_SCHEMAS
from keikaku_snapshots.postgres.ownership import OwnershipStatement, owners_and_grants, roles_needed
from keikaku_snapshots.postgres.rewrites import refuse_rewritten
from keikaku_snapshots.postgres.tools import (
    Tools,
    start_pg_dump,
    translate_tool_failure,
)
from keikaku_snapshots.progress import Progress, ProgressCallback
from keikaku_snapshots.snapshots.compressed_dump import PackingPipe
from keikaku_snapshots.snapshots.compression import CUSTOM_LEVELS
from keikaku_snapshots.snapshots.disk import ReserveWatcher
from keikaku_snapshots.snapshots.dump_files import PartFiles, WholeFile

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from keikaku_snapshots._process import RunningTool
    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.postgres.tools import Format
    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.snapshots.hashing import FileHash
    from keikaku_snapshots.snapshots.stage import Stage

#: Seconds between two progress values of a dump.
_PROGRESS_S = 0.25
#: First server version that ends a long transaction by itself.
_TRANSACTION_TIMEOUT_SINCE = 170_000
#: Errors that say better than "creating failed" what happened, with exit codes of their own.
_KEPT_ERRORS = (
    AccessDeniedError,
    AuthenticationError,
    ConnectError,
    CreateFailedError,
    DatabaseInUseError,
    DiskFullError,
    OperationTimeoutError,
    ToolError,
)


@dataclass(frozen=True, slots=True)
class DumpOptions:
    """What the caller asked for."""

    #: ``plain``, ``custom`` or ``directory``.
    format: str = "plain"
    #: Level of the compression, or of the custom format's own; its default if None.
    level: int | None = None
    #: Owners and grants go into the file.
    owners: bool = True
    #: DROP statements go in front.
    clean: bool = False
    #: Megabytes that must stay free on the disk while it runs.
    minimum_free_mb: int = 1000
    #: Seconds pg_dump waits for a table lock.
    lock_wait_timeout_s: float = 60.0
    #: ``gzip`` or ``zstd`` for ``plain``; None.
    compression: str | None = None
    #: Tables that pg_dump reads at once, for ``directory``.
    jobs: int = 1


@dataclass(frozen=True, slots=True)
class Dump:
    """A complete dump in its temporary file, and what it holds."""

    #: Checksum and size of the file, or of all parts together.
    file: FileHash
    #: Fields of the manifest that come from the database.
    facts: dict[str, Any]
    #: When the snapshot was exported; aware UTC.
    created_at: datetime
    #: When the file was complete; aware UTC.
    finished_at: datetime
    #: Checksum and size of what is in a compressed file.
    content: FileHash | None = None
    #: Checksum and size of each part of a directory.
    parts: Mapping[str, FileHash] = field(default_factory=dict)


def take_dump(
    connection: Connection,
    url: DatabaseURL,
    tools: Tools,
    stage: Stage,
    options: DumpOptions,
    *,
    pass_fds: Sequence[int] = (),
    progress: ProgressCallback | None = None,
) -> Dump:
    """Dump a database into a staged file.

    Args:
        connection: The database, in autocommit and idle; in a transaction of ours until it is closed.
        url: The database.
        tools: Programs of the server's major version.
        stage: The temporary file, empty.
        options: Format and contents.
        pass_fds: Descriptors that pg_dump inherits, so that locks outlive a killed parent (FAULTS 57).
        progress: Told the bytes written so far.

    Returns:
        The dump; the file is not synced yet.

    Raises:
        ConnectError: The connection was lost; nothing but the temporary file is left.
        DiskFullError: The reserve of free space was reached.
        CreateFailedError: pg_dump failed.
        LockBusyError: A table was emptied between the snapshot and pg_dump's lock.
    """
    with translated(url, "exporting a snapshot"):
        exported, our_schemas = _export(connection)
    created_at = datetime.now(UTC)
    watcher = ReserveWatcher(stage.path.parent, options.minimum_free_mb)
    try:
        with _writer_for(stage, options, tools) as writer:
            with start_pg_dump(
                tools,
                url,
                writer.target,
                format=cast("Format", options.format),
                jobs=options.jobs,
                snapshot_id=exported,
                lock_wait_timeout_s=options.lock_wait_timeout_s,
                compression=_own_level(options),
                owners=options.owners,
                clean=options.clean,
                exclude_schemas=our_schemas,
                # Its bytes need not be valid in any encoding.
                encoding="SQL_ASCII" if server_info(connection).encoding == "SQL_ASCII" else None,
                sync=False,  # the store syncs the file when it publishes it
                pass_fds=(stage.fileno(), *pass_fds),
                watch=lambda: writer.problem() or watcher(),
            ) as running:
                writer.started()
                with translated(url, "reading the catalog"):
                    facts = _facts(connection, url)
                begun = _follow(running, writer, progress)
                result = running.wait()
            writer.check()
            if result.stopped:
                raise watcher.error(result.stopped)
            if not result.ok:
                raise translate_tool_failure(result, url, doing=f"dumping {url.database}")
            file, content = writer.finish(stage.path.name)
            _tell(progress, writer, begun, finished=True)
    except KeikakuError as error:
        raise _create_failed(error, url) from error
    with translated(url, "looking for tables that were emptied meanwhile"):
        refuse_rewritten(connection, url)
    parts = writer.parts if isinstance(writer, PartFiles) else {}
    return Dump(file, facts, created_at, datetime.now(UTC), content, parts)


def _writer_for(stage: Stage, options: DumpOptions, tools: Tools) -> PackingPipe | WholeFile:
    """What is between pg_dump and the staged file."""
    if options.compression is not None:
        return PackingPipe(stage.fileno(), stage.path, compression=options.compression, level=options.level)
    kind = PartFiles if options.format == "directory" else WholeFile
    return kind(stage, options.format, tools)


def _own_level(options: DumpOptions) -> int | None:
    """The level that pg_dump itself packs with; None where it does not."""
    if options.format not in {"custom", "directory"}:
        return None
    return CUSTOM_LEVELS.default if options.level is None else options.level


def _export(connection: Connection) -> tuple[str, list[str]]:
    """Begin the transaction whose snapshot everything sees; with it, which schemas of ours are there."""
    connection.autocommit = False
    connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    connection.read_only = True
    # Waiting for pg_dump must not look like an abandoned transaction.
    limits = ["idle_in_transaction_session_timeout"]
    if connection.info.server_version >= _TRANSACTION_TIMEOUT_SINCE:
        limits.append("transaction_timeout")
    row = connection.execute(
        "SELECT pg_catalog.pg_export_snapshot(), ARRAY(SELECT n.nspname::text FROM pg_catalog.pg_namespace n"
        " WHERE n.nspname = ANY(%s)), (SELECT count(pg_catalog.set_config(name, '0', true))"
        " FROM unnest(%s::text[]) AS name)",
        [list(OUR_SCHEMAS), limits],
    ).fetchone()
    return (str(row[0]), list(row[1])) if row else ("", [])


def _facts(connection: Connection, url: DatabaseURL) -> dict[str, Any]:
    """Everything the manifest says about the database, as of the exported snapshot."""
    info = server_info(connection)
    schema = catalog.fingerprint(connection)
    extensions = catalog.extensions(connection)
    collation = connection.execute(
        "SELECT datcollate::text, (SELECT current_user::text) FROM pg_catalog.pg_database"
        " WHERE datname = current_database()"
    ).fetchone()
    role = str(collation[1]) if collation else ""
    ownership = owners_and_grants(connection)
    return {
        "database": url.database,
        "server_version": info.version,
        "server_major": info.major,
        "encoding": info.encoding,
        "collation": str(collation[0]) if collation else "",
        "extensions": [
            {
                "name": item.name,
                "version": item.version,
                "schema": item.schema,
                "owner": item.owner,
                "trusted": item.trusted,
            }
            for item in extensions
        ],
        "foreign_owned_extensions": [item.name for item in extensions if item.owner != role],
        "roles": roles_needed(connection, ownership),
        "schema_fingerprint": schema.digest,
        "schema_objects": schema.objects,
        "ownership_digest": _digest_of(ownership),
        "alembic_heads": catalog.alembic_heads(connection),
        "large_objects": catalog.large_object_count(connection),
        "sequences": {name: list(state) for name, state in catalog.sequences(connection).items()},
        "row_counts": catalog.row_counts(connection),
    }


def ownership_digest(connection: Connection) -> str:
    """Digest all owners and grants, those of large objects left out: they come with the rows.

    Args:
        connection: The database.

    Returns:
        SHA-256 in hex.
    """
    return _digest_of(owners_and_grants(connection))


def _digest_of(ownership: Sequence[OwnershipStatement]) -> str:
    lines = [one.statement for one in ownership if not one.object.startswith("large object ")]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _follow(
    running: RunningTool, writer: PackingPipe | WholeFile, progress: ProgressCallback | None
) -> float:
    """Tell the size of the growing file until pg_dump has ended; return when that began."""
    begun = time.monotonic()
    while progress is not None and not running.has_ended(_PROGRESS_S):
        _tell(progress, writer, begun)
    return begun


def _tell(
    progress: ProgressCallback | None,
    writer: PackingPipe | WholeFile,
    begun: float,
    *,
    finished: bool = False,
) -> None:
    """Tell the size; what a pipe still held is in it only when the writer has finished."""
    if progress is not None:
        size = writer.written_bytes
        total = size if finished else None
        progress(Progress("dump", size, total, "bytes", time.monotonic() - begun, finished))


def _create_failed(error: KeikakuError, url: DatabaseURL) -> KeikakuError:
    if isinstance(error, _KEPT_ERRORS):
        return error
    return CreateFailedError(
        f"the dump of {url.database} failed",
        found="\n".join(line for line in (error.headline, error.found) if line),
        hint=error.hint,
        **error.details,
    )
