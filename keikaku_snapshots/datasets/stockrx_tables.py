"""The tables of the StockRx inventory application, as SQLAlchemy Core tables.

An inventory is a product on the shelf; its stock is in batches, each with an
expiry date, and every movement leaves a line in ``inventory_logs``. Nothing
cascades: a product with stock or history cannot be deleted, and a data patch
finds no rows changed besides its own.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Date,
    Enum,
    Identity,
    Index,
    Integer,
    MetaData,
    Numeric,
    String,
    Table,
    UniqueConstraint,
    text,
)

from keikaku_snapshots.datasets.table_parts import NAMING_CONVENTION, bookkeeping, reference, required

metadata = MetaData(naming_convention=NAMING_CONVENTION)

inventory_status = Enum("active", "archived", name="inventory_status", metadata=metadata)
batch_status = Enum("active", "expired", "disposed", name="batch_status", metadata=metadata)
inventory_operation = Enum(
    "receive", "ship", "adjust", "expire", "dispose", name="inventory_operation", metadata=metadata
)


def _id() -> Column[Any]:
    return Column("id", BigInteger, Identity(always=False), primary_key=True)


def _reference(name: str, table: str, **options: Any) -> Column[Any]:
    return reference(name, table, BigInteger(), ondelete="RESTRICT", **options)


inventories = Table(
    "inventories",
    metadata,
    _id(),
    required("name", String(255)),
    required("sku", String(50), unique=True),
    required("price", Numeric(12, 2)),
    required("quantity", Integer, server_default=text("0")),
    required("status", inventory_status, server_default="active"),
    *bookkeeping(),
    CheckConstraint("price >= 0", name="price"),
    CheckConstraint("quantity >= 0", name="quantity"),
)

batches = Table(
    "batches",
    metadata,
    _id(),
    _reference("inventory_id", "inventories", index=False),
    required("lot_code", String(50)),
    required("expires_on", Date),
    required("quantity", Integer, server_default=text("0")),
    required("status", batch_status, server_default="active"),
    *bookkeeping(),
    CheckConstraint("quantity >= 0", name="quantity"),
    UniqueConstraint("inventory_id", "lot_code"),
    # The question of every night: which batches have expired and are still for sale?
    Index("ix_batches_expiry", "expires_on", postgresql_where=text("status = 'active'")),
)

inventory_logs = Table(
    "inventory_logs",
    metadata,
    _id(),
    _reference("inventory_id", "inventories"),
    # NULL where a movement belongs to no batch, such as a correction after counting.
    _reference("batch_id", "batches", nullable=True),
    required("delta", Integer),
    required("operation", inventory_operation),
    required("previous_quantity", Integer),
    required("current_quantity", Integer),
    Column("note", String(500)),
    *bookkeeping(),
    CheckConstraint("current_quantity = previous_quantity + delta", name="quantities"),
)
