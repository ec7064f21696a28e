"""Run psql and pg_restore: their arguments."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, TypedDict, Unpack

from keikaku_snapshots._process import RunningTool, ToolResult, run_tool
from keikaku_snapshots.errors import UsageError
from keikaku_snapshots.postgres.tool_environment import base_environment
from keikaku_snapshots.postgres.tool_start import (
    Section,
    Watch,
    absolute,
    prepare_target,
    refuse_create,
    start_connected,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from keikaku_snapshots.postgres.tool_search import Tools
    from keikaku_snapshots.postgres.url import DatabaseURL


class PsqlOptions(TypedDict, total=False):
    """Keywords of `start_psql`, where they are explained."""

    single_transaction: bool
    settings: Mapping[str, str] | None
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
    on_stderr: Callable[[bytes], None] | None


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
        argv += ["-f", absolute(file)]
    return start_connected(
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
    **options: Unpack[PsqlOptions],
) -> ToolResult:
    """Run psql on files to its end; arguments as `start_psql`.

    Returns:
        The result. Return code 0 is no proof that everything was restored (FAULTS 1).
    """
    with start_psql(tools, url, files, **options) as running:
        return running.wait()


def pg_restore_script(
    tools: Tools,
    archive: str | os.PathLike[str],
    out: str | os.PathLike[str] | int,
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
            archive and so proves that it can be read (FAULTS 7). Or the descriptor of an empty file,
            which need not have a name.
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
    refuse_create(extra)
    if isinstance(out, int):
        target, pass_fds = f"/dev/fd/{out}", (*pass_fds, out)
    else:
        target = os.devnull if os.fspath(out) == os.devnull else prepare_target(out, "plain")
    argv: list[str | Path] = [tools.pg_restore, f"--file={target}"]
    argv += _restore_arguments(section, list_file, owners=owners, single_transaction=single_transaction)
    argv += [*extra, absolute(archive)]
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
    on_stderr: Callable[[bytes], None] | None = None,
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
        on_stderr: See `start_tool`.

    Returns:
        The running program; cancelled by SIGTERM.

    Raises:
        UsageError: Several jobs and one transaction were asked for.
        ToolMissingError: pg_restore cannot be run.
    """
    refuse_create(extra)
    if single_transaction is None:
        single_transaction = jobs == 1
    if jobs > 1 and single_transaction:
        raise UsageError("pg_restore cannot use several jobs in a single transaction", found=f"jobs={jobs}")
    # An empty -d connects to PGDATABASE; a name there would be parsed as a connection string.
    argv: list[str | Path] = [tools.pg_restore, "--no-password", "--exit-on-error", "--dbname="]
    argv += [f"--jobs={jobs}"] if jobs > 1 else []
    argv += _restore_arguments(section, list_file, owners=owners, single_transaction=single_transaction)
    argv += [*extra, absolute(archive)]
    return start_connected(
        argv,
        url,
        settings=settings,
        timeout_s=timeout_s,
        pass_fds=pass_fds,
        watch=watch,
        grace_s=grace_s,
        on_stderr=on_stderr,
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
        arguments.append(f"--use-list={absolute(list_file)}")
    if not owners:
        arguments += ["--no-owner", "--no-privileges"]
    return arguments
