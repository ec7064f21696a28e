"""After-restore hooks: they run on the database beside, and their failure leaves the old one in place."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from keikaku_snapshots import DatabaseURL, SnapshotManager
from keikaku_snapshots.errors import (
    ConnectError,
    DatabaseInUseError,
    HookFailedError,
    RestoreFailedError,
    UnsafeRestoreError,
    UsageError,
)
from tests.integration import schemas
from tests.integration.test_restore_swap import siblings, wait_until_clean
from tests.servers import connect

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import MakeDatabase
    from tests.servers import Server

BEFORE = "CREATE TABLE notes (id int PRIMARY KEY, word text); INSERT INTO notes VALUES (1, 'snapshot')"
LIVE = "UPDATE notes SET word = 'live'"
#: A hook in Python that reads its database as an application does.
PYTHON = (sys.executable, "-c")


@pytest.fixture
def manager(database: DatabaseURL, tmp_path: Path) -> Iterator[SnapshotManager]:
    """A manager whose database was snapshotted as ``notes`` and changed afterwards."""
    schemas.run(database, BEFORE)
    with SnapshotManager(database, tmp_path / "snapshots", minimum_free_mb=1) as manager:
        manager.create_snapshot("notes")
        schemas.run(database, LIVE)
        yield manager


def words(url: DatabaseURL) -> list[Any]:
    """What the database holds."""
    return [word for (word,) in schemas.rows_of(url, "SELECT word FROM notes ORDER BY id")]


def script(text: str) -> tuple[str, ...]:
    """A hook that runs Python with a connection ``c`` by the URL that it is given."""
    head = "import os, psycopg, sys, time; c = psycopg.connect(os.environ['DATABASE_URL'], autocommit=True); "
    return (*PYTHON, head + text)


# -- what runs, and on what ------------------------------------------------------------


def test_hooks_run_in_order_on_the_new_database_before_it_goes_live(
    server: Server, manager: SnapshotManager
) -> None:
    """B7: a command and a callable, in the order given; the live database is as before until the end."""
    seen: list[Any] = []

    def look(url: DatabaseURL) -> None:
        seen.append((url.database, words(url), words(manager.url)))
        schemas.run(url, "UPDATE notes SET word = word || ', second'")

    first = script("c.execute(\"UPDATE notes SET word = word || ', first'\")")

    restored = manager.restore_snapshot("notes", after_restore=(first, look))

    assert seen == [(seen[0][0], ["snapshot, first"], ["live"])]
    assert seen[0][0] != manager.url.database
    assert words(manager.url) == ["snapshot, first, second"]
    assert (restored.strategy, restored.warnings) == ("swap", ())
    assert [run.hook.split()[0].strip("'") for run in restored.hooks] == [
        sys.executable,
        "tests.integration.test_hooks.test_hooks_run_in_order_on_the_new_database_before_it_goes_live.<locals>.look",
    ]
    assert all(run.seconds > 0 for run in restored.hooks)
    wait_until_clean(server, manager.url)


def test_a_command_finds_the_new_database_in_every_usual_place(
    manager: SnapshotManager, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """B7: a hook that works as at the prompt never reaches the live database: URLs, names and PG* turn."""
    live = manager.url
    turned = {
        "TEST_DATABASE_URL": live.for_sqlalchemy("asyncpg"),
        "APP_DATABASE": live.text + "?application_name=app",
        "ANALYTICS_DSN": f"host={live.host} dbname={live.database} user=analyst",
        "POSTGRES_DB": live.database,
        "DB_NAME": live.database,
    }
    kept = {"OTHER_URL": "postgresql://u:p@h/other", "POSTGRES_USER": live.database, "GREETING": "hello"}
    for name, value in {**turned, **kept, "PGDATABASE": live.database, "PGHOSTADDR": "192.0.2.1"}.items():
        monkeypatch.setenv(name, value)
    file = tmp_path / "environment"
    hook = (*PYTHON, f"import os; open({str(file)!r}, 'w').write(repr(dict(os.environ)))")

    manager.restore_snapshot("notes", after_restore=(hook, "psql -qc 'SELECT 1'"))

    env: dict[str, str] = eval(file.read_text())  # noqa: S307 - what the line above wrote
    new = env["PGDATABASE"]
    assert new.startswith("keikaku_new_")
    assert DatabaseURL.parse(env["KEIKAKU_DB_URL"]) == live.with_database(new)
    assert DatabaseURL.parse(env["DATABASE_URL"]) == live.with_database(new)
    for name, value in turned.items():
        assert env[name].replace("'", "") == value.replace(live.database, new), name
    assert {name: env[name] for name in kept} == kept
    assert "PGHOSTADDR" not in env
    assert "PGPASSWORD" not in env
    assert live.text not in env.values()


def test_a_hook_that_never_connects_is_pointed_out(manager: SnapshotManager, tmp_path: Path) -> None:
    """B7: an alembic.ini with a URL of its own would migrate the live database; that must not be silent."""
    restored = manager.restore_snapshot("notes", after_restore=("true", words))

    assert len(restored.warnings) == 1
    assert "hook 1 (true) did not connect to the database it was given" in restored.warnings[0]


def test_a_real_alembic_migration_runs_as_a_hook(
    manager: SnapshotManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B7: `alembic upgrade head` with the usual env.py that reads DATABASE_URL."""
    make_alembic(tmp_path)
    monkeypatch.chdir(tmp_path)

    manager.restore_snapshot("notes", after_restore=("alembic upgrade head",))

    assert schemas.rows_of(manager.url, "SELECT word, colour FROM notes") == [("snapshot", "red")]
    assert schemas.rows_of(manager.url, "SELECT version_num FROM alembic_version") == [("0001",)]


