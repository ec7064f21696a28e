"""``bulk_create_*``: A1 for every kind of caller, on a real server."""

from __future__ import annotations

import asyncio
import inspect
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import date
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock
from uuid import UUID, uuid4

import asyncpg
import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, registry

from keikaku_snapshots.datasets import bulk_units, keikaku_tables
from keikaku_snapshots.datasets.bulk import (
    bulk_create_offices,
    bulk_create_staffs,
    bulk_create_support_plan_cycles,
    bulk_create_support_plans_and_cycles,
    bulk_create_welfare_recipients,
)
from keikaku_snapshots.errors import (
    ConnectError,
    ForeignKeyError,
    ParameterTypeError,
    ProtectedDatabaseError,
    UniqueError,
)
from keikaku_snapshots.postgres.connect import RetryPolicy
from tests.servers import empty_database

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.progress import Progress

DAY = date(2026, 4, 1)
REQUIRED_OF_STAFF = (
    "email",
    "hashed_password",
    "first_name",
    "last_name",
    "full_name",
    "first_name_furigana",
    "last_name_furigana",
)
TABLES = [table.name for table in keikaku_tables.metadata.sorted_tables]


@pytest.fixture(scope="module")
def definitions() -> str:
    """The statements that create the Keikaku tables."""
    statements: list[Any] = []
    engine = sa.create_mock_engine("postgresql+psycopg://", lambda ddl, *_, **__: statements.append(ddl))
    keikaku_tables.metadata.create_all(engine, checkfirst=False)
    return ";".join(str(statement.compile(dialect=engine.dialect)) for statement in statements)


#: Every definition of a user's, with the transaction that wrote it last: the same text, the same schema.
#: Of pg_class not the transaction: statistics change it.
SIGNATURE = """
SELECT md5(string_agg(line, ',' ORDER BY line)) FROM (
  SELECT 'attribute' || attrelid || attnum || xmin AS line FROM pg_attribute WHERE attrelid >= 16384
  UNION ALL SELECT 'class' || oid || relname || relrowsecurity || relhasrules FROM pg_class WHERE oid >= 16384
  UNION ALL SELECT 'constraint' || oid || xmin FROM pg_constraint WHERE oid >= 16384
  UNION ALL SELECT 'trigger' || oid || xmin FROM pg_trigger WHERE oid >= 16384
  UNION ALL SELECT 'type' || oid || xmin FROM pg_type WHERE oid >= 16384
  UNION ALL SELECT 'function' || oid || xmin FROM pg_proc WHERE oid >= 16384
  UNION ALL SELECT 'schema' || oid || xmin FROM pg_namespace) lines
"""


def created(url: DatabaseURL, definitions: str) -> str:
    """Create the tables; what their definitions are known by."""
    with psycopg.connect(url.text, autocommit=True) as connection:
        connection.execute(definitions.encode())
        return str(scalar(connection, SIGNATURE))


@pytest.fixture(scope="module")
def prepared(module_database: DatabaseURL, definitions: str) -> list[str]:
    """The Keikaku tables, created once for the module; what they are known by, for `url` to change."""
    return [created(module_database, definitions)]


@pytest.fixture
def url(module_database: DatabaseURL, prepared: list[str], definitions: str) -> Iterator[DatabaseURL]:
    """A database with the empty Keikaku tables; made anew after a test that changes a definition."""
    yield module_database
    with psycopg.connect(module_database.text, autocommit=True) as connection:
        unchanged = scalar(connection, SIGNATURE) == prepared[0]
        if unchanged:
            deletes = [f"DELETE FROM {table}" for table in reversed(TABLES)]
            restart = "ALTER SEQUENCE support_plan_cycles_id_seq RESTART"
            connection.execute(";".join([*deletes, restart]).encode())
    if not unchanged:
        empty_database(module_database)
        prepared[0] = created(module_database, definitions)


