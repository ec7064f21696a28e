"""Rewind: what every connection committed since the checkpoint is undone (C4)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from psycopg.errors import UndefinedTable

from keikaku_snapshots import SnapshotManager
from keikaku_snapshots.errors import DatabaseInUseError, ProtectedDatabaseError, SnapshotNotFoundError
from tests.servers import connect
from tests.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

    from keikaku_snapshots.postgres.url import DatabaseURL
    from tests.conftest import MakeDatabase
    from tests.servers import Server

SHOP = """
CREATE TABLE offices (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL UNIQUE);
CREATE TABLE staffs (id serial PRIMARY KEY, office_id int REFERENCES offices ON DELETE CASCADE, email text);
INSERT INTO offices (name) SELECT 'office ' || i FROM generate_series(1, 20) i;
INSERT INTO staffs (office_id, email) SELECT 1 + i % 20, 'e' || i FROM generate_series(1, 60) i;
"""


def state(url: DatabaseURL) -> dict[str, object]:
    """Every row of every table and the state of every sequence, as text."""
    found: dict[str, object] = {}
    with connect(url) as connection:
        relations = connection.execute(
            "SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname), c.relkind::text FROM pg_class c "
            "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'S') "
            "AND c.relpersistence <> 't' "
            "AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'keikaku_rewind') ORDER BY 1"
        ).fetchall()
        for name, kind in relations:
            columns = "last_value, is_called" if kind == "S" else "t::text"
            only = "" if kind == "S" else "ONLY "
            rows = connection.execute(f"SELECT {columns} FROM {only}{name} t".encode()).fetchall()
            found[str(name)] = sorted(rows)
    return found


def run(url: DatabaseURL, script: str) -> None:
    """Run SQL in a session of its own."""
    with connect(url) as connection:
        connection.execute(script.encode())


def test_committed_changes_of_all_sessions_go_back(each_server: Server, make_database: MakeDatabase) -> None:
    """PEERS 15, C4: insert, update, delete and truncate of every connection are undone, sequences too."""
    url = make_database(each_server)
    run(url, SHOP)
    before = state(url)
    with SnapshotManager(url) as manager:
        made = manager.checkpoint()
        run(url, "INSERT INTO offices (name) VALUES ('new'); UPDATE staffs SET email = 'x' WHERE id < 10")
        run(url, "DELETE FROM offices WHERE id = 3")
        rewound = manager.rewind()
        assert state(url) == before
        assert (made.tables, made.sequences) == (2, 2)
        assert (rewound.tables, rewound.rows, rewound.sequences) == (2, 2 + 11, 1)
        run(url, "TRUNCATE offices CASCADE")
        manager.rewind()
        assert state(url) == before
        assert manager.rewind().rows == 0


def test_without_a_checkpoint_it_says_so(shared_database: DatabaseURL) -> None:
    """The remedy is in the error."""
    with SnapshotManager(shared_database) as manager:
        with pytest.raises(SnapshotNotFoundError, match="has no checkpoint"):
            manager.rewind()
        assert not manager.drop_checkpoint()


def test_an_open_transaction_is_named(shared_database: DatabaseURL) -> None:
    """A transaction that wrote and stays open is waited for, then named; nothing is changed."""
    run(shared_database, SHOP)
    with SnapshotManager(shared_database) as manager, connect(shared_database) as other:
        manager.checkpoint()
        other.execute("SET application_name = 'slow test'")
        with other.transaction():
            other.execute("DELETE FROM staffs")
            with pytest.raises(DatabaseInUseError, match="slow test") as caught:
                manager.rewind(wait_s=0.05)
            assert caught.value.details["pids"] == [other.info.backend_pid]
        assert manager.rewind().rows == 60


WRITERS = {
    "truncate": "TRUNCATE staffs",
    "in a query": "WITH gone AS (DELETE FROM staffs RETURNING id) SELECT count(*) FROM gone",
    "as a replica": "SET LOCAL session_replication_role = replica; UPDATE staffs SET id = -id",
    "merge": "MERGE INTO staffs s USING offices o ON s.id = o.id WHEN MATCHED THEN DELETE",
    "upsert": "INSERT INTO staffs (id) VALUES (1) ON CONFLICT (id) DO UPDATE SET email = 'x'",
    "without a row": "DELETE FROM staffs WHERE false",
}


@pytest.mark.parametrize("kind", [*WRITERS, "copy"])
def test_whoever_writes_is_waited_for(shared_database: DatabaseURL, kind: str) -> None:
    """However a statement writes, its table's trigger takes the lock before the first row."""
    run(shared_database, SHOP)
    before = state(shared_database)
    with SnapshotManager(shared_database) as manager, connect(shared_database) as other:
        manager.checkpoint()
        with other.transaction():
            if kind == "copy":
                with other.cursor().copy("COPY staffs (email) FROM STDIN") as copy:
                    copy.write_row(["new"])
            else:
                other.execute(WRITERS[kind].encode())
            with pytest.raises(DatabaseInUseError):
                manager.rewind(wait_s=0.05)
        manager.rewind()
        assert state(shared_database) == before


