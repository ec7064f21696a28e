"""Rows of the StockRx tables, drawn column by column from pools.

Every function gives rows of text, ready for COPY. The order of all draws is part
of the promise that a seed gives the same bytes everywhere: do not reorder them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from functools import cache
from itertools import accumulate, chain, repeat
from typing import TYPE_CHECKING

from keikaku_snapshots.datasets import products
from keikaku_snapshots.datasets.row_parts import BOOKKEEPING_COLUMNS, bookkeeping

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from random import Random

    from keikaku_snapshots.datasets.row_parts import Row

#: Days from the day on which all stock was received to the reference date.
RECEIVED_DAYS_AGO = 335
#: Of 100 batches: expired by their date but still active (the work of `batch_expiry_update`;
#: 50,000 at scale medium), expired and marked so, and good.
OVERDUE_IN_100, EXPIRED_IN_100, GOOD_IN_100 = 25, 3, 72
#: Of 100 inventories: no longer sold.
ARCHIVED_IN_100 = 5

# Days from the reference date to the expiry date.
_OVERDUE_DAYS = range(-180, 0)
_EXPIRED_DAYS = range(-300, -180)
_GOOD_DAYS = range(1080)
# A lot was made so long before it expires; longer where it would be made after it was received.
_SHELF_LIFE_DAYS, _LONG_SHELF_LIFE_DAYS = 1096, 1826

_PACKAGES = range(1, 201)
_PRICE_PERCENT = range(80, 126)
_SERIALS = range(1000)
_LINES = ("A", "B", "C", "E", "H", "K", "M", "P", "R", "T", "X", "Y")

INVENTORY_COLUMNS = ("id", "name", "sku", "price", "quantity", "status", *BOOKKEEPING_COLUMNS)
BATCH_COLUMNS = (
    "id",
    "inventory_id",
    "lot_code",
    "expires_on",
    "quantity",
    "status",
    *BOOKKEEPING_COLUMNS,
)
LOG_COLUMNS = (
    "id",
    "inventory_id",
    "batch_id",
    "delta",
    "operation",
    "previous_quantity",
    "current_quantity",
    "note",
    *BOOKKEEPING_COLUMNS,
)


@dataclass(frozen=True, slots=True)
class Expiry:
    """What hangs on the day when a batch expires."""

    #: The day.
    expires_on: str
    #: The status of the batch on the reference date.
    status: str
    #: Year and month in which it was made, as lot codes begin: ``2403``.
    made_in: str


@dataclass(frozen=True, slots=True)
class Expiries:
    """Expiry dates to draw from: ``random.choices(it.days, cum_weights=it.cumulative_weights)``."""

    #: From the longest expired on.
    days: tuple[Expiry, ...]
    #: Running totals of the weights, one for each day.
    cumulative_weights: tuple[int, ...]


@cache
def expiries(reference: date) -> Expiries:
    """The expiry dates around a reference date; a batch is good until the end of its day."""
    kinds = (
        ("expired", _EXPIRED_DAYS, EXPIRED_IN_100),
        ("active", _OVERDUE_DAYS, OVERDUE_IN_100),
        ("active", _GOOD_DAYS, GOOD_IN_100),
    )
    # Whole numbers that share a kind's part among its days keep the draws exact.
    common = len(_EXPIRED_DAYS) * len(_OVERDUE_DAYS) * len(_GOOD_DAYS)
    days: list[Expiry] = []
    weights: list[int] = []
    for status, offsets, share in kinds:
        days += [_expiry(reference, offset, status) for offset in offsets]
        weights += [share * common // len(offsets)] * len(offsets)
    return Expiries(tuple(days), tuple(accumulate(weights)))


def _expiry(reference: date, offset: int, status: str) -> Expiry:
    expires_on = reference + timedelta(days=offset)
    life = _SHELF_LIFE_DAYS if offset <= _SHELF_LIFE_DAYS - 366 else _LONG_SHELF_LIFE_DAYS
    made = expires_on - timedelta(days=life)
    return Expiry(expires_on.isoformat(), status, f"{made.year % 100:02d}{made.month:02d}")


def recorded_at(reference: date) -> str:
    """When every row was created and last changed: 9 o'clock in Japan on the day of the receipt."""
    return f"{(reference - timedelta(days=RECEIVED_DAYS_AGO)).isoformat()} 00:00:00+00"


def draw_quantities(rng: Random, count: int) -> list[int]:
    """Packages in each of so many batches: at least one."""
    return rng.choices(_PACKAGES, k=count)


