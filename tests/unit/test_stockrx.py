"""The rows of the StockRx data set, before any server sees them."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from datetime import date, timedelta
from decimal import Decimal
from importlib import resources

import pytest

from keikaku_snapshots.datasets import Scale, known_datasets, products, stockrx, stockrx_rows
from keikaku_snapshots.datasets.pools import read_pool
from keikaku_snapshots.datasets.stockrx_tables import metadata
from keikaku_snapshots.errors import UnknownScaleError
from tests.dataset_rows import DAY, Rows, digest, digests_elsewhere, rows_of

#: SHA-256 of all rows of scale small, seed 7, reference date 2026-04-01. It changes only when the
#: data of every seed change, and that belongs in the changelog.
SMALL_SEED_7 = "95bd95ae3b7e3111bb4b2715b2ebf28b53acc14b1126bdb88b5578d4beb95bc1"

dataset = stockrx.dataset


@pytest.fixture(scope="module")
def small() -> Rows:
    """The rows of scale small."""
    return rows_of("stockrx", "small")


@pytest.fixture(scope="module")
def several_shards() -> Rows:
    """6,000 inventories with three batches each, in three shards, the last one shorter."""
    scale = Scale("several", 6000, None, {"batches": 3})
    shards = list(dataset.shards(scale, seed=7, reference_date=DAY))
    assert [shard.units for shard in shards] == [2500, 2500, 1000]
    return {
        table.name: [
            dict(zip(table.filled_columns(), row, strict=True))
            for shard in shards
            for row in table.rows(shard)
        ]
        for table in dataset.tables
    }


def by_parent(rows: list[dict[str, str | None]]) -> dict[str | None, list[dict[str, str | None]]]:
    """Rows by their inventory, in order."""
    found = defaultdict(list)
    for row in rows:
        found[row["inventory_id"]].append(row)
    return found


def number(value: str | None) -> int:
    """A column of numbers is never NULL."""
    assert value is not None
    return int(value)


def test_it_is_built_in() -> None:
    """`--dataset stockrx` needs no module path."""
    assert known_datasets()[:2] == ["keikaku", "stockrx"]


@pytest.mark.parametrize(
    ("name", "inventories"), [("small", 1000), ("medium", 100_000), ("large", 1_000_000)]
)
def test_scales_have_two_batches_per_inventory(name: str, inventories: int) -> None:
    """A2: the built-in scales, and what progress and snapshot say of them."""
    scale = dataset.scale(name)

    assert (scale.units, dict(scale.per_unit)) == (inventories, {"batches": 2})
    assert dataset.snapshot_name(scale) == f"{name}_{inventories}_inventories"
    assert [table.expected_rows(scale) for table in dataset.tables] == [
        inventories,
        2 * inventories,
        2 * inventories,
    ]


def test_an_unknown_scale_lists_the_known_ones() -> None:
    """A2: Keikaku's `xlarge` is none of StockRx."""
    with pytest.raises(UnknownScaleError, match=r"small \(1,000 inventories\).*medium.*large"):
        dataset.scale("xlarge")


def test_small_has_the_promised_rows(small: Rows) -> None:
    """A2: 1,000 inventories, two batches each, one receipt for each batch."""
    assert {table: len(rows) for table, rows in small.items()} == {
        "inventories": 1000,
        "batches": 2000,
        "inventory_logs": 2000,
    }


def test_every_row_is_marked_as_test_data(small: Rows) -> None:
    """Every row of every table can be deleted by the next run."""
    assert {row["is_test_data"] for rows in small.values() for row in rows} == {"t"}


def test_rows_fill_every_column_of_their_tables(small: Rows) -> None:
    """No column is left to the server, whose clock and sequences would make two runs differ (A5)."""
    for table in metadata.sorted_tables:
        assert set(small[table.name][0]) == set(table.columns.keys())


def test_rows_are_numbered_through_all_shards(several_shards: Rows) -> None:
    """Ids and skus count from 1 without a gap, whatever the shard."""
    for rows in several_shards.values():
        assert [row["id"] for row in rows] == [str(n) for n in range(1, len(rows) + 1)]
    skus = [str(row["sku"]) for row in several_shards["inventories"]]
    assert [sku[-7:] for sku in skus] == [f"{n:07d}" for n in range(1, 6001)]
    assert {sku[:-7] for sku in skus} == {skus[0][:-7]}
    assert re.fullmatch(r"RX-[2-9A-HJ-NP-Z]{6}-0000001", skus[0])


