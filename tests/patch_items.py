"""Ten rows whose quantities are 0, and the simplest patch on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keikaku_snapshots.patches.definition import SqlPatch, data_patch
from tests import servers

if TYPE_CHECKING:
    from keikaku_snapshots.postgres.url import DatabaseURL


@data_patch("add_one")
class AddOne(SqlPatch):
    """Adds one."""

    table, key = "public.items", ("id",)
    where = "true"
    set = {"qty": "qty + 1"}  # noqa: RUF012 - the form that a patch has


def make_items(url: DatabaseURL) -> None:
    """Make the table and its ten rows."""
    with servers.connect(url) as connection:
        connection.execute("CREATE TABLE items (id int PRIMARY KEY, qty int NOT NULL)")
        connection.execute("INSERT INTO items SELECT n, 0 FROM generate_series(1, 10) n")


def quantities(url: DatabaseURL) -> set[object]:
    """The values of the ten rows."""
    with servers.connect(url) as connection:
        return {qty for (qty,) in connection.execute("SELECT qty FROM items").fetchall()}