def test_a_migration_that_fails_leaves_the_old_database(
    server: Server, manager: SnapshotManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B7: what alembic said is in the error; the live database keeps rows and schema."""
    make_alembic(tmp_path, "op.execute('ALTER TABLE nowhere ADD COLUMN x int')")
    monkeypatch.chdir(tmp_path)

    with pytest.raises(HookFailedError, match='relation "nowhere" does not exist') as caught:
        manager.restore_snapshot("notes", after_restore=("alembic upgrade head",))

    assert caught.value.details["returncode"] == 1
    assert words(manager.url) == ["live"]
    assert schemas.rows_of(manager.url, "SELECT to_regclass('alembic_version')") == [(None,)]
    assert siblings(server, manager.url) == []


def make_alembic(
    directory: Path, change: str = "op.execute(\"ALTER TABLE notes ADD colour text DEFAULT 'red'\")"
) -> None:
    """A directory with one migration."""
    (directory / "alembic.ini").write_text("[alembic]\nscript_location = %(here)s/migrations\n")
    versions = directory / "migrations" / "versions"
    versions.mkdir(parents=True)
    (versions.parent / "env.py").write_text(
        "import os, sqlalchemy\nfrom alembic import context\n"
        "url = os.environ['DATABASE_URL'].replace('postgresql:', 'postgresql+psycopg:')\n"
        "with sqlalchemy.create_engine(url).connect() as connection:\n"
        "    context.configure(connection=connection)\n"
        "    with context.begin_transaction():\n        context.run_migrations()\n"
    )
    (versions / "0001_colour.py").write_text(
        f"from alembic import op\nrevision = '0001'\ndown_revision = None\ndef upgrade():\n    {change}\n"
    )


async def colour(url: DatabaseURL) -> None:
    """A hook as async code has it."""
    async with await psycopg.AsyncConnection.connect(**url.connect_arguments()) as connection:
        await connection.execute("UPDATE notes SET word = 'awaited'")


def test_an_async_callable_is_awaited_also_on_aio(manager: SnapshotManager) -> None:
    """DESIGN 3: the awaitable twin takes the same hooks, and a loop that runs is no obstacle."""

    async def both() -> None:
        await manager.aio.restore_snapshot("notes", after_restore=(colour,))
        assert words(manager.url) == ["awaited"]
        manager.restore_snapshot("notes", after_restore=(colour,))  # inside of a running loop

    asyncio.run(both())
    assert words(manager.url) == ["awaited"]


def test_what_a_hook_changes_is_not_counted_but_analysed(manager: SnapshotManager) -> None:
    """B7: more rows than the manifest has are no error; the planner knows them."""
    manager.restore_snapshot(
        "notes",
        after_restore=(
            lambda url: schemas.run(
                url,
                "CREATE TABLE added AS SELECT i FROM generate_series(1, 777) i;"
                "INSERT INTO notes SELECT i, 'more' FROM generate_series(2, 100) i",
            ),
        ),
    )
    assert schemas.rows_of(
        manager.url,
        "SELECT relname::text, reltuples::int FROM pg_class WHERE relname IN ('added', 'notes') ORDER BY 1",
    ) == [("added", 777), ("notes", 100)]


def test_a_hook_has_the_settings_and_grants_of_the_database_and_may_change_them(
    server: Server, make_database: MakeDatabase, tmp_path: Path
) -> None:
    """B17: a migration under the database's own search_path; what it sets for the database stays."""
    url = make_database(server)
    schemas.run(url, f'CREATE SCHEMA app; ALTER DATABASE "{url.database}" SET search_path = app')
    schemas.run(url, "CREATE TABLE notes (id int)")
    with SnapshotManager(url, tmp_path / "snapshots", minimum_free_mb=1) as manager:
        manager.create_snapshot("notes")

        def migrate(new: DatabaseURL) -> None:
            schemas.run(new, f'CREATE TABLE made (id int); ALTER DATABASE "{new.database}" SET work_mem = 77')

        manager.restore_snapshot("notes", after_restore=migrate)

    shown = "SELECT 'made'::regclass::text, current_schema()::text, current_setting('work_mem')"
    assert schemas.rows_of(url, shown) == [("made", "app", "77kB")]


# -- failures --------------------------------------------------------------------------


def exits(_: DatabaseURL) -> None:
    """As main functions do."""
    sys.exit(4)


def raises(_: DatabaseURL) -> None:
    """An ordinary failure."""
    raise KeyError("colour")


def interrupts(_: DatabaseURL) -> None:
    """What a callable raises is its failure, whatever it is."""
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("hook", "headline", "code"),
    [
        (script("print('half way'); sys.exit(3)"), "hook 1 ended with exit code 3", 3),
        (script("os.kill(os.getpid(), 15)"), "hook 1 was ended by SIGTERM", -15),
        (script("os.kill(os.getpid(), 9)"), "hook 1 was ended by SIGKILL", -9),
        (script("c.execute('SELECT nothing')"), "hook 1 ended with exit code 1", 1),
        ("false", "hook 1 ended with exit code 1", 1),
        (exits, "hook 1 raised SystemExit", 4),
        (raises, "hook 1 raised KeyError", None),
        (interrupts, "hook 1 raised KeyboardInterrupt", None),
    ],
    ids=["exit", "SIGTERM", "SIGKILL", "sql", "false", "sys.exit", "raise", "interrupt"],
)
def test_a_hook_that_fails_ends_the_restore_and_nothing_is_changed(
    server: Server, manager: SnapshotManager, hook: Any, headline: str, code: int | None
) -> None:
    """B7: exit code 25, the hook, how it ended; later hooks do not run, the database beside is dropped."""
    later: list[DatabaseURL] = []

    with pytest.raises(HookFailedError, match="復元に失敗") as caught:
        manager.restore_snapshot("notes", after_restore=(hook, later.append))

    error = caught.value
    assert headline in error.what
    assert isinstance(error, RestoreFailedError)
    assert (error.exit_code, error.details["returncode"], error.details["number"]) == (25, code, 1)
    assert error.details["hook"].split()[0].strip("'") in error.found
    assert later == []
    assert words(manager.url) == ["live"]
    assert siblings(server, manager.url) == []


