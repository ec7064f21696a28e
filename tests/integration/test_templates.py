"""Warm restore: the first restore leaves a template, later ones clone it and rename."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import sql

from keikaku_snapshots import SnapshotManager
from keikaku_snapshots.config import Settings
from keikaku_snapshots.errors import (
    DiskFullError,
    HookFailedError,
    ProtectedDatabaseError,
    SchemaDriftError,
    SnapshotCorruptError,
    UnsafeRestoreError,
    UsageError,
)
from keikaku_snapshots.postgres import capacity, catalog, databases
from keikaku_snapshots.snapshots import warm
from keikaku_snapshots.snapshots.reading import OpenSnapshot
from keikaku_snapshots.testing.filling import Filler
from tests import servers
from tests.integration import schemas
from tests.integration.test_restore_in_place import CHANGED, SMALL
from tests.integration.test_restore_swap import siblings, wait_until_clean
from tests.servers import connect
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.progress import Progress
    from keikaku_snapshots.snapshots.restore import Restored
    from keikaku_snapshots.snapshots.templates import Template
    from tests.conftest import FreshServer, MakeDatabase
    from tests.servers import Server

COUNT = "SELECT count(*) FROM children"


@pytest.fixture(scope="session")
def server(own_server: Server) -> Server:
    """A server whose templates nobody else pushes out."""
    return own_server


@pytest.fixture
def small(database: DatabaseURL, tmp_path: Path) -> Iterator[SnapshotManager]:
    """A manager whose database was snapshotted as ``small`` and changed afterwards."""
    schemas.run(database, SMALL)
    with SnapshotManager(database, tmp_path / "snapshots", minimum_free_mb=1) as manager:
        manager.create_snapshot("small")
        schemas.run(database, CHANGED)
        yield manager


@pytest.fixture
def warmed(small: SnapshotManager) -> SnapshotManager:
    """The same manager, whose snapshot has a template, and whose database was changed again."""
    assert origin(small.restore_snapshot("small")) == "cold"
    schemas.run(small.url, CHANGED)
    return small


def with_spare(manager: SnapshotManager) -> SnapshotManager:
    """A manager of the same database and directory that leaves a spare."""
    return SnapshotManager(manager.url, manager.directory, minimum_free_mb=1, spare=1)


def origin(restored: Restored) -> str:
    """Where the database came from: cold, warm or spare."""
    return restored.reason.partition(":")[0]


def only(manager: SnapshotManager) -> Template:
    """The one template that was made for this database."""
    (found,) = (one for one in manager.list_templates() if one.target == manager.url.database)
    return found


def wait_for_spare(manager: SnapshotManager, count: int = 1) -> tuple[str, ...]:
    """The server makes it by itself; wait for it."""
    deadline = time.monotonic() + 30
    while len(spares := only(manager).spares) < count:
        assert time.monotonic() < deadline, "no spare came"
        time.sleep(0.02)
    return spares


def test_the_second_restore_takes_the_template_of_the_first(server: Server, small: SnapshotManager) -> None:
    """C3: nothing is loaded, and the database is the same."""
    first = small.restore_snapshot("small")
    assert (first.strategy, origin(first)) == ("swap", "cold")
    content = schemas.dump_text(server, small.url)
    schemas.run(small.url, CHANGED)
    second = small.restore_snapshot("small")
    assert (second.strategy, origin(second)) == ("template", "warm")
    assert schemas.dump_text(server, small.url) == content
    assert only(small).used_at > only(small).created_at
    wait_until_clean(server, small.url)


@pytest.mark.parametrize("major", servers.MAJORS)
def test_each_version_of_the_server_clones(fresh_server: FreshServer, major: int, tmp_path: Path) -> None:
    """DESIGN 5, PEERS 20: every strategy of the server gives the same database."""
    server = fresh_server(major)
    url = servers.create_database(server)
    schemas.run(url, SMALL)
    with SnapshotManager(url, tmp_path, minimum_free_mb=1, spare=1) as manager:
        manager.create_snapshot("small")
        content = schemas.dump_text(server, url)
        assert origin(manager.restore_snapshot("small")) == "cold"
        for size_bytes in (1, databases.FILE_COPY_BYTES):
            wait_for_spare(manager)
            with server.admin() as admin:
                for spare in only(manager).spares:
                    databases.drop(admin, spare)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("keikaku_snapshots.postgres.cloning.FILE_COPY_BYTES", size_bytes)
                assert origin(manager.restore_snapshot("small")) == "warm"
            assert schemas.dump_text(server, url) == content
        wait_for_spare(manager)
        assert origin(manager.restore_snapshot("small")) == "spare"
        assert schemas.dump_text(server, url) == content


def test_a_warm_restore_does_not_read_a_file_that_was_checked(
    warmed: SnapshotManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DESIGN 5: size, time and inode of the last check are trusted; any other file is read."""
    read = []
    check = OpenSnapshot.check

    def count(self: OpenSnapshot) -> object:
        read.append(self.path.name)
        return check(self)

    monkeypatch.setattr(OpenSnapshot, "check", count)
    warmed.restore_snapshot("small")
    assert read == []
    os.utime(warmed.get_snapshot("small").path)
    for _ in range(2):
        assert origin(warmed.restore_snapshot("small")) == "warm"
    assert len(read) == 1, "once, and then it is remembered"