def counts(url: DatabaseURL) -> dict[str, int]:
    """Committed rows of every table, as another connection sees them."""
    with psycopg.connect(url.text) as connection:
        return {table: scalar(connection, f"SELECT count(*) FROM {table}") for table in TABLES}


def scalar(connection: psycopg.Connection[Any], query: str) -> Any:
    """The one value that a query gives."""
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


@dataclass
class Caller:
    """An open connection or session of some kind."""

    #: What is handed to the library.
    db: Any
    #: Runs a statement of the caller's own.
    execute: Callable[[str], Any]
    #: End the transaction; None where there is none.
    commit: Callable[[], Any] | None = None
    rollback: Callable[[], Any] | None = None


async def settle(value: Any) -> Any:
    """The value, awaited when it must be."""
    return await value if inspect.isawaitable(value) else value


@asynccontextmanager
async def opened(kind: str, url: DatabaseURL) -> AsyncIterator[Caller]:
    """A caller of this kind."""
    if kind == "url":
        yield Caller(url.text, lambda _: None)
    elif kind in {"psycopg", "psycopg-autocommit"}:
        with psycopg.connect(url.text, autocommit=kind.endswith("autocommit")) as sync:
            caller = Caller(sync, lambda query: sync.execute(query.encode()))
            if not sync.autocommit:
                caller.commit, caller.rollback = sync.commit, sync.rollback
            yield caller
    elif kind in {"async-psycopg", "async-psycopg-autocommit"}:
        connection = await psycopg.AsyncConnection.connect(url.text, autocommit=kind.endswith("autocommit"))
        async with connection:
            caller = Caller(connection, lambda query: connection.execute(query.encode()))
            if not connection.autocommit:
                caller.commit, caller.rollback = connection.commit, connection.rollback
            yield caller
    elif kind in {"asyncpg", "asyncpg-autocommit"}:
        raw = await asyncpg.connect(**asyncpg_arguments(url))
        try:
            if kind.endswith("autocommit"):
                yield Caller(raw, raw.execute)
            else:
                transaction = raw.transaction()
                await transaction.start()
                yield Caller(raw, raw.execute, transaction.commit, transaction.rollback)
        finally:
            await raw.close()
    elif kind in {"connection", "session"}:
        engine = sa.create_engine(url.for_sqlalchemy(), poolclass=sa.NullPool)
        make: Any = engine.connect if kind == "connection" else lambda: Session(engine)
        with make() as db:
            yield Caller(db, lambda query: db.execute(sa.text(query)), db.commit, db.rollback)
    else:
        form, _, driver = kind.partition("-on-")
        async_engine = create_async_engine(url.for_sqlalchemy(driver), poolclass=sa.NullPool)
        make = async_engine.connect if form == "async-connection" else lambda: AsyncSession(async_engine)
        async with make() as db:
            yield Caller(db, lambda query: db.execute(sa.text(query)), db.commit, db.rollback)
        await async_engine.dispose()


def asyncpg_arguments(url: DatabaseURL) -> dict[str, Any]:
    """What asyncpg.connect takes."""
    names = ("host", "port", "user", "password", "database")
    return {name: getattr(url, name) for name in names if getattr(url, name)}


IN_TRANSACTION = [
    "psycopg",
    "async-psycopg",
    "asyncpg",
    "connection",
    "session",
    "async-connection-on-psycopg",
    "async-connection-on-asyncpg",
    "async-session-on-psycopg",
    "async-session-on-asyncpg",
]
COMMITTED = ["url", "psycopg-autocommit", "async-psycopg-autocommit", "asyncpg-autocommit"]


async def create_all(db: Any, **options: Any) -> tuple[Any, Any, Any, Any, Any]:
    """Two offices with three staff and five recipients each, their plans and cycles."""
    offices = await settle(bulk_create_offices(db, 2, **options))
    staffs = await settle(bulk_create_staffs(db, offices, 3, **options))
    recipients = await settle(bulk_create_welfare_recipients(db, offices, 5, **options))
    plans, cycles = await settle(bulk_create_support_plans_and_cycles(db, recipients, staffs, **options))
    return offices, staffs, recipients, plans, cycles