def test_the_error_has_the_end_of_the_output_without_password_and_rows(
    manager: SnapshotManager, caplog: pytest.LogCaptureFixture
) -> None:
    """FAULTS 31, 33: also of what a hook prints itself; rows are in a field, for code."""
    caplog.set_level(logging.DEBUG, "keikaku_snapshots")
    text = (
        "print(os.environ['DATABASE_URL'], flush=True);"
        "[print('line', i, flush=True) for i in range(40)];"
        "c.execute(\"INSERT INTO notes VALUES (1, 'secret row')\")"
    )
    with pytest.raises(HookFailedError) as caught:
        manager.restore_snapshot("notes", after_restore=(script(text),))

    password = manager.url.password
    assert password is not None
    error = caught.value
    assert "duplicate key value" in error.found
    assert "line 39" in error.found
    assert "line 1\n" not in error.found
    assert "Key (id)=(1)" not in error.found + caplog.text
    assert "Key (id)=(1)" in error.details["output"]
    assert "line 7" in caplog.text
    assert password not in error.found + caplog.text + error.details["output"] + repr(error.details)


def test_a_hook_that_takes_too_long_is_stopped(server: Server, manager: SnapshotManager) -> None:
    """B7: a command is ended with its children, and nothing goes on in the database."""
    hook = ("sh", "-c", "echo began; psql -qc 'SELECT pg_sleep(600)' & wait")
    begun = time.monotonic()

    with pytest.raises(HookFailedError, match=r"time limit of 0\.5 s") as caught:
        manager.restore_snapshot("notes", after_restore=(hook,), hook_timeout_s=0.5)

    assert time.monotonic() - begun < 8
    assert "began" in caught.value.found
    assert words(manager.url) == ["live"]
    assert siblings(server, manager.url) == []


