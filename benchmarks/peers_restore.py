"""Restores through the command lines, all of one database, one after the other.

Every contestant brings the same database back to the same state, its own start-up
included. Raw SQL goes through psql, as somebody would write it in a script. What a
run leaves to the server (a replaced database's drop, the next spare) is waited for outside
the clock, and a checkpoint gives each the same start.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from keikaku_snapshots import SnapshotManager
from keikaku_snapshots.postgres.cloning import clone_method
from keikaku_snapshots.postgres.connect import connect
from keikaku_snapshots.postgres.tools import tool_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.postgres.tools import Tools
    from keikaku_snapshots.postgres.url import DatabaseURL

SNAPSHOT = "peers"
TEMPLATE = "peers_template"
#: Names of the contestants, as JSON and page have them.
WARM, SPARE, COLD = "keikaku, template ready", "keikaku, spare ready", "keikaku, from the file"
DSLR, DBBACKUP = "DSLR", "django-dbbackup"
RAW, RAW_FILES = "CREATE DATABASE … TEMPLATE", "the same, STRATEGY file_copy"
PSQL, PG_RESTORE = "psql -1", "pg_restore -j2"
LIBRARY, LIBRARY_RAW = "restore_snapshot, template ready", "DROP + CREATE DATABASE … TEMPLATE"
#: Longest wait for the server, in seconds.
_SETTLE_LIMIT_S = 120.0
_DJANGO = """
import os
SECRET_KEY = "benchmark"
INSTALLED_APPS = ["dbbackup"]
USE_TZ = True
DATABASES = {{"default": {{"ENGINE": "django.db.backends.postgresql", "NAME": {name!r}, "HOST": {host!r},
    "PORT": "{port}", "USER": {user!r}, "PASSWORD": os.environ["PGPASSWORD"]}}}}
