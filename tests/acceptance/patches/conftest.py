"""Each test of a patch gets a database of its own on each version of the server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.patch_items import make_items
from tests.patch_lab import Lab
from tests.servers import connect, create_database, drop_database, empty_database

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keikaku_snapshots.postgres.url import DatabaseURL
    from tests.servers import Server


@pytest.fixture(scope="module")
def patch_database(each_server: Server) -> Iterator[DatabaseURL]:
    """One database for a module on each version; see `lab`."""
    url = create_database(each_server)
    yield url
    drop_database(each_server, url.database)


@pytest.fixture
def lab(patch_database: DatabaseURL) -> Iterator[Lab]:
    """An empty database, on PostgreSQL 15, 16 and 18 in turn."""
    with connect(patch_database) as connection:
        yield Lab(patch_database, connection)
    empty_database(patch_database)


@pytest.fixture
def newest(shared_database: DatabaseURL) -> Iterator[Lab]:
    """An empty database on the newest version, for what no version changes."""
    with connect(shared_database) as connection:
        yield Lab(shared_database, connection)


@pytest.fixture
def ten_items(shared_database: DatabaseURL) -> DatabaseURL:
    """A database with the ten rows of `patch_items`."""
    make_items(shared_database)
    return shared_database
