r"""C1: generating against `psql \copy` of the same rows prepared in advance, and against ORM `add_all`."""

from __future__ import annotations

import subprocess
import time
from typing import TYPE_CHECKING

from benchmarks.measure import Bar, Result, compare
from keikaku_snapshots.datasets import Dataset, generate, get_scale
from keikaku_snapshots.datasets.keikaku import dataset as keikaku
from keikaku_snapshots.datasets.stockrx import dataset as stockrx
from keikaku_snapshots.postgres.connect import connect
from keikaku_snapshots.postgres.tools import Tools, tool_environment
from keikaku_snapshots.postgres.url import DatabaseURL, quote_identifier

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Table

#: The largest accepted ratio by scale (REQUIREMENTS C1), whatever the dataset.
SIZES = {"medium": 1.5, "large": 1.25, "xlarge": 1.25}
#: The bar for ORM loading only says "faster"; measured factors are far larger.
ORM_LIMIT = 1.0


def _tables(dataset: Dataset = keikaku) -> list[Table]:
    return [table.table for table in dataset.tables]


def _prepare_copy_files(url: DatabaseURL, folder: Path, dataset: Dataset) -> Path:
    """Export the rows as files and write the psql script that loads them in one transaction."""
    folder.mkdir(parents=True, exist_ok=True)
    script = ["BEGIN;"]
    with connect(url) as connection:
        for table in _tables(dataset):
            columns = ", ".join(quote_identifier(column.name) for column in table.columns)
            path = folder / f"{table.name}.copy"
            statement = f"COPY {quote_identifier(table.name)} ({columns}) TO STDOUT"
            with path.open("wb") as out, connection.cursor() as cursor, cursor.copy(statement) as copy:
                out.writelines(copy)
            script.append(f"\\copy {quote_identifier(table.name)} ({columns}) from '{path}'")
    script.append("COMMIT;")
    path = folder / "load.sql"
    path.write_text("\n".join(script) + "\n", encoding="utf-8")
    return path


def _truncate(url: DatabaseURL, dataset: Dataset = keikaku) -> None:
    names = ", ".join(quote_identifier(table.name) for table in _tables(dataset))
    with connect(url, autocommit=True) as connection:
        connection.execute(f"TRUNCATE {names}")
        connection.execute("CHECKPOINT")


def _is_filled(url: DatabaseURL, dataset: Dataset) -> bool:
    table = quote_identifier(dataset.tables[0].name)
    with connect(url, autocommit=True) as connection:
        row = connection.execute("SELECT to_regclass(%s) IS NOT NULL", (table,)).fetchone()
        return bool(row and row[0] and connection.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone())


def against_copy(url: DatabaseURL, tools: Tools, folder: Path, scale_name: str, runs: int) -> Result:
    """Generate a scale of Keikaku, and load its rows with psql, into the same constraints and indexes."""
    return _against_copy(url, tools, folder, keikaku, scale_name, runs)


def stockrx_against_copy(url: DatabaseURL, tools: Tools, folder: Path, scale_name: str, runs: int) -> Result:
    """The same of StockRx: wider tables, fewer of them, integer keys."""
    return _against_copy(url, tools, folder, stockrx, scale_name, runs)


def _against_copy(
    url: DatabaseURL, tools: Tools, folder: Path, dataset: Dataset, scale_name: str, runs: int
) -> Result:
    scale = get_scale(scale_name, dataset)
    if not _is_filled(url, dataset):
        generate(dataset, scale, url, seed=0, create_tables=True)
    script = _prepare_copy_files(url, folder / f"{dataset.name}_{scale_name}", dataset)

    def ours() -> float:
        _truncate(url, dataset)
        started = time.perf_counter()
        generate(dataset, scale, url, seed=0)
        return time.perf_counter() - started

    def psql() -> float:
        _truncate(url, dataset)
        return _run_psql(url, tools, script)

    return compare(
        f"generate {scale.units} {dataset.unit}",
        {"generate": ours, "psql \\copy of prepared rows": psql},
        Bar("C1", SIZES[scale_name], "ratio"),
        runs=runs,
    )


def _run_psql(url: DatabaseURL, tools: Tools, script: Path) -> float:
    with tool_environment(url) as environment:
        started = time.perf_counter()
        subprocess.run(
            [str(tools.psql), "-X", "-q", "-w", "-v", "ON_ERROR_STOP=1", "-f", str(script)],
            env=environment,
            check=True,
            stdin=subprocess.DEVNULL,
        )
        return time.perf_counter() - started


def against_orm(url: DatabaseURL, runs: int) -> Result:
    """Load the rows of 10 offices with SQLAlchemy `add_all` in batches of 500."""
    from sqlalchemy import create_engine, select
    from sqlalchemy.orm import Session, registry

    engine = create_engine(url.for_sqlalchemy("psycopg"))
    generate("keikaku", get_scale("small"), url, seed=0, create_tables=True)
    mapped: list[tuple[type, list[dict[str, object]]]] = []
    mapper = registry()
    with engine.connect() as connection:
        for table in _tables():
            model = type(table.name, (), {})
            mapper.map_imperatively(model, table)
            mapped.append((model, [dict(row) for row in connection.execute(select(table)).mappings()]))

    def ours() -> float:
        _truncate(url)
        started = time.perf_counter()
        generate("keikaku", get_scale("small"), url, seed=0)
        return time.perf_counter() - started

    def orm() -> float:
        _truncate(url)
        started = time.perf_counter()
        with Session(engine) as session, session.begin():
            for model, rows in mapped:
                for start in range(0, len(rows), 500):
                    session.add_all(model(**row) for row in rows[start : start + 500])
                    session.flush()
        return time.perf_counter() - started

    try:
        return compare(
            "generate 10 offices against the ORM",
            {"generate": ours, "add_all, batches of 500": orm},
            Bar("A1", ORM_LIMIT, "ratio"),
            runs=runs,
        )
    finally:
        mapper.dispose()
        engine.dispose()