ALL = {
    "staffs": 7,
    "offices": 2,
    "office_staffs": 6,
    "welfare_recipients": 10,
    "office_welfare_recipients": 10,
    "individual_support_plans": 10,
    "support_plan_cycles": 10,
}
NOTHING = dict.fromkeys(ALL, 0)


@pytest.mark.parametrize("kind", IN_TRANSACTION)
def test_a_callers_transaction_is_the_callers_to_commit(kind: str, url: DatabaseURL) -> None:
    """A1: nothing is committed for the caller; the caller's commit commits everything."""

    async def run() -> None:
        async with opened(kind, url) as caller:
            assert caller.commit is not None
            await create_all(caller.db)
            assert counts(url) == NOTHING
            await settle(caller.commit())
            assert counts(url) == ALL

    asyncio.run(run())


@pytest.mark.parametrize("kind", IN_TRANSACTION)
def test_a_callers_rollback_takes_everything_back(kind: str, url: DatabaseURL) -> None:
    """A1: what a test created is gone with the test's rollback."""

    async def run() -> None:
        async with opened(kind, url) as caller:
            assert caller.rollback is not None
            await create_all(caller.db)
            await settle(caller.rollback())
        assert counts(url) == NOTHING

    asyncio.run(run())


@pytest.mark.parametrize("kind", COMMITTED)
def test_on_autocommit_and_urls_each_call_is_committed(kind: str, url: DatabaseURL) -> None:
    """A1: without a transaction of the caller's the rows are there when the call returns."""

    async def run() -> None:
        async with opened(kind, url) as caller:
            await create_all(caller.db)
            assert counts(url) == ALL

    asyncio.run(run())


@pytest.mark.parametrize("kind", IN_TRANSACTION)
def test_a_failure_in_a_callers_transaction_takes_back_its_own_rows_only(kind: str, url: DatabaseURL) -> None:
    """A1: the savepoint is rolled back to; the caller's earlier rows and transaction live on."""

    async def run() -> None:
        async with opened(kind, url) as caller:
            assert caller.commit is not None
            offices = await settle(bulk_create_offices(caller.db, 2))
            with pytest.raises(ForeignKeyError, match="外部キー制約違反"):
                await settle(bulk_create_staffs(caller.db, [*offices, uuid4()], 3))
            await settle(caller.execute("UPDATE offices SET name = 'still usable'"))
            await settle(caller.commit())
        assert counts(url) == NOTHING | {"staffs": 1, "offices": 2}

    asyncio.run(run())


@pytest.mark.parametrize("kind", COMMITTED)
def test_a_failed_call_leaves_nothing(kind: str, url: DatabaseURL) -> None:
    """A1: staff whose links were refused are not left behind."""

    async def run() -> None:
        async with opened(kind, url) as caller:
            with pytest.raises(ForeignKeyError):
                await settle(bulk_create_staffs(caller.db, [uuid4()], 3))
            assert counts(url) == NOTHING
            await create_all(caller.db)
            assert counts(url) == ALL

    asyncio.run(run())


@pytest.mark.parametrize("kind", [*IN_TRANSACTION, *COMMITTED])
def test_a_seed_gives_the_same_rows_to_every_caller(kind: str, url: DatabaseURL) -> None:
    """A5: sync or async, psycopg or asyncpg: equal seeds, equal rows."""

    async def run() -> tuple[Any, ...]:
        async with opened(kind, url) as caller:
            return await create_all(caller.db, seed="same", reference_date=DAY)

    offices, staffs, recipients, plans, cycles = asyncio.run(run())

    assert offices[0].id == UUID("810c7a68-a532-470c-a1ac-97acc3da8d8a")
    assert staffs[offices[1].id][2].email == "eguchi.manami.a6e081d60b3b@example.com"
    assert recipients[offices[0].id][4].full_name == "大野 均"
    assert plans[9].id == UUID("b50030e7-601b-4541-b769-e7ffe7cff5eb")
    assert [cycle.id for cycle in cycles] == list(range(1, 11))


