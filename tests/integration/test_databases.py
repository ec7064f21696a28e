"""Databases beside the target: locks, swaps, leftovers, on every version."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg import sql

from keikaku_snapshots import errors
from keikaku_snapshots.postgres import databases, together
from keikaku_snapshots.postgres.connect import connect
from keikaku_snapshots.postgres.databases import Identity, sibling_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.postgres.url import DatabaseURL
    from tests import servers
    from tests.conftest import FreshServer, MakeDatabase


def _eventually(condition: Callable[[], object], limit_s: float = 10) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.005)


def _marked(url: DatabaseURL, value: str) -> None:
    with connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE mark (value text)")
        connection.execute("INSERT INTO mark VALUES (%s)", (value,))


def _mark(url: DatabaseURL, name: str | None = None) -> str:
    with connect(url, database=name) as connection:
        row = connection.execute("SELECT value FROM mark").fetchone()
        assert row is not None
        return str(row[0])


@contextlib.contextmanager
def _maintenance(url: DatabaseURL) -> Iterator[Connection]:
    with databases.connect_maintenance(url) as connection:
        yield connection


def _scratch(url: DatabaseURL, value: str = "new") -> tuple[str, str]:
    """Make a finished replacement; give its name and the one for the old database."""
    new, old = sibling_name("new", url.database), sibling_name("old", url.database)
    with _maintenance(url) as connection:
        databases.create_scratch(connection, new, like=url.database)
    _marked(url.with_database(new), value)
    return new, old


# --- locks


def test_a_target_is_locked_for_one_and_the_other_is_told_who(
    server: servers.Server, database: DatabaseURL
) -> None:
    """FAULTS 58: two restores into one database ended with a duplicate key in pg_proc."""
    del server
    with databases.target_lock(database, purpose="restore") as lock:
        with pytest.raises(errors.LockBusyError) as raised, databases.target_lock(database):
            pytest.fail("two hold the lock")
        lock.check()

    assert f"server process {lock.backend_pid}" in str(raised.value)
    assert f"keikaku_snapshots restore {os.getpid()}@" in str(raised.value)
    assert "another thread of this process" in raised.value.what
    with databases.target_lock(database):
        pass


def test_the_lock_is_taken_in_one_database_for_all(server: servers.Server, database: DatabaseURL) -> None:
    """FAULTS 59: the same key is granted in two databases at once."""
    with server.admin(database.database) as inside:
        inside.execute("SELECT pg_advisory_lock(%s)", (databases.lock_key(database.database),))
        with databases.target_lock(database) as lock:
            assert lock.connection.info.dbname == "postgres"


def test_another_database_of_the_server_has_another_lock(
    server: servers.Server, make_database: MakeDatabase
) -> None:
    """Two suites may restore side by side."""
    with databases.target_lock(make_database(server)), databases.target_lock(make_database(server)):
        pass


def test_a_busy_lock_is_waited_for(database: DatabaseURL) -> None:
    """B8: wait or fail fast by option."""
    release = threading.Event()
    held = threading.Event()

    def hold() -> None:
        with databases.target_lock(database):
            held.set()
            release.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(10)
    with (
        pytest.raises(errors.LockBusyError, match=r"after 0\.05 s"),
        databases.target_lock(database, wait_s=0.05),
    ):
        pass
    threading.Timer(0.1, release.set).start()
    with databases.target_lock(database, wait_s=10):
        pass
    holder.join()


def test_a_dead_process_holds_no_lock(server: servers.Server, database: DatabaseURL) -> None:
    """B8: a lock left by a dead process is no obstacle."""
    child = _Child(
        """
        with databases.target_lock(url):
            print("held", flush=True)
            time.sleep(60)
        """,
        database,
    )
    assert child.line() == "held"
    with _maintenance(database) as connection:
        assert databases.holder_of(connection, database.database) is not None
    child.kill()
    del server

    with databases.target_lock(database, wait_s=10):
        pass


def test_a_lost_lock_is_noticed(server: servers.Server, database: DatabaseURL) -> None:
    """An administrator may have ended the session that held it."""
    with databases.target_lock(database) as lock, server.admin() as admin:
        admin.execute("SELECT pg_terminate_backend(%s, 5000)", (lock.backend_pid,))
        with pytest.raises(errors.LockBusyError, match="lost"):
            lock.check()


def test_a_missing_maintenance_database_is_a_clear_error(database: DatabaseURL) -> None:
    """It says which, and which option names another."""
    with (
        pytest.raises(errors.ConnectError, match="maintenance database 'nosuch'") as raised,
        databases.target_lock(database, maintenance="nosuch"),
    ):
        pass
    assert "maintenance_database" in raised.value.hint


def test_a_maintenance_database_of_others_is_a_clear_error(
    server: servers.Server, database: DatabaseURL, owner_database: DatabaseURL
) -> None:
    """Hosted servers revoke CONNECT on it."""
    with server.admin() as admin:
        admin.execute(f'REVOKE CONNECT ON DATABASE "{database.database}" FROM PUBLIC'.encode())

    with pytest.raises(errors.AccessDeniedError, match="maintenance database"):
        databases.connect_maintenance(owner_database, maintenance=database.database)


# --- create, clone, drop


def test_a_scratch_database_sorts_as_the_target_and_is_marked(
    each_server: servers.Server, make_database: MakeDatabase
) -> None:
    """Its comment says for whom it is."""
    url = make_database(each_server)
    with _maintenance(url) as connection:
        connection.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(url.database)))
        connection.execute(
            sql.SQL(
                "CREATE DATABASE {} TEMPLATE template0 "
                "ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' OWNER keikaku_owner"
            ).format(sql.Identifier(url.database))
        )
        name = sibling_name("new", url.database)
        databases.create_scratch(connection, name, like=url.database, extra={"snapshot": "日本"})

        assert databases.locale_options(connection, name) == databases.locale_options(
            connection, url.database
        )
        assert databases.database_settings(connection, name).owner == "keikaku_owner"
        (found,) = [one for one in databases.our_databases(connection) if one.name == name]
        assert (found.identity.kind, found.identity.target) == ("new", url.database)
        assert found.identity.extra == {"snapshot": "日本"}


def test_the_builtin_provider_is_kept(server: servers.Server, make_database: MakeDatabase) -> None:
    """Version 17 brought a third provider."""
    url = make_database(server)
    with _maintenance(url) as connection:
        connection.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(url.database)))
        connection.execute(
            sql.SQL(
                "CREATE DATABASE {} TEMPLATE template0 LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8'"
            ).format(sql.Identifier(url.database))
        )
        name = sibling_name("new", url.database)
        databases.create_scratch(connection, name, like=url.database)

        assert databases.locale_options(connection, name).provider == "builtin"
        assert databases.locale_options(connection, name) == databases.locale_options(
            connection, url.database
        )


def test_the_icu_provider_is_kept(each_server: servers.Server, make_database: MakeDatabase) -> None:
    """Version 16 added rules, 17 renamed the column of the locale."""
    url = make_database(each_server)
    with _maintenance(url) as connection:
        connection.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(url.database)))
        rules = "ICU_RULES '&a < g'" if each_server.major >= 16 else ""
        create = f"CREATE DATABASE {{}} TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'ja-JP' {rules}"
        try:
            connection.execute(sql.SQL(create).format(sql.Identifier(url.database)))
        except psycopg.errors.FeatureNotSupported:
            pytest.skip("this server was built without ICU")
        name = sibling_name("new", url.database)
        databases.create_scratch(connection, name, like=url.database)

        assert databases.locale_options(connection, name).provider == "icu"
        assert databases.locale_options(connection, name) == databases.locale_options(
            connection, url.database
        )


def test_a_client_killed_while_creating_leaves_a_marked_database(
    server: servers.Server, database: DatabaseURL
) -> None:
    """Without the mark nobody would ever drop it."""
    name = sibling_name("new", database.database)
    child = _Child(
        f"""
        connection = databases.connect_maintenance(url)
        print(connection.info.backend_pid, flush=True)
        databases.create_scratch(connection, {name!r}, like=url.database)
        """,
        database,
    )
    child.line()
    with server.admin() as admin:
        creating = (
            "SELECT 1 FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
            "AND query LIKE 'CREATE DATABASE%%' AND query LIKE %s"
        )
        _eventually(
            lambda: (
                admin.execute(creating, (f"%{name}%",)).fetchone()
                or admin.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone()
            )
        )
        child.kill()
        comment = "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s"
        _eventually(lambda: (admin.execute(comment, (name,)).fetchone() or (None,))[0] is not None)
    with _maintenance(database) as connection:
        assert databases.sweep(connection, target=database.database) == [name]


def test_a_sweep_does_not_wait_for_a_drop_that_is_under_way(database: DatabaseURL) -> None:
    """docs/design.md, Swap: the server drops the replaced database by itself."""
    name = sibling_name("old", database.database)
    with _maintenance(database) as connection, _maintenance(database) as other:
        databases.create_scratch(connection, name, like=database.database)
        connection.execute("SET lock_timeout = '5s'")
        # The lock that DROP DATABASE holds, for as long as this test likes.
        with other.transaction():
            other.execute(f'ALTER DATABASE "{name}" RENAME TO "{name}_2"'.encode())
            assert databases.sweep(connection, target=database.database) == []
            other.execute(f'ALTER DATABASE "{name}_2" RENAME TO "{name}"'.encode())
        assert databases.sweep(connection, target=database.database) == [name]


def test_a_database_that_exists_is_an_error_of_ours(database: DatabaseURL) -> None:
    """And the comment of the other database is left alone."""
    new, _ = _scratch(database)
    with _maintenance(database) as connection, pytest.raises(errors.UsageError, match="exists already"):
        databases.create_scratch(connection, new, like=database.database)


def test_a_role_without_createdb_is_told_so_beforehand(owner_database: DatabaseURL) -> None:
    """And told by the server when it tries all the same."""
    with _maintenance(owner_database) as connection:
        assert "CREATEDB" in databases.obstacles_to_create(connection, owner_database.database)[0]
        with pytest.raises(errors.AccessDeniedError):
            databases.create_scratch(
                connection, sibling_name("new", owner_database.database), like=owner_database.database
            )


def test_another_collation_version_forbids_cloning_only(
    each_server: servers.Server, make_database: MakeDatabase
) -> None:
    """FAULTS 76: CREATE DATABASE … TEMPLATE fails, a database made anew is right."""
    url = make_database(each_server)
    with each_server.admin() as admin:
        admin.execute("UPDATE pg_database SET datcollversion = '0.1' WHERE datname = %s", (url.database,))
    with _maintenance(url) as connection:
        assert "0.1" in str(databases.collation_mismatch(connection, url.database))
        with pytest.raises(errors.RefusedError, match="cannot be cloned"):
            databases.clone(
                connection, url.database, sibling_name("spare", url.database), target=url.database
            )
        databases.create_scratch(connection, sibling_name("new", url.database), like=url.database)


def test_a_clone_has_everything_and_a_mark(database: DatabaseURL) -> None:
    """The fast way from a template."""
    new, _ = _scratch(database)
    name = sibling_name("spare", database.database)
    with _maintenance(database) as connection:
        databases.clone(connection, new, name, target=database.database, kind="spare")

        assert _mark(database, name) == "new"
        assert [
            one.name
            for one in databases.our_databases(connection, kinds=["spare"])
            if one.identity.target == database.database
        ] == [name]


def test_databases_that_are_dropped_meanwhile_do_not_end_the_listing(server: servers.Server) -> None:
    """FAULTS 58: every restore and every run of the plugin lists while the server drops what others left."""
    names = [databases.sibling_name("old", "dropped_meanwhile") for _ in range(12)]
    with server.admin() as connection, server.admin() as dropping, ThreadPoolExecutor(1) as beside:
        for name in names:
            databases.create_scratch(connection, name, like="postgres", kind="old")
        dropped = beside.submit(lambda: [databases.drop(dropping, name) for name in names])
        while not dropped.done():
            databases.our_databases(connection, kinds=["old"])
        assert dropped.result() == [True] * len(names)


def test_a_process_with_many_open_files_makes_databases_too(database: DatabaseURL) -> None:
    """select(2) takes no descriptor above 1023; a web server has them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2000:
        pytest.skip("this account may not open so many files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        with _maintenance(database) as connection:
            name = sibling_name("new", database.database)
            databases.create_scratch(connection, name, like=database.database)

            assert databases.database_exists(connection, name)
    finally:
        for descriptor in opened:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_template_with_somebody_inside_is_not_cloned(database: DatabaseURL) -> None:
    """FAULTS 62: the server waits five seconds, then says that it is in use."""
    with connect(database), _maintenance(database) as connection, pytest.raises(errors.DatabaseInUseError):
        databases.clone(
            connection, database.database, sibling_name("spare", database.database), target=database.database
        )


def test_a_foreign_database_is_never_dropped(server: servers.Server, make_database: MakeDatabase) -> None:
    """docs/design.md, Swap: no foreign database of a similar name is ever touched; the comment decides."""
    url = make_database(server, name=f"keikaku_new_{os.getpid()}_mine")
    with _maintenance(url) as connection:
        with pytest.raises(errors.RefusedError, match="not made by"):
            databases.drop(connection, url.database)
        databases.sweep(connection, target=url.database)

        assert databases.database_exists(connection, url.database)
        assert databases.drop(connection, "keikaku_new_nosuch") is False


def test_work_left_to_the_server_is_done_without_us(database: DatabaseURL) -> None:
    """docs/design.md, Swap: no process of ours outlives the command."""
    new, _ = _scratch(database)
    spare = sibling_name("spare", database.database)
    mark = databases.Identity("spare", database.database)

    def leave_clone(template: str) -> databases.WorkLeftToServer:
        method = databases.CloneMethod("WAL_LOG")
        return databases.leave_clone_to_server(
            database, template, spare, mark, owner="postgres", method=method
        )

    def is_marked() -> bool:
        ours = databases.our_databases(connection)
        return [one.name for one in ours if one.identity.kind == "spare"] == [spare]

    with _maintenance(database) as connection:
        leave_clone(new).abandon()
        _eventually(is_marked)
        _eventually(lambda: databases.clones_in_flight(connection, new) == 0)
        databases.leave_to_server(database, drop_database=spare).abandon()
        _eventually(lambda: not databases.database_exists(connection, spare))
        databases.leave_to_server(database, drop_database=new).wait()
        assert not databases.database_exists(connection, new)
        with pytest.raises(errors.KeikakuError):
            leave_clone("nosuch_db").wait()


# --- settings


def test_all_that_a_database_has_of_its_own_is_copied(
    each_server: servers.Server, make_database: MakeDatabase
) -> None:
    """FAULTS 63: ALTER DATABASE SET, grants, limit and comment were lost in the swap."""
    url = make_database(each_server, owner="keikaku_creator")
    admin_url = each_server.url.with_database(url.database)
    with each_server.admin() as admin:
        name = sql.Identifier(url.database)
        for statement in (
            "ALTER DATABASE {} SET search_path TO \"$user\", public, 'a b'",
            "ALTER DATABASE {} SET app.tenant TO 'x, \"y\"'",
            "ALTER DATABASE {} SET log_statement TO 'ddl'",
            "ALTER ROLE keikaku_owner IN DATABASE {} SET statement_timeout TO '5s'",
            "REVOKE ALL ON DATABASE {} FROM PUBLIC",
            "GRANT CONNECT ON DATABASE {} TO keikaku_owner WITH GRANT OPTION",
            "ALTER DATABASE {} CONNECTION LIMIT 11",
            "COMMENT ON DATABASE {} IS 'the shop'",
        ):
            admin.execute(sql.SQL(statement).format(name))
    with _maintenance(admin_url) as connection:
        before = databases.database_settings(connection, url.database)
        new, old = _scratch(admin_url)
        databases.copy_settings(connection, url.database, new)
        databases.swap_by_rename(admin_url, replacement=new, old_name=old)

        assert databases.database_settings(connection, url.database) == before
        assert before.comment == "the shop"
        identity = Identity.from_comment(databases.database_settings(connection, old).comment)
        assert identity is not None
        assert (identity.kind, identity.target, identity.comment) == ("old", url.database, "the shop")


def test_settings_that_the_owner_may_not_copy_are_named_beforehand(
    server: servers.Server, creator_database: DatabaseURL
) -> None:
    """docs/design.md, Swap: refused, and nothing copied by halves."""
    with server.admin() as admin:
        name = sql.Identifier(creator_database.database)
        admin.execute(sql.SQL("ALTER DATABASE {} SET work_mem TO '5MB'").format(name))
        admin.execute(sql.SQL("ALTER DATABASE {} SET log_statement TO 'ddl'").format(name))
        admin.execute(sql.SQL("ALTER ROLE keikaku_owner IN DATABASE {} SET work_mem TO '6MB'").format(name))
    new, _ = _scratch(creator_database)
    with _maintenance(creator_database) as connection:
        reasons = databases.uncopyable_settings(connection, creator_database.database)

        assert len(reasons) == 2
        assert "keikaku_owner" in reasons[0] + reasons[1]
        assert "log_statement" in reasons[0] + reasons[1]
        assert set(reasons) <= set(databases.obstacles_to_swap(connection, creator_database.database))
        with pytest.raises(errors.UnsafeRestoreError):
            databases.copy_settings(connection, creator_database.database, new)
        assert databases.database_settings(connection, new).parameters == ()


def test_a_lost_connection_is_no_setting_that_cannot_be_copied(
    server: servers.Server, creator_database: DatabaseURL
) -> None:
    """The remedy is another one: nothing is wrong with the database."""
    new, _ = _scratch(creator_database)
    with _maintenance(creator_database) as connection:
        with server.admin() as admin:
            admin.execute("SELECT pg_terminate_backend(%s, 5000)", [connection.info.backend_pid])
        with pytest.raises(errors.ConnectError):
            databases.copy_settings(connection, creator_database.database, new)


END_OURSELVES = sql.SQL("SELECT pg_terminate_backend(pg_backend_pid())").format()


def test_a_database_whose_session_is_ended_before_its_mark_gets_it(
    creator_database: DatabaseURL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a mark nobody of ours would ever find and drop it."""
    send = together.send_together
    monkeypatch.setattr(
        together,
        "send_together",
        lambda connection, parts: send(connection, [parts[0], END_OURSELVES, parts[1]]),
    )
    name = sibling_name("new", creator_database.database)
    with _maintenance(creator_database) as connection, pytest.raises(errors.ConnectError):
        databases.create_scratch(connection, name, like=creator_database.database)
    with _maintenance(creator_database) as connection:
        identity = Identity.from_comment(databases.database_settings(connection, name).comment)
    assert identity is not None
    assert identity.target == creator_database.database


def test_a_session_that_is_ended_before_it_made_a_database_marks_none(
    creator_database: DatabaseURL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that has the name already is somebody else's; a mark would let us drop it."""
    send = together.send_together
    monkeypatch.setattr(
        together, "send_together", lambda connection, parts: send(connection, [END_OURSELVES, *parts])
    )
    name = sibling_name("new", creator_database.database)
    with _maintenance(creator_database) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        with pytest.raises(errors.ConnectError):
            databases.create_scratch(connection, name, like=creator_database.database)
    with _maintenance(creator_database) as connection:
        assert databases.database_settings(connection, name).comment is None
        connection.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(name)))


