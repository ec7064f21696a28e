"""Columns and names that the tables of every built-in dataset have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Boolean, Column, DateTime, ForeignKey, func, text

if TYPE_CHECKING:
    from sqlalchemy.types import TypeEngine

#: Names of keys and indexes as PostgreSQL itself would choose them.
NAMING_CONVENTION = {
    "pk": "%(table_name)s_pkey",
    "fk": "%(table_name)s_%(column_0_name)s_fkey",
    "uq": "%(table_name)s_%(column_0_N_name)s_key",
    "ck": "%(table_name)s_%(constraint_name)s_check",
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
}


def required(name: str, kind: Any, **options: Any) -> Column[Any]:
    """A column that is NOT NULL."""
    return Column(name, kind, nullable=False, **options)


def flag(name: str, *, default: bool = False) -> Column[Any]:
    """A boolean column with a default."""
    return Column(name, Boolean, nullable=False, server_default=text("true" if default else "false"))


def reference(
    name: str,
    table: str,
    kind: TypeEngine[Any],
    *,
    ondelete: str,
    nullable: bool = False,
    index: bool = True,
) -> Column[Any]:
    """A foreign key to the ``id`` of a table.

    Args:
        name: The column.
        table: The table referred to.
        kind: The type of its id.
        ondelete: What deleting the row referred to does.
        nullable: Whether it may be NULL.
        index: False where a unique constraint already begins with the column.

    Returns:
        The column.
    """
    key = ForeignKey(f"{table}.id", ondelete=ondelete)
    return Column(name, kind, key, nullable=nullable, index=index)


def bookkeeping() -> list[Column[Any]]:
    """The mark of test rows, and when a row was made and last changed."""
    return [
        flag("is_test_data"),
        required("created_at", DateTime(timezone=True), server_default=func.now()),
        required("updated_at", DateTime(timezone=True), server_default=func.now()),
    ]
