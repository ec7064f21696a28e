"""A program while it runs, and how it ended: its output, its limits, its end.

Started in `_process`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

from keikaku_snapshots.errors import OperationTimeoutError, ToolError, UsageError

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from types import TracebackType

log = logging.getLogger("keikaku_snapshots.process")

#: Bytes kept of a program's first messages: the first error is usually the cause.
STDERR_HEAD_BYTES = 16 * 1024
#: Bytes kept of a program's last messages.
STDERR_TAIL_BYTES = 48 * 1024
#: Largest captured output; `pg_restore --list` of 100,000 objects is about 10 MB.
STDOUT_LIMIT_BYTES = 256 * 1024 * 1024
#: Seconds to wait for a pipe's end after the program has ended. Only a process
#: that left the program's session can hold the pipe longer, and it is not ours.
DRAIN_S = 2.0
#: Dropped at a cut inside one endless line, so that half a secret cannot stay.
_CUT_MARGIN_BYTES = 4096


@dataclass(frozen=True, slots=True)
class ToolResult:
    """How a program ended. Never raised for a return code: the caller decides."""

    #: Absolute path of the program.
    argv0: str
    #: Exit code; negative is the signal that ended it.
    returncode: int
    #: Error output, and standard output when they were merged; redacted, at most head and tail
    #: of it. Server messages in it may quote row values, so it is not part of the ``repr``.
    stderr: str = field(repr=False)
    #: Standard output when it was captured, else empty; not redacted.
    stdout: str = field(repr=False)
    #: Seconds from start to end.
    seconds: float
    #: Why `watch` or the caller stopped the program; empty when nobody did.
    stopped: str = ""

    @property
    def program(self) -> str:
        """Name of the program, without its directory."""
        return Path(self.argv0).name

    @property
    def ok(self) -> bool:
        """True when it ended by itself with code 0."""
        return self.returncode == 0 and not self.stopped


class _Bounded:
    """The first and the last bytes of a stream whose length nobody knows."""

    def __init__(self, head_bytes: int, tail_bytes: int) -> None:
        self._head = bytearray()
        self._tail = bytearray()
        self._head_bytes = head_bytes
        self._tail_bytes = tail_bytes
        self.total_bytes = 0

    def write(self, data: bytes) -> None:
        self.total_bytes += len(data)
        room = self._head_bytes - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        if data:
            self._tail += data
            if len(self._tail) > 2 * self._tail_bytes:
                del self._tail[: -self._tail_bytes]

    def text(self) -> str:
        head, tail = bytes(self._head), bytes(self._tail[-self._tail_bytes :])
        left_out = self.total_bytes - len(head) - len(tail)
        if left_out > 0:
            # Whole lines only: a password cut in two would pass the redaction.
            head = head[: head.rfind(b"\n") + 1] or head[:-_CUT_MARGIN_BYTES]
            tail = tail[tail.find(b"\n") + 1 :] if b"\n" in tail else tail[_CUT_MARGIN_BYTES:]
            middle = f"\n... {left_out} bytes left out ...\n".encode()
            return (head.rstrip(b"\n") + middle + tail).decode("utf-8", errors="replace")
        return (head + tail).decode("utf-8", errors="replace")


def _exit_code_lost(program: str, stderr: str) -> ToolError:
    """Make the error that is raised when a program's exit code went to somebody else."""
    return ToolError(
        f"nobody can say whether {program} succeeded: its exit code does not reach this process",
        found="Another part of this process ignores SIGCHLD or waits for every child (os.wait).",
        hint="Undo that while programs run; wait for your own children by their process ids.",
        stderr=stderr,
    )