# --- obstacles


def test_a_database_without_obstacles_has_none(creator_database: DatabaseURL) -> None:
    """The owner may swap its own database."""
    with _maintenance(creator_database) as connection:
        assert databases.obstacles_to_swap(connection, creator_database.database) == []


def test_a_replication_slot_is_an_obstacle_and_survives(
    server: servers.Server, database: DatabaseURL
) -> None:
    """FAULTS 101: DROP DATABASE deletes an inactive logical slot without a word."""
    new, old = _scratch(database)
    with server.admin(database.database) as admin, _maintenance(database) as connection:
        slot = f"slot_{os.getpid()}"
        admin.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (slot,))
        reasons = databases.obstacles_to_swap(connection, database.database)
        assert any(slot in reason for reason in reasons)

        admin.close()
        databases.swap_by_rename(database, replacement=new, old_name=old)
        with pytest.raises(errors.RefusedError, match="slots"):
            databases.drop(connection, old)
        assert databases.sweep(connection, target=database.database) == []
        connection.execute("SELECT pg_drop_replication_slot(%s)", (slot,))


def test_a_prepared_transaction_is_an_obstacle(server: servers.Server, database: DatabaseURL) -> None:
    """FAULTS 101: the rename would wait for five seconds and refuse."""
    with server.admin(database.database) as admin:
        admin.execute(f"BEGIN; CREATE TABLE t (a int); PREPARE TRANSACTION '{database.database}'".encode())
    with _maintenance(database) as connection:
        (reason,) = databases.obstacles_to_swap(connection, database.database)

    assert reason == f"prepared transaction '{database.database}' of postgres is open"


