"""D1: what isolation by the pytest plugin costs a suite of 200 tests that commit five times each.

The same suite on the medium dataset with ``-n 2``, once rewound after each
test and once without isolation. Every test has to find rows to change, or the
suite without isolation would have less to do: what its tests delete stays
deleted, so it is taken from tables with many rows. Added up are call and teardown of each test;
the last test of each worker is left out, because the end of the run is in its
teardown.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.measure import Bar, Result, compare

if TYPE_CHECKING:
    from pathlib import Path

    from keikaku_snapshots.postgres.url import DatabaseURL

_TESTS = 200
_LIMIT = 1.5
_SUITE = f"""
import psycopg
import pytest

CHANGES = (
    "UPDATE offices SET name = name || '!' WHERE id IN (SELECT id FROM offices LIMIT 5)",
    "UPDATE staffs SET is_test_data = NOT is_test_data WHERE id IN (SELECT id FROM staffs LIMIT 20)",
    "DELETE FROM support_plan_cycles WHERE id IN (SELECT id FROM support_plan_cycles LIMIT 20)",
    "UPDATE welfare_recipients SET is_test_data = false"
    " WHERE id IN (SELECT id FROM welfare_recipients LIMIT 20)",
    "DELETE FROM office_welfare_recipients WHERE id IN (SELECT id FROM office_welfare_recipients LIMIT 20)",
)

@pytest.mark.parametrize("number", range({_TESTS}))
def test_commits(keikaku_db, number):
    with psycopg.connect(keikaku_db, autocommit=True) as connection:
        for change in CHANGES:
            assert connection.execute(change).rowcount >= 5, change
"""
_CONFTEST = """
import json

DURATIONS = {}

def pytest_runtest_logreport(report):
    if report.when != "setup" and hasattr(report, "node"):
        worker = DURATIONS.setdefault(report.node.gateway.id, {})
        worker[report.nodeid] = worker.get(report.nodeid, 0) + report.duration

def pytest_sessionfinish(session):
    if DURATIONS:
        counted = [seconds for tests in DURATIONS.values() for seconds in list(tests.values())[:-1]]
        session.config.rootpath.joinpath("durations.json").write_text(json.dumps(counted))
"""


def two_hundred_tests(url: DatabaseURL, folder: Path, runs: int) -> Result:
    """Run the suite in both ways in turn.

    Args:
        url: A database of the server.
        folder: For the suite and its snapshot.
        runs: Measured runs of each way.

    Returns:
        Rewound against not isolated.
    """
    suite = folder / "pytest_suite"
    suite.mkdir()
    (suite / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    (suite / "conftest.py").write_text(_CONFTEST, encoding="utf-8")
    (suite / "test_suite.py").write_text(_SUITE, encoding="utf-8")
    return compare(
        f"call and teardown of {_TESTS} tests with 5 commits each, medium, -n 2",
        {
            "rewound after each": partial(_run, suite, url, "rewind"),
            "without isolation": partial(_run, suite, url, "none"),
        },
        Bar("D1", _LIMIT, "ratio"),
        runs=runs,
    )


def _run(suite: Path, url: DatabaseURL, isolation: str) -> float:
    """Seconds of call and teardown, all tests together."""
    subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider"),
            *("--keikaku-scale=medium", f"--keikaku-isolation={isolation}"),
        ],
        cwd=suite,
        env={**os.environ, "KEIKAKU_DB_URL": url.text, "PYTHONPATH": ""},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    counted: list[float] = json.loads((suite / "durations.json").read_text(encoding="utf-8"))
    return sum(counted) * _TESTS / len(counted)
