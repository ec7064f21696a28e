"""A process that runs or resumes a patch and meets a signal at a named point.

::

    python -m tests.patch_worker '{"url": "…", "patch": "add_one", "at": ["before_commit", 2, "SIGSTOP"]}'

Prints ``at POINT`` before the signal, and at the end a line of JSON.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from keikaku_snapshots.errors import KeikakuError
from keikaku_snapshots.patches.executor import DataPatchExecutor
from keikaku_snapshots.patches.points import visit
from keikaku_snapshots.patches.registry import DataPatchRegistry
from keikaku_snapshots.patches.settings import EngineSettings, PatchSettings
from tests import patch_samples

ROOT = Path(__file__).parents[1]


def start(url: str, patch: str, **more: Any) -> subprocess.Popen[str]:
    """Start such a process.

    Args:
        url: The database, with its password.
        patch: Name of one of `patch_samples`.
        more: ``settings``, ``engine``, ``at``, ``resume``.
    """
    task = json.dumps({"url": url, "patch": patch, **more})
    return subprocess.Popen(
        [sys.executable, "-m", "tests.patch_worker", task],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _meet(point: str, times: int, name: str) -> None:
    left = times

    def visitor(reached: str) -> None:
        nonlocal left
        if reached == point:
            left -= 1
            if left == 0:
                sys.stdout.write(f"at {point}\n")
                sys.stdout.flush()
                os.kill(os.getpid(), signal.Signals[name])

    visit(visitor)


def main(task: dict[str, Any]) -> int:
    """Do the task; the exit code is that of the command line."""
    patches = [
        patch
        for patch in vars(patch_samples).values()
        if isinstance(patch, type) and patch.__module__ == patch_samples.__name__
    ]
    executor = DataPatchExecutor(
        task["url"],
        registry=DataPatchRegistry(patches, shipped=False, entry_points=False),
        settings={task["patch"]: PatchSettings(**{"require_dry_run": False, **task.get("settings", {})})},
        engine=EngineSettings(**{"heartbeat_s": 0.1, **task.get("engine", {})}),
    )
    signal.signal(signal.SIGTERM, lambda *_: executor.request_stop())
    if "at" in task:
        _meet(*task["at"])
    try:
        if "resume" in task:
            done = executor.resume(task["resume"])
        else:
            done = executor.execute(task["patch"], dry_run=False)
    except KeikakuError as error:
        sys.stdout.write(json.dumps({"error": type(error).__name__, "text": str(error)}) + "\n")
        return error.exit_code
    sys.stdout.write(json.dumps({"status": done.status, "sub_state": done.sub_state}) + "\n")
    return 143 if done.sub_state == "paused" else 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
