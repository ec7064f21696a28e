"""URL, engine and session of the performance tests (D2) on a real server."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.pool import AsyncAdaptedQueuePool

from keikaku_snapshots.errors import InvalidURLError, UsageError
from keikaku_snapshots.perf import (
    create_performance_test_engine,
    create_performance_test_session,
    get_performance_test_db_url,
    measured,
)
from keikaku_snapshots.perf.database import APPLICATION_NAME

if TYPE_CHECKING:
    from keikaku_snapshots.postgres.url import DatabaseURL

NAMES = ("PERFORMANCE_TEST_DATABASE_URL", "TEST_DATABASE_URL")


@pytest.fixture(autouse=True)
def _nothing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*NAMES, "KEIKAKU_DB_URL"):
        monkeypatch.delenv(name, raising=False)


class TestURL:
    """Where the database is looked up."""

    def test_the_performance_database_comes_before_the_test_database(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """PERFORMANCE_TEST_DATABASE_URL wins over TEST_DATABASE_URL, and is given back as it is written."""
        monkeypatch.setenv("TEST_DATABASE_URL", "postgresql://u@h/test")
        assert get_performance_test_db_url() == "postgresql://u@h/test"
        monkeypatch.setenv("PERFORMANCE_TEST_DATABASE_URL", "postgresql+asyncpg://u@h/performance")

        assert get_performance_test_db_url() == "postgresql+asyncpg://u@h/performance"

    def test_without_either_it_is_a_value_error_that_names_both(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Another variable does not count: it may name a database that nobody wants to be filled."""
        monkeypatch.setenv("KEIKAKU_DB_URL", "postgresql://u@h/other")

        with pytest.raises(ValueError, match=r"(?s)PERFORMANCE_TEST_DATABASE_URL.*TEST_DATABASE_URL"):
            get_performance_test_db_url()

    def test_an_empty_variable_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """FAULTS 42: an unset shell variable must never mean another database."""
        monkeypatch.setenv("PERFORMANCE_TEST_DATABASE_URL", " ")
        monkeypatch.setenv("TEST_DATABASE_URL", "postgresql://u@h/test")

        with pytest.raises(ValueError, match="set but empty"):
            get_performance_test_db_url()


