"""Forks one process for each participant of a round of `test_instant_killed`: Python starts slowly.

Run as ``python -m tests.campaigns.instant_worker``. Each line of its input is a participant in JSON; it
prints the process number, and later a line with the number and the exit code of whoever has ended.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import select
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keikaku_snapshots import SnapshotManager
from keikaku_snapshots.errors import KeikakuError
from keikaku_snapshots.postgres.url import DatabaseURL
from tests.servers import connect

if TYPE_CHECKING:
    from collections.abc import Mapping

#: What the operations import inside, so that a kill meets the operation and not an import.
_INSIDE = ("restore", "swap", "warm", "template_methods", "rewind", "checkpoint", "rewind_stale")
#: What a test does between a checkpoint and a rewind; each is committed.
CHANGES = (
    "UPDATE stock SET copies = copies + 1",
    "DELETE FROM sales WHERE id % 3 = 0",
    "INSERT INTO sales (stock_id, buyer) SELECT 1 + i % 10, 'new' FROM generate_series(1, 40) AS i",
    "TRUNCATE sales RESTART IDENTITY",
    "UPDATE settings SET value = value || 'x'",
    "SELECT nextval('sales_id_seq')",
)


def _restore(manager: SnapshotManager, given: Mapping[str, Any]) -> None:
    if given.get("clear"):
        manager.clear_templates()
    manager.restore_snapshot(
        given["name"], strategy=given["strategy"], disconnect=True, on_schema_mismatch="ignore"
    )


def _rewind(manager: SnapshotManager, given: Mapping[str, Any]) -> None:
    dice = random.Random(given["seed"])
    for _ in range(3):
        with connect(DatabaseURL.parse(given["url"])) as session:
            for change in dice.choices(CHANGES, k=3):
                session.execute(change)
        manager.rewind(wait_s=20)


def _arm(manager: SnapshotManager, given: Mapping[str, Any]) -> None:
    """A rewinder that is alone: between its two steps nobody else may write."""
    for _ in range(2):
        manager.rewind(wait_s=20)
        manager.drop_checkpoint(wait_s=20)
        manager.checkpoint(wait_s=20)
        _rewind(manager, given)


def _clear(manager: SnapshotManager, _: Mapping[str, Any]) -> None:
    manager.clear_templates()


_WORK = {"restore": _restore, "rewind": _rewind, "arm": _arm, "clear": _clear}


def _take_part(given: Mapping[str, Any]) -> int:
    """Do it, write down how it ended, and give the exit code."""
    code, text = 0, ""
    try:
        with SnapshotManager(
            given["url"],
            given["directory"],
            lock_wait_s=60,
            minimum_free_mb=0,
            spare=int(given.get("spare", 0)),
        ) as manager:
            _WORK[given["what"]](manager, given)
    except KeikakuError as error:
        code, text = error.exit_code, f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - whatever else comes out is what the campaign looks for
        code, text = 70, traceback.format_exc()
    Path(given["report"]).write_text(text, encoding="utf-8")
    return code


def main() -> None:
    """Fork for each line, and say who has ended."""
    for name in _INSIDE:
        importlib.import_module(f"keikaku_snapshots.snapshots.{name}")
    living: set[int] = set()
    # Unbuffered: what a buffer holds, select does not see.
    with open(0, "rb", buffering=0, closefd=False) as orders:
        while True:
            ready, _, _ = select.select([orders], [], [], 0.01 if living else None)
            if ready:
                line = orders.readline()
                if not line:
                    return
                given = json.loads(line)
                if "kill" not in given:
                    living.add(_fork(given))
                elif given["kill"] in living:
                    os.kill(given["kill"], signal.SIGKILL)
            for pid in list(living):
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    living.discard(pid)
                    _say(f"ended {pid} {os.waitstatus_to_exitcode(status)}")


def _fork(given: Mapping[str, Any]) -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(_take_part(given))
    _say(str(pid))
    return pid


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