def test_a_subscription_is_an_obstacle(server: servers.Server, database: DatabaseURL) -> None:
    """FAULTS 101: it keeps the old database from being dropped."""
    with server.admin(database.database) as admin:
        admin.execute(
            f"CREATE SUBSCRIPTION \"sub_{database.database}\" CONNECTION 'host=nowhere.invalid' "
            "PUBLICATION p WITH (connect = false, slot_name = NONE)".encode()
        )
    with _maintenance(database) as connection:
        (reason,) = databases.obstacles_to_swap(connection, database.database)

    assert "subscription" in reason


def test_a_superusers_session_is_an_obstacle_for_the_owner(
    server: servers.Server, creator_database: DatabaseURL
) -> None:
    """docs/design.md, Swap: the owner cannot end it."""
    with server.admin(creator_database.database) as other, _maintenance(creator_database) as connection:
        (reason,) = databases.obstacles_to_swap(connection, creator_database.database)
        assert f"pid {other.info.backend_pid}" in reason
        new, old = _scratch(creator_database)
        with pytest.raises(errors.DatabaseInUseError):
            databases.swap_by_rename(
                creator_database, replacement=new, old_name=old, disconnect=True, wait_s=1
            )
        assert other.execute("SELECT 1").fetchone() == (1,)


def test_an_autovacuum_worker_is_no_obstacle(fresh_server: FreshServer, make_database: MakeDatabase) -> None:
    """RECIPES 1.7: a plain role sees no type of it; the server ends it by itself when a rename comes."""
    server = fresh_server(
        autovacuum_naptime="1s", autovacuum_vacuum_cost_delay="100ms", autovacuum_vacuum_cost_limit="1"
    )
    url = make_database(server, owner="keikaku_creator")
    with server.admin(url.database) as admin:
        admin.execute("CREATE TABLE t AS SELECT generate_series(1, 200000) AS n")
        admin.execute("DELETE FROM t WHERE n % 2 = 0")
        # One that has found the table: others look at the database for a moment only.
        worker = (
            "SELECT pid FROM pg_stat_activity WHERE datname = %s AND backend_type = 'autovacuum worker'"
            " AND starts_with(query, 'autovacuum: VACUUM')"
        )
        _eventually(lambda: admin.execute(worker, [url.database]).fetchone() is not None)
        found = admin.execute(worker, [url.database]).fetchone()
    with _maintenance(url) as connection:
        assert databases.obstacles_to_swap(connection, url.database) == []
        assert databases.sessions_in(connection, url.database) == []
        assert [one.pid for one in databases.sessions_in(connection, url.database, clients_only=False)] == [
            found[0] if found else 0
        ]


