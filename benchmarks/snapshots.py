"""C2: creating against the raw pg_dump it runs; a cold swap against createdb, psql -1 and ANALYZE.

Both sides of a creation write the same uncompressed plain text to the same
disk, and both sync the file and its directory (pg_dump does so by
itself). Both sides of a restore use the same server and read the same file;
the baseline's CREATE DATABASE and ANALYZE go over a connection instead of
programs, which favours it by the start of two programs. What a run leaves to
the server (the replaced database's drop) is waited for outside the clock, and
a checkpoint gives both sides the same start.
"""

from __future__ import annotations

import subprocess
import time
from typing import TYPE_CHECKING

from benchmarks.measure import Bar, Result, compare
from keikaku_snapshots import SnapshotManager
from keikaku_snapshots.postgres.connect import connect
from keikaku_snapshots.postgres.tools import Tools, tool_environment
from keikaku_snapshots.postgres.url import DatabaseURL, quote_identifier

if TYPE_CHECKING:
    from pathlib import Path

#: Largest accepted ratios by number of rows (REQUIREMENTS C2).
CREATE_LIMIT = 1.2
SWAP_LIMITS = {"large": 1.35, "xlarge": 1.2}
#: Longest wait for the server to drop a replaced database, in seconds.
SETTLE_LIMIT_S = 60.0


def _run(arguments: list[str], url: DatabaseURL) -> None:
    with tool_environment(url) as environment:
        subprocess.run(arguments, env=environment, check=True, stdin=subprocess.DEVNULL)


def create(url: DatabaseURL, tools: Tools, folder: Path, scale_name: str, runs: int) -> Result:
    """Create a snapshot, and run the same pg_dump by hand into a file that is synced."""
    manager = SnapshotManager(url, snapshot_dir=folder / "snapshots")
    raw = folder / "raw.sql"

    def ours() -> float:
        started = time.perf_counter()
        manager.create_snapshot(f"bench_{scale_name}")
        seconds = time.perf_counter() - started
        manager.delete_old_snapshots(f"bench_{scale_name}", keep_count=1)
        return seconds

    def pg_dump() -> None:
        _run([str(tools.pg_dump), "-w", "-f", str(raw)], url)

    try:
        pg_dump()
        return compare(
            f"create a snapshot of {scale_name}",
            {"create_snapshot": ours, "pg_dump": pg_dump},
            Bar("C2", CREATE_LIMIT, "ratio"),
            runs=runs,
            notes={"plain_file_mb": f"{raw.stat().st_size / 1e6:.0f}"},
        )
    finally:
        manager.close()


def settle(maintenance: DatabaseURL) -> None:
    """Wait until the server has dropped what was left to it, and write everything back."""
    with connect(maintenance, autocommit=True) as connection:
        left = "SELECT count(*) FROM pg_database WHERE datname LIKE 'keikaku\\_old\\_%'"
        deadline = time.monotonic() + SETTLE_LIMIT_S
        while (row := connection.execute(left).fetchone()) and row[0]:
            if time.monotonic() > deadline:
                raise RuntimeError(f"a replaced database was not dropped within {SETTLE_LIMIT_S} s")
            time.sleep(0.01)
        connection.execute("CHECKPOINT")


def cold_swap(url: DatabaseURL, tools: Tools, folder: Path, scale_name: str, runs: int) -> Result:
    """Restore by swap, and load the same file with createdb, psql -1 and ANALYZE.

    The scratch database is loaded without one transaction and without waiting for the disk; the
    COMMIT of the renames brings it there. The raw side is what the requirement says.
    """
    manager = SnapshotManager(url, snapshot_dir=folder / "snapshots")
    snapshot = manager.create_snapshot(f"bench_{scale_name}")
    scratch = url.with_database("bench_raw")
    maintenance = url.with_database("postgres")

    def ours() -> float:
        settle(maintenance)
        started = time.perf_counter()
        manager.restore_snapshot(f"bench_{scale_name}", strategy="swap")
        return time.perf_counter() - started

    def raw() -> float:
        with connect(maintenance, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {quote_identifier(scratch.database)}")
        settle(maintenance)
        started = time.perf_counter()
        with connect(maintenance, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {quote_identifier(scratch.database)} TEMPLATE template0")
        _run(
            [str(tools.psql), "-X", "-q", "-w", "-1", "-v", "ON_ERROR_STOP=1", "-o", "/dev/null",
             "-f", str(snapshot.path)],
            scratch,
        )  # fmt: skip
        with connect(scratch, autocommit=True) as connection:
            connection.execute("ANALYZE")
        return time.perf_counter() - started

    try:
        return compare(
            f"restore {scale_name} by swap",
            {"restore_snapshot (swap)": ours, "createdb + psql -1 + ANALYZE": raw},
            Bar("C2", SWAP_LIMITS[scale_name], "ratio"),
            runs=runs,
        )
    finally:
        manager.close()
        with connect(maintenance, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {quote_identifier(scratch.database)}")
