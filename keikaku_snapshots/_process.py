"""The only place where a program is started.

A program gets a list argv with an absolute path, exactly the environment that
is given, no standard input, a session (and so a process group) of its own, and
on Linux a death signal: when this process is killed, the program goes too, and
the processes that it has forked.

All programs are forked from one long-lived daemon thread. Linux sends the
death signal when the *thread* that forked ends, so a program started from a
worker thread would be killed when that worker is done (FAULTS 45).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from keikaku_snapshots._launcher import allow_fork_with_threads, child_setup, launch, open_life
from keikaku_snapshots._running import RunningTool, ToolResult
from keikaku_snapshots.errors import DiskFullError, ToolError, ToolMissingError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Future

__all__ = ["INHERIT_UMASK", "RunningTool", "ToolResult", "run_tool", "start_tool"]

log = logging.getLogger("keikaku_snapshots.process")

#: Files that a program of ours makes are for this account only.
_PRIVATE_UMASK = 0o077
#: For a program of the user's own: the mask that this process has (umask of subprocess.Popen).
INHERIT_UMASK = -1


def _unchanged(text: str) -> str:
    return text


def _spawn(
    argv: list[str],
    env: dict[str, str],
    pass_fds: tuple[int, ...],
    *,
    capture_stdout: bool,
    merge_output: bool,
    umask: int,
) -> subprocess.Popen[bytes]:
    allow_fork_with_threads()
    life = open_life()
    try:
        return subprocess.Popen(
            argv,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if capture_stdout or merge_output else subprocess.DEVNULL,
            stderr=subprocess.STDOUT if merge_output else subprocess.PIPE,
            bufsize=0,
            close_fds=True,
            pass_fds=pass_fds if life is None else (*pass_fds, life),
            start_new_session=True,
            umask=umask,
            preexec_fn=child_setup(life),  # noqa: PLW1509 - runs in the launcher thread, see child_setup
        )
    finally:
        if life is not None:
            os.close(life)


def start_tool(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str],
    timeout_s: float | None = None,
    cancel_signal: signal.Signals = signal.SIGTERM,
    grace_s: float = 5.0,
    pass_fds: Sequence[int] = (),
    redact: Callable[[str], str] = _unchanged,
    capture_stdout: bool = False,
    watch: Callable[[], str | None] | None = None,
    watch_interval_s: float = 0.2,
    on_end: Callable[[], None] | None = None,
    on_stderr: Callable[[bytes], None] | None = None,
    merge_output: bool = False,
    umask: int = _PRIVATE_UMASK,
) -> RunningTool:
    """Start a program and return at once.

    Args:
        argv: Program and arguments; the program by absolute path. Never a secret:
            every user of the machine can read it.
        env: The whole environment of the program; nothing is inherited.
        timeout_s: Seconds until it is stopped; None: no limit.
        cancel_signal: What asks it to stop (psql cancels its query on SIGINT only,
            pg_dump on SIGTERM too).
        grace_s: Seconds between the cancel signal and SIGKILL.
        pass_fds: File descriptors that the program inherits, such as a lock's.
        redact: Takes secrets out of the error output.
        capture_stdout: Keep standard output; else it goes to /dev/null.
        watch: Called every `watch_interval_s` **from another thread** while the
            program runs; a non-empty string stops it and becomes `ToolResult.stopped`.
        watch_interval_s: Seconds between two calls of `watch`.
        on_end: Called once from another thread when the program has ended, before
            `wait` returns; not called when it could not be started.
        on_stderr: Given the error output as it comes, **from another thread**; not redacted. All of
            it was given when `wait` returns.
        merge_output: Take standard output with the error output, in the order in which it comes.
        umask: Of the files that it makes.

    Returns:
        The running program.

    Raises:
        UsageError: argv is empty, not absolute or holds a NUL; a standard stream is to be
            passed; or SIGCHLD is ignored.
        ToolMissingError: The program does not exist or may not be run.
        ToolError: The system cannot start it, or this is Windows.
    """
    if os.name != "posix":
        raise ToolError(
            "PostgreSQL programs cannot be started on Windows by this library",
            found=f"Platform: {sys.platform}",
            hint="Run it under Linux, macOS or WSL 2.",
        )
    arguments = [os.fspath(item) for item in argv]
    if not arguments or not Path(arguments[0]).is_absolute():
        raise UsageError(
            "a program must be given by its absolute path", hint="Pass a path from find_tools()."
        )
    environment, fds = dict(env), tuple(pass_fds)
    if any(fd <= 2 for fd in fds):
        # In the program these are its standard streams: it would read /dev/null in place of the file.
        raise UsageError(
            "a descriptor below 3 cannot be passed to a program",
            found="Standard input, output or error of this process was closed before the file was opened.",
            hint="Start this process with all three open: `</dev/null >/dev/null 2>&1`.",
        )
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        raise UsageError(
            "programs cannot be run while this process ignores SIGCHLD: their exit codes would be lost",
            hint="Undo it first: signal.signal(signal.SIGCHLD, signal.SIG_DFL), or in a shell: trap - CHLD.",
        )
    texts = [*arguments, *env.keys(), *env.values()]
    if any("\0" in text for text in texts):
        raise UsageError("an argument or environment value of a program holds a NUL character")
    log.debug("starting %s", arguments[0])
    future: Future[subprocess.Popen[bytes]] | None = None
    try:
        future = launch(
            lambda: _spawn(
                arguments,
                environment,
                fds,
                capture_stdout=capture_stdout,
                merge_output=merge_output,
                umask=umask,
            )
        )
        return RunningTool(
            future.result(),
            timeout_s=timeout_s,
            cancel_signal=cancel_signal,
            grace_s=grace_s,
            redact=redact,
            watch=watch,
            watch_interval_s=watch_interval_s,
            on_end=on_end,
            on_stderr=on_stderr,
        )
    except BaseException as error:
        # Ctrl-C while the launcher forks, or no thread to be had: the child must not stay behind.
        if future is not None:
            future.add_done_callback(_kill_orphan)
        if isinstance(error, OSError | subprocess.SubprocessError | RuntimeError):
            raise _start_error(arguments[0], error) from None
        raise


def _kill_orphan(future: Future[subprocess.Popen[bytes]]) -> None:
    if future.exception() is None:
        popen = future.result()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(popen.pid, signal.SIGKILL)
        popen.wait()
        for stream in (popen.stdout, popen.stderr):
            if stream is not None:
                stream.close()


def _start_error(program: str, error: OSError | subprocess.SubprocessError | RuntimeError) -> Exception:
    """Say why a program did not start; argv stays out of the text (FAULTS 32)."""
    number = error.errno if isinstance(error, OSError) else None
    # The sentence of a RuntimeError is threading's own; subprocess might quote argv.
    said = "" if isinstance(error, subprocess.SubprocessError) else str(error)
    reason = os.strerror(number) if number else said or type(error).__name__
    if number in {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EISDIR, errno.ENOEXEC, errno.EPERM}:
        return ToolMissingError(f"the program {program} cannot be run", found=f"The system says: {reason}")
    if number == errno.ENOSPC:
        return DiskFullError(f"the program {program} cannot be started", found=f"The system says: {reason}")
    return ToolError(
        f"the program {program} cannot be started",
        found=f"The system says: {reason}",
        hint="Look at the limits of processes and memory (ulimit -a, free), then run it again.",
    )


def run_tool(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str],
    timeout_s: float | None = None,
    cancel_signal: signal.Signals = signal.SIGTERM,
    grace_s: float = 5.0,
    pass_fds: Sequence[int] = (),
    redact: Callable[[str], str] = _unchanged,
    capture_stdout: bool = False,
    watch: Callable[[], str | None] | None = None,
    watch_interval_s: float = 0.2,
) -> ToolResult:
    """Run a program to its end; arguments and errors as `start_tool` and `RunningTool.wait`.

    Returns:
        The result, whatever the return code.
    """
    with start_tool(
        argv,
        env=env,
        timeout_s=timeout_s,
        cancel_signal=cancel_signal,
        grace_s=grace_s,
        pass_fds=pass_fds,
        redact=redact,
        capture_stdout=capture_stdout,
        watch=watch,
        watch_interval_s=watch_interval_s,
    ) as running:
        return running.wait()
