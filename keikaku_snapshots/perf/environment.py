"""What the numbers of a report depend on: versions, the machine, the server's settings."""

from __future__ import annotations

import os
import platform
import statistics
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keikaku_snapshots.postgres.connect import connect, server_info, translated

if TYPE_CHECKING:
    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.postgres.url import DatabaseURL

#: Server settings that change the numbers.
SETTINGS = (
    "shared_buffers",
    "work_mem",
    "maintenance_work_mem",
    "max_wal_size",
    "max_connections",
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "random_page_cost",
    "jit",
)
_PACKAGES = ("keikaku_snapshots", "psycopg", "SQLAlchemy")
_ROUND_TRIPS = 50
_LOCAL = {"localhost", "127.0.0.1", "::1"}


def describe_environment(url: DatabaseURL) -> dict[str, Any]:
    """Collect the facts; no host, role or database name is among them, so that a report can be shared.

    Args:
        url: The database.

    Returns:
        The facts by name, ready for JSON.

    Raises:
        KeikakuError: The server cannot be reached.
    """
    facts: dict[str, Any] = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            facts[package] = version(package)
    facts["system"] = f"{platform.system()} {platform.release()} {platform.machine()}"
    facts["processor"] = _processor()
    # What this process may use: a container often has fewer than the machine.
    facts["cores"] = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts["memory_mb"] = _memory_mb()
    if hasattr(os, "getloadavg"):
        facts["load_at_begin"] = round(os.getloadavg()[0], 2)
    with connect(url, autocommit=True) as connection, translated(url, "reading the server's settings"):
        facts["postgresql"] = server_info(connection).version
        facts["server_is_local"] = url.effective_host.startswith("/") or url.effective_host in _LOCAL
        facts["round_trip_ms"] = _round_trip_ms(connection)
        facts["server_settings"] = _settings(connection)
    return facts


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_mb() -> int:
    import psutil

    return round(psutil.virtual_memory().total / 1e6)


def _round_trip_ms(connection: Connection) -> float:
    samples = []
    for _ in range(_ROUND_TRIPS):
        began = time.perf_counter()
        connection.execute("SELECT 1")
        samples.append(time.perf_counter() - began)
    return round(statistics.median(samples) * 1000, 3)


def _settings(connection: Connection) -> dict[str, str]:
    rows = connection.execute(
        "SELECT name, pg_catalog.current_setting(name) FROM pg_catalog.pg_settings WHERE name = ANY(%s)",
        [list(SETTINGS)],
    ).fetchall()
    found: dict[str, str] = dict(rows)
    return {name: found[name] for name in SETTINGS if name in found}
