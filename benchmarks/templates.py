"""C3: a warm restore, and one with a spare, against raw DROP and CREATE DATABASE … TEMPLATE.

The raw side copies the same template by the same strategy, over a connection
that it opens itself, and knows nothing of sessions, settings or errors.
What a restore leaves to the server (the replaced database's drop, the next
spare) is waited for outside the clock, and a checkpoint gives both sides the same start.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from benchmarks.measure import Bar, Result, alternate, compare
from keikaku_snapshots import SnapshotManager
from keikaku_snapshots.postgres.cloning import clone_method
from keikaku_snapshots.postgres.connect import connect

if TYPE_CHECKING:
    from pathlib import Path

    from keikaku_snapshots.postgres.url import DatabaseURL

#: Largest accepted ratio of a warm restore from the library (issue 4).
WARM_LIMIT = 1.3
#: Seconds of a restore with a spare, start of the command line included (C3).
COMMAND_LIMIT_S = 0.6
#: Rows of DSLR's own benchmark, 1 GB (PEERS.md).
GIGABYTE_ROWS = 20_000_000
#: Longest wait for the server, in seconds.
_SETTLE_LIMIT_S = 120.0


def gigabyte(url: DatabaseURL, folder: Path, runs: int) -> list[Result]:
    """Fill an empty database with what DSLR's benchmark uses, and restore it."""
    with connect(url, autocommit=True, statement_timeout_s=0) as connection:
        connection.execute("CREATE TABLE numbers (a bigint, b bigint, c bigint)")
        connection.execute(
            f"INSERT INTO numbers SELECT i, i * 2, i * 3 FROM generate_series(1, {GIGABYTE_ROWS}) i"
        )
        connection.execute("VACUUM ANALYZE numbers")
    return warm_and_spare(url, folder, "gigabyte", runs)


def settle(manager: SnapshotManager, spares: int) -> None:
    """Wait until the server has done what was left to it, and write everything back."""
    deadline = time.monotonic() + _SETTLE_LIMIT_S
    with connect(manager.url, database="postgres", autocommit=True) as connection:
        while True:
            row = connection.execute(
                "SELECT count(*) FROM pg_database WHERE datname LIKE 'keikaku\\_old\\_%'"
            ).fetchone()
            ready = sum(len(one.spares) for one in manager.list_templates())
            if row and row[0] == 0 and ready >= spares:
                break
            if time.monotonic() > deadline:
                raise RuntimeError(f"the server did not end what was left to it in {_SETTLE_LIMIT_S} s")
            time.sleep(0.01)
        connection.execute("CHECKPOINT")


def warm_and_spare(url: DatabaseURL, folder: Path, name: str, runs: int) -> list[Result]:
    """Restore from a template and from a spare, by the library and by the command line."""
    directory = folder / f"templates_{name}"
    with (
        SnapshotManager(url, directory, minimum_free_mb=1) as plain,
        SnapshotManager(url, directory, minimum_free_mb=1, spare=1) as sparing,
    ):
        plain.create_snapshot(name)
        plain.clear_templates()
        plain.restore_snapshot(name)
        (template,) = plain.list_templates()
        notes = {"database_mb": f"{template.size_bytes / 1e6:.0f}"}
        results = [_warm(plain, template.database, template.size_bytes, name, runs, notes)]
        sparing.restore_snapshot(name)
        settle(sparing, 1)
        results.append(_spare(sparing, template.database, template.size_bytes, name, runs, notes))
        results.append(_command(sparing, name, runs, notes))
        plain.clear_templates()
    return results


def _raw(manager: SnapshotManager, template: str, size_bytes: int) -> float:
    with connect(manager.url, database="postgres", autocommit=True) as connection:
        method = clone_method(connection, size_bytes)
        options = method.options.as_string(connection)
    started = time.perf_counter()
    with connect(manager.url, database="postgres", autocommit=True, statement_timeout_s=0) as connection:
        method.prepare(connection)
        connection.execute("DROP DATABASE IF EXISTS bench_raw")
        connection.execute(f"CREATE DATABASE bench_raw TEMPLATE {template} {options}")
    return time.perf_counter() - started


def _restore(manager: SnapshotManager, name: str, wanted: str) -> float:
    started = time.perf_counter()
    restored = manager.restore_snapshot(name)
    seconds = time.perf_counter() - started
    if not restored.reason.startswith(wanted):
        raise RuntimeError(f"not {wanted}: {restored.reason}")
    return seconds


def _warm(
    manager: SnapshotManager, template: str, size_bytes: int, name: str, runs: int, notes: dict[str, str]
) -> Result:
    def ours() -> float:
        settle(manager, 0)
        return _restore(manager, name, "warm")

    def raw() -> float:
        settle(manager, 0)
        return _raw(manager, template, size_bytes)

    contestants = {"restore_snapshot (warm)": ours, "DROP + CREATE DATABASE TEMPLATE": raw}
    return compare(
        f"warm restore of {name}", contestants, Bar("C3", WARM_LIMIT, "ratio"), runs=runs, notes=notes
    )


def _spare(
    manager: SnapshotManager, template: str, size_bytes: int, name: str, runs: int, notes: dict[str, str]
) -> Result:
    def ours() -> float:
        settle(manager, 1)
        return _restore(manager, name, "spare")

    def raw() -> float:
        settle(manager, 1)
        return _raw(manager, template, size_bytes)

    contestants = {"restore_snapshot (spare)": ours, "DROP + CREATE DATABASE TEMPLATE": raw}
    return compare(
        f"restore of {name} from a spare", contestants, Bar("C3", 1.0, "ratio"), runs=runs, notes=notes
    )


def _command(manager: SnapshotManager, name: str, runs: int, notes: dict[str, str]) -> Result:
    """The command line, start included."""
    words = ["restore", name, "--spare", "1", "--yes", "-q", "--snapshot-dir", str(manager.directory)]

    def ours() -> float:
        settle(manager, 1)
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "keikaku_snapshots", *words],
            env={**os.environ, "KEIKAKU_DB_URL": manager.url.text},
            check=True,
            stdin=subprocess.DEVNULL,
        )
        return time.perf_counter() - started

    samples = alternate({"keikaku restore --spare 1": ours}, runs)
    median = statistics.median(samples["keikaku restore --spare 1"])
    title = f"keikaku restore {name} from a spare"
    return Result(title, samples, median, Bar("C3", COMMAND_LIMIT_S, "seconds"), notes)
