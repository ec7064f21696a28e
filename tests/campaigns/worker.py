"""One operation of the manager in a process of its own, which a round may break or kill.

Run as ``python -m tests.campaigns.worker SPECIFICATION`` (JSON). Prints ``begin`` when everything is
imported, then one line of JSON, and ends with the exit code of the error.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import resource
import signal
import sys
from typing import TYPE_CHECKING, Any

from keikaku_snapshots import RetentionPolicy, SnapshotManager
from keikaku_snapshots.errors import KeikakuError
from keikaku_snapshots.postgres.connect import RetryPolicy
from keikaku_snapshots.snapshots.files import FileSystem
from keikaku_snapshots.snapshots.store import SnapshotStore

if TYPE_CHECKING:
    from pathlib import Path

#: What the operations import inside, so that a kill meets the operation and not an import.
_INSIDE = ("create", "restore", "rows", "rows_restore", "prune", "labels", "verify")
_CODES = {"full": errno.ENOSPC, "quota": errno.EDQUOT, "error": errno.EIO}


class Breaking:
    """Counts the file operations of this process and breaks one, or all from it on.

    Args:
        at: Number of the operation, from 0; -1 breaks none.
        mode: ``kill``, ``full``, ``quota`` or ``error``.
        for_good: All later ones fail too.
    """

    def __init__(self, at: int = -1, mode: str = "", *, for_good: bool = False) -> None:
        self.at, self.mode, self.for_good = at, mode, for_good
        self.count = 0

    def before(self, _operation: str, path: Path) -> None:
        """Be told of an operation ahead of it."""
        number, self.count = self.count, self.count + 1
        if self.at < 0 or not (number == self.at or (self.for_good and number > self.at)):
            return
        if self.mode == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        code = _CODES[self.mode]
        raise OSError(code, os.strerror(code), str(path))


def _work(manager: SnapshotManager, method: str, arguments: dict[str, Any]) -> object:
    if method == "sweep":
        return SnapshotStore(manager.directory, grace_s=0).sweep()
    if method == "prune":
        return manager.prune(RetentionPolicy(**arguments.pop("policy")), **arguments)
    return getattr(manager, method)(**arguments)


def main(specification: dict[str, Any]) -> int:
    """Do it; give the exit code."""
    for name in _INSIDE:
        importlib.import_module(f"keikaku_snapshots.snapshots.{name}")
    breaking = Breaking(**specification.get("breaking", {}))
    # On the class: whatever makes a `FileSystem` of its own is met as well.
    FileSystem.before = lambda _, *arguments: breaking.before(*arguments)  # type: ignore[method-assign]
    retry = RetryPolicy(attempts=2, wait_min_s=0.01, wait_max_s=0.05)
    options = {"minimum_free_mb": 0, "retry": retry, **specification.get("options", {})}
    manager = SnapshotManager(specification["url"], specification["directory"], **options)
    if limit := specification.get("limit_bytes"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.stdout.write("begin\n")
    sys.stdout.flush()
    report: dict[str, Any] = {"error": None, "code": 0, "text": ""}
    try:
        with manager:
            _work(manager, specification["method"], specification["arguments"])
    except KeikakuError as error:
        report = {"error": type(error).__name__, "code": error.exit_code, "text": str(error)}
    sys.stdout.write(json.dumps({**report, "operations": breaking.count}) + "\n")
    return int(report["code"])


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
