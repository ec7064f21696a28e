"""Generating a dataset: the same data everywhere, next to rows that stay, and never a half state."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import re
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datetime import UTC, date, datetime
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import sqlalchemy

from keikaku_snapshots.datasets import Scale, Table, Timeouts, generate
from keikaku_snapshots.errors import (
    AccessDeniedError,
    ConnectError,
    DatabaseInUseError,
    ForeignKeyError,
    MemoryLimitError,
    OperationTimeoutError,
    ProtectedDatabaseError,
    RefusedError,
    SchemaDriftError,
    TestDataReferencedError,
    UniqueError,
    UnknownScaleError,
    UsageError,
)
from keikaku_snapshots.postgres.connect import RetryPolicy
from tests import bookshop
from tests.callers import IN_TRANSACTION, OWNED, caller, settled
from tests.servers import connect
from tests.waiting import until_somebody_waits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keikaku_snapshots.datasets import Generated
    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.progress import Progress
    from tests.conftest import MakeDatabase
    from tests.servers import Server

shop = bookshop.load()
DAY = date(2026, 4, 1)
QUICK = RetryPolicy(attempts=3, wait_min_s=0.01, wait_max_s=0.02)
ROWS = {"customers": 100, "orders": 500, "order_lines": 1500}

#: Seed 0 on 2026-04-01: what `generate` reports, and the SHA-256 of the stored rows in key order.
#: A change of either is a change of everybody's data.
CHECKSUM = "eaf0707f8e93e0ff814238287882e9f133eaa18842708cbb56f9fecea7a564dc"
STORED = "a28772ed88dcec0c64c20b7cfada7677e09acfd97129d42b86a24eed1caafe65"


@pytest.fixture
def database(shared_database: DatabaseURL) -> DatabaseURL:
    """An empty database; one for the module."""
    return shared_database


def make(db: Any, **options: Any) -> Generated:
    """Generate the bookshop's small scale."""
    result: Generated = generate(
        shop.dataset, "small", db, **{"reference_date": DAY, "create_tables": True, **options}
    )
    return result


def content(url: DatabaseURL, schema: str = "public") -> str:
    """SHA-256 of all rows in key order, read past the code under test."""
    digest = hashlib.sha256()
    with connect(url) as connection:
        for table, key in (("customers", "id"), ("orders", "id"), ("order_lines", "order_id, line_number")):
            with connection.cursor() as cursor:
                query = f"COPY (SELECT * FROM {schema}.{table} ORDER BY {key}) TO STDOUT"
                with cursor.copy(query) as copy:
                    for block in copy:
                        digest.update(block)
    return digest.hexdigest()


def counts(url: DatabaseURL) -> dict[str, int]:
    """Rows of each table of the bookshop."""
    with connect(url) as connection:
        rows = [(t, connection.execute(f"SELECT count(*) FROM {t}").fetchone()) for t in ROWS]
    return {table: row[0] for table, row in rows if row is not None}  # type: ignore[misc]


def test_the_data_is_the_same_on_every_server(each_server: Server, make_database: MakeDatabase) -> None:
    """A5: the same seed, scale and day give the same stored bytes on every version, and the same checksum."""
    url = make_database(each_server)

    generated = make(url)

    assert generated.rows == ROWS
    assert (generated.checksum, content(url)) == (CHECKSUM, STORED)


@pytest.mark.parametrize("kind", ["psycopg-async-autocommit", "asyncpg", "async-session-asyncpg", "session"])
def test_every_kind_of_caller_gets_the_same_data(database: DatabaseURL, kind: str) -> None:
    """A5: sync, async, psycopg and asyncpg store the same bytes."""

    async def main() -> Generated:
        async with caller(kind, database) as one:
            generated: Generated = await settled(make(one.db))
            if "session" in kind:
                await one.end("commit")
            return generated

    assert asyncio.run(main()).checksum == CHECKSUM
    assert content(database) == STORED