def test_readers_are_not_waited_for(shared_database: DatabaseURL) -> None:
    """An open transaction that only read is in nobody's way."""
    run(shared_database, SHOP)
    with (
        SnapshotManager(shared_database) as manager,
        connect(shared_database) as reader,
        reader.transaction(),
    ):
        reader.execute("SELECT count(*) FROM staffs")
        manager.checkpoint()
        run(shared_database, "DELETE FROM staffs")
        assert manager.rewind(wait_s=0.05).rows == 60


def test_dropping_the_checkpoint_leaves_nothing(shared_database: DatabaseURL) -> None:
    """`checkpoint --drop` removes everything."""
    run(shared_database, SHOP)
    with SnapshotManager(shared_database) as manager:
        manager.checkpoint()
        assert manager.drop_checkpoint()
    with connect(shared_database) as connection:
        left = connection.execute(
            "SELECT tgname::text FROM pg_trigger WHERE NOT tgisinternal UNION ALL "
            "SELECT nspname::text FROM pg_namespace WHERE nspname LIKE 'keikaku%'"
        ).fetchall()
    assert left == []


def test_protected_databases_are_refused(server: Server, make_database: MakeDatabase, tmp_path: Path) -> None:
    """B15: checkpoint and rewind ask for allow_protected as restore does."""
    url = make_database(server, name="shop_production_rewind")
    with SnapshotManager(url, tmp_path) as manager:
        with pytest.raises(ProtectedDatabaseError):
            manager.checkpoint()
        with pytest.raises(ProtectedDatabaseError):
            manager.rewind()
    with SnapshotManager(url, tmp_path, allow_protected=True) as manager:
        manager.checkpoint()
        manager.rewind()


@pytest.mark.parametrize("keep", [False, True])
def test_one_connection_serves_all_rewinds_until_close(shared_database: DatabaseURL, keep: bool) -> None:
    """It may be that of the checkpoint: what that has planned is not planned again."""
    run(shared_database, SHOP)
    with connect(shared_database) as connection:

        def sessions() -> list[tuple[object, ...]]:
            return connection.execute(
                "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'keikaku_snapshots%'"
                " AND datname = current_database()"
            ).fetchall()

        with SnapshotManager(shared_database) as manager:
            manager.checkpoint(keep_connection=keep)
            if keep:
                (of_checkpoint,) = sessions()
            else:
                until(lambda: sessions() == [])
            manager.rewind()
            (kept,) = sessions()
            assert not keep or kept == of_checkpoint
            manager.checkpoint()
            manager.rewind()
            until(lambda: sessions() == [kept])
        until(lambda: sessions() == [])


def test_the_awaitable_block_goes_back(shared_database: DatabaseURL) -> None:
    """`async with manager.aio.rewinding()` is the same for fixtures that await."""
    run(shared_database, SHOP)
    before = state(shared_database)

    async def work() -> int:
        async with SnapshotManager(shared_database).aio as manager:
            async with manager.rewinding():
                run(shared_database, "DELETE FROM offices")
            return (await manager.rewind()).rows

    assert asyncio.run(work()) == 0
    assert state(shared_database) == before


def test_the_block_form_goes_back_after_an_error(shared_database: DatabaseURL) -> None:
    """`with manager.rewinding()` undoes what the block committed, also when it fails."""
    run(shared_database, SHOP)
    before = state(shared_database)
    with SnapshotManager(shared_database) as manager:
        with pytest.raises(UndefinedTable), manager.rewinding():
            run(shared_database, "DELETE FROM offices; COMMIT; SELECT * FROM nowhere")
        assert state(shared_database) == before
