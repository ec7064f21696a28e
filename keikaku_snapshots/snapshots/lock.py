"""Locks between processes: ``flock`` on files that are kept for ever.

A lock lives as long as a descriptor of it is open, so the kernel frees the
lock of a dead process, and a child that was given `FileLock.fileno` keeps it
until it ends. The file is never removed: removing it would let two processes
lock two files of one name. What is written inside is for messages only.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import random
import socket
import stat
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from keikaku_snapshots.errors import AccessDeniedError, LockBusyError, RefusedError

if TYPE_CHECKING:
    from types import TracebackType

#: First and longest pause between two tries, in seconds; each is shortened at
#: random, so that waiters do not march in step.
_PAUSE_S: Final = (0.005, 0.1)
_NOTE_LIMIT_BYTES: Final = 4096

# Locks of this process with their thread and descriptor: to fail at once where
# waiting would be for ever, and to let go of them in a forked child.
_held: dict[FileLock, tuple[int, int]] = {}
_held_guard = threading.Lock()


class FileLock:
    """A lock on one file, shared or exclusive; a context manager, not re-entrant.

    A second lock on the same file from the same thread fails at once, because
    waiting for oneself never ends; other threads and processes wait.

    Args:
        path: The lock file; made with mode 0600 when missing.
        subject: What is locked, for messages, such as "snapshot 'medium'".
        operation: What this process does with it, for the messages of others.
        shared: Let others hold it shared as well.
        wait_s: Seconds to wait for it; 0 fails at once.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        subject: str = "",
        operation: str = "",
        shared: bool = False,
        wait_s: float = 0.0,
    ) -> None:
        self.path = Path(os.path.abspath(path))  # noqa: PTH100 - a link there must be seen, not followed
        self.subject = subject or str(self.path)
        self.operation = operation
        self.shared = shared
        self.wait_s = wait_s

    @property
    def is_held(self) -> bool:
        """True while this object holds the lock in this process."""
        return self in _held

    def fileno(self) -> int:
        """Return the descriptor, to pass to a child that must keep the lock when this process dies.

        Raises:
            ValueError: The lock is not held.
        """
        if self not in _held:
            raise ValueError("the lock is not held")
        return _held[self][1]

    def acquire(self) -> Self:
        """Take the lock.

        Raises:
            LockBusyError: Another process (or this thread) holds it and did
                not let go within ``wait_s``.
            AccessDeniedError: The lock file cannot be opened.
            RefusedError: The lock file is a link or no regular file.
        """
        self._refuse_own()
        descriptor = open_lock_file(self.path)
        try:
            self._wait(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        with _held_guard:
            _held[self] = (threading.get_ident(), descriptor)
        return self

    def release(self) -> None:
        """Let go of the lock; harmless when it is not held."""
        with _held_guard:
            _, descriptor = _held.pop(self, (0, None))
        if descriptor is not None:
            # Closing, not LOCK_UN: a child that was given the descriptor keeps the lock.
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _refuse_own(self) -> None:
        with _held_guard:
            for other, (thread, _) in _held.items():
                conflict = not (other.shared and self.shared) and thread == threading.get_ident()
                if other is self or (conflict and other.path == self.path):
                    raise LockBusyError(
                        f"{self.subject} is locked by this process itself",
                        found=f"It is held for: {other.operation or 'another operation'}.",
                        hint="Let the first operation end before the second begins.",
                    )

    def _wait(self, descriptor: int) -> None:
        if not wait_for_flock(descriptor, shared=self.shared, wait_s=self.wait_s):
            waited = f" after waiting {self.wait_s:g} s" if self.wait_s else ""
            who = "another thread of this process" if self._is_ours() else "another process"
            raise LockBusyError(f"{self.subject} is in use by {who}{waited}", found=holders(descriptor))
        if not self.shared:
            self._note(descriptor)

    def _is_ours(self) -> bool:
        with _held_guard:
            return any(other.path == self.path for other in _held)

    def _note(self, descriptor: int) -> None:
        note = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "operation": self.operation,
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        # A full disk must not make locking fail: the note is only for messages.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(note).encode(), 0)


def open_lock_file(path: Path) -> int:
    """Open, and make when missing, a lock file; the caller closes it.

    Raises:
        AccessDeniedError: This account may not.
        RefusedError: It is a link or no regular file.
    """
    # Read and write: NFS gives an exclusive lock only on a file open for writing (flock(2)).
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.EISDIR, errno.ENXIO}:
            raise _not_a_file(path) from error
        raise AccessDeniedError(
            "the lock file cannot be opened",
            found=f"{path}: {error.strerror}",
            hint="Give this account the right to write there, or use another --snapshot-dir.",
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_a_file(path)
    return descriptor


def _not_a_file(path: Path) -> RefusedError:
    return RefusedError(
        "the lock file is not a regular file", found=str(path), hint=f"Look at {path} and remove it."
    )


def wait_for_flock(descriptor: int, *, shared: bool, wait_s: float) -> bool:
    """Take ``flock`` on an open file, trying again until ``wait_s`` seconds have passed.

    Returns:
        False when somebody else holds it to the end.

    Raises:
        RefusedError: The file system has no locks.
    """
    deadline = time.monotonic() + wait_s
    pause_s, longest_s = _PAUSE_S
    flags = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
    while True:
        try:
            fcntl.flock(descriptor, flags)
        except BlockingIOError:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return False
            time.sleep(min(left_s, pause_s * random.uniform(0.5, 1.0)))
            pause_s = min(longest_s, pause_s * 2)
        except OSError as error:
            raise RefusedError(
                "the file system of the snapshot directory has no locks",
                found=str(error.strerror),
                hint="Use a --snapshot-dir on a local file system.",
            ) from error
        else:
            return True


def is_held(descriptor: int) -> bool:
    """Tell whether anybody holds the lock on an open file, without touching it (Linux; elsewhere False)."""
    status = os.fstat(descriptor)
    return bool(_pids_of_lock(status.st_dev, status.st_ino))


def holders(descriptor: int) -> str:
    """Return in words who holds the lock on an open file, as far as can be known."""
    status = os.fstat(descriptor)
    pids = _pids_of_lock(status.st_dev, status.st_ino)
    note = _read_note(descriptor)
    if note and (note["host"] != socket.gethostname() or not pids or int(note["pid"]) in pids):
        doing = f", doing: {note['operation']}" if note["operation"] else ""
        return f"held by process {note['pid']} on {note['host']} since {note['since']}{doing}"
    if pids:
        words = "process" if len(pids) == 1 else "processes"
        return f"held by {words} {', '.join(map(str, sorted(pids)))} on {socket.gethostname()}"
    return "held by a process that cannot be named (another host or container)"


def _read_note(descriptor: int) -> dict[str, str] | None:
    try:
        note = json.loads(os.pread(descriptor, _NOTE_LIMIT_BYTES, 0))
        return (
            {key: str(note[key]) for key in ("pid", "host", "operation", "since")}
            if int(note["pid"])
            else None
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _pids_of_lock(device: int, inode: int) -> set[int]:
    """Return the processes that hold a flock on a file, from Linux's ``/proc/locks``; empty elsewhere."""
    wanted = f"{os.major(device):02x}:{os.minor(device):02x}:{inode}"
    try:
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return set()
    # "12: FLOCK  ADVISORY  WRITE 4711 fd:01:131 0 EOF"; a waiter has "->" in second place.
    rows = [line.split() for line in lines]
    return {
        int(row[4])
        for row in rows
        if len(row) > 5 and row[1] == "FLOCK" and row[5] == wanted and int(row[4]) > 0
    }


def _let_go_in_child() -> None:
    """Close the locks that a forked child inherited: they are the parent's, and must not outlive it there."""
    global _held_guard  # noqa: PLW0603 - another thread may have held it while forking
    _held_guard = threading.Lock()
    for _, descriptor in _held.values():
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)
