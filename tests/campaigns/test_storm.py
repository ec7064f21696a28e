"""Eight processes create, restore, prune, delete, rename and read at once, and nothing listed is hurt."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keikaku_snapshots import SnapshotManager
from keikaku_snapshots.postgres import databases
from keikaku_snapshots.snapshots.store import SnapshotStore
from tests.campaigns import bookstore
from tests.campaigns.storm_worker import NAMES

if TYPE_CHECKING:
    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.snapshots.manifest import Snapshot
    from tests.campaigns.conftest import Campaign
    from tests.conftest import MakeDatabase
    from tests.servers import Server

ROOT = Path(__file__).parents[2]
PROCESSES = 8
#: Seconds that the last operation of a process may take after its time is up.
_PATIENCE_S = 120
#: Temporary files of ours, as docs/design.md names them.
TEMPORARY = re.compile(r"\..+\.[0-9]+\.[0-9a-f]{12}(\.[a-z]+)?\.tmp")


def _storm(urls: list[DatabaseURL], directory: Path, seed: str, seconds: float) -> dict[str, Any]:
    """Let the processes loose and add up what they report."""
    specification = {
        "urls": [url.text for url in urls],
        "directory": str(directory),
        "seed": seed,
        "seconds": seconds,
    }
    program = [sys.executable, "-m", "tests.campaigns.storm_worker"]
    workers = [
        subprocess.Popen(
            [*program, json.dumps({**specification, "number": number})],
            cwd=ROOT,
            env={"PYTHONPATH": str(ROOT), "PATH": os.defpath, "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(PROCESSES)
    ]
    try:
        ended = [worker.communicate(timeout=seconds + _PATIENCE_S) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0] * PROCESSES, [words for _, words in ended]
    done: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    violations: list[str] = []
    for text, _ in ended:
        report = json.loads(text)
        done.update(report["done"])
        refused.update(report["refused"])
        violations += report["violations"]
    return {"done": done, "refused": refused, "violations": violations}


def _assert_in_order(directory: Path) -> list[Snapshot]:
    """Every listed snapshot is whole, every link right, every line of the log one of JSON."""
    store = SnapshotStore(directory, grace_s=0)
    store.sweep()
    listed = store.list()
    manager = SnapshotManager(None, directory)
    for snapshot in listed:
        assert snapshot.is_valid, f"{snapshot}: {snapshot.problem}"
        manager.verify_snapshot(snapshot.name, snapshot.version)
    left = [path.name for path in directory.iterdir() if TEMPORARY.fullmatch(path.name)]
    assert left == []
    newest: dict[str, str] = {}
    for snapshot in listed:
        newest.setdefault(f"{snapshot.name}_latest.{snapshot.suffix}", snapshot.path.name)
    links = {path.name: path.readlink().name for path in directory.iterdir() if path.is_symlink()}
    assert links == newest
    entries = [
        json.loads(line) for line in (directory / "audit.log").read_text(encoding="utf-8").splitlines()
    ]
    begun = Counter(entry["id"] for entry in entries if entry["outcome"] == "begun")
    ended = Counter(entry["id"] for entry in entries if entry["outcome"] != "begun")
    assert begun == ended, "nobody was killed, so what began has ended"
    return listed


def _assert_restorable(url: DatabaseURL, directory: Path, listed: list[Snapshot]) -> None:
    """Each snapshot comes back with its own rows, and with one state of the shop."""
    manager = SnapshotManager(url, directory, minimum_free_mb=1)
    # Test rows need their tables; those of a whole database make them.
    for snapshot in sorted(listed, key=lambda item: item.format == "json"):
        if snapshot.format == "json":
            bookstore.run(url, "DROP SCHEMA public CASCADE; CREATE SCHEMA public")
            bookstore.run(url, bookstore.SCHEMA)
        manager.restore_snapshot(snapshot.name, snapshot.version)
        found = bookstore.counts(url)
        assert {name: found[name] for name in snapshot.row_counts} == snapshot.row_counts, str(snapshot)
        assert bookstore.balance(url) == bookstore.BOOKS, str(snapshot)


def _assert_databases_clean(server: Server, urls: list[DatabaseURL]) -> None:
    """No scratch or replaced database is left, and each shop is in one state."""
    with server.admin() as connection:
        deadline = time.monotonic() + 30
        while True:  # the server drops replaced databases by itself, a moment later
            for url in urls:
                databases.sweep(connection, target=url.database)
            left = [
                one for one in databases.our_databases(connection, kinds=("new", "old"))
                if one.identity.target in {url.database for url in urls}
            ]  # fmt: skip
            if not left:
                break
            assert time.monotonic() < deadline, left
            time.sleep(0.1)
    for url in urls:
        assert bookstore.balance(url) == bookstore.BOOKS


def test_a_storm_of_processes_hurts_nothing_that_is_listed(
    campaign: Campaign, server: Server, make_database: MakeDatabase, tmp_path: Path
) -> None:
    """FAULTS 54, 58, 62, 64, 66; issue 3: whoever meets whom, all that is listed is whole and comes back."""
    urls = [make_database(server) for _ in range(3)]
    for url in urls:
        bookstore.run(url, bookstore.SCHEMA)
    directory = tmp_path / "snapshots"
    report = _storm(urls, directory, campaign.seed, campaign.seconds(60, smoke=2))
    for kind in ("done", "refused"):
        campaign.outcomes.update({f"{kind} {what}": count for what, count in report[kind].items()})

    assert report["violations"] == []
    assert report["done"]["create"] > 0
    listed = _assert_in_order(directory)
    assert {snapshot.name for snapshot in listed} <= {*NAMES, "gamma"}
    _assert_databases_clean(server, urls)
    fresh = make_database(server)
    _assert_restorable(fresh, directory, listed)