def test_records_are_what_the_database_holds(url: DatabaseURL) -> None:
    """A1: items have `.id` and their columns, in the types that SQLAlchemy gives."""
    engine = sa.create_engine(url.for_sqlalchemy(), poolclass=sa.NullPool)
    offices, staffs, recipients, plans, cycles = asyncio.run(create_all(url.text))
    made: dict[str, list[Any]] = {
        "offices": offices,
        "staffs": [staff for office in offices for staff in staffs[office.id]],
        "welfare_recipients": [person for office in offices for person in recipients[office.id]],
        "individual_support_plans": plans,
        "support_plan_cycles": cycles,
    }

    with engine.connect() as connection:
        for name, items in made.items():
            table = keikaku_tables.metadata.tables[name]
            found = {row.id: dict(row._mapping) for row in connection.execute(sa.select(table))}
            assert [item._asdict() for item in items] == [found[item.id] for item in items], name


def test_two_calls_never_collide(url: DatabaseURL) -> None:
    """A1: the default continues after what is there: other people, and the next telephone numbers."""
    first = asyncio.run(create_all(url.text))
    second = asyncio.run(create_all(url.text))

    phones = [office.phone_number for office in [*first[0], *second[0]]]
    emails = [staff.email for made in (first, second) for each in made[1].values() for staff in each]
    assert phones == ["03-0000-0000", "03-0000-0001", "03-0000-0002", "03-0000-0003"]
    assert len(set(emails)) == 12


def test_one_seed_serves_two_calls_for_different_offices(url: DatabaseURL) -> None:
    """A1: what hangs on other parents is drawn differently, so one seed can serve a whole test."""
    offices = bulk_create_offices(url.text, 2, seed=1)

    bulk_create_staffs(url.text, offices[:1], 3, seed=1)
    bulk_create_staffs(url.text, offices[1:], 3, seed=1)

    assert counts(url)["staffs"] == 7


def test_transactions_side_by_side_do_not_wait_for_each_other(url: DatabaseURL) -> None:
    """Two tests on one database, both uncommitted: no row of one blocks the other."""
    with psycopg.connect(url.text) as one, psycopg.connect(url.text) as two:
        two.execute("SET lock_timeout = '2s'")
        bulk_create_staffs(one, bulk_create_offices(one, 2), 3)
        bulk_create_staffs(two, bulk_create_offices(two, 2), 3)

    assert counts(url)["office_staffs"] == 12


def test_a_seed_used_twice_is_refused(url: DatabaseURL, monkeypatch: pytest.MonkeyPatch) -> None:
    """A10: seeded values never change, they fail at once, and the error says why."""
    bulk_create_offices(url.text, 2, seed=1)
    tried = mock.Mock(wraps=bulk_units.create_offices)
    monkeypatch.setattr(bulk_units, "create_offices", tried)

    with pytest.raises(UniqueError, match="一意制約違反") as caught:
        bulk_create_offices(url.text, 2, seed=1)

    assert isinstance(caught.value.__cause__, psycopg.errors.UniqueViolation)
    assert "seed" in str(caught.value)
    assert tried.call_count == 1
    assert counts(url)["offices"] == 2


