"""The two patches that come with the library, on the tables of the StockRx data set."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from keikaku_snapshots.datasets import generate
from keikaku_snapshots.datasets.dataset import Scale
from keikaku_snapshots.errors import PatchRefusedError
from tests.patch_lab import Lab
from tests.servers import connect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keikaku_snapshots.postgres.url import DatabaseURL

TABLES = ("inventories", "batches", "inventory_logs")
DAY = date(2026, 4, 1)


@pytest.fixture
def stock(shared_database: DatabaseURL) -> Iterator[Lab]:
    """Two hundred inventories with their batches and receipts."""
    generate(
        "stockrx",
        Scale("tiny", 200, 60, {"batches": 2}),
        shared_database,
        reference_date=DAY,
        create_tables=True,
    )
    with connect(shared_database) as connection:
        yield Lab(shared_database, connection)


def test_prices_are_adjusted_and_taken_back(stock: Lab) -> None:
    """By percent and amount, rounded to yen and sen, never below zero; archived ones keep theirs."""
    stock.run("UPDATE inventories SET price = 1 WHERE id = (SELECT min(id) FROM inventories)")
    before = stock.checksum(*TABLES)
    prices: dict[int, Any] = dict(stock.rows("SELECT id, price FROM inventories WHERE status = 'active'"))
    executor = stock.executor()
    parameters = {"percent": "-2.5", "amount": "-10"}

    told = executor.execute("inventory_price_adjustment", params=parameters)
    done = executor.execute("inventory_price_adjustment", dry_run=False, params=parameters)

    assert (told.changed_records, done.changed_records) == (len(prices), len(prices))
    for key, price in stock.rows("SELECT id, price FROM inventories WHERE status = 'active'"):
        wanted = max(Decimal(0), prices[key] * Decimal("0.975") - 10)
        assert abs(price - wanted) <= Decimal("0.005")
    assert executor.rollback(done.execution_id).rollback_performed
    assert stock.checksum(*TABLES) == before


def test_a_price_that_the_column_cannot_hold_is_refused(stock: Lab) -> None:
    """Before anything is changed."""
    stock.run("UPDATE inventories SET price = 9999999999.99 WHERE id = (SELECT max(id) FROM inventories)")
    before = stock.checksum(*TABLES)

    with pytest.raises(PatchRefusedError, match="too large for the column"):
        stock.executor().execute("inventory_price_adjustment")

    assert stock.checksum(*TABLES) == before


def test_batches_expire_with_a_line_in_the_log_and_come_back(stock: Lab) -> None:
    """One line for each; what is on the shelf stays there."""
    before = stock.checksum(*TABLES)
    expired = stock.value(f"SELECT count(*) FROM batches WHERE status = 'active' AND expires_on < '{DAY}'")
    assert expired > 50
    executor = stock.executor()

    told = executor.execute("batch_expiry_update", params={"before": DAY})
    done = executor.execute("batch_expiry_update", dry_run=False, params={"before": DAY}, batch_size=30)

    assert (told.processed_records, told.changed_records) == (expired, 2 * expired)
    assert (done.processed_records, done.changed_records, done.inconsistent_records) == (
        expired,
        2 * expired,
        0,
    )
    assert stock.value(f"SELECT count(*) FROM batches WHERE status = 'active' AND expires_on < '{DAY}'") == 0
    assert stock.rows(
        "SELECT count(*), count(DISTINCT batch_id), sum(delta) FROM inventory_logs WHERE operation = 'expire'"
    ) == [(expired, expired, 0)]
    executor.execute("batch_expiry_update", params={"before": DAY})
    again = executor.execute("batch_expiry_update", dry_run=False, params={"before": DAY}, again=True)
    assert again.processed_records == 0
    assert executor.rollback(done.execution_id).rollback_performed
    assert stock.checksum(*TABLES) == before