def test_a_file_that_was_damaged_since_is_refused_with_a_template_too(
    server: Server, warmed: SnapshotManager
) -> None:
    """FAULTS 62, B13: the template is a cache; the file is what counts."""
    path = warmed.get_snapshot("small").path
    text = path.read_bytes()
    path.write_bytes(text.replace(b"1", b"2", 1))
    with pytest.raises(SnapshotCorruptError):
        warmed.restore_snapshot("small")
    assert schemas.rows_of(warmed.url, COUNT) == [(300,)]
    wait_until_clean(server, warmed.url)


def test_a_spare_makes_the_next_restore_two_renames(server: Server, small: SnapshotManager) -> None:
    """C3, RECIPES 3.5: it is left to the server, and each restore leaves the next one."""
    content = ""
    with with_spare(small) as manager:
        for expected in ("cold", "spare", "spare"):
            schemas.run(small.url, CHANGED)
            restored = manager.restore_snapshot("small")
            assert origin(restored) == expected
            content = content or schemas.dump_text(server, small.url)
            assert schemas.dump_text(server, small.url) == content
            assert len(wait_for_spare(manager)) == 1
    assert origin(small.restore_snapshot("small")) == "spare", "also by those who make none"
    assert origin(small.restore_snapshot("small")) == "warm"
    wait_until_clean(server, small.url)


def test_a_spare_that_is_on_its_way_is_waited_for(small: SnapshotManager) -> None:
    """RECIPES 3.5: the next restore sees that it is in flight."""
    with with_spare(small) as manager:
        manager.restore_snapshot("small")
        assert origin(manager.restore_snapshot("small")) == "spare"


def test_the_audit_log_says_where_it_came_from_and_nothing_is_told_of_a_file_that_is_not_read(
    small: SnapshotManager,
) -> None:
    """B14: cold, warm or spare; no megabytes a second for a rename."""
    told: list[Progress] = []
    for _ in range(2):
        told.clear()
        small.restore_snapshot("small", progress=told.append)
    assert told == []
    lines = [json.loads(line) for line in (small.directory / "audit.log").read_text().splitlines()]
    assert [line["template"] for line in lines if "template" in line] == ["cold", "warm"]


def test_nobody_can_enter_a_template_or_a_spare(server: Server, small: SnapshotManager) -> None:
    """FAULTS 62: a session inside makes CREATE DATABASE wait 5 s and fail."""
    with with_spare(small) as manager:
        manager.restore_snapshot("small")
        for name in (only(manager).database, *wait_for_spare(manager)):
            with pytest.raises(psycopg.OperationalError, match="not currently accepting connections"):
                connect(server.url.with_database(name))


