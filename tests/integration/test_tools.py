"""`tools` with the real programs on real servers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from keikaku_snapshots import errors
from keikaku_snapshots._process import run_tool
from keikaku_snapshots.postgres.inherited import inherited_settings_hidden
from keikaku_snapshots.postgres.tools import (
    find_tools,
    pg_restore_script,
    run_pg_dump,
    run_pg_restore,
    run_psql,
    start_pg_dump,
    start_psql,
    tool_environment,
    translate_tool_failure,
)
from keikaku_snapshots.postgres.url import DatabaseURL

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import MakeDatabase
    from tests.servers import Server

ROOT = Path(__file__).parents[2]
#: Every variable that libpq or psql knows, with values that would change or break a connection.
EVIL = {
    "PGHOST": "nonexistent.example",
    "PGHOSTADDR": "192.0.2.1",
    "PGPORT": "1",
    "PGDATABASE": "evil",
    "PGUSER": "evil",
    "PGPASSWORD": "evil",
    "PGPASSFILE": "/nonexistent",
    "PGSERVICE": "evil",
    "PGSERVICEFILE": "/nonexistent",
    "PGOPTIONS": "-c work_mem=77kB",
    "PGAPPNAME": "evil",
    "PGSSLMODE": "require",
    "PGSSLNEGOTIATION": "direct",
    "PGSSLCERTMODE": "require",
    "PGSSLROOTCERT": "/nonexistent",
    "PGREQUIREPEER": "evil",
    "PGREQUIREAUTH": "none",
    "PGCHANNELBINDING": "require",
    "PGGSSENCMODE": "require",
    "PGCONNECT_TIMEOUT": "evil",
    "PGCLIENTENCODING": "LATIN1",
    "PGTARGETSESSIONATTRS": "standby",
    "PGLOADBALANCEHOSTS": "random",
    "PGMINPROTOCOLVERSION": "3.2",
    "PGMAXPROTOCOLVERSION": "3.2",
    "PGTZ": "Asia/Tokyo",
    "PGDATESTYLE": "German",
    "PSQLRC": "/nonexistent",
}
SETTINGS = (
    "SELECT current_setting('work_mem'), current_setting('client_encoding'), current_setting('DateStyle')"
)


def connect(url: DatabaseURL) -> psycopg.Connection[tuple[object, ...]]:
    """A plain connection."""
    return psycopg.connect(**url.connect_arguments(), autocommit=True)


def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.01)


def script(path: Path, text: str) -> Path:
    """Write an SQL file."""
    path.write_text(text, encoding="utf-8")
    return path


def busy(connection: psycopg.Connection[tuple[object, ...]], url: DatabaseURL) -> int:
    """Number of other sessions that run something in a database."""
    row = connection.execute(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = %s AND state = 'active' AND pid <> pg_backend_pid()",
        [url.database],
    ).fetchone()
    assert row is not None
    return int(str(row[0]))


def test_the_programs_of_the_servers_version_are_found(each_server: Server) -> None:
    """docs/design.md, Programs and secrets: equal major, links resolved, version as the program says it."""
    tools = find_tools(each_server.major)

    assert tools.major == each_server.major
    assert tools.version.startswith(f"{each_server.major}.")
    assert tools.pg_dump.resolve() == tools.pg_dump
    assert "pg_wrapper" not in tools.pg_dump.resolve().name


def test_an_inherited_environment_has_no_effect(
    each_server: Server, make_database: MakeDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS 8, 11: neither the programs nor psycopg see any variable of the user's shell."""
    url = make_database(each_server)
    with connect(url) as before:
        expected = before.execute(SETTINGS).fetchone()
    for name, value in EVIL.items():
        monkeypatch.setenv(name, value)
    tools = find_tools(each_server.major)
    with inherited_settings_hidden(), connect(url) as connection:
        assert connection.info.dbname == url.database
        assert connection.execute(SETTINGS).fetchone() == expected
        assert connection.execute("SHOW TimeZone").fetchone() != ("Asia/Tokyo",)

    file = script(
        tmp_path / "a.sql", "CREATE TABLE t AS SELECT current_setting('work_mem') AS w, '日本' AS v;"
    )
    result = run_psql(tools, url, [file])
    assert result.ok, result.stderr
    result = run_pg_dump(tools, url, tmp_path / "dump.sql")
    assert result.ok, result.stderr
    dump = (tmp_path / "dump.sql").read_text(encoding="utf-8")
    assert "client_encoding = 'UTF8'" in dump
    assert "日本" in dump
    assert "77kB" not in dump


