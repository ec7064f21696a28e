"""SnapshotManager as its users meet it."""

from __future__ import annotations

import os
import signal
import stat
import threading
from typing import TYPE_CHECKING, Any

import pytest

from keikaku_snapshots import SnapshotManager
from keikaku_snapshots.errors import (
    AccessDeniedError,
    AuthenticationError,
    CreateFailedError,
    DatabaseInUseError,
    DiskFullError,
    LockBusyError,
    NoDatabaseError,
    OtherDatabaseError,
    ProtectedDatabaseError,
    SchemaDriftError,
    SnapshotCorruptError,
    SnapshotExistsError,
    SnapshotInUseError,
    SnapshotNotFoundError,
    ToolError,
    UnsafeRestoreError,
    UsageError,
)
from keikaku_snapshots.postgres.connect import RetryPolicy
from keikaku_snapshots.snapshots import dump as dump_module
from keikaku_snapshots.snapshots import dump_files
from keikaku_snapshots.snapshots.disk import ReserveWatcher
from tests.integration import schemas
from tests.integration.test_restore_in_place import CHANGED, SMALL
from tests.servers import connect

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.progress import Progress
    from tests.conftest import MakeDatabase
    from tests.servers import Server

FAST = RetryPolicy(attempts=3, wait_min_s=0.01, wait_max_s=0.02)


@pytest.fixture
def manager(database: DatabaseURL, tmp_path: Path) -> Iterator[SnapshotManager]:
    """A manager of a small database, without snapshots."""
    schemas.run(database, SMALL)
    with SnapshotManager(database, tmp_path / "snapshots", minimum_free_mb=1, retry=FAST) as made:
        yield made


def test_a_snapshot_is_a_private_file_with_a_manifest_and_a_link(manager: SnapshotManager) -> None:
    """B1, B4, FAULTS 34: 0600 in 0700, a relative link to the newest, everything in the manifest."""
    told: list[Progress] = []
    made = manager.create_snapshot("small", "説明", tags=["a"], metadata={"seed": 7}, progress=told.append)
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(manager.directory.stat().st_mode) == 0o700
    assert str((manager.directory / "small_latest.sql").readlink()) == made.path.name
    assert made.path.name == f"small_{made.version}.sql"
    assert made.row_counts == {"public.parents": 50, "public.children": 500}
    manifest = made.manifest
    assert manifest is not None
    assert (manifest.description, manifest.tags, manifest.metadata) == ("説明", ["a"], {"seed": 7})
    assert (manifest.database, manifest.server_major, manifest.encoding) == (manager.url.database, 18, "UTF8")
    assert "postgres" in manifest.roles
    assert manifest.tool_versions["pg_dump"].startswith("18")
    assert told[-1].finished
    assert told[-1].done == made.size_bytes
    assert manager.get_snapshot("small") == made
    assert os.fspath(made) == str(made.path)


def test_no_password_is_in_any_file(make_database: MakeDatabase, server: Server, tmp_path: Path) -> None:
    """FAULTS 31: the canary is the role's real password."""
    url = make_database(server, "keikaku_owner")
    schemas.run(url, SMALL)
    with SnapshotManager(url, tmp_path / "s", minimum_free_mb=1) as manager:
        manager.create_snapshot("small")
        assert (url.password or "?") not in repr(manager)
    for path in (tmp_path / "s").rglob("*"):
        if path.is_file():
            assert (url.password or "?").encode() not in path.read_bytes()


def test_calling_again_makes_a_new_version_and_old_ones_go_when_asked(manager: SnapshotManager) -> None:
    """B1, B3, B9."""
    made = [manager.create_snapshot("small") for _ in range(4)]
    assert len({item.version for item in made}) == 4
    assert manager.list_snapshots("small") == made[::-1]
    assert manager.delete_old_snapshots("small", keep_count=2) == [made[1], made[0]]
    assert manager.delete_snapshot("small", made[2].version)
    assert not manager.delete_snapshot("small", made[2].version)
    assert manager.snapshot_exists("small")
    assert not manager.snapshot_exists("smal")
    with pytest.raises(FileNotFoundError):
        manager.get_snapshot("other")


