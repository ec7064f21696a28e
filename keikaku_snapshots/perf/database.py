"""Where performance tests run: the database's URL, an engine and a session on it."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

import sqlalchemy
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from keikaku_snapshots.errors import NoDatabaseError, ToolMissingError, UsageError
from keikaku_snapshots.postgres.connect import KEEPALIVES
from keikaku_snapshots.postgres.url import DatabaseURL

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "create_performance_test_engine",
    "create_performance_test_session",
    "get_performance_test_db_url",
]

#: The variables that name the database, first one wins.
VARIABLES = ("PERFORMANCE_TEST_DATABASE_URL", "TEST_DATABASE_URL")
APPLICATION_NAME = "performance_test"
#: Connections kept open, and how many more may be opened when all are in use.
POOL_SIZE, MAX_OVERFLOW = 20, 30
#: Seconds to wait for a free connection.
POOL_TIMEOUT_S = 60
#: Seconds after which a connection is replaced, before a firewall forgets it.
POOL_RECYCLE_S = 3600
#: Seconds a statement may take.
STATEMENT_TIMEOUT_S = 600

_ASYNCPG = re.compile(r"\s*postgres(?:ql)?\+asyncpg:", re.IGNORECASE)


def get_performance_test_db_url(environment: Mapping[str, str] | None = None) -> str:
    """The URL of the database for performance tests, as the environment has it.

    Args:
        environment: Where the variables are looked up; the process's own if None.

    Returns:
        What ``PERFORMANCE_TEST_DATABASE_URL`` says, else ``TEST_DATABASE_URL``.

    Raises:
        NoDatabaseError: Neither is set, or the one that would win is empty (a `ValueError`).
    """
    environment = os.environ if environment is None else environment
    for variable in VARIABLES:
        value = environment.get(variable)
        if value is None:
            continue
        if not value.strip():
            raise NoDatabaseError(
                "the database URL is empty", found=f"{variable} is set but empty; unset it or give it a value"
            )
        return value
    raise NoDatabaseError(
        "no database for performance tests is named",
        found=f"Neither {VARIABLES[0]} nor {VARIABLES[1]} is set.",
        hint=f"Set {VARIABLES[0]}=postgresql://USER:PASSWORD@HOST:PORT/NAME (see docker-compose.test.yml).",
    )


def create_performance_test_engine(
    db_url: str | DatabaseURL | sqlalchemy.URL | None = None, *, driver: str | None = None
) -> AsyncEngine:
    """Make an engine for performance tests; no connection is made yet.

    Up to 50 connections (a pool of 20 and 30 more), 60 s to wait for one, replaced after an hour,
    tried before use; the server knows them as ``performance_test`` and stops a statement after 600 s.

    Args:
        db_url: The database; `get_performance_test_db_url` if None. The embedded server is never
            used by itself: hand in ``EmbeddedServer(…).url(…)``.
        driver: ``psycopg`` or ``asyncpg``; what the URL says (``postgresql+asyncpg://…``), else
            psycopg, if None.

    Returns:
        The engine; ``await engine.dispose()`` closes its connections.

    Raises:
        NoDatabaseError: No database is named (a `ValueError`).
        InvalidURLError: The URL cannot be understood.
        UsageError: The driver is neither psycopg nor asyncpg.
        ToolMissingError: The driver is not installed.
    """
    given = get_performance_test_db_url() if db_url is None else db_url
    url = DatabaseURL.parse(given)
    chosen = driver or driver_of(given)
    if chosen not in {"psycopg", "asyncpg"}:
        raise UsageError(f"driver must be 'psycopg' or 'asyncpg', not {chosen!r}")
    try:
        engine = create_async_engine(
            url.for_sqlalchemy(chosen),
            pool_size=POOL_SIZE,
            max_overflow=MAX_OVERFLOW,
            pool_timeout=POOL_TIMEOUT_S,
            pool_recycle=POOL_RECYCLE_S,
            pool_pre_ping=True,
            echo=False,
            connect_args=_connect_arguments(url, chosen),
        )
    except ImportError as error:
        raise ToolMissingError(
            f"the driver {chosen} or what it needs is not installed",
            found=str(error),
            hint="pip install 'keikaku_snapshots[asyncpg]' brings asyncpg and greenlet.",
        ) from error
    sqlalchemy.event.listen(engine.sync_engine, "connect", _limit_statements)
    return engine


def create_performance_test_session(engine: AsyncEngine | None = None, **options: Any) -> AsyncSession:
    """Make a session for performance tests, to be used as ``async with``.

    Objects stay readable after a commit (``expire_on_commit`` is off) and nothing is sent before
    it is asked for (``autoflush`` is off).

    Args:
        engine: Where it works; if None, an engine of its own on the database that the environment
            names, closed with the session.
        **options: Further options of `AsyncSession`.

    Returns:
        The session.

    Raises:
        NoDatabaseError: No database is named (a `ValueError`).
    """
    settings = {"expire_on_commit": False, "autoflush": False, **options}
    if engine is not None:
        return AsyncSession(engine, **settings)
    return _OwnEngineSession(create_performance_test_engine(), **settings)


class _OwnEngineSession(AsyncSession):
    """A session that closes its engine too."""

    def __init__(self, engine: AsyncEngine, **options: Any) -> None:
        super().__init__(engine, **options)
        self._own_engine = engine

    async def close(self) -> None:
        try:
            await super().close()
        finally:
            await self._own_engine.dispose()


def driver_of(given: str | DatabaseURL | sqlalchemy.URL) -> str:
    """The asynchronous driver that a URL means: asyncpg where it says so, else psycopg."""
    if isinstance(given, sqlalchemy.URL):
        return "asyncpg" if given.drivername.endswith("+asyncpg") else "psycopg"
    return "asyncpg" if isinstance(given, str) and _ASYNCPG.match(given) else "psycopg"


def _connect_arguments(url: DatabaseURL, driver: str) -> dict[str, Any]:
    if driver == "asyncpg":
        return {"server_settings": {"application_name": APPLICATION_NAME}}
    given = dict(url.parameters)
    arguments = {name: value for name, value in KEEPALIVES.items() if name not in given}
    return {**url.connect_arguments(), **arguments, "application_name": APPLICATION_NAME}


def _limit_statements(connection: Any, _record: Any) -> None:
    # After connecting and not in the startup packet: poolers refuse `options`.
    cursor = connection.cursor()
    cursor.execute(f"SET statement_timeout = {STATEMENT_TIMEOUT_S * 1000}")
    cursor.close()
    connection.commit()