def test_rights_that_are_missing_are_obstacles(
    server: servers.Server, owner_database: DatabaseURL, database: DatabaseURL
) -> None:
    """Named before anything is touched."""
    del server
    with _maintenance(owner_database) as connection:
        (reason,) = databases.obstacles_to_swap(connection, owner_database.database)
        assert "CREATEDB" in reason
        assert "belongs to postgres" in databases.obstacles_to_swap(connection, database.database)[0]
        assert "maintenance database" in databases.obstacles_to_swap(connection, "postgres")[0]
        with pytest.raises(errors.UsageError):
            databases.obstacles_to_swap(connection, "no_such_database")


# --- swap


def test_two_renames_in_one_transaction_replace_a_database(
    each_server: servers.Server, make_database: MakeDatabase
) -> None:
    """FAULTS 63: the old one stays under its new name until it is dropped."""
    url = make_database(each_server, owner="keikaku_creator")
    _marked(url, "old")
    new, old = _scratch(url)

    swapped = databases.swap_by_rename(url, replacement=new, old_name=old)

    assert (_mark(url), _mark(url, old)) == ("new", "old")
    assert swapped.attempts == 1
    assert swapped.seconds < 1
    with _maintenance(url) as connection:
        assert databases.sweep(connection, target=url.database) == [old]
        assert not databases.database_exists(connection, new)