@pytest.mark.parametrize("kind", ["function", "async"])
def test_a_callable_that_takes_too_long_is_given_up(manager: SnapshotManager, kind: str) -> None:
    """B7: Python cannot stop a thread, but its database goes; what is awaited is cancelled."""
    ended = threading.Event()
    failure: list[BaseException] = []

    def waits(url: DatabaseURL) -> None:
        try:
            with psycopg.connect(**url.connect_arguments()) as connection:
                connection.execute("SELECT pg_sleep(600)")
        except BaseException as error:
            failure.append(error)
            raise
        finally:
            ended.set()

    async def awaits(url: DatabaseURL) -> None:
        try:
            await asyncio.sleep(600)
        except BaseException as error:
            failure.append(error)
            raise
        finally:
            ended.set()

    with pytest.raises(HookFailedError, match="time limit"):
        manager.restore_snapshot(
            "notes", after_restore=waits if kind == "function" else awaits, hook_timeout_s=0.4
        )

    assert ended.wait(20)
    assert isinstance(failure[0], psycopg.Error if kind == "function" else asyncio.CancelledError)
    assert words(manager.url) == ["live"]


def test_sessions_that_a_hook_leaves_open_are_ended(manager: SnapshotManager) -> None:
    """B7: idle, in a transaction, or coming again and again: the rename neither fails nor hangs."""
    left: list[Any] = []
    stop = threading.Event()

    def leave(url: DatabaseURL) -> None:
        left.append(psycopg.connect(**url.connect_arguments()))
        left[0].execute("UPDATE notes SET word = 'never committed'")

        def again() -> None:
            while not stop.is_set():
                try:
                    with psycopg.connect(**url.connect_arguments()) as connection:
                        connection.execute("SELECT pg_sleep(600)")
                except psycopg.Error:
                    time.sleep(0.001)

        thread = threading.Thread(target=again, daemon=True)
        thread.start()
        left.append(thread)

    try:
        begun = time.monotonic()
        manager.restore_snapshot("notes", after_restore=leave)
        assert time.monotonic() - begun < 8
    finally:
        stop.set()
        left[1].join(10)
    assert words(manager.url) == ["snapshot"]
    with pytest.raises(psycopg.Error):
        left[0].execute("SELECT 1")


def test_a_transaction_that_a_hook_prepared_is_refused(
    server: Server, manager: SnapshotManager, make_database: MakeDatabase
) -> None:
    """FAULTS 101: it would make the rename wait and fail."""
    name = f"left_{manager.url.database}"

    def prepare(url: DatabaseURL) -> None:
        with connect(url) as connection:
            connection.execute("BEGIN")
            connection.execute("UPDATE notes SET word = 'prepared'")
            connection.execute(f"PREPARE TRANSACTION '{name}'")

    with pytest.raises(RestoreFailedError, match="left a prepared transaction") as caught:
        manager.restore_snapshot("notes", after_restore=prepare)
    assert name in caught.value.found
    assert words(manager.url) == ["live"]


def test_a_lock_that_was_lost_during_a_hook_ends_the_restore(
    server: Server, manager: SnapshotManager
) -> None:
    """FAULTS 58: while a long migration ran, the server ended our session; another may restore now."""

    def lose(_: DatabaseURL) -> None:
        with server.admin() as admin:
            admin.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
                " WHERE application_name LIKE 'keikaku_snapshots restore %%' AND application_name LIKE %s",
                [f"% {os.getpid()}@%"],
            )

    with pytest.raises(ConnectError):
        manager.restore_snapshot("notes", after_restore=lose)
    assert words(manager.url) == ["live"]
    assert siblings(server, manager.url) == []


# -- what is refused beforehand --------------------------------------------------------


def test_test_data_refuses_hooks(manager: SnapshotManager) -> None:
    """B7: never silently without them."""
    schemas.run(manager.url, "ALTER TABLE notes ADD is_test_data boolean NOT NULL DEFAULT true")
    manager.create_snapshot("rows", scope="test_data", format="json")
    with pytest.raises(UsageError, match="cannot run with test data"):
        manager.restore_snapshot("rows", after_restore=("true",))


def test_auto_with_other_sessions_refuses_and_names_the_way(manager: SnapshotManager) -> None:
    """B7: auto disconnects nobody, and in place there is nothing beside for hooks."""
    with connect(manager.url) as other:
        other.execute("SET application_name = 'the application'")
        with pytest.raises(DatabaseInUseError, match="--disconnect") as caught:
            manager.restore_snapshot("notes", after_restore=("true",))
        assert "'the application'" in caught.value.found
        assert words(manager.url) == ["live"]
        restored = manager.restore_snapshot(
            "notes", disconnect=True, after_restore=lambda url: schemas.run(url, "SELECT 1")
        )
    assert (restored.strategy, words(manager.url)) == ("swap", ["snapshot"])


