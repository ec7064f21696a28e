"""A file system that fails, is interrupted or dies at the nth operation.

The store tells `FileSystem.before` of each operation ahead of it. A crash
before operation n, for every n, is a crash between any two operations.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Literal

from keikaku_snapshots.snapshots.files import FileSystem

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Mode = Literal["error", "full", "interrupt", "kill"]

#: Exit status of a child that was killed by the harness.
KILLED = 86


class RecordingFileSystem(FileSystem):
    """Does everything, and remembers what was done in which order."""

    def __init__(self) -> None:
        self.operations: list[tuple[str, Path]] = []

    def before(self, operation: str, path: Path) -> None:
        """Remember the operation."""
        self.operations.append((operation, path))


class BreakingFileSystem(RecordingFileSystem):
    """Stops at one operation.

    Args:
        at: Index of the operation that does not happen, from 0.
        mode: ``error`` (EIO) and ``full`` (ENOSPC) once; ``interrupt`` is
            KeyboardInterrupt; ``kill`` ends the process without any cleaning up.
        for_good: With ``error`` and ``full``: all later operations fail too.
    """

    def __init__(self, at: int, mode: Mode, *, for_good: bool = False) -> None:
        super().__init__()
        self.at = at
        self.mode = mode
        self.for_good = for_good

    def before(self, operation: str, path: Path) -> None:
        """Stop when it is this operation's turn."""
        super().before(operation, path)
        index = len(self.operations) - 1
        if index != self.at and not (self.for_good and index > self.at):
            return
        if self.mode == "kill":
            os._exit(KILLED)
        if self.mode == "interrupt":
            raise KeyboardInterrupt
        code = errno.ENOSPC if self.mode == "full" else errno.EIO
        raise OSError(code, os.strerror(code), str(path))


def count_operations(work: Callable[[FileSystem], object]) -> int:
    """Run the work unbroken and return how many operations it has."""
    files = RecordingFileSystem()
    work(files)
    return len(files.operations)


def run_killed(work: Callable[[FileSystem], object], at: int) -> bool:
    """Run the work in a forked child that dies at operation ``at``.

    Returns:
        True when it died there; False when it ended before.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work(BreakingFileSystem(at, "kill"))
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code not in {0, KILLED}:
        raise AssertionError(f"the work failed by itself in the child: {code}")
    return code == KILLED