def test_without_leave_nobody_is_disconnected(
    each_server: servers.Server, make_database: MakeDatabase
) -> None:
    """PEERS 5, FAULTS 62; design, Swap: it gives up after 150 ms in place of 5 s, and names who is inside."""
    url = make_database(each_server)
    _marked(url, "old")
    new, old = _scratch(url)
    with connect(url, application_name="the app") as client:
        began = time.monotonic()
        with pytest.raises(errors.DatabaseInUseError, match="the app"):
            databases.swap_by_rename(url, replacement=new, old_name=old)

        assert time.monotonic() - began < 2
        assert client.execute("SELECT value FROM mark").fetchone() == ("old",)
    assert (_mark(url), _mark(url, new)) == ("old", "new")


def test_a_swap_never_fails_for_clients_that_come_back(
    each_server: servers.Server, make_database: MakeDatabase
) -> None:
    """PEERS 5; design, Swap: eight clients keep reconnecting; each swap succeeds and none is locked out."""
    url = make_database(each_server)
    _marked(url, "0")
    stop = threading.Event()
    served: list[str] = []
    unexpected: list[str] = []

    def client() -> None:
        while not stop.is_set():
            try:
                with psycopg.connect(**url.connect_arguments()) as connection:
                    while not stop.is_set():
                        row = connection.execute("SELECT value FROM mark").fetchone()
                        served.append(str(row and row[0]))
                        time.sleep(0.002)
            except psycopg.OperationalError as error:
                if (
                    "does not exist" not in str(error)
                    and "terminating" not in str(error)
                    and "closed" not in str(error)
                ):
                    unexpected.append(str(error))

    clients = [threading.Thread(target=client) for _ in range(8)]
    for one in clients:
        one.start()
    try:
        _eventually(lambda: len(served) > 50)
        for number in range(1, 4):
            new, old = _scratch(url, str(number))
            databases.swap_by_rename(url, replacement=new, old_name=old, disconnect=True)
            _eventually(lambda wanted=str(number): wanted in served[-8:])  # type: ignore[misc]
    finally:
        stop.set()
        for one in clients:
            one.join()

    assert unexpected == []
    assert _mark(url) == "3"