class RunningTool:
    """A program that runs; wait for it, or cancel it.

    Use it as a context manager: leaving the block cancels a program that still
    runs. Time limit and `watch` work whether or not anybody waits.
    """

    def __init__(
        self,
        popen: subprocess.Popen[bytes],
        *,
        timeout_s: float | None,
        cancel_signal: signal.Signals,
        grace_s: float,
        redact: Callable[[str], str],
        watch: Callable[[], str | None] | None,
        watch_interval_s: float,
        on_end: Callable[[], None] | None = None,
        on_stderr: Callable[[bytes], None] | None = None,
    ) -> None:
        self._on_end = on_end
        self._on_stderr = on_stderr
        self._popen = popen
        self._owner_pid = os.getpid()
        self._returncode: int | None = None
        self._argv0 = str(popen.args[0]) if isinstance(popen.args, list) else str(popen.args)
        self._timeout_s = timeout_s
        self._cancel_signal = cancel_signal
        self._grace_s = grace_s
        self._redact = redact
        self._watch = watch
        self._watch_interval_s = watch_interval_s
        self._started = time.monotonic()
        self._seconds = 0.0
        self._stopped = ""
        self._timed_out = False
        self._watch_error: BaseException | None = None
        self._ended = threading.Event()
        self._signal_lock = threading.Lock()
        self._stderr = _Bounded(STDERR_HEAD_BYTES, STDERR_TAIL_BYTES)
        self._stdout = bytearray()
        self._stdout_overflow = False
        merged = popen.stderr is None
        self._drains = [self._drain(popen.stdout if merged else popen.stderr, self._take_stderr)]
        if popen.stdout is not None and not merged:
            self._drains.append(self._drain(popen.stdout, self._take_stdout))
        _thread(self._reap, f"keikaku-reap-{popen.pid}")
        if timeout_s is not None or watch is not None:
            _thread(self._supervise, f"keikaku-watch-{popen.pid}")

    @property
    def pid(self) -> int:
        """Process id; also the id of the program's process group."""
        return self._popen.pid

    def __repr__(self) -> str:
        state = f"returncode={self._returncode}" if self._ended.is_set() else "running"
        return f"RunningTool({self._argv0!r}, pid={self.pid}, {state})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._ended.is_set():
            self.cancel("its caller gave up")

    def has_ended(self, within_s: float) -> bool:
        """Wait for the end for a limited time.

        Args:
            within_s: Most seconds to wait.

        Returns:
            True when the program has ended; `wait` then answers at once.
        """
        return self._ended.wait(within_s)

    def wait(self) -> ToolResult:
        """Wait for the end.

        Returns:
            The result, whatever the return code.

        Raises:
            OperationTimeoutError: ``timeout_s`` was over; the program was stopped.
            ToolError: Something else in this process took the exit code away.
            BaseException: what `watch` raised, or KeyboardInterrupt; the program
                was stopped first.
        """
        if os.getpid() != self._owner_pid:
            raise UsageError(
                "a program can be waited for only in the process that started it",
                found=f"Process {os.getpid()} was forked from process {self._owner_pid}.",
                hint="Start the program in the process that waits for it.",
            )
        try:
            self._ended.wait()
        except BaseException:
            self.cancel("interrupted")
            raise
        for drain in self._drains:
            drain.join(DRAIN_S)
        stderr = self._redact(self._stderr.text())
        if self._watch_error is not None:
            raise self._watch_error
        if self._returncode is None:
            raise _exit_code_lost(Path(self._argv0).name, stderr)
        result = ToolResult(
            argv0=self._argv0,
            returncode=self._returncode,
            stderr=stderr,
            stdout=bytes(self._stdout).decode("utf-8", errors="replace"),
            seconds=self._seconds,
            stopped=self._stopped,
        )
        log.debug("%s ended with %d after %.3f s", result.program, result.returncode, result.seconds)
        if self._timed_out:
            # The error output may quote row values, so it is a field and not in the text (FAULTS 33).
            raise OperationTimeoutError(
                f"{result.program} was stopped after its time limit of {self._timeout_s:g} s",
                timeout_s=self._timeout_s,
                returncode=result.returncode,
                stderr=stderr,
            )
        return result

    def cancel(self, reason: str = "cancelled", *, grace_s: float | None = None) -> None:
        """Stop the program: its own cancel signal, after a grace SIGKILL, each to the whole group.

        Returns when it has ended. Does nothing when it ended already, or in a forked
        child, which leaves a block that its parent is still in.

        Args:
            reason: Why, in words; `ToolResult.stopped`.
            grace_s: Seconds between the two signals instead of the usual.
        """
        if self._ended.is_set() or os.getpid() != self._owner_pid:
            return
        self._stopped = self._stopped or reason
        grace_s = self._grace_s if grace_s is None else grace_s
        try:
            self._signal_group(self._cancel_signal)
            self._ended.wait(grace_s)
        finally:
            # Also on a second Ctrl-C while waiting here.
            if not self._ended.is_set():
                log.debug("%s ignored its cancel signal for %g s; killed", self._argv0, grace_s)
                self._signal_group(signal.SIGKILL)
                self._ended.wait()

    def _signal_group(self, number: signal.Signals) -> None:
        with self._signal_lock, contextlib.suppress(ProcessLookupError, PermissionError):
            # The leader is reaped under this lock, so the id cannot be somebody else's by now.
            if not self._ended.is_set():
                os.killpg(self._popen.pid, number)

    def _reap(self) -> None:
        if hasattr(os, "waitid"):
            # WNOWAIT leaves the zombie, which keeps the group's id ours while we kill the rest.
            # Not by Popen.wait: it answers 0 when SIGCHLD is ignored or somebody waits for every child.
            with contextlib.suppress(ChildProcessError):
                ended = os.waitid(os.P_PID, self._popen.pid, os.WEXITED | os.WNOWAIT)
                if ended is not None:
                    self._returncode = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        else:
            self._returncode = self._popen.wait()
        self._seconds = time.monotonic() - self._started
        with self._signal_lock:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._popen.pid, signal.SIGKILL)
            self._popen.wait()
            try:
                if self._on_end is not None:
                    self._on_end()
            except OSError as error:
                log.warning("cleaning up after %s failed: %s", self._argv0, error.strerror)
            finally:
                self._ended.set()

    def _supervise(self) -> None:
        deadline = None if self._timeout_s is None else self._started + self._timeout_s
        while not self._ended.is_set():
            left = self._watch_interval_s if self._watch is not None else float("inf")
            if deadline is not None:
                left = min(left, deadline - time.monotonic())
            if self._ended.wait(max(left, 0.0)):
                return
            if deadline is not None and time.monotonic() >= deadline:
                self._timed_out = True
                self.cancel("its time limit was over")
                return
            self._ask_watch()

    def _ask_watch(self) -> None:
        if self._watch is None:
            return
        try:
            reason = self._watch()
        except BaseException as error:  # noqa: BLE001 - raised again by wait()
            self._watch_error = error
            reason = "its watcher failed"
        if reason:
            self.cancel(reason)

    def _drain(self, stream: IO[bytes] | None, take: Callable[[bytes], None]) -> threading.Thread:
        def run() -> None:
            if stream is None:
                return
            with stream:
                while data := stream.read(65536):
                    take(data)

        return _thread(run, f"keikaku-drain-{self._popen.pid}")

    def _take_stderr(self, data: bytes) -> None:
        self._stderr.write(data)
        if self._on_stderr is not None:
            self._on_stderr(data)

    def _take_stdout(self, data: bytes) -> None:
        # What is over the limit is still read, else the program would hang on a full pipe.
        if len(self._stdout) + len(data) <= STDOUT_LIMIT_BYTES:
            self._stdout += data
        elif not self._stdout_overflow:
            self._stdout_overflow = True
            self._stopped = self._stopped or f"its output is larger than {STDOUT_LIMIT_BYTES} bytes"
            self._signal_group(signal.SIGKILL)


def _thread(target: Callable[[], None], name: str) -> threading.Thread:
    thread = threading.Thread(target=target, name=name, daemon=True)
    thread.start()
    return thread
