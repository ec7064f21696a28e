"""Run pg_dump, pg_restore and psql: their arguments, their environment, their errors.

No inherited ``PG*`` variable reaches them (an inherited ``PGHOSTADDR`` beats an
explicit host, FAULTS 8), the password travels in a 0600 file, and the database
name in ``PGDATABASE``, where it is never read as a connection string (FAULTS 38).
"""

from __future__ import annotations

import errno
import os
import signal
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack

from keikaku_snapshots._process import RunningTool, ToolResult, run_tool, start_tool
from keikaku_snapshots.errors import AccessDeniedError, DiskFullError, UsageError
from keikaku_snapshots.postgres.tool_environment import (
    base_environment,
    prepare_environment,
    tool_environment,
)
from keikaku_snapshots.postgres.tool_errors import public_stderr, translate_tool_failure
from keikaku_snapshots.postgres.tool_search import Tools, find_tools

if TYPE_CHECKING:
    from keikaku_snapshots.postgres.url import DatabaseURL

__all__ = [
    "Tools",
    "base_environment",
    "find_tools",
    "pg_restore_list",
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
Format = Literal["plain", "custom", "directory"]
Section = Literal["pre-data", "data", "post-data"]
Watch = Callable[[], str | None]


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


class RestoreOptions(TypedDict, total=False):
    """Keywords of `start_pg_restore`, where they are explained."""

    jobs: int
    single_transaction: bool | None
    section: Section | None
    list_file: str | os.PathLike[str] | None
    owners: bool
    extra: Sequence[str]
    settings: Mapping[str, str] | None
    timeout_s: float | None
    pass_fds: Sequence[int]
    watch: Watch | None
    grace_s: float


def start_pg_dump(
    tools: Tools,
    url: DatabaseURL,
    path: str | os.PathLike[str],
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
            refused (FAULTS 35). For ``directory`` it must not exist or be empty.
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
        raise UsageError("Parallel dumps need format='directory'", found=f"jobs={jobs}, format={format!r}")
    _refuse_create(extra)
    target = _prepare_target(path, format)
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
    return _start(
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


def start_psql(
    tools: Tools,
    url: DatabaseURL,
    files: Sequence[str | os.PathLike[str]],
    *,
    single_transaction: bool = True,
    settings: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
    pass_fds: Sequence[int] = (),
    watch: Watch | None = None,
    grace_s: float = 5.0,
) -> RunningTool:
    """Start psql on files, one after the other in one session.

    psql never reads a pipe: the death of its writer looks to it like the end of
    the script, and it commits (FAULTS 2).

    Args:
        tools: Programs of the server's major version.
        url: The database.
        files: Scripts that were checked; ``/dev/fd/N`` with N in `pass_fds` reads an open file.
        single_transaction: All files in one transaction. No defence against a script with a COMMIT
            of its own.
        settings: Server settings of the session.
        timeout_s: Seconds until it is stopped.
        pass_fds: Descriptors it inherits.
        watch: See `start_tool`.
        grace_s: See `start_tool`.

    Returns:
        The running program; cancelled by SIGINT, the only signal on which psql cancels its
        query (FAULTS 47).

    Raises:
        UsageError: There is no file.
        ToolMissingError: psql cannot be run.
    """
    if not files:
        raise UsageError("psql was given no file to run")
    # Verbose: SQLSTATE, table and constraint names come as fields whatever the server's language.
    argv: list[str | Path] = [
        tools.psql,
        "-X",
        "-q",
        "-w",
        "-v",
        "ON_ERROR_STOP=1",
        "-v",
        "VERBOSITY=verbose",
    ]
    if single_transaction:
        argv.append("--single-transaction")
    argv += ["-o", os.devnull]
    for file in files:
        argv += ["-f", _absolute(file)]
    return _start(
        argv,
        url,
        settings=settings,
        timeout_s=timeout_s,
        pass_fds=pass_fds,
        watch=watch,
        grace_s=grace_s,
        cancel_signal=signal.SIGINT,
    )


def run_psql(
    tools: Tools,
    url: DatabaseURL,
    files: Sequence[str | os.PathLike[str]],
    *,
    single_transaction: bool = True,
    settings: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
    pass_fds: Sequence[int] = (),
    watch: Watch | None = None,
    grace_s: float = 5.0,
) -> ToolResult:
    """Run psql on files to its end; arguments as `start_psql`.

    Returns:
        The result. Return code 0 is no proof that everything was restored (FAULTS 1).
    """
    with start_psql(
        tools,
        url,
        files,
        single_transaction=single_transaction,
        settings=settings,
        timeout_s=timeout_s,
        pass_fds=pass_fds,
        watch=watch,
        grace_s=grace_s,
    ) as running:
        return running.wait()


def pg_restore_list(
    tools: Tools,
    archive: str | os.PathLike[str],
    *,
    pass_fds: Sequence[int] = (),
    timeout_s: float | None = 60.0,
) -> str:
    """Return the table of contents of an archive, as ``pg_restore --list`` writes it.

    Raises:
        SnapshotCorruptError: It is no archive.
        ToolVersionError: It was made by newer programs.
    """
    argv: list[str | Path] = [tools.pg_restore, "--list", _absolute(archive)]
    result = run_tool(
        argv, env=base_environment(), capture_stdout=True, pass_fds=pass_fds, timeout_s=timeout_s
    )
    if not result.ok:
        raise translate_tool_failure(result, None, doing=f"reading {os.fspath(archive)}")
    return result.stdout


def pg_restore_script(
    tools: Tools,
    archive: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    section: Section | None = None,
    list_file: str | os.PathLike[str] | None = None,
    single_transaction: bool = True,
    owners: bool = True,
    extra: Sequence[str] = (),
    timeout_s: float | None = None,
    pass_fds: Sequence[int] = (),
    watch: Watch | None = None,
) -> ToolResult:
    """Write an archive as an SQL script; no connection is made.

    With `single_transaction` the script has one outer BEGIN and COMMIT and, unlike a
    plain dump, none around large objects (FAULTS 100).

    Args:
        tools: Programs of the server's major version.
        archive: A custom file or directory archive; ``/dev/fd/N`` reads an open file.
        out: The script, as ``path`` of `start_pg_dump`; ``/dev/null`` reads the whole
            archive and so proves that it can be read (FAULTS 7).
        section: Only this section.
        list_file: Only what this edited table of contents holds (``-L``).
        single_transaction: See above.
        owners: False leaves owners and privileges out.
        extra: Further arguments of pg_restore; never ``-C``.
        timeout_s: Seconds until it is stopped.
        pass_fds: Descriptors it inherits.
        watch: See `start_tool`.

    Returns:
        The result. Give it to `translate_tool_failure` when it is not ``ok``.
    """
    _refuse_create(extra)
    target = os.devnull if os.fspath(out) == os.devnull else _prepare_target(out, "plain")
    argv: list[str | Path] = [tools.pg_restore, f"--file={target}"]
    argv += _restore_arguments(section, list_file, owners=owners, single_transaction=single_transaction)
    argv += [*extra, _absolute(archive)]
    return run_tool(argv, env=base_environment(), timeout_s=timeout_s, pass_fds=pass_fds, watch=watch)


def start_pg_restore(
    tools: Tools,
    url: DatabaseURL,
    archive: str | os.PathLike[str],
    *,
    jobs: int = 1,
    single_transaction: bool | None = None,
    section: Section | None = None,
    list_file: str | os.PathLike[str] | None = None,
    owners: bool = True,
    extra: Sequence[str] = (),
    settings: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
    pass_fds: Sequence[int] = (),
    watch: Watch | None = None,
    grace_s: float = 5.0,
) -> RunningTool:
    """Start pg_restore into a database; it stops at the first error.

    Args:
        tools: Programs of the server's major version.
        url: The database.
        archive: A custom file or directory archive.
        jobs: Parallel workers; more than one excludes a single transaction.
        single_transaction: Default: True with one job, else False.
        section: Only this section.
        list_file: Only what this edited table of contents holds (``-L``).
        owners: False leaves owners and privileges out.
        extra: Further arguments of pg_restore; never ``-C``.
        settings: Server settings of the session.
        timeout_s: Seconds until it is stopped.
        pass_fds: Descriptors it inherits.
        watch: See `start_tool`.
        grace_s: See `start_tool`.

    Returns:
        The running program; cancelled by SIGTERM.

    Raises:
        UsageError: Several jobs and one transaction were asked for.
        ToolMissingError: pg_restore cannot be run.
    """
    _refuse_create(extra)
    if single_transaction is None:
        single_transaction = jobs == 1
    if jobs > 1 and single_transaction:
        raise UsageError("pg_restore cannot use several jobs in a single transaction", found=f"jobs={jobs}")
    # An empty -d connects to PGDATABASE; a name there would be parsed as a connection string.
    argv: list[str | Path] = [tools.pg_restore, "--no-password", "--exit-on-error", "--dbname="]
    argv += [f"--jobs={jobs}"] if jobs > 1 else []
    argv += _restore_arguments(section, list_file, owners=owners, single_transaction=single_transaction)
    argv += [*extra, _absolute(archive)]
    return _start(
        argv, url, settings=settings, timeout_s=timeout_s, pass_fds=pass_fds, watch=watch, grace_s=grace_s
    )


def run_pg_restore(
    tools: Tools,
    url: DatabaseURL,
    archive: str | os.PathLike[str],
    **options: Unpack[RestoreOptions],
) -> ToolResult:
    """Run pg_restore to its end; arguments as `start_pg_restore`.

    Returns:
        The result. Give it to `translate_tool_failure` when it is not ``ok``.
    """
    with start_pg_restore(tools, url, archive, **options) as running:
        return running.wait()


def _restore_arguments(
    section: Section | None,
    list_file: str | os.PathLike[str] | None,
    *,
    owners: bool,
    single_transaction: bool,
) -> list[str | Path]:
    arguments: list[str | Path] = []
    if single_transaction:
        arguments.append("--single-transaction")
    if section is not None:
        arguments.append(f"--section={section}")
    if list_file is not None:
        arguments.append(f"--use-list={_absolute(list_file)}")
    if not owners:
        arguments += ["--no-owner", "--no-privileges"]
    return arguments


def _start(
    argv: Sequence[str | Path],
    url: DatabaseURL,
    *,
    settings: Mapping[str, str] | None = None,
    timeout_s: float | None,
    pass_fds: Sequence[int],
    watch: Watch | None,
    grace_s: float,
    cancel_signal: signal.Signals = signal.SIGTERM,
) -> RunningTool:
    prepared = prepare_environment(url, settings=settings)
    try:
        return start_tool(
            argv,
            env=prepared.env,
            timeout_s=timeout_s,
            cancel_signal=cancel_signal,
            grace_s=grace_s,
            pass_fds=pass_fds,
            redact=url.redact,
            watch=watch,
            on_end=prepared.remove,
        )
    except BaseException:
        prepared.remove()
        raise


def _absolute(path: str | os.PathLike[str]) -> str:
    # Links stay as they are: /dev/fd/N must be opened by the program itself.
    return str(Path(path).absolute())


def _refuse_create(extra: Sequence[str]) -> None:
    for argument in extra:
        short = argument.startswith("-") and not argument.startswith("--")
        if argument == "--create" or (short and "C" in argument):
            raise UsageError("The option -C is not allowed: such a dump connects to another database")


def _pattern(name: str) -> str:
    """Write a name as the pattern that matches it only; also keeps its upper case (FAULTS 21)."""
    return '"' + name.replace('"', '""') + '"'


def _prepare_target(path: str | os.PathLike[str], format: str) -> str:  # noqa: A002
    target = _absolute(path)
    if format == "directory":
        if Path(target).is_symlink():
            raise _bad_target(target, "a symbolic link")
        return target
    try:
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        mode = os.lstat(target).st_mode
        if not stat.S_ISREG(mode):
            raise _bad_target(target, "a symbolic link" if stat.S_ISLNK(mode) else "no plain file") from None
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DiskFullError(f"The file {target} cannot be made", found=str(error.strerror)) from error
        raise AccessDeniedError(f"The file {target} cannot be written", found=str(error.strerror)) from error
    else:
        os.close(fd)
    return target


def _bad_target(target: str, reason: str) -> AccessDeniedError:
    return AccessDeniedError(
        "A program was about to write its output to something that is not ours",
        found=f"{target} is {reason}",
        hint="Remove it, or use another directory that only this account may write to.",
    )