def test_a_version_is_overwritten_only_when_asked_and_only_by_a_complete_one(
    manager: SnapshotManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B9."""
    old = manager.create_snapshot("small", version="v1")
    with pytest.raises(ValueError, match="exists already"):
        manager.create_snapshot("small", version="v1")
    monkeypatch.setattr(dump_files, "check_shape", _raise(SnapshotCorruptError("cut")))
    with pytest.raises(CreateFailedError):
        manager.create_snapshot("small", version="v1", overwrite=True)
    assert manager.get_snapshot("small", "v1") == old
    monkeypatch.undo()
    schemas.run(manager.url, CHANGED)
    new = manager.create_snapshot("small", version="v1", overwrite=True)
    assert new.row_counts["public.children"] == 300
    assert [item.version for item in manager.list_snapshots("small")] == ["v1"]
    assert isinstance(SnapshotExistsError("x"), ValueError)


@pytest.mark.parametrize(
    "options",
    [
        {"format": "json"},
        {"format": "directory", "compression": "gzip"},
        {"format": "directory", "level": 10},
        {"format": "directory", "clean": True},
        {"format": "directory", "jobs": 0},
        {"format": "directory", "jobs": 1.5},
        {"format": "directory", "jobs": True},
        {"scope": "test_data"},
        {"compression": "lz4"},
        {"compression": "gzip", "level": 0},
        {"compression": "gzip", "level": 10},
        {"compression": "zstd", "level": 20},
        {"compression": "zstd", "level": 1.5},
        {"format": "custom", "compression": "gzip"},
        {"jobs": 2},
        {"level": 3},
        {"format": "custom", "level": 11},
        {"format": "custom", "level": True},
        {"format": "custom", "clean": True},
        {"marker": "is_test_data"},
        {"format": "json", "scope": "test_data", "compression": "lzma"},
        {"format": "json", "scope": "test_data", "level": 3},
        {"format": "json", "scope": "test_data", "compression": "gzip", "level": 10},
        {"format": "json", "scope": "test_data", "clean": True},
        {"format": "json", "scope": "test_data", "jobs": 2},
        {"format": "json", "scope": "test_data", "marker": ""},
        {"format": "json", "scope": "test_data", "marker": 1},
        {"format": "json", "scope": "test_data", "predicates": {"a": " "}},
        {"format": "json", "scope": "test_data", "predicates": {"a": 1}},
    ],
)
def test_what_is_not_available_is_refused_before_anything_is_done(
    manager: SnapshotManager, options: dict[str, Any]
) -> None:
    """Only what works is accepted."""
    with pytest.raises(UsageError):
        manager.create_snapshot("small", **options)
    assert not manager.directory.exists()


@pytest.mark.parametrize(
    "options",
    [
        {"strategy": "clone"},
        {"strategy": "fast"},
        {"on_schema_mismatch": "maybe"},
        {"clean_existing": False},
        {"marker": "is_test_data"},
    ],
)
def test_a_restore_option_that_is_not_available_is_refused(
    manager: SnapshotManager, options: dict[str, Any]
) -> None:
    """The same for restore."""
    manager.create_snapshot("small")
    with pytest.raises(UsageError):
        manager.restore_snapshot("small", **options)


def test_options_of_the_manager_are_checked() -> None:
    """A8 in spirit: the parameter is named."""
    with pytest.raises(TypeError, match="lock_wait_s"):
        SnapshotManager("postgresql:///x", lock_wait_s="1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="keep_old_minutes"):
        SnapshotManager("postgresql:///x", keep_old_minutes=-1)
    with pytest.raises(NoDatabaseError):
        SnapshotManager(None).create_snapshot("x")


def test_too_little_room_is_said_and_leaves_no_file(manager: SnapshotManager) -> None:
    """PEERS 8, B6, FAULTS 9."""
    greedy = SnapshotManager(manager.url, manager.directory, minimum_free_mb=10**9)
    with pytest.raises(DiskFullError, match="ディスク容量不足"):
        greedy.create_snapshot("small")
    assert list(manager.directory.glob("*small*")) == []


@pytest.mark.parametrize("format_name", ["plain", "directory"])
def test_a_disk_that_fills_up_while_dumping_stops_it_and_leaves_nothing(
    manager: SnapshotManager, monkeypatch: pytest.MonkeyPatch, format_name: str
) -> None:
    """PEERS 2, FAULTS 9, 3.10: the reserve is watched while pg_dump runs."""
    schemas.run(
        manager.url,
        "CREATE TABLE wide AS SELECT i, repeat('x', 1000) AS v FROM generate_series(1, 60000) AS i",
    )

    class Full(ReserveWatcher):
        def __call__(self) -> str | None:
            return "only 1 MB are free"

    monkeypatch.setattr(dump_module, "ReserveWatcher", Full)
    with pytest.raises(DiskFullError, match="only 1 MB"):
        manager.create_snapshot("small", format=format_name)
    assert manager.list_snapshots() == []
    assert sorted(path.name for path in manager.directory.iterdir()) == [".locks", "audit.log"]


def test_a_lost_connection_is_tried_again_with_a_new_file(
    server: Server, manager: SnapshotManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS 51; design, Retry: pg_dump only reads."""
    facts, tries = dump_module._facts, []

    def cut(connection: Any, url: DatabaseURL) -> dict[str, Any]:
        tries.append(1)
        if len(tries) < 3:
            with server.admin() as admin:
                admin.execute("SELECT pg_terminate_backend(%s, 5000)", [connection.info.backend_pid])
        return facts(connection, url)

    monkeypatch.setattr(dump_module, "_facts", cut)
    assert manager.create_snapshot("small").is_valid
    assert len(tries) == 3
    assert len(manager.list_snapshots()) == 1


def test_a_table_that_is_locked_does_not_hang_the_dump(
    manager: SnapshotManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS 61."""
    monkeypatch.setattr(
        dump_module.DumpOptions, "__init__", _short_lock_wait(dump_module.DumpOptions.__init__)
    )
    with connect(manager.url) as session, session.transaction():
        session.execute("LOCK TABLE parents IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(DatabaseInUseError):
            manager.create_snapshot("small")
    assert manager.list_snapshots() == []


def test_wrong_password_missing_tools_and_missing_database_are_told_apart(
    manager: SnapshotManager, tmp_path: Path
) -> None:
    """B16: what was found, where, what to do; exit codes 12 and 15."""
    import dataclasses

    wrong = dataclasses.replace(manager.url, password="s3cret-canary")
    with SnapshotManager(wrong, tmp_path) as other, pytest.raises(AuthenticationError) as caught:
        other.create_snapshot("small")
    assert "s3cret-canary" not in str(caught.value)
    with SnapshotManager(manager.url, tmp_path, pg_bin=tmp_path, minimum_free_mb=1) as other:
        with pytest.raises(ToolError, match=r"18") as missing:
            other.create_snapshot("small")
        assert missing.value.exit_code == 15


def test_the_name_of_another_applications_snapshots_is_refused(
    manager: SnapshotManager, make_database: MakeDatabase, server: Server
) -> None:
    """PEERS 6, B15: create and restore, by the same rule; drift of one schema is another matter."""
    manager.create_snapshot("small")
    other = make_database(server)
    schemas.run(
        other,
        "CREATE TABLE inventories (id int); CREATE TABLE batches (id int); INSERT INTO batches VALUES (1)",
    )
    with SnapshotManager(other, manager.directory, minimum_free_mb=1) as stranger:
        with pytest.raises(OtherDatabaseError, match="another application"):
            stranger.create_snapshot("small")
        with pytest.raises(OtherDatabaseError, match=r"public\.inventories"):
            stranger.restore_snapshot("small")
        assert schemas.rows_of(other, "SELECT count(*) FROM batches") == [(1,)]
        stranger.restore_snapshot("small", from_other_database=True)
        assert schemas.rows_of(other, "SELECT count(*) FROM children") == [(500,)]


def test_production_is_refused_unless_it_is_meant(
    server: Server, make_database: MakeDatabase, tmp_path: Path
) -> None:
    """B15, FAULTS 42."""
    url = make_database(server, name=f"app_prod_{os.getpid()}")
    schemas.run(url, SMALL)
    with SnapshotManager(url, tmp_path, minimum_free_mb=1) as manager:
        manager.create_snapshot("small")
        with pytest.raises(ProtectedDatabaseError, match="prod"):
            manager.restore_snapshot("small")
    with SnapshotManager(url, tmp_path, allow_protected=True, minimum_free_mb=1) as manager:
        manager.restore_snapshot("small")
    listed = SnapshotManager(url, tmp_path, allow_protected=True, allowed_databases=["*_test"])
    with pytest.raises(ProtectedDatabaseError, match="allowed_databases"):
        listed.restore_snapshot("small")


def test_drift_warns_or_stops_or_is_ignored(manager: SnapshotManager) -> None:
    """B7: the message names what differs."""
    schemas.run(
        manager.url,
        "CREATE TABLE alembic_version (version_num text); INSERT INTO alembic_version VALUES ('aaa')",
    )
    manager.create_snapshot("small")
    change = "ALTER TABLE parents ADD COLUMN age int; UPDATE alembic_version SET version_num = 'bbb'"
    schemas.run(manager.url, change)
    with pytest.raises(SchemaDriftError, match="age") as caught:
        manager.restore_snapshot("small", on_schema_mismatch="error")
    assert "スキーマバージョンが一致しません" in str(caught.value)
    assert "aaa in the snapshot, bbb in the database" in str(caught.value)
    (warning,) = manager.restore_snapshot("small", strategy="in_place").warnings
    assert "age" in warning
    schemas.run(manager.url, change)
    assert manager.restore_snapshot("small", on_schema_mismatch="ignore").warnings == ()


def test_a_read_only_database_and_a_poorer_encoding_are_refused(
    server: Server, manager: SnapshotManager, make_database: MakeDatabase
) -> None:
    """FAULTS 73: checked first, not found out half-way."""
    schemas.run(manager.url, "INSERT INTO parents (name) VALUES ('日本')")
    manager.create_snapshot("small")
    latin = make_database(server)
    with server.admin() as admin:
        name = latin.database
        admin.execute(f"DROP DATABASE {name}")
        admin.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
        admin.execute(f"ALTER DATABASE {manager.url.database} SET default_transaction_read_only = on")
    with (
        SnapshotManager(latin, manager.directory) as other,
        pytest.raises(UnsafeRestoreError, match="LATIN1"),
    ):
        other.restore_snapshot("small")
    with pytest.raises(AccessDeniedError, match="default_transaction_read_only"):
        manager.restore_snapshot("small")


def test_verify_finds_damage_and_lists_still_show_the_others(manager: SnapshotManager) -> None:
    """B3, B13: one damaged snapshot never hides the others."""
    good = manager.create_snapshot("small", format="custom")
    bad = manager.create_snapshot("small", format="custom")
    assert manager.verify_snapshot("small", good.version).sha256
    content = bytearray(bad.path.read_bytes())
    content[len(content) // 2] ^= 1
    bad.path.write_bytes(content)
    with pytest.raises(SnapshotCorruptError, match="スナップショットが破損"):
        manager.verify_snapshot("small")
    bad.path.write_bytes(content[:-10])
    assert [item.is_valid for item in manager.list_snapshots()] == [False, True]
    assert manager.restore_snapshot("small").snapshot == good


def test_a_file_without_manifest_is_restored_only_on_trust(manager: SnapshotManager) -> None:
    """Design, Valid files."""
    made = manager.create_snapshot("small")
    made.manifest_path.unlink()
    schemas.run(manager.url, CHANGED)
    with pytest.raises(SnapshotNotFoundError):
        manager.restore_snapshot("small")
    restored = manager.restore_snapshot("small", trust=True)
    assert "on trust" in restored.warnings[0]
    assert schemas.rows_of(manager.url, "SELECT count(*) FROM children") == [(500,)]


def test_a_snapshot_that_is_being_restored_cannot_be_deleted(manager: SnapshotManager) -> None:
    """B8, FAULTS 66."""
    made = manager.create_snapshot("small")
    errors: list[BaseException] = []
    seen = threading.Event()

    def delete(progress: Progress) -> None:
        if not seen.is_set():
            seen.set()
            try:
                SnapshotManager(None, manager.directory).delete_snapshot("small", made.version)
            except BaseException as error:  # noqa: BLE001 - looked at below
                errors.append(error)

    manager.restore_snapshot("small", progress=delete)
    assert isinstance(errors[0], SnapshotInUseError)
    assert "使用中のため削除できません" in str(errors[0])
    assert manager.delete_snapshot("small")


def test_two_creates_of_one_name_wait_or_fail_fast(manager: SnapshotManager) -> None:
    """B8, FAULTS 54."""
    busy: list[BaseException] = []

    def second(_: Progress) -> None:
        if not busy:
            try:
                with SnapshotManager(manager.url, manager.directory, minimum_free_mb=1) as other:
                    other.create_snapshot("small")
            except BaseException as error:  # noqa: BLE001 - looked at below
                busy.append(error)

    manager.create_snapshot("small", progress=second)
    assert isinstance(busy[0], LockBusyError)
    assert len(manager.list_snapshots()) == 1


def test_kill_9_of_pg_dumps_parent_leaves_nothing_that_any_command_lists(manager: SnapshotManager) -> None:
    """FAULTS 43, 44: the half file is no snapshot; the earlier latest stays usable."""
    import subprocess
    import sys

    first = manager.create_snapshot("small")
    code = (
        "import os, signal, sys\n"
        "from keikaku_snapshots import SnapshotManager\n"
        "from keikaku_snapshots.snapshots import dump\n"
        "dump._facts = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "SnapshotManager(sys.argv[1], sys.argv[2], minimum_free_mb=1).create_snapshot('small')\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code, manager.url.text, str(manager.directory)],
        env={"PATH": os.defpath, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
        timeout=60,
    )
    assert killed.returncode == -signal.SIGKILL
    assert manager.list_snapshots() == [first]
    assert manager.restore_snapshot("small").snapshot == first


def _raise(error: BaseException) -> Any:
    def call(*_: object, **__: object) -> None:
        raise error

    return call


def _short_lock_wait(init: Any) -> Any:
    def call(self: Any, *arguments: Any, **keywords: Any) -> None:
        init(self, *arguments, **{**keywords, "lock_wait_timeout_s": 0.3})

    return call


def test_a_snapshot_is_restored_as_itself(manager: SnapshotManager) -> None:
    """B2: what was listed can be handed back, and means exactly its version."""
    first = manager.create_snapshot("small")
    schemas.run(manager.url, "CREATE TABLE later (id int)")
    manager.create_snapshot("small")

    assert manager.restore_snapshot(first).snapshot.version == first.version
    assert schemas.rows_of(manager.url, "SELECT to_regclass('later')") == [(None,)]
