"""A restore gives back exactly the snapshot: compared by dumps that the package has no part in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from keikaku_snapshots import SnapshotManager
from keikaku_snapshots.errors import UnsafeRestoreError
from tests.integration import schemas

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import MakeDatabase
    from tests.servers import Server

ROLES = ("postgres", "keikaku_creator")


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("format_name", ["plain", "custom", "directory"])
def test_every_way_gives_back_the_same_dump(
    each_server: Server, make_database: MakeDatabase, tmp_path: Path, role: str, format_name: str
) -> None:
    """B2, FAULTS 72, 78, 100: partitions, circles, foreign extensions, large objects, rules, rights."""
    url = make_database(each_server, role)
    schemas.make_rich(each_server, url)
    before = schemas.dump_text(each_server, url)
    with SnapshotManager(url, tmp_path / "snapshots", minimum_free_mb=1) as manager:
        manager.create_snapshot("rich", format=format_name)
        for damage, strategy in (
            (schemas.DAMAGE, "in_place"),
            (schemas.DAMAGE + schemas.RIGHTS_DAMAGE, "in_place"),
            (schemas.DAMAGE + schemas.SCHEMA_DAMAGE, "in_place"),
        ):
            schemas.run(url, damage)
            assert schemas.dump_text(each_server, url) != before
            restored = manager.restore_snapshot("rich", strategy=strategy, on_schema_mismatch="ignore")
            assert (restored.strategy, restored.warnings) == (strategy, ())
            assert schemas.dump_text(each_server, url) == before
        if role == "postgres" or schemas.EXTENSION[each_server.major] == "pgcrypto":
            schemas.run(url, schemas.DAMAGE + schemas.SCHEMA_DAMAGE)
            assert manager.restore_snapshot("rich", on_schema_mismatch="ignore", jobs=2).strategy == "swap"
            assert schemas.dump_text(each_server, url) == before
        else:
            # FAULTS 71: only a superuser may make this extension, so `auto` stays in place and says why.
            schemas.run(url, schemas.DAMAGE)
            restored = manager.restore_snapshot("rich")
            assert restored.strategy == "in_place"
            assert "extension vector can only be created by a superuser" in restored.reason
            assert schemas.dump_text(each_server, url) == before
            with pytest.raises(UnsafeRestoreError, match="vector"):
                manager.restore_snapshot("rich", strategy="swap")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "gzip", "level": 6},
        {"compression": "zstd"},
        {"format": "custom"},
        {"format": "directory"},
    ],
    ids=str,
)
def test_an_empty_database_of_another_name_becomes_the_same(
    server: Server, make_database: MakeDatabase, tmp_path: Path, options: dict[str, Any]
) -> None:
    """Sharing snapshots is the purpose: another database is no obstacle, in place or by swap."""
    url = make_database(server)
    schemas.make_rich(server, url)
    with SnapshotManager(url, tmp_path, minimum_free_mb=1) as manager:
        manager.create_snapshot("rich", **options)
    for strategy in ("in_place", "swap"):
        other = make_database(server)
        with SnapshotManager(other, tmp_path, minimum_free_mb=1) as manager:
            restored = manager.restore_snapshot("rich", strategy=strategy, jobs=2)
        assert restored.warnings == ()
        assert schemas.dump_text(server, other) == schemas.dump_text(server, url)


def test_a_dump_of_an_older_server_restores_into_a_newer_one(
    make_database: MakeDatabase, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """FAULTS 69: 15 into 18 works; FAULTS 68: 18 into 15 is refused before anything is touched."""
    from keikaku_snapshots.errors import ToolVersionError
    from tests.conftest import _server

    old, new = _server(request.config, 16), _server(request.config, 18)
    old_url, new_url = make_database(old), make_database(new)
    schemas.run(old_url, "CREATE TABLE t (id serial PRIMARY KEY, v text); INSERT INTO t (v) VALUES ('日本')")
    schemas.run(new_url, "CREATE TABLE t (id serial PRIMARY KEY, v text); INSERT INTO t (v) VALUES ('東京')")
    with SnapshotManager(old_url, tmp_path, minimum_free_mb=1) as manager:
        manager.create_snapshot("old")
    with SnapshotManager(new_url, tmp_path, minimum_free_mb=1) as manager:
        manager.create_snapshot("new")
        for strategy in ("in_place", "swap"):
            manager.restore_snapshot("old", strategy=strategy)
            assert schemas.rows_of(new_url, "SELECT id, v FROM t") == [(1, "日本")]
    with (
        SnapshotManager(old_url, tmp_path, minimum_free_mb=1) as manager,
        pytest.raises(ToolVersionError, match="18"),
    ):
        manager.restore_snapshot("new")
    assert schemas.rows_of(old_url, "SELECT id, v FROM t") == [(1, "日本")]


def test_a_clean_dump_restores_in_every_way(
    server: Server, make_database: MakeDatabase, tmp_path: Path
) -> None:
    """B1: what --clean puts in front is for psql by hand and is left out here."""
    url = make_database(server)
    schemas.make_rich(server, url)
    before = schemas.dump_text(server, url)
    with SnapshotManager(url, tmp_path, minimum_free_mb=1) as manager:
        manager.create_snapshot("rich", clean=True)
        for damage, strategy in (
            (schemas.DAMAGE, "in_place"),
            (schemas.SCHEMA_DAMAGE, "in_place"),
            (schemas.DAMAGE, "swap"),
        ):
            schemas.run(url, damage)
            manager.restore_snapshot("rich", strategy=strategy, on_schema_mismatch="ignore")
            assert schemas.dump_text(server, url) == before
