"""What all client programs have in common: their start, their paths, their output file."""

from __future__ import annotations

import errno
import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from keikaku_snapshots._process import RunningTool, start_tool
from keikaku_snapshots.errors import AccessDeniedError, DiskFullError, UsageError
from keikaku_snapshots.postgres.tool_environment import prepare_environment

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from keikaku_snapshots.postgres.url import DatabaseURL

Section: TypeAlias = Literal["pre-data", "data", "post-data"]
Watch: TypeAlias = Callable[[], str | None]


def start_connected(
    argv: Sequence[str | Path],
    url: DatabaseURL,
    *,
    settings: Mapping[str, str] | None = None,
    timeout_s: float | None,
    pass_fds: Sequence[int],
    watch: Watch | None,
    grace_s: float,
    cancel_signal: signal.Signals = signal.SIGTERM,
    on_stderr: Callable[[bytes], None] | None = None,
) -> RunningTool:
    """Start a program that connects to a database; its password is removed when it ends."""
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
            on_stderr=on_stderr,
        )
    except BaseException:
        prepared.remove()
        raise


def absolute(path: str | os.PathLike[str]) -> str:
    """Return the path from the root, links as they are: a program itself must open /dev/fd/N."""
    return str(Path(path).absolute())


def refuse_create(extra: Sequence[str]) -> None:
    """Refuse the option that makes a dump connect to another database by itself (FAULTS 12)."""
    for argument in extra:
        short = argument.startswith("-") and not argument.startswith("--")
        if argument == "--create" or (short and "C" in argument):
            raise UsageError("the option -C is not allowed: such a dump connects to another database")


def prepare_target(path: str | os.PathLike[str], format: str) -> str:  # noqa: A002
    """Make the output file, or check that the one that is there is a plain file (FAULTS 35)."""
    target = absolute(path)
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
            raise DiskFullError(f"the file {target} cannot be made", found=str(error.strerror)) from error
        raise AccessDeniedError(f"the file {target} cannot be written", found=str(error.strerror)) from error
    else:
        os.close(fd)
    return target


def prepare_pipe(descriptor: int, format: str) -> str:  # noqa: A002
    """Check a pipe of the caller's that the program is to write into; return its path for the program.

    Only plain text can be written without going back. A pipe is never found by a name, so nobody
    can put another one in its place.
    """
    if format != "plain":
        raise UsageError("only a plain dump can be written into a pipe", found=f"format={format!r}")
    if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        raise UsageError(f"descriptor {descriptor} is no pipe")
    return f"/dev/fd/{descriptor}"


def _bad_target(target: str, reason: str) -> AccessDeniedError:
    return AccessDeniedError(
        "a program was about to write its output to something that is not ours",
        found=f"{target} is {reason}",
        hint="Remove it, or use another directory that only this account may write to.",
    )
