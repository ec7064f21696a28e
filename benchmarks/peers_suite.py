"""A small test suite whose isolation can be chosen; runs in either virtual environment.

Loaded as a pytest plugin: ``PEERS_ISOLATION`` names the fixture behind `db`, and
what pytest measured for set-up and teardown of each test goes to ``PEERS_TIMES``.
Knows nothing of this package, because the peers' environment does not have it.
"""
# mypy: disable-error-code="import-not-found,import-untyped,no-any-unimported,unused-ignore"

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import sql

if TYPE_CHECKING:
    from collections.abc import Iterator

    Connection = psycopg.Connection[tuple[Any, ...]]

#: Seconds of set-up and teardown by test, in the order they ran.
_TIMES: dict[str, float] = {}
_ISOLATION = os.environ["PEERS_ISOLATION"]
#: The data set, which nobody is connected to when it is cloned.
_URL = os.environ["PEERS_URL"]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add up what surrounds the test."""
    if report.when != "call":
        _TIMES[report.nodeid] = _TIMES.get(report.nodeid, 0.0) + report.duration


def pytest_sessionfinish() -> None:
    """Hand the times over."""
    Path(os.environ["PEERS_TIMES"]).write_text(json.dumps(list(_TIMES.values())), encoding="utf-8")


def change(connection: Connection) -> None:
    """What each test does: 100 rows in 3 tables, committed."""
    for number, rows in ((1, 34), (2, 33), (3, 33)):
        connection.execute(f"UPDATE table_{number} SET note = note || '!' WHERE id <= {rows}")
        connection.commit()


if _ISOLATION == "rewind":
    from keikaku_snapshots import SnapshotManager

    @pytest.fixture(scope="session")
    def manager() -> Iterator[SnapshotManager]:
        """Mark the state that each test begins with."""
        with SnapshotManager(_URL) as one:
            one.checkpoint()
            yield one
            one.drop_checkpoint()

    @pytest.fixture
    def db(manager: SnapshotManager) -> Iterator[Connection]:
        """Give a connection, and undo what was committed."""
        with psycopg.connect(_URL) as connection:
            yield connection
        manager.rewind()

elif _ISOLATION == "pytest-postgresql":
    from pytest_postgresql import factories

    def _load(**address: Any) -> None:
        """Fill the template that is cloned for each test."""
        from peers_sets import small

        address.pop("autocommit", None)
        with psycopg.connect(**address) as connection:
            small(connection)

    _parts = psycopg.conninfo.conninfo_to_dict(_URL)
    peers_server = factories.postgresql_noproc(
        host=str(_parts["host"]),
        port=str(_parts["port"]),
        user=str(_parts["user"]),
        password=str(_parts["password"]),
        dbname="peers_pytest",
        load=[_load],
    )
    db = factories.postgresql("peers_server")

elif _ISOLATION == "raw clone":

    @pytest.fixture(scope="session")
    def admin() -> Iterator[Connection]:
        """One connection for all clones."""
        with psycopg.connect(_URL, dbname="postgres", autocommit=True) as connection:
            yield connection

    @pytest.fixture
    def db(admin: Connection) -> Iterator[Connection]:
        """CREATE DATABASE … TEMPLATE before, DROP DATABASE after."""
        template = sql.Identifier(str(psycopg.conninfo.conninfo_to_dict(_URL)["dbname"]))
        clone = sql.Identifier("peers_clone")
        admin.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(clone, template))
        with psycopg.connect(_URL, dbname="peers_clone") as connection:
            yield connection
        admin.execute(sql.SQL("DROP DATABASE {}").format(clone))

elif _ISOLATION == "truncate":

    @pytest.fixture
    def db() -> Iterator[Connection]:
        """TRUNCATE every table after; the rows that the test began with are not there again."""
        with psycopg.connect(_URL) as connection:
            yield connection
            names = connection.execute(
                "SELECT oid::regclass::text FROM pg_class WHERE relname ~ '^table_' AND relkind = 'r'"
            ).fetchall()
            connection.execute("TRUNCATE " + ", ".join(name for (name,) in names))

else:

    @pytest.fixture
    def db() -> Iterator[Connection]:
        """No isolation: what a connection costs."""
        with psycopg.connect(_URL) as connection:
            yield connection
