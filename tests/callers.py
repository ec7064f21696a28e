"""Every kind of connection or session that a caller may hand in, in its own transaction or in none."""

from __future__ import annotations

import inspect
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg
import sqlalchemy
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from keikaku_snapshots.postgres.url import DatabaseURL

#: Callers that have a transaction of their own.
IN_TRANSACTION = (
    "psycopg", "psycopg-block", "psycopg-async", "asyncpg-block", "sqlalchemy", "session",
    "sqlalchemy-async", "sqlalchemy-asyncpg", "async-session", "async-session-asyncpg",
)  # fmt: skip
#: Callers without one: the library owns the transaction.
OWNED = (
    "url", "psycopg-autocommit", "psycopg-async-autocommit", "asyncpg",
    "sqlalchemy-autocommit", "sqlalchemy-async-autocommit", "sqlalchemy-asyncpg-autocommit",
)  # fmt: skip


@dataclass(frozen=True)
class Caller:
    """What is handed in, and how its owner ends the transaction."""

    #: The connection, session or URL.
    db: Any

    async def execute(self, sql: str) -> None:
        """Run a statement in the caller's transaction."""
        if isinstance(self.db, Session | AsyncSession):
            statement: Any = sqlalchemy.text(sql)
        elif hasattr(self.db, "exec_driver_sql"):
            await settled(self.db.exec_driver_sql(sql))
            return
        else:
            statement = sql
        await settled(self.db.execute(statement))

    async def end(self, how: str) -> None:
        """Commit or roll back."""
        if isinstance(self.db, asyncpg.Connection):
            await self.db.execute(how)
        else:
            await settled(getattr(self.db, how)())


async def settled(value: Any) -> Any:
    """The value, awaited when it has to be."""
    return await value if inspect.isawaitable(value) else value


@asynccontextmanager
async def caller(kind: str, url: DatabaseURL) -> AsyncIterator[Caller]:
    """Open a caller of a kind."""
    if kind == "url":
        yield Caller(url)
    elif kind.startswith("psycopg-async"):
        async with await psycopg.AsyncConnection.connect(
            url.text, autocommit="autocommit" in kind
        ) as connection:
            yield Caller(connection)
    elif kind.startswith("psycopg"):
        # The outer block of psycopg-block is the caller's transaction on an autocommit connection.
        with psycopg.connect(url.text, autocommit=kind != "psycopg") as connection:
            if kind == "psycopg-block":
                connection.execute("BEGIN")
            yield Caller(connection)
    elif kind.startswith("asyncpg"):
        asyncpg_connection = await asyncpg.connect(url.text)
        if kind == "asyncpg-block":
            await asyncpg_connection.execute("BEGIN")
        yield Caller(asyncpg_connection)
        await asyncpg_connection.close()
    elif "async" in kind:
        async with _async_sqlalchemy(kind, url) as session:
            yield Caller(session)
    else:
        options = {"isolation_level": "AUTOCOMMIT"} if "autocommit" in kind else {}
        engine = sqlalchemy.create_engine(url.for_sqlalchemy(), poolclass=NullPool, **options)
        with Session(engine) if kind == "session" else engine.connect() as bound:
            yield Caller(bound)
        engine.dispose()


@asynccontextmanager
async def _async_sqlalchemy(kind: str, url: DatabaseURL) -> AsyncIterator[Any]:
    options = {"isolation_level": "AUTOCOMMIT"} if "autocommit" in kind else {}
    driver = "asyncpg" if "asyncpg" in kind else "psycopg"
    engine = create_async_engine(url.for_sqlalchemy(driver), poolclass=NullPool, **options)
    async with AsyncSession(engine) if "session" in kind else engine.connect() as db:
        yield db
    await engine.dispose()
