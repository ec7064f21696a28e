"""A performance run on a real server, also when things go wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import deque
from datetime import date
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from keikaku_snapshots import SnapshotManager
from keikaku_snapshots.datasets import Timeouts, generate
from keikaku_snapshots.errors import (
    AccessDeniedError,
    ConnectError,
    LockBusyError,
    ProtectedDatabaseError,
    UnknownScaleError,
)
from keikaku_snapshots.perf import run_performance_tests, runs
from keikaku_snapshots.perf.environment import describe_environment
from keikaku_snapshots.perf.findings import findings
from keikaku_snapshots.perf.floors import floors
from keikaku_snapshots.perf.report import STEPS, Measurement
from keikaku_snapshots.snapshots.lock import FileLock

if TYPE_CHECKING:
    from pathlib import Path

    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.progress import Progress
    from tests.servers import Server

DAY = date(2026, 4, 1)


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PERFORMANCE_TEST_DATABASE_URL", "TEST_DATABASE_URL", "PERF_TEST_SCALE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def _nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps take a second; what is around them is tested without."""
    monkeypatch.setattr(runs._ScaleRun, "measure", lambda self: [_measurement(self.scale.name)])


def _measurement(scale: str) -> Measurement:
    return Measurement(step="generate", scale=scale, units=10, rows=4_211, seconds=(0.1,))


def count(url: DatabaseURL, table: str, where: str = "true") -> int:
    """Rows of a table."""
    with psycopg.connect(url.text) as connection:
        row = connection.execute(f"SELECT count(*) FROM {table} WHERE {where}".encode()).fetchone()
        assert row is not None
        return int(row[0])


def test_every_step_is_measured_and_rows_of_ones_own_stay(database: DatabaseURL, tmp_path: Path) -> None:
    """Generate, create, restore and workload, as often as asked for; foreign tables and rows survive."""
    with psycopg.connect(database.text) as connection:
        connection.execute("CREATE TABLE notes AS SELECT 'mine' AS text")
    told: list[Progress] = []

    report = run_performance_tests(
        database, scale="small", runs=2, reference_date=DAY, directory=tmp_path / "out", progress=told.append
    )

    assert [(item.step, item.scale, len(item.seconds)) for item in report.measurements] == [
        (step, "small", 2) for step in STEPS
    ]
    assert {(item.units, item.rows) for item in report.measurements} == {(10, 4_211)}
    assert [line.status for line in floors(report)] == [
        "not measured", "not measured", "holds", "not measured", "holds",
    ]  # fmt: skip
    workload = report.find("workload", "small")
    assert workload is not None
    assert (workload.queries, workload.note) == ((3, 3), "100 mails")
    assert all(item.memory_peak_mb for item in report.measurements)
    assert [(one.step, one.done, one.finished) for one in told if one.finished] == [
        (f"{step} small", 3, True) for step in STEPS
    ]
    cold, warm = report.find("restore", "small"), report.find("restore_warm", "small")
    assert cold is not None
    assert warm is not None
    assert (cold.note.partition(":")[0], warm.note.partition(":")[0]) == ("swap", "template")
    assert count(database, "notes") == 1
    assert count(database, "offices", "is_test_data") == 10
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".keikaku-perf.lock"]
    with SnapshotManager(database) as manager:
        assert database.database not in {template.target for template in manager.list_templates()}


def test_the_workload_uses_the_applications_driver(database: DatabaseURL) -> None:
    """An application on asyncpg is measured on asyncpg."""
    report = run_performance_tests(database.for_sqlalchemy("asyncpg"), scale="small", runs=1)

    workload = report.find("workload", "small")
    assert workload is not None
    assert len(workload.seconds) == 1
    assert report.environment["workload_driver"] == "asyncpg"