@pytest.mark.parametrize("kind", ["url", "psycopg", "async-session-on-asyncpg"])
def test_a_collision_without_a_seed_is_drawn_anew(
    kind: str, url: DatabaseURL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A10: values drawn without a seed are drawn again after a unique collision, up to three times."""
    drawn = iter(["a", "a", "a", "b"])
    monkeypatch.setattr("keikaku_snapshots.datasets.bulk_units.secrets.token_hex", lambda _: next(drawn))

    async def run() -> None:
        async with opened(kind, url) as caller:
            for _ in range(2):
                await settle(bulk_create_offices(caller.db, 2))
            if caller.commit:
                await settle(caller.commit())

    asyncio.run(run())

    assert counts(url)["offices"] == 4
    assert list(drawn) == []


def test_a_collision_that_stays_is_an_error(url: DatabaseURL, monkeypatch: pytest.MonkeyPatch) -> None:
    """A10: after three fresh draws the collision is reported, and nothing is written."""
    tries = []

    def same(size: int) -> str:
        tries.append(size)
        return "same"

    monkeypatch.setattr("keikaku_snapshots.datasets.bulk_units.secrets.token_hex", same)
    bulk_create_offices(url.text, 2)

    with pytest.raises(UniqueError):
        bulk_create_offices(url.text, 2)

    assert len(tries) == 1 + 1 + 3
    assert counts(url)["offices"] == 2


def test_the_system_staff_is_made_once_and_reused(url: DatabaseURL) -> None:
    """A1: one system staff owns the offices of all calls."""
    offices = [*bulk_create_offices(url.text, 2), *bulk_create_offices(url.text, 2, seed=3)]

    assert len({office.created_by for office in offices}) == 1
    assert counts(url)["staffs"] == 1


def test_an_unknown_owner_is_a_foreign_key_error_with_a_remedy(url: DatabaseURL) -> None:
    """A1, A9: the error names table, batch, constraint and column, and says to create the system staff."""
    owner = uuid4()

    with pytest.raises(ForeignKeyError, match="外部キー制約違反") as caught:
        bulk_create_offices(url.text, 3, created_by=owner)

    text = str(caught.value)
    assert "Create the system staff first" in text
    assert "offices" in text
    assert "offices_created_by_fkey" in text
    assert str(owner) not in text
    assert str(owner) in caught.value.details["key"]
    assert caught.value.details["batch"] == 1
    assert isinstance(caught.value.__cause__, psycopg.errors.ForeignKeyViolation)
    assert counts(url) == NOTHING


def test_a_deferrable_owner_is_explained_too(url: DatabaseURL) -> None:
    """A1, FAULTS 85: a deferred key fails before COMMIT, as the same error with the same remedy."""
    with psycopg.connect(url.text, autocommit=True) as connection:
        connection.execute(
            "ALTER TABLE offices ALTER CONSTRAINT offices_created_by_fkey DEFERRABLE INITIALLY DEFERRED"
        )

    with pytest.raises(ForeignKeyError, match="Create the system staff first"):
        bulk_create_offices(url.text, 3, created_by=uuid4())

    assert counts(url) == NOTHING


@pytest.mark.parametrize(
    "call",
    [
        lambda db, **options: bulk.offices(db, 1, **options),
        lambda db, **options: bulk.staffs(db, [uuid4()], 1, **options),
        lambda db, **options: bulk.recipients(db, [uuid4()], 1, **options),
        lambda db, **options: bulk.plans(db, {}, {}, **options),
        lambda db, **options: bulk.cycles(db, [], **options),
    ],
    ids=["offices", "staffs", "recipients", "plans", "cycles"],
)
def test_a_database_that_looks_like_production_gets_no_test_staff(
    url: DatabaseURL, call: Callable[..., Any]
) -> None:
    """B15: everybody can read the password of generated staff; a connection is no way around."""
    words: dict[str, Any] = {"protected_words": [url.database]}

    with psycopg.connect(url.text) as connection:
        for db in (url.text, connection):
            with pytest.raises(ProtectedDatabaseError):
                call(db, **words)
            with pytest.raises(ProtectedDatabaseError, match="not among those"):
                call(db, allow_protected=True, allowed_databases=["*_test"])

    assert bulk_create_offices(url.text, 1, allow_protected=True, **words)


def test_the_batch_of_a_refused_row_is_named(url: DatabaseURL) -> None:
    """A9: the batch number counts in `batch_size` rows."""
    offices = bulk_create_offices(url.text, 4)

    with pytest.raises(ForeignKeyError) as caught:
        bulk_create_staffs(url.text, [*offices, uuid4()], 10, batch_size=10)

    assert caught.value.details["batch"] == 5


def test_offices_can_belong_to_a_staff_of_the_session(url: DatabaseURL) -> None:
    """A row that the ORM session has not sent yet may be the owner: the session is flushed first."""

    class Staff:
        id: UUID

    registry().map_imperatively(Staff, keikaku_tables.staffs)
    engine = sa.create_engine(url.for_sqlalchemy(), poolclass=sa.NullPool)
    with Session(engine) as session:
        owner = Staff()
        values = dict.fromkeys(REQUIRED_OF_STAFF, "x") | {"id": uuid4(), "role": "owner"}
        for column, value in values.items():
            setattr(owner, column, value)
        session.add(owner)
        offices = bulk_create_offices(session, 2, created_by=owner)
        session.commit()

    assert {office.created_by for office in offices} == {values["id"]}
    assert counts(url) == NOTHING | {"staffs": 1, "offices": 2}


def test_an_office_without_staff_gets_no_plan(url: DatabaseURL) -> None:
    """A1: plans only where somebody is responsible: the first staff of the office."""
    offices = bulk_create_offices(url.text, 3)
    staffs = bulk_create_staffs(url.text, offices[:1], 2)
    recipients = bulk_create_welfare_recipients(url.text, offices, 4)
    with_an_empty_list = {**staffs, offices[1].id: []}

    plans, cycles = bulk_create_support_plans_and_cycles(url.text, recipients, with_an_empty_list)

    assert {plan.office_id for plan in plans} == {offices[0].id}
    assert {plan.responsible_staff_id for plan in plans} == {staffs[offices[0].id][0].id}
    assert [plan.welfare_recipient_id for plan in plans] == [
        person.id for person in recipients[offices[0].id]
    ]
    assert [cycle.individual_support_plan_id for cycle in cycles] == [plan.id for plan in plans]


def test_cycles_alone(url: DatabaseURL) -> None:
    """A1: plans that the caller made get their first cycle; FAULTS 82: later inserts do not collide."""
    *_, plans, first = asyncio.run(create_all(url.text))
    with psycopg.connect(url.text) as connection:
        connection.execute("DELETE FROM support_plan_cycles")

    cycles = bulk_create_support_plan_cycles(url.text, plans, reference_date=DAY)

    assert {(cycle.start_date, cycle.end_date) for cycle in cycles} == {(date(2025, 5, 1), date(2026, 4, 26))}
    with psycopg.connect(url.text) as connection:
        added = scalar(
            connection,
            "INSERT INTO support_plan_cycles "
            "(individual_support_plan_id, cycle_number, start_date, end_date) "
            f"VALUES ('{plans[0].id}', 2, '2026-04-26', '2027-04-25') RETURNING id",
        )
    assert added == cycles[-1].id + 1
    assert not {cycle.id for cycle in first} & {cycle.id for cycle in cycles}


def test_numbers_of_a_rolled_back_call_are_not_given_again(url: DatabaseURL) -> None:
    """FAULTS 83: sequences do not roll back, so ids have gaps and never double."""
    with psycopg.connect(url.text) as connection:
        *_, cycles = asyncio.run(create_all(connection))
        connection.rollback()
    *_, later = asyncio.run(create_all(url.text))

    assert min(cycle.id for cycle in later) > max(cycle.id for cycle in cycles)


def test_tables_of_another_schema(url: DatabaseURL) -> None:
    """The tables may be in a schema that the search path does not name."""
    with psycopg.connect(url.text) as connection:
        connection.execute('CREATE SCHEMA "my app"')
        for table in TABLES:
            connection.execute(f'ALTER TABLE {table} SET SCHEMA "my app"'.encode())

    *_, cycles = asyncio.run(create_all(url.text, schema="my app"))

    assert len(cycles) == 10


def test_own_statements_run_as_before_after_a_call(url: DatabaseURL) -> None:
    """The settings of a caller's transaction are put back."""
    with psycopg.connect(url.text) as connection:
        connection.execute("SET LOCAL TimeZone = 'Asia/Tokyo'; SET LOCAL statement_timeout = '77s'")
        bulk_create_offices(connection, 2)

        assert scalar(connection, "SHOW TimeZone") == "Asia/Tokyo"
        assert scalar(connection, "SHOW statement_timeout") == "77s"


class Breaker:
    """A progress callback that ends all other sessions of the database when a table is through."""

    def __init__(self, url: DatabaseURL, table: str, times: int) -> None:
        self._url, self._step, self.left = url, f"copy {table}", times

    def __call__(self, progress: Progress) -> None:
        """End them, as often as it was asked to."""
        if progress.step == self._step and progress.finished and self.left:
            self.left -= 1
            with psycopg.connect(self._url.text, autocommit=True) as connection:
                connection.execute(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )


QUICKLY = RetryPolicy(attempts=3, wait_min_s=0.01, wait_max_s=0.02)


def test_a_lost_connection_is_tried_again_on_a_url(url: DatabaseURL) -> None:
    """A10: the whole call is rolled back and done again on a new connection, not a row twice."""
    offices = bulk_create_offices(url.text, 2)

    made = bulk_create_staffs(url.text, offices, 3, retry=QUICKLY, progress=Breaker(url, "staffs", 2))

    assert counts(url) == NOTHING | {"offices": 2, "staffs": 7, "office_staffs": 6}
    assert sum(map(len, made.values())) == 6


def test_a_connection_that_is_lost_every_time_is_an_error(url: DatabaseURL) -> None:
    """A10: after the last of the tries asked for the call fails, and nothing is written."""
    offices = bulk_create_offices(url.text, 2)
    breaker = Breaker(url, "staffs", 9)
    twice = RetryPolicy(attempts=2, wait_min_s=0.01, wait_max_s=0.02)

    with pytest.raises(ConnectError):
        bulk_create_staffs(url.text, offices, 3, retry=twice, progress=breaker)

    assert breaker.left == 9 - 2
    assert counts(url) == NOTHING | {"offices": 2, "staffs": 1}


def test_a_callers_transaction_is_never_tried_again(url: DatabaseURL) -> None:
    """A10: what else was in the caller's transaction is lost, so only the caller can repeat it."""
    offices = bulk_create_offices(url.text, 2)
    breaker = Breaker(url, "staffs", 9)

    with psycopg.connect(url.text) as connection:
        with pytest.raises(ConnectError):
            bulk_create_staffs(connection, offices, 3, retry=QUICKLY, progress=breaker)
        assert connection.closed

    assert breaker.left == 9 - 1
    assert counts(url) == NOTHING | {"offices": 2, "staffs": 1}


def test_a_memory_limit_stops_the_work(url: DatabaseURL) -> None:
    """A7: above the limit nothing is written."""
    with pytest.raises(MemoryError, match="the limit is 1 MB"):
        bulk_create_offices(url.text, 2, memory_limit_mb=1)

    assert counts(url) == NOTHING


NOWHERE = "postgresql://nobody@127.0.0.1:1/nowhere"


#: The functions without their types: wrong types are the subject.
bulk: Any = SimpleNamespace(
    offices=bulk_create_offices,
    staffs=bulk_create_staffs,
    recipients=bulk_create_welfare_recipients,
    plans=bulk_create_support_plans_and_cycles,
    cycles=bulk_create_support_plan_cycles,
)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: bulk.offices(NOWHERE, 0), ValueError, "count must be greater than 0, not 0"),
        (lambda: bulk.offices(NOWHERE, -5), ValueError, "count must be greater than 0, not -5"),
        (lambda: bulk.offices(NOWHERE, "10"), TypeError, "count must be an integer, not str: '10'"),
        (lambda: bulk.offices(NOWHERE, True), TypeError, "count must be an integer, not bool"),
        (lambda: bulk.offices(NOWHERE, 1, 0), ValueError, "batch_size must be greater than 0, not 0"),
        (lambda: bulk.offices(NOWHERE, 1, 2.5), TypeError, "batch_size must be an integer"),
        (lambda: bulk.offices(NOWHERE, 1, seed=1.5), TypeError, "seed must be an integer or a str"),
        (lambda: bulk.offices(NOWHERE, 1, sede=1), TypeError, "no option 'sede'"),
        (lambda: bulk.offices(NOWHERE, 1, created_by="x"), ValueError, "created_by has an id"),
        (lambda: bulk.offices(NOWHERE, 1, reference_date="x"), TypeError, "reference_date must be"),
        (lambda: bulk.offices(None, 1), TypeError, "db must be a database URL"),
        (lambda: bulk.staffs(NOWHERE, [], 0), ValueError, "count_per_office must be greater than 0"),
        (lambda: bulk.staffs(NOWHERE, None, 1), TypeError, "offices must be a list, not NoneType"),
        (lambda: bulk.staffs(NOWHERE, [3], 1), TypeError, "offices must be ids or objects with an id"),
        (lambda: bulk.recipients(NOWHERE, "abc", 1), TypeError, "offices must be a list"),
        (
            lambda: bulk.plans(NOWHERE, [], {}),
            TypeError,
            "recipients_by_office must",
        ),
        (lambda: bulk.plans(NOWHERE, {}, []), TypeError, "staffs_by_office must"),
        (lambda: bulk.cycles(NOWHERE, 5), TypeError, "plans must be a list, not int: 5"),
    ],
)
def test_bad_input_is_refused_before_connecting(
    call: Callable[[], Any], error: type[Exception], text: str
) -> None:
    """A8: ValueError or TypeError, naming the parameter and the value."""
    with pytest.raises(error) as caught:
        call()

    assert text in str(caught.value)
    assert isinstance(caught.value, ParameterTypeError) == (error is TypeError)


