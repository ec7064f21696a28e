"""B11: what the next directory snapshot costs on the disk when one table changed.

A row of each table is changed in turn and a snapshot is made after each. What
the directory grew by, manifest and names included, is compared with the part of
that table; the rest must be at most 2 % of a whole snapshot.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from benchmarks.measure import Bar, Result
from keikaku_snapshots import SnapshotManager
from keikaku_snapshots.datasets.keikaku_tables import metadata
from keikaku_snapshots.postgres.connect import connect
from keikaku_snapshots.postgres.url import quote_identifier

if TYPE_CHECKING:
    from pathlib import Path

    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.snapshots.manifest import Snapshot

#: Largest accepted rest, in hundredths of a whole snapshot.
LIMIT = 2.0


def _on_disk(directory: Path) -> int:
    """Bytes that a directory takes, a file under many names once."""
    found = {path.lstat().st_ino: path.lstat().st_blocks * 512 for path in directory.rglob("*")}
    return sum(found.values())


def _changed(earlier: Snapshot, later: Snapshot) -> int:
    """Bytes of the parts with rows that only the later one has."""
    before, now = (one.manifest.parts if one.manifest else {} for one in (earlier, later))
    known = {part["sha256"] for part in before.values()}
    return sum(
        part["size_bytes"] for name, part in now.items() if part["sha256"] not in known and name != "toc.dat"
    )


def one_changed_table(url: DatabaseURL, folder: Path, scale_name: str) -> Result:
    """Change a row of each table in turn, and look at what the snapshot after it adds."""
    grown: list[float] = []
    parts: list[float] = []
    seconds: list[float] = []
    with SnapshotManager(url, snapshot_dir=folder / "incremental", minimum_free_mb=100) as manager:
        last = manager.create_snapshot("bench", format="directory")
        whole = last.size_bytes
        for table in metadata.sorted_tables:
            with connect(url, autocommit=True) as connection:
                name = quote_identifier(table.name)
                # The row moves to another place, as with every UPDATE: its part is a new one.
                connection.execute(f"UPDATE {name} SET id = id WHERE ctid = (SELECT min(ctid) FROM {name})")
            before = _on_disk(manager.directory)
            started = time.perf_counter()
            made = manager.create_snapshot("bench", format="directory")
            seconds.append(time.perf_counter() - started)
            grown.append((_on_disk(manager.directory) - before) / 1e6)
            parts.append(_changed(last, made) / 1e6)
            last = made
    rest = [grew - part for grew, part in zip(grown, parts, strict=True)]
    return Result(
        f"one changed table of {scale_name}, beyond its part",
        {"growth of the directory (MB)": grown, "part of the changed table (MB)": parts},
        max(rest) / (whole / 1e6) * 100,
        Bar("B11", LIMIT, "%"),
        {"whole_snapshot_mb": f"{whole / 1e6:.1f}", "seconds_each": f"{max(seconds):.2f}"},
    )
