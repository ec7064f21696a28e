"""A dataset of one's own: a bookshop with customers, orders and their lines.

Generate it, as any other dataset::

    python -m keikaku_snapshots.generate --dataset bookshop:dataset --scale small

or in Python::

    from keikaku_snapshots.datasets import generate

    generate("bookshop:dataset", "small", "postgresql://localhost/shop_test", create_tables=True)

The tables may as well be those of mapped classes (``Customer.__table__``) or
reflected ones (``MetaData().reflect(engine)``).
"""

from __future__ import annotations

from datetime import timedelta
from itertools import repeat
from typing import TYPE_CHECKING

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    Date,
    Enum,
    ForeignKey,
    Identity,
    Integer,
    MetaData,
    Numeric,
    Text,
    Uuid,
)
from sqlalchemy import Table as Relation
from sqlalchemy.dialects.postgresql import JSONB

from keikaku_snapshots.datasets import Dataset, Scale, Shard, Table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keikaku_snapshots.datasets.dataset import Row

metadata = MetaData()

customers = Relation(
    "customers",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("name", Text, nullable=False),
    Column("email", Text, nullable=False, unique=True),
    Column("tier", Enum("basic", "gold", "platinum", name="customer_tier"), nullable=False),
    Column("preferences", JSONB, nullable=False),
    Column("interests", ARRAY(Text), nullable=False),
    Column("is_test_data", Boolean, nullable=False, server_default="false"),
)

orders = Relation(
    "orders",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("customer_id", Uuid, ForeignKey("customers.id"), nullable=False, index=True),
    Column("ordered_on", Date, nullable=False),
    Column("note", Text),
    Column("is_test_data", Boolean, nullable=False, server_default="false"),
)

order_lines = Relation(
    "order_lines",
    metadata,
    Column("order_id", BigInteger, ForeignKey("orders.id"), primary_key=True),
    Column("line_number", Integer, primary_key=True),
    Column("title", Text, nullable=False),
    Column("price", Numeric(8, 2), nullable=False),
    Column("is_test_data", Boolean, nullable=False, server_default="false"),
)

NAMES = ("Aiko", "Björn", "Chloé", "Dmitri", "Eun-ji", "Fatima")
TITLES = ("こころ", "雪国", "Momo", "The Trial", "Pale Fire", "吾輩は猫である")
LINES_PER_ORDER = 3


# A unit is a customer; the scale says how many orders each has.


def customer_rows(shard: Shard) -> Iterable[Row]:
    """One row for each customer: columns are drawn one after another, then zipped into rows."""
    random = shard.random("customers")
    first = shard.first_unit
    return zip(
        shard.uuids("customers", shard.units),
        random.choices(NAMES, k=shard.units),
        [f"customer-{number:06d}@example.com" for number in range(first, first + shard.units)],
        random.choices(("basic", "gold", "platinum"), weights=(8, 3, 1), k=shard.units),
        # dict and list are converted by the type of their column; text is the fast way.
        (
            {"newsletter": chance < 0.5, "language": "ja"}
            for chance in (random.random() for _ in range(shard.units))
        ),
        (random.choices(TITLES, k=2) for _ in range(shard.units)),
        repeat("t"),
    )


def order_rows(shard: Shard) -> Iterable[Row]:
    """The orders of a customer; their ids are numbers, so the lines can name them again."""
    each = shard.scale.per_unit["orders"]
    ids = shard.identities("orders", each)
    random = shard.random("orders")
    days = random.choices(range(365), k=len(ids))
    owners = (owner for owner in shard.uuids("customers", shard.units) for _ in range(each))
    dates = ((shard.reference_date - timedelta(days=day)).isoformat() for day in days)
    return zip(map(str, ids), owners, dates, repeat(None), repeat("t"))


def line_rows(shard: Shard) -> Iterable[Row]:
    """Three lines for each order, with a key of two columns."""
    ids = shard.identities("orders", shard.scale.per_unit["orders"])
    count = len(ids) * LINES_PER_ORDER
    random = shard.random("order_lines")
    return zip(
        (str(order) for order in ids for _ in range(LINES_PER_ORDER)),
        (str(line) for _ in ids for line in range(1, LINES_PER_ORDER + 1)),
        random.choices(TITLES, k=count),
        (f"{cents / 100:.2f}" for cents in random.choices(range(500, 5000), k=count)),
        repeat("t"),
    )


dataset = Dataset(
    name="bookshop",
    unit="customers",
    tables=(
        # Identity columns are left out unless they are named: these ids are ours, so they are.
        Table(customers, customer_rows, rows_per_unit=1),
        Table(orders, order_rows, columns=tuple(orders.columns.keys()), rows_per_unit="orders"),
        Table(order_lines, line_rows),
    ),
    scales=(
        Scale("small", 100, per_unit={"orders": 5}),
        Scale("medium", 10_000, per_unit={"orders": 5}),
    ),
)