def test_what_the_database_has_of_its_own_is_as_it_was_at_the_swap(
    server: Server, small: SnapshotManager
) -> None:
    """FAULTS 63, RECIPES 3.3: owner, settings, grants, limit, comment, also those given after the spare."""
    name = small.url.database
    query = """
        SELECT datdba, (SELECT array_agg(a::text ORDER BY a::text) FROM unnest(datacl) a), datconnlimit,
               shobj_description(oid, 'pg_database'), datallowconn, datistemplate, datcollate,
               (SELECT array_agg(setrole || array_to_string(setconfig, ',') ORDER BY setrole)
                FROM pg_db_role_setting WHERE setdatabase = d.oid)
        FROM pg_database d WHERE datname = %s
    """
    with with_spare(small) as manager, server.admin() as admin:
        manager.restore_snapshot("small")
        for turn, expected in enumerate(("spare", "spare", "warm")):
            if expected == "spare":
                wait_for_spare(manager)
            for statement in (
                f"ALTER DATABASE {name} SET work_mem = '{turn + 5}MB'",
                f"ALTER ROLE keikaku_owner IN DATABASE {name} SET search_path = 'a {turn}', public",
                f"ALTER DATABASE {name} CONNECTION LIMIT {17 + turn}",
                f"COMMENT ON DATABASE {name} IS '検証用 {turn}'",
                f"REVOKE CONNECT ON DATABASE {name} FROM PUBLIC",
                f"GRANT CONNECT ON DATABASE {name} TO keikaku_owner",
            ):
                admin.execute(statement)
            before = admin.execute(query, [name]).fetchone()
            user = small if turn else manager
            assert origin(user.restore_snapshot("small")) == expected
            assert admin.execute(query, [name]).fetchone() == before


def test_two_restores_never_get_the_same_spare(
    server: Server, small: SnapshotManager, make_database: MakeDatabase
) -> None:
    """RECIPES 3.6: only one can rename it; the other clones the template."""
    other = make_database(server)
    with with_spare(small) as manager:
        manager.restore_snapshot("small")
        wait_for_spare(manager)
    with SnapshotManager(other, small.directory, minimum_free_mb=1) as second, ThreadPoolExecutor(2) as both:
        done = [both.submit(one.restore_snapshot, "small") for one in (small, second)]
        assert sorted(origin(one.result()) for one in done) == ["spare", "warm"]
    for url in (small.url, other):
        assert schemas.rows_of(url, COUNT) == [(500,)]


