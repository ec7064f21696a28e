"""The StockRx data set on real servers: its counts, and the same bytes everywhere."""

from __future__ import annotations

import asyncio
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from keikaku_snapshots.datasets import Generated, Scale, generate, stockrx_tables
from keikaku_snapshots.errors import TestDataReferencedError
from tests import dataset_rows
from tests.dataset_rows import DAY

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from concurrent.futures import Executor

    from keikaku_snapshots.postgres.url import DatabaseURL
    from tests.conftest import MakeDatabase
    from tests.servers import Server

TABLES = [table.name for table in stockrx_tables.metadata.sorted_tables]
#: What seed 7 gives for 2026-04-01. They change only when the data of every seed change.
SMALL = (
    "c7b32cd664e1c5c0b20120d4ec179e3f9143a2a4401a3158b1ecb4bee9f53ae7",
    "f044a6caa7ea275a6dc415b9bed01f189c69c4fc81c0b6c49bf291af7322c1a4",
)
#: Three shards of scale `several`.
SEVERAL = (
    "962c6c729d9bf4bf113ea7e6fa3301593e3c43e0417e5c6789c2752f72d05167",
    "0b15293c438afdf93fee05796a7b094590e5a2cb92f95e85280a6e58b67d1918",
)
several = Scale("several", 6000)


@pytest.fixture
def database(shared_database: DatabaseURL) -> DatabaseURL:
    """An empty database; one for the module."""
    return shared_database


def stored(url: DatabaseURL) -> str:
    """SHA-256 over every row of every table as the server writes it, and over the sequences."""
    return dataset_rows.stored(url, TABLES, [f"{table}_id_seq" for table in TABLES])


def make(url: Any, scale: str | Scale = "small", **options: Any) -> Generated:
    """Generate with seed 7, creating the tables."""
    settings = {"seed": 7, "reference_date": DAY, "create_tables": True, **options}
    return cast("Generated", generate("stockrx", scale, url, **settings))


def run(url: DatabaseURL, statement: str) -> list[tuple[Any, ...]]:
    """Run a statement, commit, and give its rows."""
    with psycopg.connect(url.text) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def test_it_is_the_same_on_every_version(each_server: Server, make_database: MakeDatabase) -> None:
    """A2, A5: exactly the promised rows, byte-identical on PostgreSQL 15, 16 and 18."""
    url = make_database(each_server)

    made = make(url.text, several)

    expected = {"inventories": 6000, "batches": 12_000, "inventory_logs": 12_000}
    assert made.rows == expected
    assert dataset_rows.counts(url, TABLES) == expected
    assert (made.checksum, stored(url)) == SEVERAL


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_sessions_of_an_event_loop_get_the_same_data(driver: str, database: DatabaseURL) -> None:
    """A5: an AsyncSession on psycopg or on asyncpg stores the same bytes as a URL does."""

    async def work() -> Generated:
        engine = create_async_engine(database.for_sqlalchemy(driver), poolclass=sa.NullPool)
        async with AsyncSession(engine) as session:
            made = await cast("Awaitable[Generated]", make(session))
            await session.commit()
        await engine.dispose()
        return made

    made = asyncio.run(work())

    assert (made.checksum, stored(database)) == SMALL


