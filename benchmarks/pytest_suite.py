"""D1: what isolation by the pytest plugin costs a suite of 200 tests that commit five times each.

One run with ``-n 2`` on the medium dataset has the suite twice, test by test
in turn: rewound after the test, and without isolation in a database of its
own. The speed of a machine changes from one second to the next, by more than
what is measured here; two tests that follow each other meet the same.

Every test has to find rows to change, or the suite without isolation would
have less to do: what its tests delete stays deleted, so it is taken from
tables with many rows. Added up are call and teardown of each test; the last
test of each worker is left out, because the end of the run is in its
teardown.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from typing import TYPE_CHECKING

from benchmarks.measure import Bar, Result

if TYPE_CHECKING:
    from pathlib import Path

    from keikaku_snapshots.postgres.url import DatabaseURL

_TESTS = 200
_LIMIT = 1.5
_NAMES = {"rewind": "rewound after each", "none": "without isolation"}
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
MARKS = {{
    isolation: pytest.mark.keikaku(snapshot=f"for_{{isolation}}", scale="medium", isolation=isolation)
    for isolation in {tuple(_NAMES)}
}}

@pytest.mark.parametrize("number", range({_TESTS}))
@pytest.mark.parametrize((), [pytest.param(marks=mark, id=name) for name, mark in MARKS.items()])
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
        counted = [test for tests in DURATIONS.values() for test in list(tests.items())[:-1]]
        session.config.rootpath.joinpath("durations.json").write_text(json.dumps(counted))
"""


def two_hundred_tests(url: DatabaseURL, folder: Path, runs: int) -> Result:
    """Run the suite, both ways in turn.

    Args:
        url: A database of the server.
        folder: For the suite and its snapshots.
        runs: Measured runs; one more comes before them, in which the snapshots are made.

    Returns:
        Rewound against not isolated.
    """
    suite = folder / "pytest_suite"
    suite.mkdir()
    (suite / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    (suite / "conftest.py").write_text(_CONFTEST, encoding="utf-8")
    (suite / "test_suite.py").write_text(_SUITE, encoding="utf-8")
    _run(suite, url)
    taken = [_run(suite, url) for _ in range(runs)]
    samples = {name: [run[isolation] for run in taken] for isolation, name in _NAMES.items()}
    rewound, plain = samples.values()
    return Result(
        f"call and teardown of {_TESTS} tests with 5 commits each, medium, -n 2",
        samples,
        statistics.median(one / other for one, other in zip(rewound, plain, strict=True)),
        Bar("D1", _LIMIT, "ratio"),
    )


def _run(suite: Path, url: DatabaseURL) -> dict[str, float]:
    """Seconds of call and teardown of all tests together, by isolation."""
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider"],
        cwd=suite,
        env={**os.environ, "KEIKAKU_DB_URL": url.text, "PYTHONPATH": ""},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    durations: list[tuple[str, float]] = json.loads((suite / "durations.json").read_text(encoding="utf-8"))
    return {isolation: _sum_of(durations, isolation) for isolation in _NAMES}


def _sum_of(durations: list[tuple[str, float]], isolation: str) -> float:
    counted = [seconds for test, seconds in durations if isolation in test]
    return sum(counted) * _TESTS / len(counted)