def test_another_seed_draws_other_skus(small: Rows) -> None:
    """Two seeds can be loaded side by side."""
    other = rows_of("stockrx", "small", seed=8)

    assert not {row["sku"] for row in small["inventories"]} & {row["sku"] for row in other["inventories"]}


def test_an_inventory_has_what_is_in_its_batches(several_shards: Rows) -> None:
    """The quantity of an inventory is the sum of its batches, and no batch is empty."""
    batches = by_parent(several_shards["batches"])

    for inventory in several_shards["inventories"]:
        own = [number(batch["quantity"]) for batch in batches[inventory["id"]]]
        assert len(own) == 3
        assert min(own) > 0
        assert number(inventory["quantity"]) == sum(own)


def test_logs_explain_every_quantity(several_shards: Rows) -> None:
    """Each batch was received once; the lines of an inventory lead from 0 to what it has now."""
    batches = {batch["id"]: batch for batch in several_shards["batches"]}
    logs = by_parent(several_shards["inventory_logs"])

    for inventory in several_shards["inventories"]:
        quantity = 0
        for log in logs[inventory["id"]]:
            batch = batches.pop(log["batch_id"])
            assert batch["inventory_id"] == inventory["id"]
            assert log["delta"] == batch["quantity"]
            assert number(log["previous_quantity"]) == quantity
            quantity += number(log["delta"])
            assert number(log["current_quantity"]) == quantity
            assert log["operation"] == "receive"
            assert log["note"] == f"入庫 ロット {batch['lot_code']}"
        assert number(inventory["quantity"]) == quantity
    assert batches == {}


def test_a_quarter_of_the_batches_is_overdue(several_shards: Rows) -> None:
    """What `batch_expiry_update` needs: 25 of 100 expired and active, 3 expired and marked, 72 good."""
    kinds = Counter(
        (batch["status"], date.fromisoformat(str(batch["expires_on"])) < DAY)
        for batch in several_shards["batches"]
    )
    total = sum(kinds.values())

    assert set(kinds) == {("active", True), ("active", False), ("expired", True)}
    assert kinds["active", True] / total == pytest.approx(0.25, abs=0.02)
    assert kinds["expired", True] / total == pytest.approx(0.03, abs=0.01)


def test_a_batch_that_expires_on_the_reference_date_is_good() -> None:
    """A medicine may be used until the end of the day on it."""
    on_the_day = [day for day in stockrx_rows.expiries(DAY).days if day.expires_on == DAY.isoformat()]
    day_before = (DAY - timedelta(days=1)).isoformat()

    assert [day.status for day in on_the_day] == ["active"]
    assert [day.status for day in stockrx_rows.expiries(DAY).days if day.expires_on == day_before] == [
        "active"
    ]
    assert len({day.expires_on for day in stockrx_rows.expiries(DAY).days}) == 300 + 1080


def test_every_day_is_drawn_as_often_as_its_kind_says() -> None:
    """The weights of a kind are whole numbers and add up to its part of 100."""
    pool = stockrx_rows.expiries(DAY)
    total = pool.cumulative_weights[-1]

    assert len(pool.days) == len(pool.cumulative_weights)
    assert pool.cumulative_weights[119] * 100 == 3 * total
    assert pool.cumulative_weights[299] * 100 == 28 * total


def test_lots_were_made_before_they_were_received(several_shards: Rows) -> None:
    """Year and month in the code are before the receipt, and the receipt before the expiry."""
    received = DAY - timedelta(days=stockrx_rows.RECEIVED_DAYS_AGO)

    for batch in several_shards["batches"]:
        found = re.fullmatch(r"[A-Z](\d\d)(\d\d)-\d{4}", str(batch["lot_code"]))
        assert found, batch
        assert (2000 + int(found[1]), int(found[2])) < (received.year, received.month)
        assert date.fromisoformat(str(batch["expires_on"])) > received


def test_no_two_batches_of_an_inventory_have_one_lot_code(several_shards: Rows) -> None:
    """What the unique constraint of the table asks for, whatever the draws."""
    codes = Counter((batch["inventory_id"], batch["lot_code"]) for batch in several_shards["batches"])

    assert set(codes.values()) == {1}


