"""Many processes make, read, tag, delete and prune snapshots of one name, files and directories, at once."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

from keikaku_snapshots.snapshots.store import SnapshotStore
from tests.snapshot_files import write, write_parts

ROOT = Path(__file__).parents[2]
#: Each process works for so long, and on until it has done so much.
PROCESSES, SECONDS, WORKS = 6, 2.0, 5

WORKER = textwrap.dedent(
    """
    import contextlib, os, random, sys, time
    from keikaku_snapshots import RetentionPolicy, SnapshotManager
    from keikaku_snapshots.errors import LockBusyError, SnapshotNotFoundError
    from keikaku_snapshots.snapshots.store import SnapshotStore
    from tests.snapshot_files import write, write_parts

    store, until = SnapshotStore(sys.argv[1]), time.monotonic() + float(sys.argv[2])
    manager, dice = SnapshotManager(None, sys.argv[1]), random.Random(int(sys.argv[3]))

    def read():
        # Between finding and opening it may have been pruned; what is opened stays whole.
        with store.reading(store.find("app")) as opened:
            opened.check()
            time.sleep(0.01)
            opened.check_unchanged()

    def delete():
        for snapshot in [item for item in manager.list_snapshots("app") if not item.pinned][-1:]:
            manager.delete_snapshot("app", snapshot.version)

    works = [
        lambda: write(store, "x" * dice.randrange(1, 5000)),
        lambda: write_parts(store, {"toc.dat": str(dice.random()), "1.dat": "a" * 5000}),
        read,
        lambda: manager.tag_snapshot("app", add=[str(dice.random())]),
        delete,
        *[lambda: manager.prune(RetentionPolicy(keep_last=2))] * 2,
    ]
    done = 0
    # On a busy machine the time is over before much was done, and the name is locked most of it.
    while time.monotonic() < until or done < int(sys.argv[4]):
        with contextlib.suppress(LockBusyError, SnapshotNotFoundError):
            dice.choice(works)()
            done += 1
    print(done)
    """
)


def test_a_storm_of_prunes_loses_nothing_that_is_kept(tmp_path: Path) -> None:
    """FAULTS 54, 66: whatever meets whatever, all that is listed is whole, and the log has every line."""
    store = SnapshotStore(tmp_path / "snapshots", grace_s=0)
    pinned = write(store, "keep me", "20200101_000000", pinned=True)
    parts = {"toc.dat": "toc", "1.dat": "a" * 5000}
    shared = write_parts(store, parts, "20200101_000001", pinned=True)
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, store.directory, str(SECONDS), str(number), str(WORKS)],
            env={"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(PROCESSES)
    ]
    ended = [worker.communicate(timeout=120) for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * PROCESSES, ended
    assert all(int(out) >= WORKS for out, _ in ended)

    for snapshot in store.list():
        assert snapshot.is_valid, snapshot.problem
        with store.reading(snapshot) as opened:
            opened.check()
    assert store.find("app", pinned.version).path.read_text() == "keep me"
    assert {part.name: part.read_text() for part in shared.path.iterdir()} == parts
    store.sweep()
    assert not list(store.directory.glob(".*.tmp"))
    lines = (store.directory / "audit.log").read_text(encoding="utf-8").splitlines()
    outcomes = Counter(json.loads(line)["outcome"] for line in lines)
    assert outcomes["begun"] == outcomes["done"] + outcomes["failed"]
    assert outcomes["done"] > 0
