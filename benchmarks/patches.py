"""Data patches: rows a minute with undo capture, what capture costs, and how long an application waits.

A million inventories, every price changed: once by the set-based patch that is
shipped, once by a row-wise patch that computes the same in Python. The same
runs without capture are the baseline. Meanwhile, in a run of its own, an
application updates single rows of the same table, over and over.
"""

from __future__ import annotations

import contextlib
import random
import statistics
import threading
import time
from decimal import ROUND_HALF_UP, Decimal
from typing import TYPE_CHECKING

from benchmarks.measure import Bar, Result
from benchmarks.no_undo import NoUndo
from keikaku_snapshots.datasets import generate
from keikaku_snapshots.patches import RowPatch, Update, data_patch
from keikaku_snapshots.patches.executor import DataPatchExecutor
from keikaku_snapshots.patches.registry import DataPatchRegistry
from keikaku_snapshots.patches.report import percentile
from keikaku_snapshots.patches.settings import PatchSettings
from keikaku_snapshots.postgres.connect import connect

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from keikaku_snapshots.patches import Change, Execution, PatchContext, Row
    from keikaku_snapshots.postgres.url import DatabaseURL

#: Rows of the table.
ROWS = 1_000_000
#: Seconds for a million rows, that is, a million rows a minute.
LIMIT_S = 60.0
#: A run with capture takes at most so many times one without.
CAPTURE_RATIO = 2.5
#: Seconds of the 99th percentile batch.
BATCH_S = 1.0
_FACTOR = Decimal("1.05")
_CENT = Decimal("0.01")


@data_patch("bench_row_wise")
class RowWise(RowPatch):
    """The same change as the shipped set-based patch, in Python."""

    table = "public.inventories"
    key = ("id",)
    reads = ("price",)
    writes = ("price",)

    def transform(self, rows: Iterable[Row], ctx: PatchContext) -> Iterable[Change]:
        """Five percent more, rounded to cents."""
        del ctx
        for row in rows:
            yield Update(row, price=(row.price * _FACTOR).quantize(_CENT, ROUND_HALF_UP))


SET_BASED = "inventory_price_adjustment"
ROW_WISE = RowWise.name


def fill(url: DatabaseURL, rows: int = ROWS) -> None:
    """Make the inventories of the StockRx dataset, numbered from 1, filled by the server as that is quick."""
    generate("stockrx", "small", url.text, create_tables=True)
    with connect(url, autocommit=True) as connection:
        connection.execute("TRUNCATE inventories RESTART IDENTITY CASCADE")
        connection.execute(
            "INSERT INTO inventories (name, sku, price, quantity, status, is_test_data)"
            " SELECT 'Product ' || i, 'RX-' || i, 100 + mod(i, 9000), mod(i, 50), 'active', true"
            " FROM generate_series(1, %s) AS i",
            [rows],
        )
    _vacuum(url)


def _vacuum(url: DatabaseURL) -> None:
    """Every run meets the table in the same state: no dead rows, statistics up to date."""
    with connect(url, autocommit=True) as connection:
        connection.execute("VACUUM (FULL, ANALYZE) inventories")
        connection.execute("CHECKPOINT")


def _executor(url: DatabaseURL, *, capture: bool) -> DataPatchExecutor:
    settings = {
        name: PatchSettings(require_dry_run=False, memory_limit_mb=2000, batch_size=2000, max_runtime_s=3600)
        for name in (SET_BASED, ROW_WISE)
    }
    registry = DataPatchRegistry([RowWise], entry_points=False)
    undo = None if capture else NoUndo()
    return DataPatchExecutor(url, registry=registry, settings=settings, undo=undo)


def _run(url: DatabaseURL, name: str, *, capture: bool) -> tuple[float, list[float], Execution]:
    """Run a patch; its seconds, those of its batches, and what is known of it."""
    executor = _executor(url, capture=capture)
    started = time.perf_counter()
    execution = executor.execute(name, dry_run=False, actor="benchmark", again=True)
    seconds = time.perf_counter() - started
    with connect(url, autocommit=True) as connection:
        batches = [
            row[0]
            for row in connection.execute(
                "SELECT seconds FROM keikaku_patches.batch_log WHERE execution_id = %s AND phase = 'run'",
                [execution.execution_id],
            )
        ]
    if execution.status != "completed" or execution.processed_records != ROWS:
        raise RuntimeError(f"{name}: {execution.status}, {execution.processed_records} rows")
    return seconds, batches, execution


def throughput(url: DatabaseURL, name: str, runs: int) -> Iterator[Result]:
    """Rows a minute with capture, its batches, and the same without capture."""
    with_capture: list[float] = []
    without: list[float] = []
    batches: list[float] = []
    peak = 0
    # Not measured: a server in use has log segments to use again, where a new one makes each of them.
    _vacuum(url)
    _run(url, name, capture=True)
    for _ in range(runs):
        _vacuum(url)
        seconds, batch_seconds, execution = _run(url, name, capture=True)
        with_capture.append(seconds)
        batches += batch_seconds
        peak = max(peak, execution.peak_memory_bytes)
        _vacuum(url)
        without.append(_run(url, name, capture=False)[0])
    rate = ROWS / statistics.median(with_capture) * 60
    notes = {"rows a minute": f"{rate:,.0f}", "peak memory": f"{peak / 1e6:.0f} MB"}
    yield Result(
        f"{name}: {ROWS:,} rows with undo capture",
        {"with capture (s)": with_capture},
        statistics.median(with_capture),
        Bar("PATCHES 13", LIMIT_S, "seconds"),
        notes,
    )
    ratio = statistics.median(one / other for one, other in zip(with_capture, without, strict=True))
    yield Result(
        f"{name}: what capture costs",
        {"with capture (s)": with_capture, "without (s)": without},
        ratio,
        Bar("PATCHES 13", CAPTURE_RATIO, "ratio"),
    )
    yield Result(
        f"{name}: 99th percentile batch",
        {"batch (s)": batches},
        percentile(batches, 0.99),
        Bar("PATCHES 13", BATCH_S, "seconds"),
        {"batches": f"{len(batches)}"},
    )


@contextlib.contextmanager
def _application(url: DatabaseURL, waits: list[float]) -> Iterator[None]:
    """Update single rows of the table, one after the other, and note how long each took."""
    stop = threading.Event()

    def work() -> None:
        chance = random.Random(1)
        with connect(url, autocommit=True) as connection:
            while not stop.is_set():
                number = chance.randint(1, ROWS)
                began = time.perf_counter()
                connection.execute("UPDATE inventories SET quantity = quantity + 1 WHERE id = %s", [number])
                waits.append(time.perf_counter() - began)
                stop.wait(0.001)

    thread = threading.Thread(target=work, name="application")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def waits_of_an_application(url: DatabaseURL, name: str) -> Result:
    """The 99th percentile of its waits against that of the batches; no wait is longer than one batch."""
    waits: list[float] = []
    _vacuum(url)
    with _application(url, waits):
        _, batches, _ = _run(url, name, capture=True)
    wait, batch = percentile(waits, 0.99), percentile(batches, 0.99)
    return Result(
        f"{name}: an application's updates of the same table meanwhile",
        {"update (s)": waits, "batch (s)": batches},
        wait / batch,
        Bar("PATCHES 13", 1.0, "of a batch"),
        {
            "99th percentile": f"update {wait * 1000:.1f} ms, batch {batch * 1000:.0f} ms",
            "longest": f"update {max(waits) * 1000:.0f} ms, batch {max(batches) * 1000:.0f} ms",
            "updates": f"{len(waits):,}",
        },
    )
