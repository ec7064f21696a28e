"""The awaitable twins, and the way in which the first users call the manager."""

from __future__ import annotations

import asyncio
import inspect
import threading
from typing import TYPE_CHECKING

import pytest

from keikaku_snapshots import SnapshotManager
from keikaku_snapshots.errors import DatabaseInUseError
from tests.integration import schemas
from tests.integration.test_restore_in_place import CHANGED, SMALL

if TYPE_CHECKING:
    from pathlib import Path

    from keikaku_snapshots.postgres.url import DatabaseURL


def test_every_public_method_has_a_twin_with_the_same_parameters() -> None:
    """DESIGN: every method has an awaitable twin on `manager.aio`."""
    manager = SnapshotManager(None)
    public = {
        name
        for name, value in inspect.getmembers(SnapshotManager, inspect.isfunction)
        if not name.startswith("_") and name not in {"close", "rewinding"}  # no coroutine functions
    }
    for name in public:
        twin = getattr(manager.aio, name)
        assert inspect.iscoroutinefunction(twin)
        assert inspect.signature(twin) == inspect.signature(getattr(manager, name))
    manager.close()


def test_the_loop_stays_free_and_one_thread_does_all_the_work(database: DatabaseURL, tmp_path: Path) -> None:
    """FAULTS 45: programs are started from a thread that outlives them."""
    schemas.run(database, SMALL)
    threads: set[int] = set()

    async def main() -> int:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.001)

        async with SnapshotManager(database, tmp_path, minimum_free_mb=1).aio as aio:
            task = asyncio.create_task(tick())
            note = lambda _: threads.add(threading.get_ident())  # noqa: E731
            await aio.create_snapshot("small", progress=note)
            restored = await aio.restore_snapshot("small", progress=note)
            assert restored.strategy == "swap"
            assert await aio.snapshot_exists("small")
            assert (await aio.verify_snapshot("small")).snapshot == await aio.get_snapshot("small")
            assert len(await aio.list_snapshots()) == 1
            assert await aio.delete_old_snapshots("small") == []
            assert await aio.delete_snapshot("small")
            task.cancel()
        return ticks

    assert asyncio.run(main()) > 20
    assert threads
    assert threading.get_ident() not in threads


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_an_open_async_session_survives_a_restore_and_sees_the_snapshot(
    database: DatabaseURL, tmp_path: Path, driver: str
) -> None:
    """The first users' fixture: restore while an idle AsyncSession is open, then count through it."""
    from sqlalchemy import text
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

    schemas.run(database, SMALL)
    with SnapshotManager(database, tmp_path, minimum_free_mb=1, lock_timeout_s=0.3) as manager:
        manager.create_snapshot("medium_100_offices")
        schemas.run(database, CHANGED)

        async def main() -> None:
            engine = create_async_engine(database.for_sqlalchemy(driver))
            async with AsyncSession(engine) as session:
                count = text("SELECT count(*) FROM children")
                assert await session.scalar(count) == 300
                await session.commit()
                restored = manager.restore_snapshot("medium_100_offices", use_latest=True)
                assert restored.strategy == "in_place"
                assert await session.scalar(count) == 500
                # The transaction of this count is open now and holds the table.
                with pytest.raises(DatabaseInUseError, match="idle in transaction"):
                    await manager.aio.restore_snapshot("medium_100_offices")
                assert await session.scalar(count) == 500
            await engine.dispose()

        asyncio.run(main())