STORAGES = {{"default": {{"BACKEND": "django.core.files.storage.FileSystemStorage"}},
    "staticfiles": {{"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"}},
    "dbbackup": {{"BACKEND": "django.core.files.storage.FileSystemStorage",
    "OPTIONS": {{"location": {folder!r}}}}}}}
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the contestants work."""

    #: The database that all of them restore.
    url: DatabaseURL
    #: PostgreSQL's programs, of the server's version.
    tools: Tools
    #: Files of all of them.
    folder: Path
    #: Programs of the peers' virtual environment; None leaves them out.
    peers: Path | None


def run(place: Place, *words: str | Path) -> str:
    """Run a program that finds the database in its environment.

    Returns:
        What it printed, on both streams.

    Raises:
        RuntimeError: It failed; with its output.
    """
    with tool_environment(place.url) as environment:
        path = os.pathsep.join([str(place.tools.psql.parent), environment.get("PATH", os.environ["PATH"])])
        done = subprocess.run(
            [str(word) for word in words],
            env={
                **environment,
                "PATH": path,
                "PGPASSWORD": place.url.password or "",
                "KEIKAKU_DB_URL": place.url.text,
                "DATABASE_URL": place.url.text,
                "DJANGO_SETTINGS_MODULE": "peers_settings",
                "PYTHONPATH": str(place.folder),
            },
            cwd=place.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"{words[0]} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout + done.stderr


def spares(connection: Connection) -> list[str]:
    """Names of the copies that wait."""
    rows = connection.execute("SELECT datname FROM pg_database WHERE datname LIKE 'keikaku\\_spare\\_%'")
    return [name for (name,) in rows.fetchall()]


def settle(place: Place) -> None:
    """Wait until the server has done what was left to it, and write everything back."""
    deadline = time.monotonic() + _SETTLE_LIMIT_S
    with connect(place.url, database="postgres", autocommit=True, statement_timeout_s=0) as connection:
        busy = (
            "SELECT EXISTS (SELECT FROM pg_database WHERE datname LIKE 'keikaku\\_old\\_%') OR EXISTS"
            " (SELECT FROM pg_stat_activity WHERE state = 'active'"
            " AND query ~* '(create|drop|alter) database' AND pid <> pg_backend_pid())"
        )
        while (row := connection.execute(busy).fetchone()) and row[0]:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the server did not end what was left to it in {_SETTLE_LIMIT_S} s")
            time.sleep(0.01)
        connection.execute("CHECKPOINT")


def prepare(place: Place, wanted: Collection[str] | None = None) -> None:
    """Take every tool's snapshot of the database, which holds the data set.

    Args:
        place: Where.
        wanted: The ways that will be measured; None: all.
    """

    def is_wanted(way: str) -> bool:
        return wanted is None or way in wanted

    url = place.url
    run(place, *_keikaku("create", SNAPSHOT, "-q", "--snapshot-dir", place.folder / "snapshots"))
    dump = place.tools.pg_dump
    if is_wanted(PSQL):
        run(place, dump, "-w", "-f", place.folder / "raw.sql", url.database)
    with ThreadPoolExecutor() as beside:  # each compresses for most of a minute
        if is_wanted(PG_RESTORE):
            words = (dump, "-w", "-Fc", "-f", place.folder / "raw.dump", url.database)
            archive = beside.submit(run, place, *words)
        if is_wanted(DBBACKUP):
            _prepare_peers(place)
        if is_wanted(PG_RESTORE):
            archive.result()
    if place.peers is not None:
        run(place, place.peers / "dslr", "snapshot", SNAPSHOT)  # it ends other sessions
    _sql(place, f"CREATE DATABASE {TEMPLATE} TEMPLATE {url.database}")
    # The first restore makes the template that later ones clone.
    run(place, *_restore(place))


def _prepare_peers(place: Place) -> None:
    url = place.url
    if place.peers is not None:
        settings = _DJANGO.format(
            name=url.database,
            host=url.host,
            port=url.port,
            user=url.user,
            folder=str(place.folder / "dbbackup"),
        )
        (place.folder / "peers_settings.py").write_text(settings, encoding="utf-8")
        run(place, place.peers / "django-admin", "dbbackup", "--quiet")


def contestants(place: Place) -> dict[str, Callable[[], float]]:
    """Every way through a command line; each returns its seconds."""
    name = place.url.database
    found: dict[str, Callable[[], float]] = {
        WARM: lambda: _ours(place, "warm", before=lambda: _drop_spares(place)),
        SPARE: lambda: _ours(place, "spare", "--spare", "1", before=lambda: _have_spare(place)),
        COLD: lambda: _ours(place, "", "--strategy", "swap", "--no-templates"),
    }
    if place.peers is not None:
        peers = place.peers
        found[DSLR] = lambda: _timed(place, peers / "dslr", "restore", SNAPSHOT)
        found[DBBACKUP] = lambda: _timed(place, peers / "django-admin", "dbrestore", "--noinput", "--quiet")
    renames = (
        f"ALTER DATABASE {name} RENAME TO peers_old; ALTER DATABASE peers_new RENAME TO {name}",
        "DROP DATABASE peers_old",
    )
    for title, options in ((RAW, ""), (RAW_FILES, " STRATEGY file_copy")):
        clone = f"CREATE DATABASE peers_new TEMPLATE {TEMPLATE}{options}"
        found[title] = partial(_timed, place, *_psql(place, clone, *renames))
    found[PSQL] = lambda: _load(place, place.tools.psql, "-X", "-q", "-w", "-1", "-v", "ON_ERROR_STOP=1",
                                "-o", os.devnull, "-f", place.folder / "raw.sql", "-d", name)  # fmt: skip
    found[PG_RESTORE] = lambda: _load(
        place, place.tools.pg_restore, "-w", "-j2", "-d", name, place.folder / "raw.dump"
    )
    return found


def without_command_line(place: Place) -> dict[str, Callable[[], float]]:
    """The warm restore without a command line, and the same copy by hand, over a connection it opens."""
    with connect(place.url, database="postgres", autocommit=True) as connection:
        row = connection.execute("SELECT pg_database_size(%s)", (TEMPLATE,)).fetchone()
        method = clone_method(connection, int(row[0]) if row else 0)
        options = method.options.as_string(connection)

    def ours() -> float:
        _drop_spares(place)
        with SnapshotManager(place.url, place.folder / "snapshots", minimum_free_mb=1) as manager:
            settle(place)
            started = time.perf_counter()
            manager.restore_snapshot(SNAPSHOT)
            return time.perf_counter() - started

    def raw() -> float:
        settle(place)
        started = time.perf_counter()
        with connect(place.url, database="postgres", autocommit=True, statement_timeout_s=0) as connection:
            method.prepare(connection)
            connection.execute(f"DROP DATABASE {place.url.database}")
            connection.execute(f"CREATE DATABASE {place.url.database} TEMPLATE {TEMPLATE} {options}")
        return time.perf_counter() - started

    return {LIBRARY: ours, LIBRARY_RAW: raw}


def clear(place: Place) -> None:
    """Remove what the contestants keep on the server, and their files."""
    with SnapshotManager(place.url, place.folder / "snapshots", minimum_free_mb=1) as manager:
        manager.clear_templates()
    settle(place)
    with connect(place.url, database="postgres", autocommit=True) as connection:
        rows = connection.execute("SELECT datname FROM pg_database WHERE datname LIKE 'dslr\\_%'").fetchall()
        for (name,) in [*rows, (TEMPLATE,), (place.url.database,)]:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}"')


def _keikaku(*words: str | Path) -> list[str | Path]:
    return [Path(sys.executable).parent / "keikaku", *words]


def _restore(place: Place, *words: str) -> list[str | Path]:
    return _keikaku("restore", SNAPSHOT, *words, "--yes", "--snapshot-dir", place.folder / "snapshots")


def _psql(place: Place, *statements: str) -> list[str | Path]:
    asked = [word for statement in statements for word in ("-c", statement)]
    return [place.tools.psql, "-X", "-q", "-w", "-v", "ON_ERROR_STOP=1", "-d", "postgres", *asked]


def _sql(place: Place, *statements: str) -> None:
    run(place, *_psql(place, *statements))


def _timed(place: Place, *words: str | Path) -> float:
    settle(place)
    started = time.perf_counter()
    run(place, *words)
    return time.perf_counter() - started


def _ours(place: Place, reason: str, *words: str, before: Callable[[], None] | None = None) -> float:
    """Restore, and make sure that it went the way whose name the sample has."""
    if before is not None:
        before()
    settle(place)
    started = time.perf_counter()
    answer = run(place, *_restore(place, *words))
    seconds = time.perf_counter() - started
    if f": {reason}" not in answer:
        raise RuntimeError(f"not {reason}: {answer}")
    return seconds


def _load(place: Place, *words: str | Path) -> float:
    """Drop, create, load."""
    name = place.url.database
    settle(place)
    started = time.perf_counter()
    _sql(place, f"DROP DATABASE {name}", f"CREATE DATABASE {name} TEMPLATE template0")
    run(place, *words)
    return time.perf_counter() - started


def _drop_spares(place: Place) -> None:
    settle(place)  # one that is still being made would be there a moment later
    with connect(place.url, database="postgres", autocommit=True) as connection:
        for name in spares(connection):
            connection.execute(f'DROP DATABASE "{name}"')


def _have_spare(place: Place) -> None:
    settle(place)
    with connect(place.url, database="postgres", autocommit=True) as connection:
        found = spares(connection)
    if not found:
        run(place, *_restore(place, "--spare", "1"))