class TestEngine:
    """What the engine is set to."""

    @pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
    @pytest.mark.asyncio
    async def test_the_server_knows_its_name_and_limit(self, database: DatabaseURL, driver: str) -> None:
        """The application name and 600 s for a statement, on every connection of both drivers."""
        engine = create_performance_test_engine(database.for_sqlalchemy(driver))
        try:
            async with engine.connect() as one, engine.connect() as two:
                for connection in (one, two):
                    await connection.rollback()
                    shown = [
                        (await connection.execute(sa.text(f"SHOW {name}"))).scalar_one()
                        for name in ("application_name", "statement_timeout")
                    ]
                    assert shown == [APPLICATION_NAME, "10min"]
        finally:
            await engine.dispose()

        assert engine.dialect.driver.startswith(driver)

    def test_the_pool_is_as_the_environment_wants_it(self) -> None:
        """20 connections and 30 more, 60 s to wait, replaced after an hour, tried before use, no echo."""
        engine = create_performance_test_engine("postgresql://u:p@127.0.0.1:1/d")
        pool: Any = engine.pool

        assert isinstance(pool, AsyncAdaptedQueuePool)
        assert (pool.size(), pool._max_overflow, pool._timeout) == (20, 30, 60)
        assert (pool._recycle, pool._pre_ping, engine.echo) == (3600, True, False)

    @pytest.mark.asyncio
    async def test_inherited_variables_have_no_effect(
        self, database: DatabaseURL, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """FAULTS 11: an inherited PGOPTIONS or PGHOSTADDR leads nowhere else."""
        with monkeypatch.context() as patched:
            patched.setenv("PGHOSTADDR", "192.0.2.1")
            patched.setenv("PGOPTIONS", "-c statement_timeout=1ms")
            engine = create_performance_test_engine(database)
            async with engine.connect() as connection:
                name = (await connection.execute(sa.text("SELECT current_database()"))).scalar_one()
            await engine.dispose()

        assert name == database.database

    @pytest.mark.parametrize(
        ("url", "driver"),
        [
            ("postgresql://u@h/d", "psycopg"),
            ("postgresql+psycopg2://u@h/d", "psycopg"),
            ("postgres://u@h/d", "psycopg"),
            ("postgresql+asyncpg://u@h/d", "asyncpg"),
            (sa.make_url("postgresql+asyncpg://u@h/d"), "asyncpg"),
        ],
    )
    def test_the_driver_is_the_urls(self, url: Any, driver: str) -> None:
        """Psycopg, or asyncpg where the application's URL says it; an argument wins."""
        assert create_performance_test_engine(url).dialect.driver.startswith(driver)
        assert create_performance_test_engine(url, driver="asyncpg").dialect.driver == "asyncpg"

    def test_what_is_no_driver_or_url_is_refused(self) -> None:
        """A driver that has no asynchronous form, and a URL of another database."""
        with pytest.raises(UsageError, match="'psycopg' or 'asyncpg'"):
            create_performance_test_engine("postgresql://u@h/d", driver="psycopg2")
        with pytest.raises(InvalidURLError):
            create_performance_test_engine("sqlite://")

    def test_the_embedded_server_is_never_meant(self) -> None:
        """Without a database it is a ValueError, never an empty database of our own."""
        with pytest.raises(ValueError, match="no database for performance tests"):
            create_performance_test_engine()


class TestSession:
    """What the session is set to, and what it closes."""

    @pytest.mark.asyncio
    async def test_it_is_used_with_async_with(
        self, database: DatabaseURL, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without an engine it makes one from the environment and closes it, connections too."""
        monkeypatch.setenv("TEST_DATABASE_URL", database.text)
        async with create_performance_test_session() as session:
            assert (await session.execute(sa.text("SELECT 1"))).scalar_one() == 1
            engine: Any = session.bind
            assert engine.pool.checkedout() == 1

        assert engine.pool.checkedin() == engine.pool.checkedout() == 0

    @pytest.mark.asyncio
    async def test_an_engine_that_was_handed_in_stays_open(self, database: DatabaseURL) -> None:
        """The engine is the caller's; expire_on_commit and autoflush are off."""
        engine = create_performance_test_engine(database)
        async with create_performance_test_session(engine) as session:
            await session.execute(sa.text("SELECT 1"))
            assert isinstance(session, AsyncSession)
            assert not session.sync_session.expire_on_commit
            assert not session.sync_session.autoflush

        pool: Any = engine.pool
        assert pool.checkedin() == 1
        await engine.dispose()


@pytest.mark.asyncio
async def test_queries_seconds_and_memory_are_measured(database: DatabaseURL) -> None:
    """Statements are counted inside the block only; memory that is given back again was still used."""
    engine = create_performance_test_engine(database)
    async with create_performance_test_session(engine) as session:
        await session.execute(sa.text("SELECT 1"))
        with measured(engine) as work:
            for _ in range(3):
                await session.execute(sa.text("SELECT pg_sleep(0.02)"))
            ballast = bytearray(b"x") * 50_000_000
            await session.execute(sa.text("SELECT pg_sleep(0.05)"))
            del ballast
        await session.execute(sa.text("SELECT 1"))
    await engine.dispose()

    assert work.queries == 4
    assert 0.1 < work.seconds < 10
    assert 45 < work.memory_growth_mb < work.memory_peak_mb


def test_a_measurement_can_be_used_again() -> None:
    """Each block is measured anew, memory too."""
    work = measured()
    for size in (30_000_000, 60_000_000):
        with work:
            ballast = bytearray(b"x") * size
            time.sleep(0.05)
            del ballast

        assert size * 0.9e-6 < work.memory_growth_mb < size * 2e-6