@pytest.mark.parametrize("workers", ["threads", "processes"])
def test_an_executor_makes_the_same_data(
    database: DatabaseURL, workers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Design, Generation: shards made by threads or processes give the same bytes and checksum."""
    monkeypatch.syspath_prepend(str(bookshop.FOLDER))
    dataset = dataclasses.replace(shop.dataset, shard_units=7)
    alone = generate(dataset, "small", database, reference_date=DAY, create_tables=True)
    pool: Any = (
        ThreadPoolExecutor(3)
        if workers == "threads"
        else ProcessPoolExecutor(2, mp_context=get_context("spawn"))
    )

    with pool:
        together = generate(dataset, "small", database, reference_date=DAY, executor=pool, batch_size=11)

    assert together.checksum == alone.checksum
    assert together.rows == alone.rows


def test_another_seed_or_day_gives_other_data(database: DatabaseURL) -> None:
    """The checksum tells seeds and days apart, and not batch sizes."""
    checksums = [
        make(database, **options).checksum
        for options in (
            {},
            {"batch_size": 3},
            {"seed": 1},
            {"seed": "1"},
            {"reference_date": date(2026, 4, 2)},
        )
    ]

    assert checksums[0] == checksums[1]
    assert checksums[2] == checksums[3]
    assert len(set(checksums)) == 3


def test_it_is_safe_to_run_every_night(database: DatabaseURL) -> None:
    """A12: test rows of the last run are replaced, the database is the same again, numbers included."""
    make(database)
    again = make(database)

    assert again.deleted == sum(ROWS.values())
    assert content(database) == STORED
    with connect(database) as connection:
        assert connection.execute("SELECT last_value, is_called FROM orders_id_seq").fetchone() == (
            501,
            False,
        )


def test_rows_that_are_not_test_data_stay(database: DatabaseURL) -> None:
    """A12: all other rows are left alone, and new numbers begin after theirs."""
    make(database)
    with connect(database) as connection:
        connection.execute(
            "INSERT INTO customers SELECT gen_random_uuid(), 'real', 'real@example.org', "
            "'gold', '{}', '{}', false;"
            "INSERT INTO orders OVERRIDING SYSTEM VALUE SELECT 900, id, '2026-01-01', NULL, false "
            "FROM customers WHERE NOT is_test_data"
        )

    generated = make(database)

    assert generated.deleted == sum(ROWS.values())
    assert counts(database) == {"customers": 101, "orders": 501, "order_lines": 1500}
    with connect(database) as connection:
        row = connection.execute("SELECT min(id), max(id) FROM orders WHERE is_test_data").fetchone()
        assert row == (901, 1400)
        connection.execute(
            "INSERT INTO orders (customer_id, ordered_on) SELECT customer_id, ordered_on FROM orders LIMIT 1"
        )
        assert connection.execute("SELECT max(id) FROM orders").fetchone() == (1401,)


def test_an_insert_after_the_load_gets_a_free_number(database: DatabaseURL) -> None:
    """FAULTS 82, 84: the identity column (GENERATED ALWAYS) is filled by COPY, and its sequence goes on."""
    make(database)

    with connect(database) as connection:
        row = connection.execute(
            "INSERT INTO orders (customer_id, ordered_on) SELECT id, '2026-01-01' FROM "
            "customers LIMIT 1 RETURNING id"
        ).fetchone()

    assert row == (501,)


def test_without_cleaning_seeded_rows_collide(database: DatabaseURL) -> None:
    """A10, A12: clean_existing=False leaves the old rows; the same seed collides, nothing changes."""
    make(database)

    with pytest.raises(UniqueError, match="customers"):
        make(database, clean_existing=False)

    assert content(database) == STORED


OUTSIDE = {
    "a table outside that cascades": (
        (
            "CREATE TABLE reviews (order_id bigint CONSTRAINT of_order REFERENCES orders ON DELETE CASCADE);"
            "INSERT INTO reviews SELECT id FROM orders LIMIT 3"
        ),
        r"public\.?\"?\.?\"?reviews\"?: 3 rows refer to test rows of .*orders.* \(constraint of_order\)",
    ),
    "a table outside that sets null": (
        (
            "CREATE TABLE reviews (customer uuid CONSTRAINT of_one REFERENCES customers ON DELETE SET NULL);"
            "INSERT INTO reviews SELECT id FROM customers LIMIT 2"
        ),
        "reviews.*: 2 rows refer to test rows of .*customers",
    ),
    "its own test mark does not help a table outside": (
        (
            "CREATE TABLE reviews (customer uuid REFERENCES customers, is_test_data boolean);"
            "INSERT INTO reviews SELECT id, true FROM customers LIMIT 2"
        ),
        "reviews.*: 2 rows",
    ),
    "a real row of a table of the dataset": (
        "INSERT INTO orders (customer_id, ordered_on) SELECT id, '2026-01-01' FROM customers LIMIT 1",
        "orders.*: 1 rows refer to test rows of .*customers",
    ),
    "a row whose mark is null": (
        (
            "ALTER TABLE orders ALTER is_test_data DROP NOT NULL;"
            "INSERT INTO orders (customer_id, ordered_on, is_test_data) SELECT id, '2026-01-01', "
            "NULL FROM customers LIMIT 1"
        ),
        "orders.*: 1 rows",
    ),
    "a partitioned table, by a key of two columns": (
        (
            "CREATE TABLE reviews (o bigint, l int, "
            "FOREIGN KEY (o, l) REFERENCES order_lines ON DELETE CASCADE) "
            "PARTITION BY RANGE (o); CREATE TABLE reviews_1 PARTITION OF reviews DEFAULT;"
            "INSERT INTO reviews SELECT order_id, line_number FROM order_lines LIMIT 4"
        ),
        "reviews.*: 4 rows refer to test rows of .*order_lines",
    ),
}


@pytest.mark.parametrize("case", OUTSIDE)
def test_rows_outside_that_refer_to_test_rows_stop_it(database: DatabaseURL, case: str) -> None:
    """A12: rows outside are counted first, table and count are told, and a cascade never decides."""
    sql, message = OUTSIDE[case]
    make(database)
    with connect(database) as connection:
        connection.execute(sql)
    before = content(database)

    with pytest.raises(TestDataReferencedError) as raised:
        make(database, seed=1)

    assert re.search(message, str(raised.value)), str(raised.value)
    assert content(database) == before


def test_a_reference_that_comes_at_the_same_moment_is_not_overlooked(database: DatabaseURL) -> None:
    """A12: a row that another session is just inserting is waited for and counted; no cascade deletes it."""
    make(database)
    with connect(database) as connection, ThreadPoolExecutor(1) as pool:
        connection.execute("CREATE TABLE reviews (customer uuid REFERENCES customers ON DELETE CASCADE)")
        with connection.transaction():
            connection.execute("INSERT INTO reviews SELECT id FROM customers LIMIT 1")
            generating = pool.submit(make, database)
            until_somebody_waits(database)

        with pytest.raises(TestDataReferencedError, match=r"reviews.*: 1 rows"):
            generating.result()

    assert content(database) == STORED


def test_a_session_in_the_way_ends_it_at_the_lock_limit(database: DatabaseURL) -> None:
    """Another session that has written to the tables and does not end: an error, nothing changed."""
    make(database)
    with connect(database) as connection:
        connection.execute("BEGIN")
        connection.execute("UPDATE orders SET note = 'mine' WHERE id = 1")
        with pytest.raises(DatabaseInUseError, match="lock was not granted"):
            make(database, timeouts=Timeouts(lock_s=0.2), retry=QUICK)
        connection.execute("ROLLBACK")

    assert content(database) == STORED


def test_readers_are_not_disturbed(database: DatabaseURL) -> None:
    """A session that has read the tables in an open transaction neither blocks the work nor is blocked."""
    make(database)
    with psycopg.connect(database.text) as reader:
        reader.execute("SELECT count(*) FROM customers, orders LIMIT 1").fetchone()
        make(database, timeouts=Timeouts(lock_s=1.0))
        assert reader.execute("SELECT count(*) FROM orders").fetchone() == (500,)


def test_a_table_without_the_mark_is_only_filled_while_empty(database: DatabaseURL) -> None:
    """Rows of a table without is_test_data cannot be told from others, so they are never deleted."""
    make(database)
    with connect(database) as connection:
        connection.execute("ALTER TABLE order_lines DROP COLUMN is_test_data")
    lines = dataclasses.replace(
        shop.dataset.tables[2],
        rows=lambda shard: (row[:4] for row in shop.line_rows(shard)),
        columns=("order_id", "line_number", "title", "price"),
    )
    unmarked = dataclasses.replace(shop.dataset, tables=(*shop.dataset.tables[:2], lines))

    with pytest.raises(RefusedError, match=r"'order_lines' has rows but no column 'is_test_data'"):
        generate(unmarked, "small", database, reference_date=DAY)
    with connect(database) as connection:
        connection.execute("TRUNCATE order_lines")

    assert generate(unmarked, "small", database, reference_date=DAY).rows == ROWS


def test_missing_tables_are_named_and_not_created_unasked(database: DatabaseURL) -> None:
    """A12: tables are only created with create_tables=True."""
    with pytest.raises(SchemaDriftError, match="customers, orders, order_lines"):
        make(database, create_tables=False)

    with connect(database) as connection:
        assert connection.execute(
            "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        ).fetchone() == (0,)


def test_only_missing_tables_are_created(database: DatabaseURL) -> None:
    """A12: create_tables leaves those that are there, and the types they share."""
    make(database)
    with connect(database) as connection:
        connection.execute("DROP TABLE order_lines; COMMENT ON TABLE customers IS 'kept'")

    make(database)

    assert content(database) == STORED
    with connect(database) as connection:
        assert connection.execute("SELECT obj_description('customers'::regclass)").fetchone() == ("kept",)


DRIFT = {
    "a missing column": (
        ["ALTER TABLE customers DROP COLUMN preferences"],
        "public.customers: column preferences is missing",
    ),
    "a column that must have a value": (
        [
            "ALTER TABLE orders ADD shop text NOT NULL DEFAULT 'x'",
            "ALTER TABLE orders ALTER shop DROP DEFAULT",
        ],
        "orders: column shop .text. is NOT NULL without a default",
    ),
    "another type": (
        ["ALTER TABLE orders ALTER ordered_on TYPE text"],
        "orders: column ordered_on is text, the dataset has DATE",
    ),
    "an array of another type": (
        ["ALTER TABLE customers ALTER interests TYPE integer[] USING '{}'"],
        r"interests is integer\[\], the dataset has TEXT\[\]",
    ),
    "an enum with fewer labels": (
        [
            "ALTER TABLE customers ALTER tier TYPE text",
            "DROP TYPE customer_tier",
            "CREATE TYPE customer_tier AS ENUM ('basic')",
            "TRUNCATE customers, orders, order_lines",
            "ALTER TABLE customers ALTER tier TYPE customer_tier USING tier::customer_tier",
        ],
        "its enum lacks gold, platinum",
    ),
    "a generated column": (
        [
            "ALTER TABLE order_lines DROP COLUMN price",
            "ALTER TABLE order_lines ADD price numeric GENERATED ALWAYS AS (1) STORED",
        ],
        "column price is generated by the server",
    ),
    "a view": (
        ["ALTER TABLE order_lines RENAME TO old", "CREATE VIEW order_lines AS SELECT * FROM old"],
        "order_lines is no table",
    ),
}


@pytest.mark.parametrize("case", DRIFT)
def test_tables_of_another_form_are_told_before_anything_is_touched(database: DatabaseURL, case: str) -> None:
    """A database with another schema: every difference is named, nothing is changed."""
    statements, message = DRIFT[case]
    make(database)
    with connect(database) as connection:
        connection.execute("; ".join(statements).encode())
        before = connection.execute("SELECT count(*), max(xmin::text) FROM orders").fetchone()

        with pytest.raises(SchemaDriftError) as raised:
            make(database)

        assert re.search(message, str(raised.value)), str(raised.value)
        assert connection.execute("SELECT count(*), max(xmin::text) FROM orders").fetchone() == before


def test_all_differences_are_told_at_once(database: DatabaseURL) -> None:
    """Not one error after the other, but the whole list."""
    make(database)
    with connect(database) as connection:
        connection.execute("ALTER TABLE customers DROP COLUMN name")
        connection.execute("ALTER TABLE orders ADD x int NOT NULL DEFAULT 0")
        connection.execute("ALTER TABLE orders ALTER x DROP DEFAULT")

    with pytest.raises(SchemaDriftError, match=r"(?s)column name is missing.*column x "):
        make(database)


def test_harmless_differences_are_no_obstacle(database: DatabaseURL) -> None:
    """Wider or renamed types of the same kind, domains, and new columns with a default are taken."""
    make(database)
    with connect(database) as connection:
        connection.execute(
            "ALTER TABLE customers ALTER name TYPE varchar(80), ADD since date DEFAULT now(), "
            "ADD remark text;"
            "ALTER TABLE order_lines ALTER line_number TYPE bigint; CREATE DOMAIN money_amount "
            "AS numeric(8,2);"
            "ALTER TABLE order_lines ALTER price TYPE money_amount; ALTER TABLE customers ALTER "
            "tier TYPE text"
        )

    assert make(database).rows == ROWS


def test_another_schema_can_be_chosen(database: DatabaseURL) -> None:
    """The schema option creates and fills the tables there, and leaves those of public alone."""
    make(database)
    make(database, schema='My "shop')

    assert content(database, '"My ""shop"') == STORED
    make(database, schema='My "shop', seed=1)
    assert content(database) == STORED


def test_row_security_makes_it_fail(database: DatabaseURL, server: Server) -> None:
    """FAULTS 18: where row security would hide rows, the load fails in place of seeing fewer."""
    from tests.servers import as_role

    make(database)
    with connect(database) as connection:
        connection.execute(
            "ALTER TABLE orders ENABLE ROW LEVEL SECURITY;"
            "CREATE POLICY a_few ON orders USING (id < 10); GRANT ALL ON ALL TABLES IN SCHEMA "
            "public TO keikaku_owner;"
            "GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO keikaku_owner; GRANT USAGE ON "
            "SCHEMA public TO keikaku_owner"
        )

    with pytest.raises(AccessDeniedError, match="row-level security"):
        make(as_role(database, "keikaku_owner"))

    assert content(database) == STORED


def test_a_plain_owner_can_do_everything(owner_database: DatabaseURL) -> None:
    """FAULTS 86: nothing needs a superuser: no disabled triggers, no replication role."""
    make(owner_database)
    make(owner_database, drop_and_readd_constraints=True)

    assert counts(owner_database) == ROWS


@pytest.mark.parametrize("drop", [False, True])
def test_an_orphan_is_never_stored(database: DatabaseURL, drop: bool) -> None:
    """FAULTS 86: foreign keys are checked by the server in every mode, also for a superuser."""

    def orphans(shard: Any) -> Iterator[tuple[Any, ...]]:
        for row in shop.line_rows(shard):
            yield (str(int(row[0]) + (400 if row[0] == "499" else 0)), *row[1:])

    lines = dataclasses.replace(shop.dataset.tables[2], rows=orphans)
    wrong = dataclasses.replace(shop.dataset, tables=(*shop.dataset.tables[:2], lines))
    make(database)

    with pytest.raises(ForeignKeyError, match=r"(?s)order_lines_order_id_fkey.*Column: order_id") as raised:
        generate(wrong, "small", database, reference_date=DAY, drop_and_readd_constraints=drop)

    assert drop or raised.value.details["batch"] == 3
    assert content(database) == STORED


def definitions(url: DatabaseURL) -> list[Any]:
    """Constraints and indexes with their comments."""
    with connect(url) as connection:
        return connection.execute(
            "SELECT conname, pg_get_constraintdef(oid), obj_description(oid), "
            "convalidated::text FROM pg_constraint "
            "WHERE connamespace = 'public'::regnamespace UNION ALL "
            "SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid), obj_description(indexrelid), '' "
            "FROM pg_index WHERE indrelid IN (SELECT oid FROM pg_class WHERE relnamespace = "
            "'public'::regnamespace) "
            "ORDER BY 1, 2"
        ).fetchall()


def test_dropped_constraints_and_indexes_come_back(each_server: Server, make_database: MakeDatabase) -> None:
    """drop_and_readd_constraints: every constraint, index and comment is there again, validated."""
    url = make_database(each_server)
    make(url)
    with connect(url) as connection:
        connection.execute(
            "CREATE INDEX odd ON order_lines USING btree (lower(title) DESC) INCLUDE (price) WHERE price > 3;"
            "COMMENT ON INDEX odd IS 'it''s odd'; CREATE UNIQUE INDEX kept ON orders (id, note);"
            "COMMENT ON CONSTRAINT orders_customer_id_fkey ON orders IS 'who ordered';"
            'ALTER TABLE order_lines ADD CONSTRAINT "Odd $1" FOREIGN KEY (order_id) REFERENCES orders '
            "ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED"
        )
    before = definitions(url)

    assert make(url, drop_and_readd_constraints=True).checksum == CHECKSUM

    assert definitions(url) == before
    assert content(url) == STORED


def _terminate_others(url: DatabaseURL) -> None:
    with connect(url) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


def _killer(url: DatabaseURL, times: int) -> Any:
    left = [times]

    def progress(value: Progress) -> None:
        if value.step == "copy orders" and left[0]:
            left[0] -= 1
            _terminate_others(url)

    return progress


def test_a_session_killed_in_the_middle_is_tried_again(database: DatabaseURL) -> None:
    """A10: the backend is terminated in mid-load: rolled back, fresh connection, every row once."""
    make(database, seed=1)

    generated = make(database, progress=_killer(database, 2), retry=QUICK)

    assert generated.checksum == CHECKSUM
    assert content(database) == STORED


def test_a_session_killed_for_good_leaves_the_old_rows(database: DatabaseURL) -> None:
    """Never a half state: after the last try the rows of the last run are all there."""
    make(database)

    with pytest.raises(ConnectError):
        make(database, seed=1, progress=_killer(database, 9), retry=QUICK)

    assert content(database) == STORED


def test_a_memory_limit_leaves_the_old_rows(database: DatabaseURL) -> None:
    """A7: above the limit nothing is written."""
    make(database)

    with pytest.raises(MemoryLimitError, match="Nothing was written"):
        make(database, seed=1, memory_limit_mb=1)

    assert content(database) == STORED


def test_a_generator_that_fails_says_where(database: DatabaseURL) -> None:
    """An error of a row function passes unchanged, with table and shard as a note."""

    def broken(shard: Any) -> Iterator[tuple[str]]:
        raise LookupError("no names left")

    tables = (Table(shop.customers, broken),)
    with pytest.raises(LookupError, match="no names left") as raised:
        generate(dataclasses.replace(shop.dataset, tables=tables), "small", database, create_tables=True)

    assert raised.value.__notes__ == ["while making the rows of table 'customers', shard 0"]


def test_a_database_that_looks_like_production_is_refused(
    server: Server, make_database: MakeDatabase
) -> None:
    """B15: also when a connection is handed in; allow_protected=True allows it."""
    url = make_database(server, name="t_generate_prod")

    with pytest.raises(ProtectedDatabaseError, match="'prod' is in its name or host"):
        make(url)
    with connect(url) as connection, pytest.raises(ProtectedDatabaseError):
        make(connection)
    with pytest.raises(ProtectedDatabaseError, match="not among those"):
        make(url, allow_protected=True, allowed_databases=["*_test"])

    assert make(url, allow_protected=True, allowed_databases=["t_*"]).rows == ROWS


@pytest.mark.parametrize("kind", [*OWNED, *IN_TRANSACTION])
def test_the_host_of_every_kind_of_caller_is_looked_at(database: DatabaseURL, kind: str) -> None:
    """B15: the word may stand in the host alone, whatever was handed in."""
    url = dataclasses.replace(database, host="localhost")

    async def main() -> None:
        async with caller(kind, url) as one:
            with pytest.raises(ProtectedDatabaseError, match="'localhost' is in its name or host"):
                await settled(make(one.db, protected_words=["localhost"]))

    asyncio.run(main())


def test_the_host_of_a_query_is_looked_at(database: DatabaseURL) -> None:
    """B15: SQLAlchemy's way of naming a host after the question mark; also when no connection can tell."""
    query = {"host": "localhost", "port": str(database.port)}
    address = sqlalchemy.URL.create(
        "postgresql+psycopg", database.user, database.password, database=database.database, query=query
    )
    engine = sqlalchemy.create_engine(address, poolclass=sqlalchemy.NullPool)

    with engine.connect() as connection, pytest.raises(ProtectedDatabaseError):
        make(connection, protected_words=["localhost"])


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "batch 0": ({"batch_size": 0}, ValueError, "batch_size must be greater than 0, not 0"),
    "batch -5": ({"batch_size": -5}, ValueError, "batch_size must be greater than 0, not -5"),
    "batch text": ({"batch_size": "500"}, TypeError, "batch_size must be an integer, not str: '500'"),
    "batch True": ({"batch_size": True}, TypeError, "batch_size must be an integer"),
    "seed": ({"seed": 1.5}, TypeError, "seed must be an integer or a str, not float: 1.5"),
    "day": ({"reference_date": "2026-01-01"}, TypeError, "reference_date must be a date, not str"),
    "moment": ({"reference_date": datetime(2026, 1, 1, tzinfo=UTC)}, TypeError, "not datetime"),
    "memory": ({"memory_limit_mb": "1"}, TypeError, "memory_limit_mb must be a number"),
    "memory 0": ({"memory_limit_mb": 0}, ValueError, "memory_limit_mb must be greater than 0, not 0"),
    "memory nan": ({"memory_limit_mb": float("nan")}, ValueError, "memory_limit_mb must be greater than 0"),
    "seed surrogate": ({"seed": "\ud800"}, ValueError, "seed is no valid text"),
    "schema": ({"schema": 5}, TypeError, "schema must be a name, not int: 5"),
    "schema empty": ({"schema": ""}, ValueError, "schema must be the name of a schema, not ''"),
    "retry": ({"retry": 3}, TypeError, "retry must be a RetryPolicy, not int: 3"),
    "timeouts": ({"timeouts": 3}, TypeError, "timeouts must be a Timeouts, not int: 3"),
    "executor": ({"executor": "threads"}, TypeError, "executor must have submit()"),
    # Each of these would count as True, or each letter as a word or pattern of its own.
    "clean": ({"clean_existing": "no"}, TypeError, "clean_existing must be True or False, not str: 'no'"),
    "protected": ({"allow_protected": "no"}, TypeError, "allow_protected must be True or False"),
    "words": ({"protected_words": "prod"}, TypeError, "protected_words must be a list of words, not str"),
    "word": ({"protected_words": [1]}, TypeError, "protected_words must hold words, not int: 1"),
    "patterns": (
        {"allowed_databases": "x*"},
        TypeError,
        "allowed_databases must be a list of words, not str",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_parameters_are_named(case: str) -> None:
    """A8: the error names parameter and value, before any connection is opened."""
    options, kind, message = WRONG[case]

    with pytest.raises(kind, match=re.escape(message)):
        make("postgresql://nobody@127.0.0.1:1/none", **options)


@pytest.mark.parametrize("name", ["connect_s", "statement_s", "lock_s", "stall_s"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), 10**8, "5", True])
def test_a_time_limit_that_is_none_is_refused(name: str, value: Any) -> None:
    """A8, A10: 0 would switch a limit of the server off, and stop every COPY at once."""
    with pytest.raises(ValueError, match=f"{name} must be"):
        Timeouts(**{name: value})


def test_the_shortest_time_limit_is_a_limit(database: DatabaseURL) -> None:
    """A10: less than a millisecond is not rounded to 0, which would be no limit."""
    with pytest.raises(OperationTimeoutError):
        make(database, timeouts=Timeouts(statement_s=0.0001))


def test_an_executor_that_was_shut_down_says_so(database: DatabaseURL) -> None:
    """A bad executor is named, and nothing is written."""
    pool = ThreadPoolExecutor(1)
    pool.shutdown()

    with pytest.raises(UsageError, match="cannot schedule new futures after shutdown"):
        make(database, executor=pool)

    with connect(database) as connection:
        assert connection.execute("SELECT to_regclass('customers')").fetchone() == (None,)


def test_a_batch_as_large_as_can_be(database: DatabaseURL) -> None:
    """A8: more rows than a machine can count are one batch, with the usual warning."""
    with pytest.warns(UserWarning, match="more than 1000"):
        assert make(database, batch_size=10**30).rows == ROWS


def test_a_scale_may_leave_out_what_belongs_to_a_unit(database: DatabaseURL) -> None:
    """A2: the row functions have numbers of their own; only the progress knows no total then."""
    told: list[Progress] = []

    generated = generate("keikaku", Scale("tiny", 1), database, create_tables=True, progress=told.append)

    assert generated.rows["welfare_recipients"] == 100
    assert {step.total for step in told if step.step == "copy staffs"} == {None}


def test_a_large_batch_only_warns(database: DatabaseURL) -> None:
    """A8: more than 1,000 rows in a batch is allowed, with a warning."""
    with pytest.warns(UserWarning, match="batch_size=1001 is more than 1000"):
        assert make(database, batch_size=1001).checksum == CHECKSUM


def test_an_unknown_scale_is_a_value_error() -> None:
    """A2: a scale may be named; an unknown one lists those there are."""
    with pytest.raises(UnknownScaleError, match="small"):
        generate(shop.dataset, "huge", "postgresql://nobody@127.0.0.1:1/none")


def test_progress_tells_every_step(database: DatabaseURL) -> None:
    """A11: every table is a step with its rows; the deleting of old rows is one too."""
    make(database)
    heard: list[Progress] = []

    make(database, progress=heard.append)

    ends = [(value.step, value.done, value.total) for value in heard if value.finished]
    assert ends == [
        ("delete old test rows", 2100, None),
        ("copy customers", 100, 100),
        ("copy orders", 500, 500),
        ("copy order_lines", 1500, 1500 if shop.dataset.tables[2].rows_per_unit else None),
    ]


def test_a_scale_of_ones_own(database: DatabaseURL) -> None:
    """A2: any Scale may be given, over several shards."""
    generated = generate(
        shop.dataset,
        Scale("odd", 123, per_unit={"orders": 2}),
        database,
        reference_date=DAY,
        create_tables=True,
    )

    assert generated.rows == {"customers": 123, "orders": 246, "order_lines": 738}
