"""The StockRx data set: inventories of a pharmacy with their batches and receipts.

A unit is an inventory. Its batches stand beside each other, and child tables
find their parents by counting. Each batch was received once, which is its line
in ``inventory_logs``; an inventory has what is in its batches. A quarter of the
batches has expired and is still active: what ``batch_expiry_update`` puts right.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from keikaku_snapshots.datasets import stockrx_rows as rows
from keikaku_snapshots.datasets import stockrx_tables as tables
from keikaku_snapshots.datasets.dataset import Dataset, Row, Scale, Shard, Table
from keikaku_snapshots.datasets.row_parts import each

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["BATCHES_PER_INVENTORY", "SCALES", "dataset"]

BATCHES_PER_INVENTORY = 2

# As many rows in a shard as the Keikaku data set has: 5,000 of its largest table.
_SHARD_UNITS = 2500
# No signs that are mistaken for each other on a label.
_SKU_SIGNS = "23456789ABCDEFGHJKLMNPQRSTUVWXYZ"


def _scale(name: str, inventories: int, limit_s: float) -> Scale:
    return Scale(name, inventories, limit_s, {"batches": BATCHES_PER_INVENTORY})


SCALES = (
    _scale("small", 1000, 600),
    _scale("medium", 100_000, 1800),
    _scale("large", 1_000_000, 3600),
)


def _batches(shard: Shard) -> int:
    return shard.scale.per_unit.get("batches", BATCHES_PER_INVENTORY)


def _sku_prefix(shard: Shard) -> str:
    # Of the seed alone: numbers count through all shards, and two seeds live side by side.
    return f"RX-{''.join(Random(f'{shard.seed}/inventories.sku').choices(_SKU_SIGNS, k=6))}-"


def _quantities(shard: Shard) -> list[int]:
    return rows.draw_quantities(shard.random("batches.quantity"), shard.units * _batches(shard))


def _lots(shard: Shard) -> tuple[list[rows.Expiry], list[str]]:
    count = shard.units * _batches(shard)
    return rows.draw_lots(shard.random("batches.lot"), count, _batches(shard), shard.reference_date)


def _inventory_of_each_batch(shard: Shard) -> Iterable[int]:
    return each(shard.identities("inventories", 1), _batches(shard))


def inventory_rows(shard: Shard) -> Iterable[Row]:
    """Inventories, each with what is in its batches."""
    return rows.inventory_rows(
        shard.random("inventories"),
        shard.identities("inventories", 1),
        _quantities(shard),
        _batches(shard),
        sku_prefix=_sku_prefix(shard),
        first_number=shard.first_unit + 1,
        recorded=rows.recorded_at(shard.reference_date),
    )


def batch_rows(shard: Shard) -> Iterable[Row]:
    """Batches of the shard's inventories."""
    return rows.batch_rows(
        shard.identities("batches", _batches(shard)),
        _inventory_of_each_batch(shard),
        _lots(shard),
        _quantities(shard),
        rows.recorded_at(shard.reference_date),
    )


def log_rows(shard: Shard) -> Iterable[Row]:
    """The receipt of each batch."""
    _, codes = _lots(shard)
    return rows.log_rows(
        shard.identities("inventory_logs", _batches(shard)),
        zip(_inventory_of_each_batch(shard), shard.identities("batches", _batches(shard)), strict=True),
        codes,
        _quantities(shard),
        _batches(shard),
        rows.recorded_at(shard.reference_date),
    )


dataset = Dataset(
    name="stockrx",
    unit="inventories",
    scales=SCALES,
    shard_units=_SHARD_UNITS,
    tables=(
        Table(tables.inventories, inventory_rows, rows.INVENTORY_COLUMNS, 1),
        Table(tables.batches, batch_rows, rows.BATCH_COLUMNS, "batches"),
        Table(tables.inventory_logs, log_rows, rows.LOG_COLUMNS, "batches"),
    ),
)
