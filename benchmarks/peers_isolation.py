"""What isolation costs a test: set-up and teardown of its database, as pytest measures them.

Each way runs the same tests on the small data set, in a pytest of its own. Ours
and the raw ways get a connection for each test too, as pytest-postgresql gives one.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from keikaku_snapshots.postgres.connect import connect

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.peers_restore import Place

REWIND, CLONE = "rewind", "pytest-postgresql"
RAW_CLONE, TRUNCATE, NONE = "raw clone", "truncate", "none"
#: Tests of one run; the first, which pays for what all share, is not counted.
TESTS = 11
_TESTS = f"""import pytest
from peers_suite import change

@pytest.mark.parametrize("number", range({TESTS}))
def test_commits(db, number):
    change(db)
"""


def contestants(place: Place) -> dict[str, Callable[[], float]]:
    """Every way; each returns the median seconds around a test."""
    ways = [REWIND, CLONE, RAW_CLONE, TRUNCATE, NONE]
    if place.peers is None:
        ways.remove(CLONE)
    return {way: partial(_suite, place, way) for way in ways}


def _suite(place: Place, way: str) -> float:
    suite = place.folder / "suite"
    suite.mkdir(exist_ok=True)
    (suite / "test_peers.py").write_text(_TESTS, encoding="utf-8")
    (suite / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    times = suite / "times.json"
    _fill_again(place)
    python = place.peers / "python" if way == CLONE and place.peers is not None else Path(sys.executable)
    done = subprocess.run(
        [str(python), "-m", "pytest", "-q", "-p", "peers_suite", "-p", "no:cacheprovider", str(suite)],
        env={
            **os.environ,
            "PEERS_ISOLATION": way,
            "PEERS_URL": place.url.text,
            "PEERS_TIMES": str(times),
            "PYTHONPATH": str(Path(__file__).parent),
            "PYTEST_ADDOPTS": "",
        },
        cwd=suite,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the suite with {way} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
    measured: list[float] = json.loads(times.read_text(encoding="utf-8"))
    return statistics.median(measured[1:])


def _fill_again(place: Place) -> None:
    """Every suite begins with all rows, also after one that truncated; nobody stays connected."""
    name, template = place.url.database, f"{place.url.database}_full"
    with connect(place.url, database="postgres", autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name}")
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        connection.execute("CHECKPOINT")
