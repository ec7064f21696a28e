"""The way in which the first users call the library already works unchanged."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from keikaku_snapshots import SnapshotManager
from keikaku_snapshots.datasets import generate, get_scale
from keikaku_snapshots.errors import DatabaseInUseError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from keikaku_snapshots.postgres.url import DatabaseURL

pytestmark = pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])


@contextlib.asynccontextmanager
async def open_session(url: DatabaseURL, driver: str) -> AsyncIterator[AsyncSession]:
    """Give a session on an engine of its own."""
    engine = create_async_engine(url.for_sqlalchemy(driver))
    try:
        async with AsyncSession(engine) as session:
            yield session
    finally:
        await engine.dispose()


def restore_or_generate(url: DatabaseURL, directory: Path) -> str:
    """What their fixture does, word for word; returns which way it went."""
    manager = SnapshotManager(url.text, snapshot_dir=directory)
    try:
        manager.restore_snapshot("medium_100_offices", use_latest=True)
    except FileNotFoundError:
        generate("keikaku", get_scale("medium"), url.text, create_tables=True)
        manager.create_snapshot("medium_100_offices")
        return "generated"
    finally:
        manager.close()
    return "restored"


@pytest.mark.asyncio
async def test_the_fixture_restores_while_their_session_is_open(
    owner_database: DatabaseURL, tmp_path: Path, driver: str
) -> None:
    """Restore, or generate on FileNotFoundError, while an AsyncSession is open; it then counts offices."""
    async with open_session(owner_database, driver) as session:
        await session.execute(text("SELECT 1"))
        await session.commit()

        assert restore_or_generate(owner_database, tmp_path) == "generated"
        assert await session.scalar(text("SELECT count(*) FROM offices")) == 100
        await session.execute(text("DELETE FROM support_plan_cycles"))
        await session.commit()

        assert restore_or_generate(owner_database, tmp_path) == "restored"
        assert await session.scalar(text("SELECT count(*) FROM offices")) == 100
        assert await session.scalar(text("SELECT count(*) FROM support_plan_cycles")) == 10_000


@pytest.mark.asyncio
async def test_a_session_inside_a_transaction_is_named_and_nothing_changes(
    owner_database: DatabaseURL, tmp_path: Path, driver: str
) -> None:
    """FAULTS 60: restore stops at its lock timeout, says who is in the way and what to do."""
    restore_or_generate(owner_database, tmp_path)
    async with open_session(owner_database, driver) as session:
        pid = await session.scalar(text("SELECT pg_backend_pid()"))
        await session.execute(text("UPDATE offices SET name = '変更中'"))

        with (
            SnapshotManager(owner_database.text, snapshot_dir=tmp_path) as manager,
            pytest.raises(DatabaseInUseError) as caught,
        ):
            await manager.aio.restore_snapshot("medium_100_offices", use_latest=True)

        assert str(pid) in str(caught.value)
        assert owner_database.user in str(caught.value)
        assert "commit or roll back" in caught.value.hint
        await session.commit()
        assert await session.scalar(text("SELECT count(*) FROM offices WHERE name = '変更中'")) == 100