@pytest.mark.usefixtures("_nothing_is_measured")
def test_the_environment_names_no_place_and_no_person(database: DatabaseURL) -> None:
    """A report can be shared: versions, machine, settings; no host, role, database or password."""
    report = run_performance_tests(database, scale="small", runs=1)
    text = str(report.to_document())

    assert {"postgresql", "python", "cores", "memory_mb", "round_trip_ms", "server_settings"} <= set(
        report.environment
    )
    assert {"max_connections", "fsync", "shared_buffers"} <= set(report.environment["server_settings"])
    for secret in (database.database, database.password, database.host, str(database.port)):
        assert secret is None or secret not in text


@pytest.mark.usefixtures("_nothing_is_measured")
def test_scale_and_database_come_from_the_environment(
    database: DatabaseURL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PERF_TEST_SCALE and PERFORMANCE_TEST_DATABASE_URL are asked when nothing is said."""
    monkeypatch.setenv("TEST_DATABASE_URL", database.text)
    monkeypatch.setenv("PERF_TEST_SCALE", "tiny")
    with pytest.raises(UnknownScaleError):
        run_performance_tests(runs=1)
    monkeypatch.setenv("PERF_TEST_SCALE", "medium")

    assert run_performance_tests(runs=1).scales == ("small", "medium")


def test_a_database_that_looks_like_production_is_not_touched(database: DatabaseURL, tmp_path: Path) -> None:
    """B15 holds for every step, and before the first of them."""
    for options in ({"protected_words": [database.database]}, {"allowed_databases": ["*_test_only"]}):
        with pytest.raises(ProtectedDatabaseError):
            run_performance_tests(database, runs=1, directory=tmp_path / "out", manager_options=options)

    assert count(database, "pg_class", "relname = 'offices'") == 0
    assert not (tmp_path / "out").exists()


def test_without_a_server_there_is_no_report(tmp_path: Path) -> None:
    """Nothing can be measured: an error, and nothing is written."""
    with pytest.raises(ConnectError):
        run_performance_tests("postgresql://u@127.0.0.1:1/d", runs=1, directory=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_found_before_anything_is_measured(
    database: DatabaseURL, tmp_path: Path
) -> None:
    """Minutes of work are not thrown away at their end."""
    (tmp_path / "file").write_text("")

    with pytest.raises(AccessDeniedError, match="cannot be written"):
        run_performance_tests(database, runs=1, directory=tmp_path / "file")
    assert count(database, "pg_class", "relname = 'offices'") == 0


@pytest.mark.usefixtures("_nothing_is_measured")
def test_two_runs_in_one_directory_do_not_mix(database: DatabaseURL, tmp_path: Path) -> None:
    """The second is refused at once; what a killed run left is no obstacle and is removed."""
    leftover = tmp_path / ".keikaku-perf" / "old.sql"
    leftover.parent.mkdir()
    leftover.write_text("-- cut")
    with FileLock(tmp_path / ".keikaku-perf.lock"), pytest.raises(LockBusyError):
        run_performance_tests(database, runs=1, directory=tmp_path)
    assert leftover.exists()

    run_performance_tests(database, runs=1, directory=tmp_path)

    assert not leftover.parent.exists()


@pytest.mark.parametrize("step", ["generate", "restore", "workload"])
def test_a_step_that_fails_is_in_the_report(
    database: DatabaseURL, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """What was measured before is kept, what needs the step is left out, the limit is broken."""
    from keikaku_snapshots.errors import DiskFullError

    def fail(*_: Any, **__: Any) -> None:
        raise DiskFullError(f"no room at {database.text}")

    if step == "restore":
        monkeypatch.setattr(SnapshotManager, "restore_snapshot", fail)
    else:
        monkeypatch.setattr(
            runs, {"generate": "generate", "workload": "send_deadline_alert_emails"}[step], fail
        )

    report = run_performance_tests(database, scale="small", runs=1)

    last = report.measurements[-1]
    assert last.step == step
    assert last.failures[0].kind == "DiskFullError"
    assert not last.failures[0].is_timeout
    assert database.password is None or database.password not in last.failures[0].message
    assert findings(report)[0].kind == "act"
    assert [item.step for item in report.measurements if item.seconds] == {
        "generate": [],
        "restore": ["generate", "create"],
        "workload": ["generate", "create", "restore", "restore_warm"],
    }[step]


@pytest.mark.parametrize(
    "limits", [Timeouts(statement_s=0.3), Timeouts(lock_s=0.3)], ids=["statement", "lock"]
)
def test_what_takes_too_long_breaks_the_promise_about_timeouts(
    database: DatabaseURL, monkeypatch: pytest.MonkeyPatch, limits: Timeouts
) -> None:
    """C6, no database timeout error: a statement or a wait for a lock that the server ends is seen."""
    generate("keikaku", "small", database, create_tables=True)
    monkeypatch.setattr(runs, "generate", partial(generate, timeouts=limits))
    with psycopg.connect(database.text) as other:
        other.execute("LOCK TABLE staffs")
        report = run_performance_tests(database, scale="small", runs=1)

    assert [item.step for item in report.measurements] == ["generate"]
    assert report.measurements[0].failures[0].is_timeout
    assert floors(report)[-1].status == "broken"


def test_a_killed_session_is_a_failure_and_no_slow_run(
    server: Server, database: DatabaseURL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that is lost is in the report at once: a retry would be measured as a slow run."""
    calls = 0

    def cut(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            once = iter([database])
            options["progress"] = lambda _: deque(map(_end_sessions, once))
        return generate(*arguments, **options)

    monkeypatch.setattr(runs, "generate", cut)
    report = run_performance_tests(database, scale="small", runs=3)

    assert calls == 2
    assert report.measurements[-1].failures[0].kind == "ConnectError"


def _end_sessions(url: DatabaseURL) -> None:
    with psycopg.connect(url.text) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid()"
        )


def test_cores_are_those_that_this_process_may_use(database: DatabaseURL) -> None:
    """A container with one core of many says one."""
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(mine)})
    try:
        facts = describe_environment(database)
    finally:
        os.sched_setaffinity(0, mine)

    assert facts["cores"] == 1