def draw_lots(rng: Random, count: int, batches: int, reference: date) -> tuple[list[Expiry], list[str]]:
    """Expiry dates and lot codes of the batches, such as ``K2403-1171``.

    Args:
        rng: Seeded generator.
        count: How many.
        batches: How many in a row belong to one inventory; the last digits of the
            code count them, so that no two of an inventory are equal.
        reference: The reference date.

    Returns:
        An expiry and a code for each batch.
    """
    pool = expiries(reference)
    drawn = rng.choices(pool.days, cum_weights=pool.cumulative_weights, k=count)
    lines = rng.choices(_LINES, k=count)
    serials = rng.choices(_SERIALS, k=count)
    codes = [
        f"{line}{expiry.made_in}-{serial:03d}{number % batches + 1}"
        for number, (line, expiry, serial) in enumerate(zip(lines, drawn, serials, strict=True))
    ]
    return drawn, codes


def inventory_rows(
    rng: Random,
    ids: range,
    quantities: Sequence[int],
    batches: int,
    *,
    sku_prefix: str,
    first_number: int,
    recorded: str,
) -> Iterable[Row]:
    """Inventories.

    Args:
        rng: Seeded generator.
        ids: Their ids.
        quantities: What is in each of their batches, inventory after inventory.
        batches: How many batches each has.
        sku_prefix: What every sku begins with.
        first_number: Number of the first one; skus follow it.
        recorded: When the rows were made.

    Returns:
        One row for each inventory.
    """
    count = len(ids)
    pool = products.catalogue()
    drawn = rng.choices(pool.products, cum_weights=pool.cumulative_weights, k=count)
    makers = rng.choices(products.makers(), k=count)
    percents = rng.choices(_PRICE_PERCENT, k=count)
    archived = rng.choices((False, True), cum_weights=(100 - ARCHIVED_IN_100, 100), k=count)
    return zip(
        map(str, ids),
        [f"{one.name}「{maker}」{one.package}" for one, maker in zip(drawn, makers, strict=True)],
        [f"{sku_prefix}{number:07d}" for number in range(first_number, first_number + count)],
        [_price(one.price_sen * percent // 100) for one, percent in zip(drawn, percents, strict=True)],
        [str(sum(parts)) for parts in zip(*_by_position(quantities, batches), strict=True)],
        ["archived" if gone else "active" for gone in archived],
        *bookkeeping(recorded),
        strict=False,
    )


def batch_rows(
    ids: range,
    inventory_ids: Iterable[int],
    lots: tuple[list[Expiry], list[str]],
    quantities: Sequence[int],
    recorded: str,
) -> Iterable[Row]:
    """Batches, with what `draw_lots` and `draw_quantities` drew for them."""
    drawn, codes = lots
    return zip(
        map(str, ids),
        map(str, inventory_ids),
        codes,
        [expiry.expires_on for expiry in drawn],
        map(str, quantities),
        [expiry.status for expiry in drawn],
        *bookkeeping(recorded),
        strict=False,
    )


def log_rows(
    ids: range,
    parents: Iterable[tuple[int, int]],
    codes: Sequence[str],
    quantities: Sequence[int],
    batches: int,
    recorded: str,
) -> Iterable[Row]:
    """The receipt of every batch; the quantities are those of its inventory before and after.

    Args:
        ids: Their ids.
        parents: Inventory and batch of each.
        codes: The lot code of each batch.
        quantities: How much was received.
        batches: How many batches in a row belong to one inventory.
        recorded: When the rows were made.

    Returns:
        One row for each batch.
    """
    totals = list(accumulate(_by_position(quantities, batches), _added))
    before = chain.from_iterable(zip(repeat(0, len(ids) // batches), *totals[:-1], strict=True))
    after = chain.from_iterable(zip(*totals, strict=True))
    inventory_ids, batch_ids = zip(*parents, strict=True)
    return zip(
        map(str, ids),
        map(str, inventory_ids),
        map(str, batch_ids),
        map(str, quantities),
        repeat("receive"),
        map(str, before),
        map(str, after),
        [f"入庫 ロット {code}" for code in codes],
        *bookkeeping(recorded),
        strict=False,
    )


def _price(sen: int) -> str:
    return f"{sen // 100}.{sen % 100:02d}"


def _by_position(quantities: Sequence[int], batches: int) -> list[Sequence[int]]:
    """First batches of all inventories, second batches of all, and so on."""
    return [quantities[position::batches] for position in range(batches)]


def _added(left: Sequence[int], right: Sequence[int]) -> list[int]:
    return [a + b for a, b in zip(left, right, strict=True)]