def test_a_session_that_comes_while_hooks_run_is_not_disconnected(
    server: Server, manager: SnapshotManager
) -> None:
    """B7: auto would restore in place then; with hooks it gives up, and their work is dropped."""
    came: list[psycopg.Connection[Any]] = []

    def hook(url: DatabaseURL) -> None:
        schemas.run(url, "SELECT 1")
        came.append(psycopg.connect(**manager.url.connect_arguments(), autocommit=True))

    with pytest.raises(DatabaseInUseError, match="not replaced"):
        manager.restore_snapshot("notes", after_restore=hook)
    assert came[0].execute("SELECT word FROM notes").fetchall() == [("live",)]
    came[0].close()
    assert siblings(server, manager.url) == []


def test_a_role_that_may_not_create_databases_cannot_have_hooks(
    owner_database: DatabaseURL, tmp_path: Path
) -> None:
    """B7: auto would go in place; with hooks the reason is told instead."""
    schemas.run(owner_database, BEFORE)
    with SnapshotManager(owner_database, tmp_path / "snapshots", minimum_free_mb=1) as manager:
        manager.create_snapshot("notes")
        with pytest.raises(UnsafeRestoreError, match="hooks need a swap") as caught:
            manager.restore_snapshot("notes", after_restore=("true",))
    assert "may not create" in caught.value.found


# -- death -----------------------------------------------------------------------------


def begin_restore(manager: SnapshotManager, hook: str) -> subprocess.Popen[str]:
    """A process that restores with a hook."""
    return subprocess.Popen(
        [
            sys.executable, "-m", "keikaku_snapshots", "restore", "notes", "--yes",
            "--db-url", manager.url.text, "--snapshot-dir", str(manager.directory), "--after-restore", hook,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def until(server: Server, query: str) -> None:
    """Wait until a question to the server is answered with yes."""
    deadline = time.monotonic() + 20
    with server.admin() as admin:
        while admin.execute(query).fetchone() != (True,):
            assert time.monotonic() < deadline, query
            time.sleep(0.01)


def sleeping(url: DatabaseURL) -> str:
    """Whether a hook sleeps in a database that is being made for this one."""
    return (
        "SELECT count(*) > 0 FROM pg_stat_activity WHERE query LIKE '%pg_sleep%'"
        f" AND datname LIKE 'keikaku\\_new\\_%' AND datname LIKE '%{url.database}%'"
    )


def test_kill_9_during_a_hook_takes_the_hook_along_and_changes_nothing(
    server: Server, manager: SnapshotManager
) -> None:
    """FAULTS 45, 46: the program dies with us; the next command sweeps what is left."""
    process = begin_restore(manager, "psql -qc 'SELECT pg_sleep(600)'")
    until(server, sleeping(manager.url))
    process.kill()
    process.communicate()

    until(server, f"SELECT NOT ({sleeping(manager.url)})")
    assert words(manager.url) == ["live"]
    assert len(siblings(server, manager.url)) == 1
    manager.restore_snapshot("notes", strategy="swap")
    assert words(manager.url) == ["snapshot"]
    wait_until_clean(server, manager.url)


def test_ctrl_c_during_a_hook_stops_it_and_cleans_up(server: Server, manager: SnapshotManager) -> None:
    """FAULTS 46: 130, no database of ours, the live one as it was."""
    process = begin_restore(manager, "psql -qc 'SELECT pg_sleep(600)'")
    until(server, sleeping(manager.url))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)

    assert process.returncode == 130
    assert siblings(server, manager.url) == []
    assert words(manager.url) == ["live"]


def test_ctrl_c_during_a_callable_gives_it_up(server: Server, manager: SnapshotManager) -> None:
    """FAULTS 46: the thread that waits is interrupted, and the callable loses its database."""
    gone = threading.Event()

    def waits(url: DatabaseURL) -> None:
        try:
            with psycopg.connect(**url.connect_arguments()) as connection:
                os.kill(os.getpid(), signal.SIGINT)
                connection.execute("SELECT pg_sleep(600)")
        finally:
            gone.set()

    with pytest.raises(KeyboardInterrupt):
        manager.restore_snapshot("notes", after_restore=waits)
    assert gone.wait(20)
    assert siblings(server, manager.url) == []
    assert words(manager.url) == ["live"]
