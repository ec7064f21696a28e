"""B3: comparing 200,000 rows in less than five seconds: `python -m benchmarks.comparison`."""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.measure import Bar, Result, alternate, table, write_report
from keikaku_snapshots import SnapshotManager
from keikaku_snapshots.datasets import generate, get_scale
from keikaku_snapshots.postgres.connect import connect
from keikaku_snapshots.postgres.embedded import EmbeddedServer

if TYPE_CHECKING:
    from keikaku_snapshots import Snapshot
    from keikaku_snapshots.postgres.url import DatabaseURL

#: Longest accepted time of each comparison, in seconds.
LIMIT_S = 5.0
#: Rows that are given back of each table.
ROWS = 20
RESULTS = Path(__file__).parent / "results" / "comparison.json"

_SOME = """
UPDATE welfare_recipients SET updated_at = updated_at + interval '1 s' WHERE random() < 0.1;
DELETE FROM support_plan_cycles WHERE random() < 0.01;
"""
_TABLES = "SELECT table_name::text FROM information_schema.columns WHERE column_name = 'updated_at'"


def two_hundred_thousand_rows(url: DatabaseURL, folder: Path, runs: int) -> Result:
    """Compare a snapshot with itself restored, with some rows changed, and with every row changed."""
    with SnapshotManager(url, snapshot_dir=folder / "compared") as manager:
        generate("keikaku", get_scale("large"), url, create_tables=True)
        before = manager.create_snapshot("before")
        archive = manager.create_snapshot("archive", format="custom")
        with connect(url, autocommit=True) as connection:
            connection.execute(_SOME)
        some = manager.create_snapshot("some")
        with connect(url, autocommit=True) as connection:
            for (name,) in connection.execute(_TABLES).fetchall():
                connection.execute(f"UPDATE \"{name}\" SET updated_at = updated_at + interval '1 s'")
        samples = alternate(
            {
                "every row changed, snapshot and live": lambda: compare(manager, before, "live"),
                "some rows changed, two snapshots": lambda: compare(manager, before, some),
                "none changed, plain and custom": lambda: compare(manager, before, archive),
            },
            runs,
        )
    rows = sum(before.row_counts.values())
    return Result(
        "compare 200,000 rows",
        samples,
        max(statistics.median(times) for times in samples.values()),
        Bar("B3", LIMIT_S, "seconds"),
        {"rows": f"{rows:,}", "plain_file_mb": f"{before.size_bytes / 1e6:.0f}"},
    )


def compare(manager: SnapshotManager, before: str | Snapshot, after: str | Snapshot) -> None:
    """Compare, with rows given back."""
    manager.compare_snapshots(before, after, rows=ROWS)


def main() -> int:
    """Measure this alone on a server of its own; exit 1 when the bar is missed."""
    with tempfile.TemporaryDirectory(prefix="keikaku-bench-") as folder_name:
        folder = Path(folder_name)
        folder.chmod(0o711)
        server = EmbeddedServer(folder / "server")
        server.start()
        try:
            result = two_hundred_thousand_rows(server.url("bench_compare", create=True), folder, 5)
        finally:
            server.stop()
        write_report([result], RESULTS, {"postgresql": str(server.major)})
    print(table([result]))
    return 0 if result.holds else 1


if __name__ == "__main__":
    sys.exit(main())
