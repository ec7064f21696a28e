"""`keikaku refresh` under cron at its worst, killed at random moments, two at a time."""

from __future__ import annotations

import json
import random
import signal
import stat
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from keikaku_snapshots import SnapshotManager
from keikaku_snapshots.snapshots.store import SnapshotStore
from tests.campaigns import bookstore
from tests.campaigns.world import digest

if TYPE_CHECKING:
    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.snapshots.manifest import Snapshot
    from tests.campaigns.conftest import Campaign
    from tests.conftest import MakeDatabase
    from tests.servers import Server

ROOT = Path(__file__).parents[2]
KEEP = 2
_PROGRAM = (sys.executable, "-m", "keikaku_snapshots", "refresh")
#: Longest run of one refresh, two of which may have to wait for one another.
_PATIENCE_S = 120
_ROWS = """
INSERT INTO sales (stock_id, buyer) SELECT 1 + i % 10, md5(i::text) FROM generate_series(1, 20000) AS i
"""


@dataclass(frozen=True)
class Door:
    """One way of calling refresh, and the name that it makes."""

    #: What stands behind ``refresh``.
    words: tuple[str, ...]
    #: Name of the snapshot.
    name: str


DUMP = Door(("nightly", "--dump-only"), "nightly")
GENERATE = Door(("--scale", "small"), "small_10_offices")


def _start(directory: Path, url: DatabaseURL, door: Door, *words: str) -> subprocess.Popen[str]:
    """As cron at its worst: `env -i`, no HOME, no terminal, umask 0, another directory."""
    return subprocess.Popen(
        [*_PROGRAM, *door.words, "--keep-last", str(KEEP), *words, "--snapshot-dir", str(directory)],
        env={"PYTHONPATH": str(ROOT), "KEIKAKU_DB_URL": url.text, "KEIKAKU_MINIMUM_FREE_MB": "1"},
        cwd="/",
        umask=0,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _listed(directory: Path, name: str) -> list[Snapshot]:
    found = SnapshotManager(None, directory).list_snapshots(name)
    assert [f"{one}: {one.problem}" for one in found if not one.is_valid] == []
    return found


def _assert_private(directory: Path) -> None:
    """Nobody else may read what was made under umask 0."""
    for path in [directory, *directory.rglob("*")]:
        status = path.lstat()
        assert stat.S_ISLNK(status.st_mode) or stat.S_IMODE(status.st_mode) & 0o077 == 0, path


def _assert_no_overlap(directory: Path, name: str) -> None:
    """Of two refreshes that ended by themselves one began to dump after the other had pruned."""
    runs: dict[int, list[str]] = {}
    for line in (directory / "audit.log").read_text(encoding="utf-8").splitlines():
        entry: dict[str, Any] = json.loads(line)
        if entry["name"] == name and entry["action"] in {"create", "prune"}:
            runs.setdefault(entry["pid"], []).append(entry["time"])
    spans = sorted((min(times), max(times)) for times in runs.values())
    for (_, ended), (begun, _) in pairwise(spans):
        assert ended <= begun, f"two at once: {spans}"


def _play(directory: Path, url: DatabaseURL, door: Door, dice: random.Random, typical_s: float) -> list[int]:
    """One round: two refreshes that overlap, of which the first, the second or neither is killed."""
    before = {one.version: digest(one) for one in _listed(directory, door.name)}
    waits = dice.choice([(), ("--lock-wait", "60")])
    first = _start(directory, url, door)
    time.sleep(dice.uniform(0, typical_s * 0.8))
    second = _start(directory, url, door, *waits)
    victims = {id(first): dice.random() < 0.7, id(second): dice.random() < 0.3}
    time.sleep(dice.uniform(0, typical_s * 0.9))
    codes = []
    for process in (first, second):
        if victims[id(process)]:
            process.send_signal(dice.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
        out, err = process.communicate(timeout=_PATIENCE_S)
        assert out == ""
        assert "Traceback" not in err, err
        if process.returncode >= 0:  # who is killed may have been about to say something
            assert len(err.splitlines()) == (process.returncode > 0), (process.returncode, err)
        codes.append(process.returncode)
        allowed = {0, 11, 143, -9, -15} if victims[id(process)] else {0, 11}
        assert process.returncode in allowed, (process.returncode, err)
    assert not waits or victims[id(second)] or codes[1] == 0, "the second one was to wait"

    found = _listed(directory, door.name)
    after = {one.version: digest(one) for one in found}
    assert all(after[version] == before[version] for version in after.keys() & before.keys())
    new = sorted(after.keys() - before.keys())
    assert all(version > max(before, default="") for version in new)
    assert len(new) >= codes.count(0), "it said that it was done"
    gone = before.keys() - after.keys()
    assert not gone or len(after) >= KEEP, "an old one may go only for a new one"
    for version in new:
        SnapshotManager(None, directory).verify_snapshot(door.name, version)
    return codes


def test_refreshes_that_are_killed_never_replace_good_by_half(
    campaign: Campaign, server: Server, make_database: MakeDatabase, tmp_path: Path
) -> None:
    """FAULTS 42, 44, 57, 58; B10: whatever is killed, the good ones stay until a whole one is there."""
    urls = {DUMP: make_database(server), GENERATE: make_database(server)}
    bookstore.run(urls[DUMP], bookstore.SCHEMA + _ROWS)
    directory = tmp_path / "snapshots"
    typical_s: dict[Door, float] = {}
    for number in campaign.rounds(30, smoke=2):
        dice = random.Random(campaign.dice("refresh", number))
        door = GENERATE if number % 3 == 2 else DUMP
        if door not in typical_s:
            process, started = _start(directory, urls[door], door), time.monotonic()
            assert process.communicate(timeout=_PATIENCE_S) == ("", "")
            typical_s[door] = time.monotonic() - started
        try:
            codes = _play(directory, urls[door], door, dice, typical_s[door])
        except AssertionError as error:
            pytest.fail(f"{campaign.said(number)}: {error}")
        campaign.outcomes[f"{door.name} {codes}"] += 1
    # The next run heals: it works, and nothing of the dead is left.
    for door, url in urls.items():
        if door in typical_s:
            process = _start(directory, url, door)
            assert process.communicate(timeout=_PATIENCE_S) == ("", "")
            assert len(_listed(directory, door.name)) == KEEP
            newest = _listed(directory, door.name)[0]
            assert (directory / f"{door.name}_latest.sql").readlink().name == newest.path.name
            _assert_no_overlap(directory, door.name)
    SnapshotStore(directory, grace_s=0).sweep()
    assert not list(directory.glob(".*.tmp"))
    _assert_private(directory)
