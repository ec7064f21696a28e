"""The Keikaku data set on real servers: its counts, and the same bytes everywhere."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from keikaku_snapshots.datasets import keikaku_tables
from keikaku_snapshots.datasets.bulk import bulk_create_offices, bulk_create_staffs
from keikaku_snapshots.datasets.generation import Generated, generate
from tests import dataset_rows
from tests.dataset_rows import DAY

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from keikaku_snapshots.postgres.url import DatabaseURL
    from tests.conftest import MakeDatabase
    from tests.servers import Server

TABLES = [table.name for table in keikaku_tables.metadata.sorted_tables]
#: What seed 7 gives for 2026-04-01. They change only when the data of every seed change.
SMALL = (
    "a12881773f293b1c13ba5eb5c37936383470b8a85f2c61cce1f4f0354c44760c",
    "d04f1410a8105b3901fdb500c74392c3e645b6bf1993d7684aea413ccbf950f4",
)
MEDIUM = (
    "f2f466ae6d0edb42ce63cc2d14e41b4cf4df2eb423890136dac1b952a71fb345",
    "1231a36e05ae791e3b527cebcebbe0262488efe4f1cb81971bb0975fd55a009f",
)


@pytest.fixture
def database(shared_database: DatabaseURL) -> DatabaseURL:
    """An empty database; one for the module."""
    return shared_database


def stored(url: DatabaseURL) -> str:
    """SHA-256 over every row of every table as the server writes it, and over the sequence."""
    return dataset_rows.stored(url, TABLES, ["support_plan_cycles_id_seq"])


def counts(url: DatabaseURL) -> dict[str, int]:
    """Rows of every table."""
    return dataset_rows.counts(url, TABLES)


def make(url: Any, scale: str = "small", **options: Any) -> Generated:
    """Generate with seed 7, creating the tables."""
    settings = {"seed": 7, "reference_date": DAY, "create_tables": True, **options}
    return cast("Generated", generate("keikaku", scale, url, **settings))


def test_medium_is_the_same_on_every_version(each_server: Server, make_database: MakeDatabase) -> None:
    """A3, A5: exactly the promised rows, byte-identical on PostgreSQL 15, 16 and 18."""
    url = make_database(each_server)

    made = make(url.text, "medium")

    expected = {
        "staffs": 1001,
        "offices": 100,
        "office_staffs": 1000,
        "welfare_recipients": 10_000,
        "office_welfare_recipients": 10_000,
        "individual_support_plans": 10_000,
        "support_plan_cycles": 10_000,
    }
    assert made.rows == expected
    assert counts(url) == expected
    assert (made.checksum, stored(url)) == MEDIUM


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_sessions_of_an_event_loop_get_the_same_data(driver: str, database: DatabaseURL) -> None:
    """A5: an AsyncSession on psycopg or on asyncpg stores the same bytes as a URL does."""

    async def run() -> Generated:
        engine = create_async_engine(database.for_sqlalchemy(driver), poolclass=sa.NullPool)
        async with AsyncSession(engine) as session:
            made = await cast("Awaitable[Generated]", make(session))
            await session.commit()
        await engine.dispose()
        return made

    made = asyncio.run(run())

    assert (made.checksum, stored(database)) == SMALL


def test_two_processes_get_the_same_data(server: Server, make_database: MakeDatabase) -> None:
    """A5: another process, hash seed, time zone and language make no difference."""
    code = (
        "import sys; from datetime import date; from keikaku_snapshots.datasets import generate; "
        "print(generate('keikaku', 'small', sys.argv[1], seed=7, reference_date=date(2026, 4, 1), "
        "create_tables=True).checksum)"
    )
    results = []
    for number, (zone, language) in enumerate([("Asia/Tokyo", "C.UTF-8"), ("America/New_York", "C")]):
        url = make_database(server)
        environment = {**os.environ, "PYTHONHASHSEED": str(number), "TZ": zone, "LC_ALL": language}
        printed = subprocess.run(
            [sys.executable, "-c", code, url.text],
            env={**environment, "PGTZ": zone},
            capture_output=True,
            text=True,
            check=True,
        )
        results.append((printed.stdout.strip(), stored(url)))

    assert results == [SMALL, SMALL]


def test_batches_and_workers_do_not_change_the_data(database: DatabaseURL) -> None:
    """A5: batch size and executor are matters of speed only."""
    with ThreadPoolExecutor(2) as executor:
        made = make(database.text, batch_size=77, executor=executor)

    assert (made.checksum, stored(database)) == SMALL


def test_every_night_the_same(database: DatabaseURL) -> None:
    """A12: generating again replaces the test rows, down to the numbers of the cycles."""
    make(database.text)

    again = make(database.text)

    assert again.deleted == sum(again.rows.values())
    assert (again.checksum, stored(database)) == SMALL


def test_rows_of_others_stay(database: DatabaseURL) -> None:
    """A12: a staff that is no test data is left alone, by a first and by a second run."""
    make(database.text)
    with psycopg.connect(database.text) as connection:
        connection.execute(
            "INSERT INTO staffs (email, hashed_password, first_name, last_name, full_name, "
            "first_name_furigana, last_name_furigana, role) "
            "VALUES ('real@example.org', 'x', 'x', 'x', 'x', 'x', 'x', 'owner')"
        )

    make(database.text)

    with psycopg.connect(database.text) as connection:
        kept = connection.execute("SELECT email FROM staffs WHERE NOT is_test_data").fetchall()
    assert kept == [("real@example.org",)]
    assert counts(database)["staffs"] == 102


def test_two_seeds_live_side_by_side(database: DatabaseURL) -> None:
    """Without cleaning, another seed adds its rows; each brings its own system staff."""
    make(database.text)

    make(database.text, seed=8, clean_existing=False)

    assert counts(database) == {
        "staffs": 202,
        "offices": 20,
        "office_staffs": 200,
        "welfare_recipients": 2000,
        "office_welfare_recipients": 2000,
        "individual_support_plans": 2000,
        "support_plan_cycles": 2000,
    }


def test_factories_continue_what_was_generated(database: DatabaseURL) -> None:
    """A1: bulk_create_* reuses the system staff of the data set; the next run cleans their rows too."""
    make(database.text)

    offices = bulk_create_offices(database.text, 2)
    bulk_create_staffs(database.text, offices, 3)

    assert [office.phone_number for office in offices] == ["03-0000-0010", "03-0000-0011"]
    assert counts(database)["staffs"] == 101 + 6
    make(database.text)
    assert stored(database) == SMALL[1]


def test_tables_refuse_what_the_application_refuses(database: DatabaseURL) -> None:
    """The created tables have the keys, checks and enums of a real application."""
    make(database.text)
    with psycopg.connect(database.text, autocommit=True) as connection:
        for statement, error in (
            ("UPDATE staffs SET email = 'same@example.com'", psycopg.errors.UniqueViolation),
            ("UPDATE staffs SET role = 'visitor'", psycopg.errors.InvalidTextRepresentation),
            ("DELETE FROM staffs WHERE role = 'app_admin'", psycopg.errors.IntegrityError),
            ("UPDATE support_plan_cycles SET end_date = start_date", psycopg.errors.CheckViolation),
            ("UPDATE office_staffs SET staff_id = gen_random_uuid()", psycopg.errors.ForeignKeyViolation),
        ):
            with pytest.raises(error):
                connection.execute(statement)


def test_every_reference_has_an_index(database: DatabaseURL) -> None:
    """Deleting a parent looks its children up; no foreign key is without an index that begins with it."""
    make(database.text)

    assert dataset_rows.references_without_index(database) == []


def test_preferences_are_stored_as_jsonb(database: DatabaseURL) -> None:
    """A4: the five notification preferences can be asked for in SQL."""
    make(database.text)
    with psycopg.connect(database.text) as connection:
        found = connection.execute(
            "SELECT DISTINCT notification_preferences::text FROM staffs "
            "WHERE notification_preferences @> '{\"email_notification\": true}' "
            "AND (notification_preferences->>'email_threshold_days')::int = 30"
        ).fetchall()

    assert [json.loads(text) for (text,) in found] == [
        {
            "in_app_notification": True,
            "email_notification": True,
            "system_notification": False,
            "email_threshold_days": 30,
            "push_threshold_days": 10,
        }
    ]