def test_inventories_are_called_after_products_and_cost_what_these_do(several_shards: Rows) -> None:
    """Name of the pool, maker, package; the price is 80 to 125 % of the usual one, to the sen."""
    usual = defaultdict(set)
    for product in products.catalogue().products:
        usual[product.name, product.package].add(product.price_sen)
    archived = 0
    for inventory in several_shards["inventories"]:
        found = re.fullmatch(r"(.+)「(.+)」(.+)", str(inventory["name"]))
        assert found, inventory
        assert found[2] in products.makers()
        assert re.fullmatch(r"\d+\.\d\d", str(inventory["price"]))
        sen = Decimal(str(inventory["price"])) * 100
        assert any(price * 79 <= sen * 100 <= price * 125 for price in usual[found[1], found[3]])
        archived += inventory["status"] == "archived"
    assert archived / 6000 == pytest.approx(0.05, abs=0.015)


def test_products_stand_once_in_the_pool_and_cost_something() -> None:
    """No product is named twice, none is free, and names fit the column with any maker."""
    catalogue = products.catalogue()
    names = [(product.name, product.package) for product in catalogue.products]
    longest = max(len(maker) for maker in products.makers())

    assert len(set(names)) == len(names) > 600
    assert min(product.price_sen for product in catalogue.products) >= 5000
    assert max(product.price_sen for product in catalogue.products) < 100_000_000
    assert max(len(name) + len(package) for name, package in names) + longest + 2 <= 255
    assert len({name for name, *_ in read_pool("products.tsv")}) == len(read_pool("products.tsv"))


@pytest.mark.parametrize("file_name", ["products.tsv", "makers.tsv"])
def test_pools_are_small(file_name: str) -> None:
    """They travel with every installation."""
    assert (
        len(resources.files("keikaku_snapshots.datasets").joinpath("data", file_name).read_bytes()) < 100_000
    )


def test_dates_follow_the_reference_date_and_nothing_else_does(small: Rows) -> None:
    """Another reference date moves dates and the months in lot codes; names, prices and stock stay."""
    later = rows_of("stockrx", "small", day=DAY + timedelta(days=30))

    dated = {"created_at", "updated_at", "lot_code", "expires_on", "note"}
    for table, rows in small.items():
        for row, moved in zip(rows, later[table], strict=True):
            assert {c: v for c, v in row.items() if c not in dated} == {
                c: v for c, v in moved.items() if c not in dated
            }
    assert small["batches"][0]["expires_on"] == str(
        date.fromisoformat(str(later["batches"][0]["expires_on"])) - timedelta(days=30)
    )


@pytest.mark.parametrize("day", [date(2024, 2, 29), date(2026, 12, 31), date(2000, 1, 1)])
def test_any_reference_date_will_do(day: date) -> None:
    """Leap days and turns of the year included."""
    assert len(rows_of("stockrx", "small", day=day)["batches"]) == 2000


def test_the_data_of_a_seed_never_change(small: Rows) -> None:
    """A5: the bytes of a seed are the same as when this test was written."""
    assert digest(small) == SMALL_SEED_7


def test_two_processes_make_the_same_data() -> None:
    """A5: another process with another hash seed, time zone and locale makes the same bytes."""
    assert digests_elsewhere("stockrx", "small") == [SMALL_SEED_7, SMALL_SEED_7]


@pytest.mark.parametrize("batches", [1, 12])
def test_own_numbers_of_batches_are_followed(batches: int) -> None:
    """A2: a scale of a configuration may have another number of batches per inventory."""
    scale = Scale("tiny", 5, None, {"batches": batches})
    (shard,) = dataset.shards(scale, seed=1, reference_date=DAY)

    made = {table.name: list(table.rows(shard)) for table in dataset.tables}

    assert {table: len(rows) for table, rows in made.items()} == {
        "inventories": 5,
        "batches": 5 * batches,
        "inventory_logs": 5 * batches,
    }
    assert len({row[1:3] for row in made["batches"]}) == 5 * batches


def test_numbers_go_on_after_rows_that_stay() -> None:
    """Children refer to the parents of this run, not to those that were there."""
    taken = {"inventories": 40, "batches": 70, "inventory_logs": 3}
    (shard,) = dataset.shards(Scale("tiny", 2), seed=1, reference_date=DAY, taken=taken)

    inventories, batches, logs = (list(table.rows(shard)) for table in dataset.tables)

    assert [row[0] for row in inventories] == ["41", "42"]
    assert [row[:2] for row in batches] == [("71", "41"), ("72", "41"), ("73", "42"), ("74", "42")]
    assert [row[:3] for row in logs] == [
        ("4", "41", "71"),
        ("5", "41", "72"),
        ("6", "42", "73"),
        ("7", "42", "74"),
    ]
