"""Directory snapshots of a real database: what did not change is stored once, and each restores alone."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from keikaku_snapshots import RetentionPolicy, SnapshotManager
from keikaku_snapshots.datasets import generate, get_scale
from keikaku_snapshots.errors import SnapshotCorruptError
from tests.integration import schemas
from tests.servers import connect

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.snapshots.manifest import Snapshot
    from tests.conftest import MakeDatabase
    from tests.servers import Server


def keikaku_on(server: Server, make_database: MakeDatabase) -> DatabaseURL:
    """Make the Keikaku data set, small."""
    url = make_database(server)
    generate("keikaku", get_scale("small"), url, create_tables=True)
    return url


@pytest.fixture
def keikaku(server: Server, make_database: MakeDatabase) -> DatabaseURL:
    """A database with the data set."""
    return keikaku_on(server, make_database)


@pytest.fixture
def manager(keikaku: DatabaseURL, tmp_path: Path) -> Iterator[SnapshotManager]:
    """A manager for it."""
    with SnapshotManager(keikaku, tmp_path / "snapshots", minimum_free_mb=1) as manager:
        yield manager


def parts(snapshot: Snapshot) -> dict[str, str]:
    """Return the checksum of each part."""
    assert snapshot.manifest
    return {name: part["sha256"] for name, part in snapshot.manifest.parts.items()}


def restore_by_hand(server: Server, url: DatabaseURL, path: Path) -> None:
    """Restore with what PostgreSQL has."""
    subprocess.run(
        [server.bin / "pg_restore", "-j", "2", "--exit-on-error", "-d", url.text, path],
        check=True,
        capture_output=True,
        timeout=120,
    )


def test_one_changed_table_costs_that_table(
    each_server: Server, make_database: MakeDatabase, tmp_path: Path
) -> None:
    """B11: own bytes are the changed table's and the table of contents; each restores alone and by hand."""
    url = keikaku_on(each_server, make_database)
    with SnapshotManager(url, tmp_path, minimum_free_mb=1) as manager:
        first = manager.create_snapshot("app", format="directory")
        was = schemas.dump_text(each_server, url)
        with connect(url) as connection:
            connection.execute("UPDATE offices SET name = name || ' 2'")
        second = manager.create_snapshot("app", format="directory", jobs=2)
        now = schemas.dump_text(each_server, url)

        new = {name for name, sha256 in parts(second).items() if sha256 not in parts(first).values()}
        own = {path.name: path.stat().st_size for path in second.path.iterdir() if path.stat().st_nlink == 1}
        # Of two dumps in one second even the table of contents can be the same.
        assert own.keys() == new
        assert len(new - {"toc.dat"}) == 1
        assert second.own_bytes == sum(own.values())
        assert second.shared_bytes == second.size_bytes - second.own_bytes > 0

        manager.restore_snapshot("app", first.version)
        assert schemas.dump_text(each_server, url) == was
        manager.delete_snapshot("app", first.version)
        manager.restore_snapshot("app")
        assert schemas.dump_text(each_server, url) == now
    other = make_database(each_server)
    restore_by_hand(each_server, other, second.path)
    assert schemas.dump_text(each_server, other) == now


def test_a_new_table_shifts_names_and_shares_all_the_same(
    keikaku: DatabaseURL, manager: SnapshotManager
) -> None:
    """RECIPES 4: dump ids shift after a change of the schema; content decides, not names."""
    first = manager.create_snapshot("app", format="directory")
    with connect(keikaku) as connection:
        connection.execute(
            "CREATE TYPE aaa AS ENUM ('a'); CREATE TABLE aaa_first (id int PRIMARY KEY, a aaa)"
        )
    second = manager.create_snapshot("app", format="directory")

    shared = [path.name for path in second.path.iterdir() if path.stat().st_nlink == 2]
    assert set(shared) - set(parts(first)), "some have other names now"
    assert len(shared) >= len(parts(first)) - 2


def test_nothing_changed_costs_the_table_of_contents(keikaku: DatabaseURL, manager: SnapshotManager) -> None:
    """Neither VACUUM, nor REINDEX, nor a restore, nor ANALYZE makes a table's part another one."""
    manager.create_snapshot("app", format="directory")
    with connect(keikaku) as connection:
        connection.autocommit = True
        for command in ("VACUUM FULL offices", "ANALYZE", "REINDEX TABLE offices"):
            connection.execute(command)
    manager.restore_snapshot("app")
    second = manager.create_snapshot("app", format="directory")
    assert {path.name for path in second.path.iterdir() if path.stat().st_nlink == 1} <= {"toc.dat"}


def test_a_snapshot_restores_after_the_others_were_pruned(
    server: Server, keikaku: DatabaseURL, manager: SnapshotManager, tmp_path: Path
) -> None:
    """B11: whatever order they go in, and from a plain copy of the directory."""
    with connect(keikaku) as connection:
        connection.autocommit = True
        for number in range(4):
            connection.execute(f"UPDATE offices SET name = 'office {number}'")
            manager.create_snapshot("app", format="directory", pinned=number == 1)
            if number == 1:
                was = schemas.dump_text(server, keikaku)
    manager.prune(RetentionPolicy(keep_last=1))
    newest, pinned = manager.list_snapshots("app")
    assert pinned.pinned
    manager.delete_snapshot("app", newest.version)
    shutil.copytree(manager.directory, tmp_path / "copy", symlinks=True)
    with SnapshotManager(keikaku, tmp_path / "copy", minimum_free_mb=1) as copy:
        copy.restore_snapshot("app")
    assert schemas.dump_text(server, keikaku) == was


def test_verify_names_every_snapshot_that_a_damaged_part_hurts(manager: SnapshotManager) -> None:
    """B11: and none of them is restored."""
    for _ in range(3):
        newest = manager.create_snapshot("app", format="directory")
    part = max(newest.path.glob("*.gz"), key=lambda path: path.stat().st_size)
    assert part.stat().st_nlink == 3
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.chmod(0o600)
    part.write_bytes(content)
    older = manager.list_snapshots("app")[1:]
    with pytest.raises(SnapshotCorruptError) as caught:
        manager.verify_snapshot("app")

    assert caught.value.details["damaged_parts"] == [part.name]
    assert caught.value.details["also_hurt"] == [f"{item} ({part.name})" for item in older]
    for snapshot in manager.list_snapshots("app"):
        with pytest.raises(SnapshotCorruptError):
            manager.restore_snapshot("app", snapshot.version)
    # The next one is whole: the damaged part is not linked to.
    fresh = manager.create_snapshot("app", format="directory")
    manager.verify_snapshot("app")
    assert (fresh.path / part.name).stat().st_nlink == 1
