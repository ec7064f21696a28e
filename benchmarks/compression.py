"""What the default level of each compression costs, and what it saves.

Baseline is the same snapshot of the same database in the same directory, uncompressed: plain,
custom at level 0, JSON.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from benchmarks.measure import Bar, Result, compare
from keikaku_snapshots import SnapshotManager

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from keikaku_snapshots.postgres.url import DatabaseURL

#: Largest accepted ratio to the uncompressed time.
TIME_LIMIT: Final = 1.5
#: Largest accepted percentage of the JSON that gzip leaves: 500 MB to 50 MB was the wish.
SIZE_LIMIT: Final = 15.0

_JSON: Final = {"format": "json", "scope": "test_data"}
#: Options of what is measured, options of its baseline.
CASES: Final[dict[str, tuple[dict[str, Any], dict[str, Any]]]] = {
    "gzip": ({"compression": "gzip"}, {}),
    "zstd": ({"compression": "zstd"}, {}),
    "custom": ({"format": "custom"}, {"format": "custom", "level": 0}),
    "json gzip": ({**_JSON, "compression": "gzip"}, _JSON),
    "json zstd": ({**_JSON, "compression": "zstd"}, _JSON),
}


def default_levels(url: DatabaseURL, folder: Path, scale_name: str, runs: int) -> Iterator[Result]:
    """Create with each compression and without, in turn."""
    with contextlib.closing(SnapshotManager(url, snapshot_dir=folder / "compressed")) as manager:
        for label, (packed, plain) in CASES.items():
            sizes: dict[str, int] = {}
            result = compare(
                f"create a snapshot of {scale_name}, {label}",
                {
                    label: _creation(manager, "packed", packed, sizes),
                    "uncompressed": _creation(manager, "plain", plain, sizes),
                },
                Bar("B5", TIME_LIMIT, "ratio"),
                runs=runs,
            )
            percent = 100 * sizes["packed"] / sizes["plain"]
            yield replace(result, notes={"percent_of_uncompressed": f"{percent:.1f}"})
            if label == "json gzip":
                yield Result(
                    f"size of the JSON of {scale_name} packed with gzip",
                    {"percent of the JSON": [percent]},
                    percent,
                    Bar("B5", SIZE_LIMIT, "percent"),
                )


def _creation(
    manager: SnapshotManager, name: str, options: dict[str, Any], sizes: dict[str, int]
) -> Callable[[], float]:
    def create() -> float:
        started = time.perf_counter()
        snapshot = manager.create_snapshot(name, **options)
        seconds = time.perf_counter() - started
        sizes[name] = snapshot.size_bytes
        manager.delete_snapshot(name, snapshot.version)
        return seconds

    return create