@pytest.mark.parametrize("name", ["host=evil dbname=x", "postgresql://evil/x", "-evil", 'q"uote Ä'])
def test_a_database_may_have_any_name(
    each_server: Server, make_database: MakeDatabase, tmp_path: Path, name: str
) -> None:
    """FAULTS 38: through all three programs, with parallel workers too."""
    url = make_database(each_server, name=name)
    tools = find_tools(each_server.major)
    assert run_psql(tools, url, [script(tmp_path / "a.sql", "CREATE TABLE t AS SELECT 1 AS n;")]).ok
    dumped = run_pg_dump(tools, url, tmp_path / "a.dump", format="custom")
    assert dumped.ok, dumped.stderr
    with connect(url) as connection:
        for jobs in (1, 2):
            connection.execute("DROP TABLE t")
            restored = run_pg_restore(tools, url, tmp_path / "a.dump", jobs=jobs)

            assert restored.ok, restored.stderr
            assert connection.execute("SELECT n FROM t").fetchone() == (1,)


def test_a_user_file_may_not_change_psql(
    server: Server, database: DatabaseURL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS 4, 5, 6: .psqlrc is ignored, an error ends the script with 3 and nothing stays."""
    (tmp_path / ".psqlrc").write_text("\\set ON_ERROR_STOP 0\n\\set AUTOCOMMIT off\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    file = script(
        tmp_path / "a.sql", "CREATE TABLE kept (n int);\nSELECT 1/0;\nCREATE TABLE later (n int);\n"
    )
    result = run_psql(find_tools(server.major), database, [file])

    assert result.returncode == 3
    with connect(database) as connection:
        assert connection.execute(
            "SELECT count(*) FROM pg_class WHERE relname IN ('kept', 'later')"
        ).fetchone() == (0,)


def test_several_files_are_one_transaction(server: Server, database: DatabaseURL, tmp_path: Path) -> None:
    """docs/design.md, In place: pre, data and post; an open descriptor can be read instead of a name."""
    first = script(tmp_path / "1.sql", "CREATE TABLE t AS SELECT txid_current() AS id;\n")
    second = script(tmp_path / "2.sql", "INSERT INTO t SELECT txid_current();\n")
    with second.open() as file:
        number = file.fileno()
        second.unlink()
        result = run_psql(find_tools(server.major), database, [first, f"/dev/fd/{number}"], pass_fds=[number])

    assert result.ok, result.stderr
    with connect(database) as connection:
        assert connection.execute("SELECT count(*), count(DISTINCT id) FROM t").fetchone() == (2, 1)


def test_a_constraint_violation_names_table_and_constraint(
    each_server: Server, make_database: MakeDatabase, tmp_path: Path
) -> None:
    """B2: in COPY and in ALTER TABLE, by psql and by pg_restore; the key is only in the field."""
    url = make_database(each_server)
    tools = find_tools(each_server.major)
    with connect(url) as connection:
        connection.execute("CREATE TABLE staffs (email text CONSTRAINT staffs_email_key UNIQUE)")
        connection.execute("INSERT INTO staffs VALUES ('mika@example.com')")
    assert run_pg_dump(tools, url, tmp_path / "a.dump", format="custom", sections=["data"]).ok
    pg_restore_script(tools, tmp_path / "a.dump", tmp_path / "a.sql", single_transaction=False)
    for result in (
        run_psql(tools, url, [tmp_path / "a.sql"]),
        run_pg_restore(tools, url, tmp_path / "a.dump"),
    ):
        error = translate_tool_failure(result, url, doing="restoring")

        assert isinstance(error, errors.RestoreFailedError), result.stderr
        assert "staffs_email_key" in str(error)
        assert "staffs'" in str(error)
        assert "一意制約違反" in str(error)
        assert "mika" not in str(error)
        assert "mika@example.com" in error.details["key"]


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"database": "keikaku_no_such_database"}, errors.ConnectError),
        ({"password": "wrong-canary"}, errors.AuthenticationError),
        ({"password": None}, errors.AuthenticationError),
        ({"user": "nobody_here"}, errors.AuthenticationError),
        ({"port": "closed"}, errors.ConnectError),
        ({"host": "nonexistent.invalid"}, errors.ConnectError),
    ],
)
def test_a_server_that_cannot_be_used_is_told_apart(
    each_server: Server,
    make_database: MakeDatabase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, object],
    kind: type[errors.KeikakuError],
) -> None:
    """B16, FAULTS 80: no prompt, the right class, the place, no password."""
    monkeypatch.setenv("HOME", str(tmp_path))
    if change.get("port") == "closed":
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            change = {"port": closed.getsockname()[1]}
    url = make_database(each_server, owner="keikaku_owner")
    assert url.password
    fields = {**vars(url), **change}
    broken = DatabaseURL(**{name: fields[name] for name in ("host", "port", "user", "password", "database")})
    tools = find_tools(each_server.major)
    file = script(tmp_path / "a.sql", "SELECT 1;\n")
    for result in (run_psql(tools, broken, [file]), run_pg_dump(tools, broken, tmp_path / "o.sql")):
        error = translate_tool_failure(result, broken, doing="testing")

        assert type(error) is kind, result.stderr
        assert broken.location in str(error)
        assert "wrong-canary" not in str(error) + result.stderr


def test_an_older_pg_dump_is_refused_by_name(server: Server, database: DatabaseURL, tmp_path: Path) -> None:
    """PEERS 12, FAULTS 67: both versions are named, and the program that was used."""
    older = find_tools(16)
    result = run_pg_dump(older, database, tmp_path / "o.sql")
    error = translate_tool_failure(result, database, doing="dumping")

    assert isinstance(error, errors.ToolVersionError)
    assert older.version in str(error)
    assert f"server {server.major}." in str(error)
    assert str(older.pg_dump) in str(error)


def test_a_newer_archive_is_refused_by_an_older_pg_restore(database: DatabaseURL, tmp_path: Path) -> None:
    """FAULTS 68: the version is the cause, not the file."""
    assert run_pg_dump(find_tools(18), database, tmp_path / "a.dump", format="custom").ok
    result = pg_restore_script(find_tools(16), tmp_path / "a.dump", "/dev/null")
    error = translate_tool_failure(result, None, doing="reading", kind=errors.SnapshotCorruptError)
    assert isinstance(error, errors.ToolVersionError)


def test_a_damaged_archive_is_found_by_reading_all_of_it(
    each_server: Server, make_database: MakeDatabase, tmp_path: Path
) -> None:
    """FAULTS 7: the list alone does not see a late cut."""
    url = make_database(each_server)
    tools = find_tools(each_server.major)
    with connect(url) as connection:
        connection.execute("CREATE TABLE t AS SELECT md5(n::text) AS v FROM generate_series(1, 20000) n")
    archive = tmp_path / "a.dump"
    assert run_pg_dump(tools, url, archive, format="custom").ok
    assert pg_restore_script(tools, archive, os.devnull).ok
    archive.write_bytes(archive.read_bytes()[:-20_000])
    result = pg_restore_script(tools, archive, os.devnull)

    assert isinstance(translate_tool_failure(result, None, doing="checking"), errors.SnapshotCorruptError), (
        result
    )


def test_the_lock_wait_of_pg_dump_is_bounded(server: Server, database: DatabaseURL, tmp_path: Path) -> None:
    """FAULTS 61: an open ALTER TABLE does not hang a nightly dump."""
    with connect(database) as connection:
        connection.execute("CREATE TABLE t (n int)")
        with connection.transaction():
            connection.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
            result = run_pg_dump(
                find_tools(server.major), database, tmp_path / "o.sql", lock_wait_timeout_s=0.2
            )

    assert isinstance(translate_tool_failure(result, database, doing="dumping"), errors.DatabaseInUseError)


@pytest.mark.parametrize("program", ["psql", "pg_dump"])
def test_a_time_limit_frees_the_server_too(
    each_server: Server, make_database: MakeDatabase, tmp_path: Path, program: str
) -> None:
    """FAULTS 47: psql is cancelled by SIGINT, pg_dump by SIGTERM; no backend goes on."""
    url = make_database(each_server)
    tools = find_tools(each_server.major)
    file = script(tmp_path / "a.sql", "CREATE TABLE half (n int);\nSELECT pg_sleep(60);\n")
    with connect(url) as connection, connect(url) as holder:
        connection.execute("CREATE TABLE slow (n int)")
        with holder.transaction():
            holder.execute("LOCK TABLE slow IN ACCESS EXCLUSIVE MODE")
            started = time.monotonic()
            with pytest.raises(errors.OperationTimeoutError):  # noqa: PT012 - what the block does is the point
                if program == "psql":
                    run_psql(tools, url, [file], timeout_s=0.5, grace_s=10)
                else:
                    run_pg_dump(tools, url, tmp_path / "o.sql", timeout_s=0.5, grace_s=10)
            assert time.monotonic() - started < 8
            until(lambda: busy(connection, url) == 0)
        assert connection.execute("SELECT to_regclass('half')").fetchone() == (None,)


def test_a_killed_python_frees_the_server_too(server: Server, database: DatabaseURL, tmp_path: Path) -> None:
    """FAULTS 2, 44, 47: psql dies with its parent, the server notices, and nothing was committed."""
    file = script(tmp_path / "a.sql", "CREATE TABLE half (n int);\nSELECT pg_sleep(60);\n")
    code = (
        "import sys; from keikaku_snapshots.postgres.tools import *\n"
        "from keikaku_snapshots.postgres.url import *\n"
        "run_psql(find_tools(int(sys.argv[1])), DatabaseURL.parse(sys.stdin.read()), [sys.argv[2]])\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(server.major), str(file)], cwd=ROOT, stdin=subprocess.PIPE, text=True
    )
    assert parent.stdin is not None
    parent.stdin.write(database.text)
    parent.stdin.close()
    with connect(database) as connection:
        until(lambda: busy(connection, database) == 1)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        until(lambda: busy(connection, database) == 0, timeout_s=10)

        assert connection.execute("SELECT to_regclass('half')").fetchone() == (None,)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGKILL, signal.SIGHUP]
)
def test_a_dump_ended_by_a_signal_is_a_failure(
    server: Server, database: DatabaseURL, tmp_path: Path, number: signal.Signals
) -> None:
    """FAULTS 43: whatever code pg_dump makes of it, the result is not ok and becomes an error."""
    # Two sessions: inside a transaction pg_stat_activity is read once only.
    with connect(database) as connection, connect(database) as holder:
        connection.execute("CREATE TABLE slow (n int)")
        with holder.transaction():
            holder.execute("LOCK TABLE slow IN ACCESS EXCLUSIVE MODE")
            with start_pg_dump(find_tools(server.major), database, tmp_path / "o.sql") as running:
                until(lambda: busy(connection, database) == 1)
                os.kill(running.pid, number)
                result = running.wait()

    assert not result.ok
    assert isinstance(translate_tool_failure(result, database, doing="dumping"), errors.KeikakuError)


def test_a_terminated_backend_is_a_lost_connection(
    server: Server, database: DatabaseURL, tmp_path: Path
) -> None:
    """FAULTS 51: psql gives 2, the transaction is rolled back, and another try may help."""
    file = script(tmp_path / "a.sql", "CREATE TABLE half (n int);\nSELECT pg_sleep(60);\n")
    with connect(database) as connection, start_psql(find_tools(server.major), database, [file]) as running:
        until(lambda: busy(connection, database) == 1)
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid()"
        )
        result = running.wait()
        error = translate_tool_failure(result, database, doing="restoring")

        assert isinstance(error, errors.ConnectError), result.stderr
        assert error.details["transient"]
        assert connection.execute("SELECT to_regclass('half')").fetchone() == (None,)


def test_a_full_disk_is_told_as_such(
    each_server: Server, make_database: MakeDatabase, tmp_path: Path
) -> None:
    """FAULTS 8, 9, 52: /dev/full, and the largest file size with its silent signal."""
    url = make_database(each_server)
    tools = find_tools(each_server.major)
    with connect(url) as connection:
        connection.execute("CREATE TABLE t AS SELECT md5(n::text) AS v FROM generate_series(1, 5000) n")
    with tool_environment(url) as env:
        full = run_tool([tools.pg_dump, "-w", "-f", "/dev/full"], env=env)
        limited = run_tool(
            ["/bin/sh", "-c", 'ulimit -f 20; exec "$0" -w -f "$1"', tools.pg_dump, tmp_path / "o.sql"],
            env=env,
        )
    assert isinstance(
        translate_tool_failure(full, url, doing="dumping", kind=errors.CreateFailedError),
        errors.DiskFullError,
    ), full.stderr
    assert limited.returncode == -signal.SIGXFSZ
    assert isinstance(translate_tool_failure(limited, url, doing="dumping"), errors.DiskFullError)


def test_a_server_that_speaks_another_encoding_does_not_hide_its_message(
    server: Server, make_database: MakeDatabase, tmp_path: Path
) -> None:
    """FAULTS 75: bytes in messages that are no UTF-8 are replaced, not raised."""
    with connect(make_database(server)) as connection:
        connection.execute('CREATE DATABASE "keikaku_latin1_é" ENCODING LATIN1 TEMPLATE template0 LOCALE "C"')
        url = make_database(server).with_database("keikaku_latin1_é")
        try:
            file = script(
                tmp_path / "a.sql", "DO $$ BEGIN RAISE EXCEPTION 'caf\u00e9 %', chr(233); END $$;\n"
            )
            result = run_psql(find_tools(server.major), url, [file])
            assert result.returncode == 3, result.stderr
            assert "café é" in result.stderr
        finally:
            connection.execute('DROP DATABASE "keikaku_latin1_é" WITH (FORCE)')


def test_row_security_fails_the_dump(server: Server, make_database: MakeDatabase, tmp_path: Path) -> None:
    """FAULTS 18: a dump that saw only some rows would be worse than none."""
    url = make_database(server, owner="keikaku_owner")
    with connect(url) as connection:
        connection.execute("CREATE TABLE t (n int)")
        connection.execute("ALTER TABLE t ENABLE ROW LEVEL SECURITY")
        connection.execute("ALTER TABLE t FORCE ROW LEVEL SECURITY")
    error = translate_tool_failure(
        run_pg_dump(find_tools(server.major), url, tmp_path / "o.sql"), url, doing="dumping"
    )

    assert isinstance(error, errors.AccessDeniedError)
    assert "BYPASSRLS" in str(error)


def test_parallel_workers_connect_as_well(
    each_server: Server, make_database: MakeDatabase, tmp_path: Path
) -> None:
    """The password file stays until the last worker has ended."""
    url = make_database(each_server, owner="keikaku_owner")
    tools = find_tools(each_server.major)
    with connect(url) as connection:
        for number in range(4):
            connection.execute(f"CREATE TABLE t{number} AS SELECT generate_series(1, 1000) AS n")
        dumped = run_pg_dump(tools, url, tmp_path / "a.dir", format="directory", jobs=2)
        assert dumped.ok, dumped.stderr
        for number in range(4):
            connection.execute(f"DROP TABLE t{number}")
        restored = run_pg_restore(tools, url, tmp_path / "a.dir", jobs=2)

        assert restored.ok, restored.stderr
        assert connection.execute("SELECT count(*) FROM t3").fetchone() == (1000,)


def test_keepalives_reach_the_connection(server: Server, database: DatabaseURL, tmp_path: Path) -> None:
    """FAULTS 99: from the service file; a wrong name there would fail the connection."""
    url = DatabaseURL.parse(f"{database.text}{'&' if '?' in database.text else '?'}tcp_user_timeout=9000")
    result = run_psql(find_tools(server.major), url, [script(tmp_path / "a.sql", "SELECT 1;")])

    assert result.ok, result.stderr
