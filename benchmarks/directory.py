"""B5: directory snapshots against the raw pg_dump -Fd -j and pg_restore -j that they run.

Both sides of a creation write parts of the same compression level with the
same number of workers, sync them, and read the archive back as a whole, which
is what makes it count. Both sides of a restore use the same server and the same
parts; as in `snapshots`, the baseline's CREATE DATABASE and ANALYZE go over a
connection, which favours it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from typing import TYPE_CHECKING, Any, Final

from benchmarks.measure import Bar, Result, compare
from benchmarks.snapshots import SWAP_LIMITS, settle
from keikaku_snapshots import SnapshotManager
from keikaku_snapshots.postgres.connect import connect
from keikaku_snapshots.postgres.tools import Tools, tool_environment
from keikaku_snapshots.postgres.url import DatabaseURL, quote_identifier

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Workers that are measured.
JOBS: Final = (1, 2)
#: Largest accepted ratio of a creation to the raw programs.
CREATE_LIMIT: Final = 1.35
#: Largest accepted ratio of the default level to no compression.
LEVEL_LIMIT: Final = 1.5


def _run(arguments: list[str], url: DatabaseURL) -> None:
    with tool_environment(url) as environment:
        subprocess.run(arguments, env=environment, check=True, stdin=subprocess.DEVNULL)


def parts(url: DatabaseURL, tools: Tools, folder: Path, scale_name: str, runs: int) -> Iterator[Result]:
    """Create and restore with one worker and with two."""
    with contextlib.closing(SnapshotManager(url, snapshot_dir=folder / "directories")) as manager:
        for jobs in JOBS:
            yield _create(manager, tools, folder / "raw.dir", f"{scale_name}, -j{jobs}", jobs, runs)
        yield _level(manager, scale_name, runs)
        manager.create_snapshot("parts", format="directory", jobs=max(JOBS))
        for jobs in JOBS:
            yield _restore(manager, tools, scale_name, jobs, runs)


def _timed_create(manager: SnapshotManager, **options: Any) -> float:
    started = time.perf_counter()
    snapshot = manager.create_snapshot("bench", format="directory", **options)
    seconds = time.perf_counter() - started
    # Nothing to share with: every part is written and kept.
    manager.delete_snapshot("bench", snapshot.version)
    return seconds


def _create(manager: SnapshotManager, tools: Tools, raw: Path, label: str, jobs: int, runs: int) -> Result:
    def ours() -> float:
        return _timed_create(manager, jobs=jobs)

    def by_hand() -> float:
        shutil.rmtree(raw, ignore_errors=True)
        started = time.perf_counter()
        _run([str(tools.pg_dump), "-w", "-Fd", f"-j{jobs}", "-Z1", "-f", str(raw)], manager.url)
        _run([str(tools.pg_restore), "-f", os.devnull, str(raw)], manager.url)
        return time.perf_counter() - started

    return compare(
        f"create a directory of {label}",
        {"create_snapshot": ours, "pg_dump -Fd + pg_restore -f": by_hand},
        Bar("B5", CREATE_LIMIT, "ratio"),
        runs=runs,
    )


def _level(manager: SnapshotManager, scale_name: str, runs: int) -> Result:
    return compare(
        f"create a directory of {scale_name}, default level",
        {
            "default level": lambda: _timed_create(manager),
            "uncompressed": lambda: _timed_create(manager, level=0),
        },
        Bar("B5", LEVEL_LIMIT, "ratio"),
        runs=runs,
    )


def _restore(manager: SnapshotManager, tools: Tools, scale_name: str, jobs: int, runs: int) -> Result:
    snapshot = manager.get_snapshot("parts")
    maintenance = manager.url.with_database("postgres")
    scratch = manager.url.with_database("bench_raw_restore")

    def ours() -> float:
        started = time.perf_counter()
        manager.restore_snapshot("parts", strategy="swap", jobs=jobs)
        seconds = time.perf_counter() - started
        settle(maintenance)
        return seconds

    def by_hand() -> float:
        with connect(maintenance, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {quote_identifier(scratch.database)}")
        settle(maintenance)
        started = time.perf_counter()
        with connect(maintenance, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {quote_identifier(scratch.database)} TEMPLATE template0")
        _run(
            [str(tools.pg_restore), "-w", "--exit-on-error", f"-j{jobs}", "-d", "", str(snapshot.path)],
            scratch,
        )
        with connect(scratch, autocommit=True) as connection:
            connection.execute("ANALYZE")
        return time.perf_counter() - started

    try:
        return compare(
            f"restore a directory of {scale_name} by swap, -j{jobs}",
            {"restore_snapshot (swap)": ours, "createdb + pg_restore -j + ANALYZE": by_hand},
            Bar("C2", SWAP_LIMITS[scale_name], "ratio"),
            runs=runs,
        )
    finally:
        with connect(maintenance, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {quote_identifier(scratch.database)}")
