"""Rows of a data set: as its functions make them, and as a server stores them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from keikaku_snapshots.datasets import find_dataset

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keikaku_snapshots.postgres.url import DatabaseURL

DAY = date(2026, 4, 1)
ROOT = Path(__file__).parents[1]

Rows = dict[str, list[dict[str, str | None]]]


def rows_of(dataset_name: str, scale: str, seed: int | str = 7, day: date = DAY) -> Rows:
    """All rows of a scale as dicts, by table."""
    dataset = find_dataset(dataset_name)
    shards = list(dataset.shards(dataset.scale(scale), seed=seed, reference_date=day))
    return {
        table.name: [
            dict(zip(table.filled_columns(), row, strict=True))
            for shard in shards
            for row in table.rows(shard)
        ]
        for table in dataset.tables
    }


def digest(rows: Rows) -> str:
    """One checksum over all rows."""
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()


def digests_elsewhere(dataset_name: str, scale: str) -> list[str]:
    """The checksum of a scale as two processes with other hash seeds, time zones and locales make it."""
    code = (
        f"from tests.dataset_rows import digest, rows_of; print(digest(rows_of({dataset_name!r}, {scale!r})))"
    )
    surroundings = (
        {"PYTHONHASHSEED": "1", "TZ": "Asia/Tokyo", "LC_ALL": "C.UTF-8"},
        {"PYTHONHASHSEED": "4242", "TZ": "America/New_York", "LC_ALL": "C"},
    )
    return [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **extra, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for extra in surroundings
    ]


def stored(url: DatabaseURL, tables: Sequence[str], sequences: Sequence[str]) -> str:
    """SHA-256 over every row of every table as the server writes it, and over the sequences."""
    checksum = hashlib.sha256()
    with psycopg.connect(url.text, options="-c TimeZone=UTC") as connection:
        for table in tables:
            with connection.cursor().copy(
                f"COPY (SELECT * FROM {table} ORDER BY id) TO STDOUT".encode()
            ) as copy:
                for block in copy:
                    checksum.update(block)
        for sequence in sequences:
            row = connection.execute(f"SELECT last_value, is_called FROM {sequence}".encode()).fetchone()
            checksum.update(repr(row).encode())
    return checksum.hexdigest()


def counts(url: DatabaseURL, tables: Sequence[str]) -> dict[str, int]:
    """Rows of every table."""
    with psycopg.connect(url.text) as connection:
        rows = [connection.execute(f"SELECT count(*) FROM {table}".encode()).fetchone() for table in tables]
    return {table: row[0] for table, row in zip(tables, rows, strict=True) if row}


def references_without_index(url: DatabaseURL) -> list[tuple[str, str]]:
    """Foreign keys, by table and name, whose first column no index begins with."""
    with psycopg.connect(url.text) as connection:
        return connection.execute(
            "SELECT conrelid::regclass::text, conname FROM pg_constraint c "
            "WHERE contype = 'f' AND NOT EXISTS (SELECT FROM pg_index i "
            "WHERE i.indrelid = c.conrelid AND i.indkey[0] = c.conkey[1] AND i.indpred IS NULL)"
        ).fetchall()