@pytest.mark.parametrize("moment", ["between the renames", "after the second rename"])
def test_a_client_killed_in_the_swap_leaves_both_names_valid(
    each_server: servers.Server, make_database: MakeDatabase, moment: str
) -> None:
    """FAULTS 50: a database stayed closed, even to superusers; here there is no closed state."""
    url = make_database(each_server)
    _marked(url, "old")
    new, old = _scratch(url)
    child = _Child(
        f"""
        from keikaku_snapshots.postgres import swap
        real, calls = swap._rename_statement, []
        def statement(name, new_name):
            calls.append(name)
            if len(calls) == 2 and {moment == "between the renames"!r}:
                print("now", flush=True); time.sleep(60)
            return real(name, new_name)
        def comment(name, text):
            print("now", flush=True); time.sleep(60)
        swap._rename_statement, swap.comment_statement = statement, comment
        databases.swap_by_rename(url, replacement={new!r}, old_name={old!r})
        """,
        url,
    )
    assert child.line() == "now"
    child.kill()

    with _maintenance(url) as connection:
        _eventually(lambda: not _swappers(connection))
        rows = connection.execute(
            "SELECT datname, datallowconn FROM pg_database WHERE datname = ANY (%s) ORDER BY 1",
            ([url.database, new, old],),
        ).fetchall()
        assert rows == sorted([(url.database, True), (new, True)])
    assert (_mark(url), _mark(url, new)) == ("old", "new")
    with _maintenance(url) as connection:
        assert databases.sweep(connection, target=url.database) == [new]