def test_a_template_is_built_once_for_all_who_want_it(
    server: Server, small: SnapshotManager, make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEERS 16: the others wait for the builder and clone."""
    urls = [small.url, *(make_database(server) for _ in range(3))]
    made = []
    create, start = databases.create_scratch, threading.Barrier(len(urls))

    def count(connection: psycopg.Connection[tuple[object, ...]], name: str, **options: object) -> object:
        made.append(name)
        return create(connection, name, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(databases, "create_scratch", count)

    def restore(url: DatabaseURL) -> str:
        with SnapshotManager(url, small.directory, minimum_free_mb=1) as manager:
            start.wait(20)
            return origin(manager.restore_snapshot("small"))

    with ThreadPoolExecutor(len(urls)) as all_of_them:
        assert sorted(all_of_them.map(restore, urls)) == ["cold", "warm", "warm", "warm"]
    assert len(made) == 1
    assert [schemas.rows_of(url, COUNT) for url in urls] == [[(500,)]] * 4


def test_who_cannot_wait_for_the_builder_any_longer_builds_for_himself(
    server: Server, small: SnapshotManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RECIPES 3.4: a builder that hangs stops nobody."""
    monkeypatch.setattr(warm, "BUILDER_WAIT_S", 0.05)
    locked: list[psycopg.Connection[tuple[object, ...]]] = []
    try_lock = databases.try_lock

    def somebody_else(connection: psycopg.Connection[tuple[object, ...]], target: str) -> bool:
        if not locked:
            locked.append(server.admin())
            assert try_lock(locked[0], target)
        return try_lock(connection, target)

    monkeypatch.setattr(databases, "try_lock", somebody_else)
    restored = small.restore_snapshot("small")
    locked[0].close()
    assert restored.strategy == "swap"
    assert "somebody else builds" in restored.reason
    assert small.list_templates() == []


def test_auto_disconnects_nobody_and_template_ends_sessions(warmed: SnapshotManager) -> None:
    """Design: with somebody inside auto stays in place; who asks for the template disconnects."""
    with connect(warmed.url) as session:
        assert warmed.restore_snapshot("small").strategy == "in_place"
        assert session.execute(COUNT).fetchone() == (500,)
        assert warmed.restore_snapshot("small", strategy="template").strategy == "template"
        with pytest.raises(psycopg.OperationalError):
            session.execute("SELECT 1")


def test_a_session_that_comes_in_during_the_clone_is_not_disconnected(
    server: Server, warmed: SnapshotManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RECIPES 3.2: auto gives way to in_place."""
    sessions = []
    copy = databases.copy_settings

    def come_in(*arguments: str) -> None:
        copy(*arguments)  # type: ignore[arg-type]
        sessions.append(connect(warmed.url))

    monkeypatch.setattr(databases, "copy_settings", come_in)
    assert warmed.restore_snapshot("small").strategy == "in_place"
    assert sessions[0].execute(COUNT).fetchone() == (500,)
    sessions[0].close()
    wait_until_clean(server, warmed.url)


def test_slots_are_not_lost_by_a_warm_restore(server: Server, warmed: SnapshotManager) -> None:
    """FAULTS 101: looked for first."""
    slot = f"slot_{warmed.url.database}"
    with connect(warmed.url) as session:
        session.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [slot])
    with pytest.raises(UnsafeRestoreError, match="slot_"):
        warmed.restore_snapshot("small", strategy="template")
    assert warmed.restore_snapshot("small").strategy == "in_place"
    with server.admin() as admin:
        admin.execute("SELECT pg_drop_replication_slot(%s)", [slot])


def test_a_role_without_createdb_cannot_use_templates(owner_database: DatabaseURL, tmp_path: Path) -> None:
    """The same refusal as for a swap; auto works as ever."""
    schemas.run(owner_database, SMALL)
    with SnapshotManager(owner_database, tmp_path, minimum_free_mb=1, spare=1) as manager:
        manager.create_snapshot("small")
        assert manager.restore_snapshot("small").strategy == "in_place"
        with pytest.raises(UnsafeRestoreError, match="CREATEDB"):
            manager.restore_snapshot("small", strategy="template")


def test_a_plain_owner_who_may_create_databases_has_templates_of_his_own(
    server: Server, creator_database: DatabaseURL, tmp_path: Path
) -> None:
    """Templates and spares belong to the role; a superuser's are others."""
    schemas.run(creator_database, SMALL)
    with SnapshotManager(creator_database, tmp_path, minimum_free_mb=1, spare=1) as manager:
        manager.create_snapshot("small")
        assert [origin(manager.restore_snapshot("small")) for _ in range(2)] == ["cold", "spare"]
        assert only(manager).size_bytes > 1_000_000
    admin = server.url.with_database(creator_database.database)
    with SnapshotManager(admin, tmp_path, minimum_free_mb=1) as manager:
        assert origin(manager.restore_snapshot("small")) == "cold"
        assert len(manager.list_templates()) == 2


def test_swap_and_templates_false_neither_use_nor_leave_one(small: SnapshotManager) -> None:
    """Names: swap builds beside; templates=False is for those who count their disk."""
    assert small.restore_snapshot("small", strategy="swap").reason == "asked for"
    with SnapshotManager(small.url, small.directory, minimum_free_mb=1, templates=False) as manager:
        assert manager.restore_snapshot("small").reason == "nobody else is connected"
        with pytest.raises(UsageError, match="templates"):
            manager.restore_snapshot("small", strategy="template")
    with pytest.raises(UsageError, match="spare"):
        SnapshotManager(small.url, small.directory, templates=False, spare=1)
    assert small.list_templates() == []


def test_a_foreign_database_with_the_name_of_a_template_is_left_alone(
    server: Server, warmed: SnapshotManager
) -> None:
    """DESIGN: the comment decides, not the name; restoring still works, without a template."""
    name = only(warmed).database
    with server.admin() as admin:
        admin.execute(f"COMMENT ON DATABASE {name} IS 'somebody else''s'")
        restored = warmed.restore_snapshot("small")
        assert "no template was made" in restored.reason
        assert schemas.rows_of(warmed.url, COUNT) == [(500,)]
        assert warmed.list_templates() == []
        assert warmed.clear_templates() == []
        assert databases.database_exists(admin, name)
        admin.execute(f"DROP DATABASE {name}")
    wait_until_clean(server, warmed.url)


def test_a_template_of_another_collation_version_is_made_anew(
    server: Server, warmed: SnapshotManager
) -> None:
    """FAULTS 76: the server would refuse to copy it; the file is loaded."""
    name = only(warmed).database
    with server.admin() as admin:
        admin.execute("UPDATE pg_database SET datcollversion = '0.0' WHERE datname = %s", [name])
    restored = warmed.restore_snapshot("small")
    assert origin(restored) == "cold"
    assert schemas.rows_of(warmed.url, COUNT) == [(500,)]
    assert origin(warmed.restore_snapshot("small")) == "warm"


def test_a_clone_that_fails_does_not_fail_the_restore(
    server: Server, small: SnapshotManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS 62, PEERS 1: what was loaded goes live itself when there is no room for a copy of it."""

    def full(*_: object, **__: object) -> None:
        raise DiskFullError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(databases, "clone", full)
        restored = small.restore_snapshot("small")
        assert restored.strategy == "swap"
        assert "no template was made" in restored.reason
    assert schemas.rows_of(small.url, COUNT) == [(500,)]
    assert small.list_templates() == []
    wait_until_clean(server, small.url)
    assert origin(small.restore_snapshot("small")) == "cold"


def test_no_template_is_made_where_the_disk_has_no_room_for_it(
    small: SnapshotManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RECIPES 3.7: a template and its clone must fit."""
    monkeypatch.setattr(capacity, "free_disk_bytes", lambda *_: 1_000_000)
    assert "no room for a template" in small.restore_snapshot("small").reason
    assert small.list_templates() == []


def test_hooks_run_on_every_clone(warmed: SnapshotManager) -> None:
    """What a hook does (a migration) is not known from its text, so no template holds it."""
    seen: list[str] = []

    def change(url: DatabaseURL) -> None:
        seen.append(url.database)
        schemas.run(url, f"CREATE TABLE made_by_hook_{len(seen)} ()")

    def fail(_: DatabaseURL) -> None:
        raise RuntimeError("broken")

    for turn in (1, 2):
        assert origin(warmed.restore_snapshot("small", after_restore=change)) == "warm"
        tables = "SELECT relname FROM pg_class WHERE relname LIKE 'made_by%' ORDER BY 1"
        assert schemas.rows_of(warmed.url, tables) == [(f"made_by_hook_{turn}",)]
    assert all(name.startswith("keikaku_new_") for name in seen)
    with pytest.raises(HookFailedError):
        warmed.restore_snapshot("small", after_restore=fail)
    assert schemas.rows_of(warmed.url, tables) == [("made_by_hook_2",)]
    assert origin(warmed.restore_snapshot("small")) == "warm"
    assert schemas.rows_of(warmed.url, tables) == []


def test_what_could_not_be_given_back_is_said_each_time(
    server: Server, make_database: MakeDatabase, tmp_path: Path
) -> None:
    """B17: a warm restore has the same gaps; a role that is there by now makes a template anew."""
    source = make_database(server)
    gone = f"gone_{source.database}"
    with server.admin() as admin:
        admin.execute(f"CREATE ROLE {gone}")
        schemas.run(source, f"{SMALL} GRANT SELECT ON parents TO {gone}")
        with SnapshotManager(source, tmp_path, minimum_free_mb=1) as manager:
            manager.create_snapshot("small")
            schemas.run(source, f"DROP OWNED BY {gone}")
            admin.execute(f"DROP ROLE {gone}")
            first, second = (manager.restore_snapshot("small") for _ in range(2))
            assert (origin(first), origin(second)) == ("cold", "warm")
            assert first.warnings == second.warnings
            assert gone in "\n".join(second.warnings)
            admin.execute(f"CREATE ROLE {gone}")
            third = manager.restore_snapshot("small")
            assert (origin(third), third.warnings) == ("cold", ())
            manager.clear_templates()
        schemas.run(source, f"DROP OWNED BY {gone}")
        admin.execute(f"DROP ROLE {gone}")


def test_three_templates_stay_and_the_least_recently_used_go(server: Server, small: SnapshotManager) -> None:
    """DESIGN 5: dropped by the server, off the path of the restore, spares included."""
    small.clear_templates()
    for number in range(4):
        schemas.run(small.url, f"CREATE TABLE number_{number} ()")
        small.create_snapshot(f"number_{number}")
    with with_spare(small) as manager:
        manager.restore_snapshot("number_0")
        wait_for_spare(manager)
    for number in (1, 2, 0):
        small.restore_snapshot(f"number_{number}")
    small.restore_snapshot("number_3")
    deadline = time.monotonic() + 20
    while len(found := small.list_templates()) > 3:
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    assert [one.snapshot.split()[0].partition("@")[0] for one in found] == [
        "number_3",
        "number_0",
        "number_2",
    ]
    wait_until_clean(server, small.url)


def test_a_spare_whose_template_was_replaced_is_dropped(server: Server, small: SnapshotManager) -> None:
    """RECIPES 3.5: a spare belongs to one template, not to its name."""
    with with_spare(small) as manager, server.admin() as admin:
        manager.restore_snapshot("small")
        (spare,) = wait_for_spare(manager)
        databases.drop(admin, only(manager).database)
        assert origin(small.restore_snapshot("small")) == "cold"
        deadline = time.monotonic() + 20
        while databases.database_exists(admin, spare):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert origin(small.restore_snapshot("small")) == "warm"


def dropped_soon(server: Server, name: str) -> bool:
    """Whether the server, to which it was left, drops this database."""
    with server.admin() as admin:
        with contextlib.suppress(AssertionError):
            until(lambda: not databases.database_exists(admin, name))
        return not databases.database_exists(admin, name)


@pytest.mark.parametrize("how", ["deleted", "overwritten"])
def test_the_next_restore_drops_the_template_of_a_snapshot_that_is_gone(
    server: Server, small: SnapshotManager, how: str
) -> None:
    """PEERS 9: who deletes a snapshot wants its data gone; its spares go too."""
    small.create_snapshot("other")
    with with_spare(small) as manager:
        manager.restore_snapshot("small")
        (spare,) = wait_for_spare(manager)
    template = only(small)
    if how == "deleted":
        small.delete_snapshot("small")
    else:
        version = small.get_snapshot("small").version
        schemas.run(small.url, "INSERT INTO children SELECT 10000, 1")
        small.create_snapshot("small", version=version, overwrite=True)
    small.restore_snapshot("other")
    assert dropped_soon(server, template.database)
    assert dropped_soon(server, spare)
    assert only(small).snapshot.startswith("other")


def test_a_template_stays_as_long_as_anybody_may_need_it(
    server: Server, small: SnapshotManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A renamed snapshot is the same; of other directories and hosts nobody knows here."""
    small.create_snapshot("other")
    small.restore_snapshot("small")
    small.rename_snapshot("small", "renamed")
    small.restore_snapshot("other")
    assert origin(small.restore_snapshot("renamed")) == "warm"
    with SnapshotManager(small.url, tmp_path / "elsewhere", minimum_free_mb=1) as elsewhere:
        schemas.run(small.url, "CREATE TABLE elsewhere ()")
        elsewhere.create_snapshot("small")
        small.delete_snapshot("renamed")
        elsewhere.restore_snapshot("small")
    assert len(small.list_templates()) == 3
    monkeypatch.setattr("socket.gethostname", lambda: "another host")
    small.restore_snapshot("other")
    assert len(small.list_templates()) == 3


def test_the_pytest_plugin_keeps_to_the_configuration(small: SnapshotManager) -> None:
    """`templates` and `spare` of the file hold for its databases too."""
    none = Settings(templates=False, minimum_free_mb=1)
    with Filler(small.directory, none, "keikaku").manager(small.url) as manager:
        assert manager.restore_snapshot("small").reason == "nobody else is connected"
    spare = Settings(spare=1, minimum_free_mb=1)
    with Filler(small.directory, spare, "keikaku").manager(small.url) as manager:
        assert origin(manager.restore_snapshot("small")) == "cold"
        assert len(wait_for_spare(manager)) == 1


def test_clear_may_be_for_one_snapshot(small: SnapshotManager) -> None:
    """By its name and version, which need not be there any more."""
    small.clear_templates()
    small.create_snapshot("other")
    small.restore_snapshot("small")
    small.restore_snapshot("other")
    version = small.get_snapshot("small").version
    small.delete_snapshot("small")
    assert small.clear_templates("small", "20000101_000000") == []
    assert small.clear_templates("smal") == []
    assert len(small.clear_templates("small", version)) == 1
    assert only(small).snapshot.startswith("other")
    with pytest.raises(UsageError, match="name"):
        small.clear_templates(version=version)


def test_clear_drops_templates_and_spares_also_those_on_their_way(
    server: Server, small: SnapshotManager
) -> None:
    """PEERS 9: nothing fills the disk behind one's back."""
    with with_spare(small) as manager:
        manager.restore_snapshot("small")
        name = only(manager).database
        dropped = manager.clear_templates()
        assert name in dropped
    with server.admin() as admin:
        left = databases.our_databases(admin, kinds=("tpl", "spare"))
    assert [one.name for one in left if one.identity.target == small.url.database] == []
    with (
        SnapshotManager(small.url, small.directory, protected_words=["t"]) as manager,
        pytest.raises(ProtectedDatabaseError),
    ):
        manager.clear_templates()


def test_the_replaced_database_is_kept_after_a_warm_restore_too(
    server: Server, warmed: SnapshotManager
) -> None:
    """keep_old_minutes: the way back is a rename."""
    with SnapshotManager(warmed.url, warmed.directory, keep_old_minutes=5, minimum_free_mb=1) as manager:
        assert origin(manager.restore_snapshot("small")) == "warm"
    (kept,) = siblings(server, warmed.url)
    with server.admin(kept) as old:
        assert old.execute(COUNT).fetchone() == (300,)


def test_every_format_has_its_template(database: DatabaseURL, tmp_path: Path) -> None:
    """C3: an archive and a directory are not read at all once they were checked."""
    schemas.run(database, SMALL)
    kinds: list[dict[str, str]] = [{"format": "custom"}, {"format": "directory"}, {"compression": "gzip"}]
    with SnapshotManager(database, tmp_path, minimum_free_mb=1) as manager:
        for kind in kinds:
            manager.create_snapshot("small", **kind)  # type: ignore[arg-type]
            assert [origin(manager.restore_snapshot("small")) for _ in range(2)] == ["cold", "warm"]
            assert schemas.rows_of(database, COUNT) == [(500,)]


def test_a_schema_that_an_earlier_restore_found_right_is_not_read_again(
    small: SnapshotManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B7: a warm restore compares the schemas once; then the versions of the catalog's rows suffice."""
    asked = []
    fingerprint = catalog.fingerprint

    def noted(connection: psycopg.Connection[Any]) -> catalog.Fingerprint:
        asked.append(connection)
        return fingerprint(connection)

    monkeypatch.setattr(catalog, "fingerprint", noted)
    for _ in range(3):  # the database that was snapshotted, then two that come from the template
        small.restore_snapshot("small")
    before = len(asked)
    schemas.run(small.url, "DELETE FROM children; TRUNCATE children; ANALYZE children")
    assert small.restore_snapshot("small").warnings == ()
    assert len(asked) == before


@pytest.mark.parametrize(
    "ddl",
    [
        "ALTER TABLE children ADD COLUMN added int",
        "CREATE TABLE added (id int)",
        "COMMENT ON TABLE children IS 'changed'",
        "ALTER TABLE children SET (fillfactor = 50)",
        "CREATE PUBLICATION p; ALTER PUBLICATION p ADD TABLES IN SCHEMA public",
        "ALTER SEQUENCE children_id_seq OWNED BY NONE",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE TABLE alembic_version (version_num text); INSERT INTO alembic_version VALUES ('abc')",
    ],
)
def test_a_schema_that_was_changed_since_is_told(small: SnapshotManager, ddl: str) -> None:
    """B7: what an earlier restore found right is known by a state of the catalog that DDL ends."""
    for _ in range(3):
        small.restore_snapshot("small")
    schemas.run(small.url, ddl)
    (warning,) = small.restore_snapshot("small").warnings
    assert "schema was not the snapshot's" in warning
    schemas.run(small.url, ddl)
    with pytest.raises(SchemaDriftError):
        small.restore_snapshot("small", on_schema_mismatch="error")
    assert small.restore_snapshot("small", on_schema_mismatch="ignore").warnings == ()


def test_a_copy_that_was_begun_and_is_not_wanted_is_dropped(
    server: Server, small: SnapshotManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restore that is refused while the server copies the template leaves nothing."""
    for _ in range(2):
        small.restore_snapshot("small")
    schemas.run(small.url, "CREATE TABLE added (id int)")
    begun = threading.Event()
    copy = warm.WarmSource._copy

    def noted(self: warm.WarmSource, *arguments: Any) -> str:
        begun.set()
        return copy(self, *arguments)

    monkeypatch.setattr(warm.WarmSource, "_copy", noted)
    with pytest.raises(SchemaDriftError):
        small.restore_snapshot("small", on_schema_mismatch="error")
    assert begun.is_set()
    assert siblings(server, small.url) == []
    assert schemas.rows_of(small.url, "SELECT count(*) FROM added") == [(0,)]


def test_a_copy_that_was_begun_and_fails_is_made_again(
    small: SnapshotManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session in which it was begun is lost; the restore goes on in another."""
    for _ in range(2):
        small.restore_snapshot("small")
    schemas.run(small.url, CHANGED)
    clone, sessions = databases.clone, []

    def lost(connection: psycopg.Connection[Any], *arguments: Any, **options: Any) -> Any:
        sessions.append(connection)
        if len(sessions) == 1:
            with contextlib.suppress(psycopg.Error):
                connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        return clone(connection, *arguments, **options)

    monkeypatch.setattr(databases, "clone", lost)
    assert origin(small.restore_snapshot("small")) == "warm"
    assert len(sessions) == 2
    assert schemas.rows_of(small.url, COUNT) == [(500,)]


def test_a_session_that_is_lost_while_hooks_run_is_opened_anew(
    server: Server, warmed: SnapshotManager
) -> None:
    """What was opened ahead would be idle for as long as a hook runs; its end must not cost that work."""

    def end_sessions(_url: DatabaseURL) -> None:
        with server.admin() as admin:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'keikaku_snapshots swap'"
            )

    assert origin(warmed.restore_snapshot("small", after_restore=end_sessions)) == "warm"
    assert schemas.rows_of(warmed.url, COUNT) == [(500,)]


def test_a_role_with_two_connections_restores_in_place_while_somebody_is_inside(
    server: Server, creator_database: DatabaseURL, tmp_path: Path
) -> None:
    """Nothing is opened ahead for a swap that will not come."""
    schemas.run(creator_database, SMALL)
    with (
        SnapshotManager(creator_database, tmp_path, minimum_free_mb=1) as manager,
        server.admin() as admin,
    ):
        manager.create_snapshot("small")
        for _ in range(2):
            manager.restore_snapshot("small")
        role = creator_database.user
        admin.execute(sql.SQL("ALTER ROLE {} CONNECTION LIMIT 2").format(sql.Identifier(role)))
        try:
            with server.admin(creator_database.database):
                assert manager.restore_snapshot("small").strategy == "in_place"
        finally:
            admin.execute(sql.SQL("ALTER ROLE {} CONNECTION LIMIT -1").format(sql.Identifier(role)))


def test_the_maintenance_database_is_told_as_what_it_is(small: SnapshotManager) -> None:
    """Nothing of ours is opened in it ahead, which would count as a session of somebody else."""
    name = small.url.database
    with SnapshotManager(small.url, small.directory, minimum_free_mb=1, maintenance_database=name) as manager:
        restored = manager.restore_snapshot("small")
    assert restored.strategy == "in_place"
    assert "maintenance database itself" in restored.reason
