"""A user's own dataset, used as its README says: from its folder, by the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import sqlalchemy

from keikaku_snapshots.datasets import Dataset, Scale, Table, generate
from tests.bookshop import FOLDER, load
from tests.servers import connect

if TYPE_CHECKING:
    from pathlib import Path

    from keikaku_snapshots.postgres.url import DatabaseURL

shop = load()


@pytest.fixture
def database(shared_database: DatabaseURL) -> DatabaseURL:
    """An empty database; one for the module."""
    return shared_database


def test_the_example_runs_from_its_folder(database: DatabaseURL, tmp_path: Path) -> None:
    """A6: `--dataset bookshop:dataset` in the example's folder makes tables, rows and a snapshot."""
    environment = {**os.environ, "PYTHONPATH": str(FOLDER.parents[1])}
    command = [
        sys.executable, "-m", "keikaku_snapshots.generate", "--dataset", "bookshop:dataset",
        "--scale", "small",
        "--db-url", database.text, "--snapshot-dir", str(tmp_path), "--json",
    ]  # fmt: skip

    done = subprocess.run(
        command, cwd=FOLDER, env=environment, capture_output=True, text=True, timeout=120, check=False
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == {"customers": 100, "orders": 500, "order_lines": 1500}
    assert [path.name for path in tmp_path.glob("small_100_customers_2*.sql")]


def test_every_type_arrives(database: DatabaseURL) -> None:
    """JSONB, array, enum, identity and composite key hold what the generators meant."""
    generate(shop.dataset, "small", database, create_tables=True)

    with connect(database) as connection:
        row = connection.execute(
            "SELECT jsonb_typeof(preferences->'newsletter'), preferences->>'language', "
            "cardinality(interests), "
            "pg_typeof(tier)::text FROM customers LIMIT 1"
        ).fetchone()
        assert row == ("boolean", "ja", 2, "customer_tier")
        assert connection.execute("SELECT min(id), max(id), count(*) FROM orders").fetchone() == (1, 500, 500)
        row = connection.execute("SELECT count(DISTINCT (order_id, line_number)) FROM order_lines").fetchone()
        assert row == (1500,)


def test_reflected_tables_serve_as_well(database: DatabaseURL) -> None:
    """A6: tables read from the database can be described, mixed in any order."""
    generate(shop.dataset, "small", database, create_tables=True)
    engine = sqlalchemy.create_engine(database.for_sqlalchemy())
    reflected = sqlalchemy.MetaData()
    reflected.reflect(engine)
    engine.dispose()
    rows = {table.name: table for table in shop.dataset.tables}
    dataset = Dataset(
        "reflected",
        tuple(
            Table(reflected.tables[name], rows[name].rows, rows[name].columns)
            for name in ("order_lines", "orders", "customers")
        ),
        (Scale("small", 100, per_unit={"orders": 5}),),
    )

    again = generate(dataset, "small", database)

    assert again.rows == {"customers": 100, "orders": 500, "order_lines": 1500}
    assert again.deleted == 2100
