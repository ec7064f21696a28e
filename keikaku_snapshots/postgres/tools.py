"""Run pg_dump; and the one module to import for pg_restore and psql (`restore_tools`) too.

No inherited ``PG*`` variable reaches them (an inherited ``PGHOSTADDR`` beats an
explicit host, FAULTS 8), the password travels in a 0600 file, and the database
name in ``PGDATABASE``, where it is never read as a connection string (FAULTS 38).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias, TypedDict, Unpack

from keikaku_snapshots.errors import UsageError
from keikaku_snapshots.postgres.restore_tools import (
    pg_restore_script,
    run_pg_restore,
    run_psql,
    start_pg_restore,
    start_psql,
)
from keikaku_snapshots.postgres.tool_environment import base_environment, tool_environment
from keikaku_snapshots.postgres.tool_errors import translate_tool_failure
from keikaku_snapshots.postgres.tool_messages import public_stderr
from keikaku_snapshots.postgres.tool_search import Tools, find_tools
from keikaku_snapshots.postgres.tool_start import (
    Section,
    Watch,
    prepare_pipe,
    prepare_target,
    refuse_create,
    start_connected,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from pathlib import Path

    from keikaku_snapshots._process import RunningTool, ToolResult
    from keikaku_snapshots.postgres.url import DatabaseURL

__all__ = [
    "Tools",
    "base_environment",
    "find_tools",
    "pg_restore_script",
    "public_stderr",
    "run_pg_dump",
    "run_pg_restore",
    "run_psql",
    "start_pg_dump",
    "start_pg_restore",
    "start_psql",
    "tool_environment",
    "translate_tool_failure",
]

#: Seconds that pg_dump waits for a table lock: a forgotten ALTER TABLE must not hang a nightly run.
LOCK_WAIT_TIMEOUT_S = 60.0
#: What pg_dump leaves to the session: equal values get equal texts whatever role and database
#: prefer, so that two dumps of the same rows can be compared.
DUMP_SETTINGS = {"TimeZone": "UTC", "bytea_output": "hex"}
Format: TypeAlias = Literal["plain", "custom", "directory"]


class DumpOptions(TypedDict, total=False):
    """Keywords of `start_pg_dump`, where they are explained."""

    format: Format
    snapshot_id: str | None
    lock_wait_timeout_s: float
    compression: str | int | None
    owners: bool
    clean: bool
    jobs: int
    sections: Sequence[Section]
    exclude_schemas: Sequence[str]
    encoding: str | None
    sync: bool
    extra: Sequence[str]
    timeout_s: float | None
    pass_fds: Sequence[int]
    watch: Watch | None
    grace_s: float


def start_pg_dump(
    tools: Tools,
    url: DatabaseURL,
    path: str | os.PathLike[str] | int,
    *,
    format: Format = "plain",  # noqa: A002 - the word that users type
    snapshot_id: str | None = None,
    lock_wait_timeout_s: float = LOCK_WAIT_TIMEOUT_S,
    compression: str | int | None = None,
    owners: bool = True,
    clean: bool = False,
    jobs: int = 1,
    sections: Sequence[Section] = (),
    exclude_schemas: Sequence[str] = (),
    encoding: str | None = None,
    sync: bool = True,
    extra: Sequence[str] = (),
    timeout_s: float | None = None,
    pass_fds: Sequence[int] = (),
    watch: Watch | None = None,
    grace_s: float = 5.0,
) -> RunningTool:
    """Start pg_dump into a file.

    Args:
        tools: Programs of the server's major version.
        url: The database.
        path: The file. One made by the caller (0600, its own directory) keeps its mode;
            a missing one is made 0600. A link or anything else that is no plain file is
            refused (FAULTS 35). For ``directory`` it must not exist or be empty. A number is
            the writing end of a pipe that the caller reads: a dump is whole then only when
            pg_dump ended with 0 and the text has its end marker (FAULTS 10).
        format: plain, custom or directory.
        snapshot_id: From ``pg_export_snapshot()``: dump exactly what that transaction sees.
        lock_wait_timeout_s: Seconds to wait for table locks (FAULTS 61).
        compression: Level 0 to 9, or from version 16 also ``gzip:6``, ``zstd:3``; None: pg_dump's default.
        owners: False leaves owners and privileges out.
        clean: Add ``--clean --if-exists``.
        jobs: Parallel workers, for ``directory`` only.
        sections: Only these sections.
        exclude_schemas: Names of schemas to leave out; names, not patterns.
        encoding: Of the dump; UTF8 when None. SQL_ASCII databases need "SQL_ASCII".
        sync: False leaves out pg_dump's own fsync, for callers that sync themselves.
        extra: Further arguments of pg_dump; never ``-C``, which makes the dump connect elsewhere (FAULTS 12).
        timeout_s: Seconds until it is stopped.
        pass_fds: Descriptors it inherits, such as a lock's.
        watch: See `start_tool`.
        grace_s: See `start_tool`.

    Returns:
        The running program; cancelled by SIGTERM, which also cancels its query.

    Raises:
        UsageError: The options contradict each other.
        AccessDeniedError: ``path`` is a link or no plain file.
        ToolMissingError: pg_dump cannot be run.
    """
    if jobs > 1 and format != "directory":
        raise UsageError("parallel dumps need format='directory'", found=f"jobs={jobs}, format={format!r}")
    refuse_create(extra)
    if isinstance(path, int):
        target, pass_fds = prepare_pipe(path, format), (path, *pass_fds)
    else:
        target = prepare_target(path, format)
    argv: list[str | Path] = [tools.pg_dump, "--no-password", f"--format={format}", f"--file={target}"]
    argv.append(f"--lock-wait-timeout={max(1, round(lock_wait_timeout_s * 1000))}")
    if compression is not None:
        argv.append(f"--compress={compression}")
    if not owners:
        argv += ["--no-owner", "--no-privileges"]
    if clean:
        argv += ["--clean", "--if-exists"]
    if jobs > 1:
        argv.append(f"--jobs={jobs}")
    if snapshot_id is not None:
        argv.append(f"--snapshot={snapshot_id}")
    argv += [f"--section={section}" for section in sections]
    argv += [f"--exclude-schema={_pattern(name)}" for name in exclude_schemas]
    argv += [f"--encoding={encoding}"] if encoding is not None else []
    argv += [] if sync else ["--no-sync"]
    argv += extra
    return start_connected(
        argv,
        url,
        settings=DUMP_SETTINGS,
        timeout_s=timeout_s,
        pass_fds=pass_fds,
        watch=watch,
        grace_s=grace_s,
    )


def run_pg_dump(
    tools: Tools,
    url: DatabaseURL,
    path: str | os.PathLike[str],
    **options: Unpack[DumpOptions],
) -> ToolResult:
    """Run pg_dump to its end; arguments as `start_pg_dump`.

    Returns:
        The result. Give it to `translate_tool_failure` when it is not ``ok``.
    """
    with start_pg_dump(tools, url, path, **options) as running:
        return running.wait()


def _pattern(name: str) -> str:
    """Write a name as the pattern that matches it only; also keeps its upper case (FAULTS 21)."""
    return '"' + name.replace('"', '""') + '"'