def _swappers(connection: Connection) -> list[object]:
    return connection.execute(
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'keikaku_snapshots swap'"
    ).fetchall()  # type: ignore[return-value]


def test_a_connection_lost_at_commit_is_looked_up(
    server: servers.Server, database: DatabaseURL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS 17: the outcome of a lost COMMIT can be read from the names."""
    from keikaku_snapshots.postgres import swap

    _marked(database, "old")
    new, old = _scratch(database)
    real = swap._Swap._rename

    def lost(self: swap._Swap, session: Connection, wait_s: float) -> psycopg.Error | None:
        assert real(self, session, wait_s) is None
        return psycopg.OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(swap._Swap, "_rename", lost)
    del server

    assert databases.swap_by_rename(database, replacement=new, old_name=old).attempts == 1
    assert _mark(database) == "new"


def test_a_connection_lost_before_commit_is_a_failure(
    database: DatabaseURL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing has changed."""
    from keikaku_snapshots.postgres import swap

    _marked(database, "old")
    new, old = _scratch(database)
    monkeypatch.setattr(
        swap._Swap,
        "_rename",
        lambda *_: psycopg.OperationalError("server closed the connection unexpectedly"),
    )

    with pytest.raises(errors.ConnectError):
        databases.swap_by_rename(database, replacement=new, old_name=old)
    assert _mark(database) == "old"


def test_all_sessions_are_ended_at_once(database: DatabaseURL) -> None:
    """PEERS 5; docs/design.md, Swap: waiting for one after another took 830 ms for eight."""
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            stack.callback(connect(database).close)
        with _maintenance(database) as connection:
            began = time.monotonic()
            assert databases.terminate(connection, database.database) == []
            assert time.monotonic() - began < 0.5


# --- leftovers


def test_a_dead_runs_databases_are_found_and_a_living_ones_are_not(database: DatabaseURL) -> None:
    """docs/design.md, Swap: each is dropped by the next command when its owner is gone."""
    new, _ = _scratch(database)
    target = database.database
    with _maintenance(database) as connection:
        with databases.target_lock(database) as lock:
            assert databases.leftovers(connection, target=target) == []
            assert databases.sweep(connection, target=target) == []
            assert databases.sweep(lock.connection, target=target, lock_is_ours=True) == [new]
        again, _ = _scratch(database)
        assert [one.name for one in databases.leftovers(connection, target=target)] == [again]
        assert databases.sweep(connection, target=target) == [again]
        assert databases.holder_of(connection, target) is None


def test_an_old_database_stays_as_long_as_was_said(database: DatabaseURL) -> None:
    """keep_old_minutes: undo is a rename."""
    new, old = _scratch(database)
    databases.swap_by_rename(database, replacement=new, old_name=old, keep_until="2999-01-01T00:00:00+00:00")
    with _maintenance(database) as connection:
        assert databases.sweep(connection, target=database.database) == []
        assert databases.database_exists(connection, old)


_CHILD = """
import sys, time
from keikaku_snapshots.postgres import creation, databases
from keikaku_snapshots.postgres.url import DatabaseURL
url = DatabaseURL.parse(sys.stdin.readline().strip())
"""


class _Child:
    """A process that works on the database until it is killed; the URL goes by stdin."""

    def __init__(self, code: str, url: DatabaseURL) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CHILD + textwrap.dedent(code)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(url.text.encode() + b"\n")
        self._process.stdin.flush()

    def line(self) -> str:
        """Wait for a line of its output."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().decode().strip()

    def kill(self) -> None:
        """Kill it with SIGKILL and wait until it is gone."""
        with self._process:
            self._process.kill()