def test_a_large_batch_only_warns(url: DatabaseURL) -> None:
    """A8: batch_size above 1,000 warns at the caller's line, and the work is done."""
    with pytest.warns(UserWarning, match="batch_size=1001") as caught:
        offices = bulk_create_offices(url.text, 2, 1001)

    assert caught[0].filename == __file__
    assert len(offices) == 2


def test_no_offices_are_no_work(url: DatabaseURL) -> None:
    """Empty lists are lists: nothing is created, nothing fails."""
    assert bulk_create_staffs(url.text, [], 3) == {}
    assert bulk_create_welfare_recipients(url.text, [], 3) == {}
    assert bulk_create_support_plans_and_cycles(url.text, {}, {}) == ([], [])
    assert bulk_create_support_plan_cycles(url.text, []) == []


def test_missing_tables_are_named(database: DatabaseURL) -> None:
    """A9: an empty database is an error in plain words, not a traceback of the driver."""
    with pytest.raises(ValueError, match="migrations"):
        bulk_create_offices(database.text, 2)


def test_calls_on_a_session_are_awaitable(url: DatabaseURL) -> None:
    """A1: the same call returns an awaitable on an asynchronous session, and rows are seen through it."""

    async def run() -> int:
        engine = create_async_engine(url.for_sqlalchemy("asyncpg"), poolclass=sa.NullPool)
        async with AsyncSession(engine) as session:
            waiting: Awaitable[list[Any]] = bulk_create_offices(session, 3)
            await waiting
            counted = await session.scalar(sa.select(sa.func.count()).select_from(keikaku_tables.offices))
        await engine.dispose()
        return counted or 0

    assert asyncio.run(run()) == 3