@pytest.mark.parametrize("kind", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_batches_and_workers_do_not_change_the_data(kind: Any, database: DatabaseURL) -> None:
    """A5: batch size and executor, threads or processes, are matters of speed only."""
    executor: Executor
    with kind(2) as executor:
        made = make(database.text, several, batch_size=77, executor=executor)

    assert (made.checksum, stored(database)) == SEVERAL


def test_every_night_the_same(database: DatabaseURL) -> None:
    """A12: generating again replaces the test rows, children first, down to the numbers of the keys."""
    make(database.text)

    again = make(database.text)

    assert again.deleted == sum(again.rows.values())
    assert (again.checksum, stored(database)) == SMALL


def test_rows_of_others_stay(database: DatabaseURL) -> None:
    """A12: an inventory that is no test data is left alone, with its batch, and numbers go on after it."""
    make(database.text)
    own = run(database, "INSERT INTO inventories (name, sku, price) VALUES ('x', 'own', 1) RETURNING id")[0][
        0
    ]
    run(
        database,
        f"INSERT INTO batches (inventory_id, lot_code, expires_on) VALUES ({own}, 'L', '2030-01-01')",
    )

    make(database.text)

    kept = run(
        database,
        "SELECT i.sku, b.lot_code FROM inventories i JOIN batches b ON b.inventory_id = i.id "
        "WHERE NOT i.is_test_data",
    )
    assert kept == [("own", "L")]
    assert run(database, "SELECT min(id) FROM inventories WHERE is_test_data") == [(own + 1,)]
    assert dataset_rows.counts(database, TABLES) == {
        "inventories": 1001,
        "batches": 2001,
        "inventory_logs": 2000,
    }


def test_a_row_that_stays_and_refers_to_a_test_row_stops_the_work(database: DatabaseURL) -> None:
    """A12: a log line of the application's own about a test batch: refused with table and count."""
    make(database.text)
    run(
        database,
        "INSERT INTO inventory_logs (inventory_id, batch_id, delta, operation, previous_quantity, "
        "current_quantity) SELECT inventory_id, id, -1, 'ship', quantity, quantity - 1 "
        "FROM batches WHERE id = 1",
    )
    before = stored(database)

    with pytest.raises(TestDataReferencedError, match=r"inventory_logs.*1"):
        make(database.text, seed=8)

    assert stored(database) == before


def test_two_seeds_live_side_by_side(database: DatabaseURL) -> None:
    """Without cleaning, another seed adds its rows; its children belong to its own inventories."""
    make(database.text)

    make(database.text, seed=8, clean_existing=False)

    assert dataset_rows.counts(database, TABLES) == {
        "inventories": 2000,
        "batches": 4000,
        "inventory_logs": 4000,
    }
    assert run(database, "SELECT count(*) FROM (SELECT 1 FROM batches GROUP BY inventory_id) _") == [(2000,)]


def test_both_data_sets_live_in_one_database(database: DatabaseURL) -> None:
    """Neither cleans what is the other's."""
    made = make(database.text)

    generate("keikaku", "small", database.text, seed=7, reference_date=DAY, create_tables=True)

    assert dataset_rows.counts(database, TABLES) == made.rows
    assert stored(database) == SMALL[1]


def test_stock_adds_up_in_the_database(database: DatabaseURL) -> None:
    """No inventory has another quantity than its batches, or than its last log line says."""
    make(database.text)

    wrong = run(
        database,
        "SELECT i.id FROM inventories i WHERE i.quantity <> "
        "(SELECT sum(b.quantity) FROM batches b WHERE b.inventory_id = i.id) OR i.quantity <> "
        "(SELECT l.current_quantity FROM inventory_logs l WHERE l.inventory_id = i.id "
        "ORDER BY l.id DESC LIMIT 1)",
    )
    assert wrong == []


def test_tables_refuse_what_the_application_refuses(database: DatabaseURL) -> None:
    """The created tables have the keys, checks and enums of a real application."""
    make(database.text)
    with psycopg.connect(database.text, autocommit=True) as connection:
        for statement, error in (
            ("UPDATE inventories SET sku = 'same'", psycopg.errors.UniqueViolation),
            ("UPDATE batches SET lot_code = 'same'", psycopg.errors.UniqueViolation),
            ("UPDATE inventories SET price = -1", psycopg.errors.CheckViolation),
            ("UPDATE inventories SET quantity = -1", psycopg.errors.CheckViolation),
            ("UPDATE batches SET quantity = -1", psycopg.errors.CheckViolation),
            ("UPDATE inventory_logs SET delta = delta + 1", psycopg.errors.CheckViolation),
            ("UPDATE batches SET status = 'lost'", psycopg.errors.InvalidTextRepresentation),
            ("DELETE FROM batches", psycopg.errors.IntegrityError),
            ("DELETE FROM inventories", psycopg.errors.IntegrityError),
            ("UPDATE batches SET inventory_id = 0 WHERE id = 1", psycopg.errors.ForeignKeyViolation),
        ):
            with pytest.raises(error):
                connection.execute(statement)


def test_every_reference_has_an_index(database: DatabaseURL) -> None:
    """Deleting a parent looks its children up; no foreign key is without an index that begins with it."""
    make(database.text)

    assert dataset_rows.references_without_index(database) == []