def test_a_role_that_may_not_create_databases_is_measured_in_place(owner_database: DatabaseURL) -> None:
    """Nothing can be cloned then, so no warm restore is measured, and the report says why it is slower."""
    report = run_performance_tests(owner_database, scale="small", runs=1)

    restore = report.find("restore", "small")
    assert restore is not None
    assert restore.note.startswith("in_place: ")
    assert [item.step for item in report.measurements] == ["generate", "create", "restore", "workload"]
    assert any("Restores were done in place" in finding.text for finding in findings(report))


KILLED = """
import os, signal, sys
from pathlib import Path
from keikaku_snapshots.perf import runs
from keikaku_snapshots.postgres.url import DatabaseURL

url, directory = DatabaseURL.parse(sys.argv[1]), Path(sys.argv[2])
with runs._temporary(directory) as folder, runs._managers(url, folder, {}) as (cold, warm):
    cold.create_snapshot("small", version=runs._VERSION)
    warm.restore_snapshot("small", version=runs._VERSION)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_run_left_is_removed_by_the_next_one(
    database: DatabaseURL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kill -9 between two warm restores: its snapshot and its template are gone after the next run."""

    def templates() -> list[str]:
        with SnapshotManager(database) as manager:
            return [one.database for one in manager.list_templates() if one.target == database.database]

    with psycopg.connect(database.text) as connection:
        connection.execute("CREATE TABLE notes AS SELECT 'mine' AS text")
    done = subprocess.run([sys.executable, "-c", KILLED, database.text, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(templates()) == 1
    assert (tmp_path / ".keikaku-perf").exists()

    monkeypatch.setattr(runs._ScaleRun, "measure", lambda self: [_measurement(self.scale.name)])
    run_performance_tests(database, scale="small", runs=1, directory=tmp_path)

    assert templates() == []
    assert not (tmp_path / ".keikaku-perf").exists()
    assert count(database, "notes") == 1
