"""C2: creating against the raw pg_dump it runs; a cold swap against createdb, psql -1 and ANALYZE."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from benchmarks.measure import Bar, Result, compare
from keikaku_snapshots import SnapshotManager
from keikaku_snapshots.postgres.connect import connect
from keikaku_snapshots.postgres.tools import Tools, tool_environment
from keikaku_snapshots.postgres.url import DatabaseURL, quote_identifier

#: Largest accepted ratios by number of rows (REQUIREMENTS C2).
CREATE_LIMIT = 1.2
SWAP_LIMITS = {"large": 1.35, "xlarge": 1.2}


def _run(arguments: list[str], url: DatabaseURL) -> None:
    with tool_environment(url) as environment:
        subprocess.run(arguments, env=environment, check=True, stdin=subprocess.DEVNULL)  # noqa: S603


def create(url: DatabaseURL, tools: Tools, folder: Path, scale_name: str, runs: int) -> Result:
    """Create a snapshot, and run the same pg_dump by hand into a file that is synced."""
    manager = SnapshotManager(url, snapshot_dir=folder / "snapshots")
    raw = folder / "raw.sql"

    def ours() -> None:
        manager.create_snapshot(f"bench_{scale_name}")
        manager.delete_old_snapshots(f"bench_{scale_name}", keep_count=1)

    def pg_dump() -> None:
        _run([str(tools.pg_dump), "-w", "-f", str(raw)], url)

    try:
        return compare(
            f"create a snapshot of {scale_name}",
            {"create_snapshot": ours, "pg_dump": pg_dump},
            Bar("C2", CREATE_LIMIT, "ratio"),
            runs=runs,
            notes={"plain_file_mb": f"{raw.stat().st_size / 1e6:.0f}" if raw.exists() else "see runs"},
        )
    finally:
        manager.close()


def cold_swap(url: DatabaseURL, tools: Tools, folder: Path, scale_name: str, runs: int) -> Result:
    """Restore by swap, and load the same file with createdb, psql -1 and ANALYZE."""
    manager = SnapshotManager(url, snapshot_dir=folder / "snapshots")
    snapshot = manager.create_snapshot(f"bench_{scale_name}")
    scratch = url.with_database("bench_raw")
    maintenance = url.with_database("postgres")

    def ours() -> None:
        manager.restore_snapshot(f"bench_{scale_name}", strategy="swap")

    def raw() -> float:
        with connect(maintenance, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {quote_identifier(scratch.database)}")
        started = time.perf_counter()
        with connect(maintenance, autocommit=True) as connection:
            connection.execute(
                f"CREATE DATABASE {quote_identifier(scratch.database)} TEMPLATE template0"
            )
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
