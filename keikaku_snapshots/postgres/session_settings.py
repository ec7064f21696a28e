"""Settings of a session that hold for a block only."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keikaku_snapshots.postgres.connect import Connection


@contextmanager
def _setting(connection: Connection, name: str, value: str) -> Iterator[None]:
    """Hold a setting for a block, inside the caller's transaction or one of our own."""
    with connection.transaction():
        before = connection.execute("SELECT pg_catalog.current_setting(%s)", (name,)).fetchone()
        connection.execute("SELECT pg_catalog.set_config(%s, %s, true)", (name, value))
        yield
        # A savepoint that ends well would leave the value to the rest of the caller's transaction.
        connection.execute("SELECT pg_catalog.set_config(%s, %s, true)", (name, before[0] if before else ""))


@contextmanager
def catalog_search_path(connection: Connection) -> Iterator[None]:
    """Make the server write every name of a definition with its schema.

    Args:
        connection: The database.

    Yields:
        Nothing; the search path holds for the block.
    """
    with _setting(connection, "search_path", "pg_catalog"):
        yield


@contextmanager
def unfiltered(connection: Connection) -> Iterator[None]:
    """Make a query that row security would filter fail, in place of giving fewer rows (FAULTS 18).

    Args:
        connection: The database.

    Yields:
        Nothing; the setting holds for the block.
    """
    with _setting(connection, "row_security", "off"):
        yield
