"""A directory of snapshots and a database that each round of the campaign finds in the same state."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from keikaku_snapshots import SnapshotManager
from keikaku_snapshots.postgres import databases
from tests import servers
from tests.campaigns import bookstore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.snapshots.manifest import Snapshot
    from tests.servers import Server

#: A version of a name.
Key = tuple[str, str]

DATABASE, PRISTINE = "campaign", "campaign_pristine"
#: Temporary files of ours, as docs/design.md names them.
TEMPORARY = re.compile(r"\..+\.[0-9]+\.[0-9a-f]{12}(\.[a-z]+)?\.tmp")
_WAIT_S = 30.0
_MOUNT = "mount -t tmpfs -o size=24m,nr_inodes=600 none {0} && echo ready && exec sleep 86400"
#: Enough rows that a dump and a restore can be met half-way; what is no test data keeps to itself.
_FILL = """
INSERT INTO stock VALUES (11, 0, false);
INSERT INTO sales (stock_id, buyer, notes, is_test_data)
  SELECT CASE WHEN i % 5 > 0 THEN 1 + i % 10 ELSE 11 END,
         md5(i::text) || repeat('本', 30), jsonb_build_object('n', i), i % 5 > 0
  FROM generate_series(1, 6000) AS i;
UPDATE stock SET copies = 0;
SELECT lo_from_bytea(4711, decode(repeat('ab', 20000), 'hex'));
"""
_CHANGE = (
    "DELETE FROM sales WHERE id % 50 = {0}; UPDATE settings SET value = 'change {0}' WHERE name = 'currency'"
)
_DRIFT = "ALTER TABLE settings ADD COLUMN note text DEFAULT 'x'; CREATE TABLE later (id integer PRIMARY KEY)"


@dataclass
class World:
    """The server, the database and the directory, and how to bring them back to the beginning."""

    server: Server
    #: Where the seed directory and the rounds' own are.
    base: Path
    #: Listed at the beginning: digest of the data by name and version.
    listed: dict[Key, str] = field(default_factory=dict)
    #: State of the database that a snapshot was made of; not for test rows.
    states: dict[Key, str] = field(default_factory=dict)
    #: State of the database at the beginning of a round.
    live: str = ""
    #: The directory of this round.
    directory: Path = Path()
    #: A small file system of its own, for rounds about full disks.
    small: Path | None = None

    @property
    def url(self) -> DatabaseURL:
        """The database."""
        return self.server.url.with_database(DATABASE)

    def build(self) -> None:
        """Make the snapshots, and the database as it is afterwards."""
        seed = self.base / "seed"
        servers.create_database(self.server, name=DATABASE)
        bookstore.run(self.url, bookstore.SCHEMA + _FILL)
        kinds = bookstore.makeable()
        with SnapshotManager(self.url, seed, minimum_free_mb=0) as manager:
            for number, kind in enumerate(kinds):
                bookstore.run(self.url, _CHANGE.format(number))
                if number == len(kinds) // 2:
                    bookstore.run(self.url, _DRIFT)
                name = "rows" if kind[0] == "json" else "app"
                made = manager.create_snapshot(name, **bookstore.options_of(kind))
                if kind[0] != "json":
                    self.states[made.name, made.version] = bookstore.state(self.server, self.url)
            bookstore.run(self.url, _CHANGE.format(len(kinds)))
            self.listed = {(one.name, one.version): digest(one) for one in manager.list_snapshots()}
        self.live = bookstore.state(self.server, self.url)
        with self.server.admin() as connection:
            connection.execute(f"CREATE DATABASE {PRISTINE} TEMPLATE {DATABASE} STRATEGY file_copy")
        with contextlib.suppress(FileNotFoundError, RuntimeError):
            self.small = self._mount()

    def _mount(self) -> Path:
        """A tmpfs in a name space of its own, seen through /proc; needs no right that an account has not."""
        place = self.base / "small"
        place.mkdir()
        self._holder = subprocess.Popen(
            ["unshare", "-Urm", "sh", "-c", _MOUNT.format(place)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._holder.stdout is not None
        seen = Path(f"/proc/{self._holder.pid}/root{place}")
        if self._holder.stdout.readline() != "ready\n" or not seen.is_dir():
            raise RuntimeError("no name spaces here")
        return seen

    def close(self) -> None:
        """Unmount."""
        if holder := getattr(self, "_holder", None):
            holder.kill()
            holder.communicate()

    def reset(self, number: int, *, small: bool = False) -> None:
        """Bring database and directory back to the beginning."""
        self.wait_for_server()
        if self.directory != Path():
            shutil.rmtree(self.directory, ignore_errors=True)
        place = self.small if small and self.small else self.base
        self.directory = place / f"round{number}"
        # -a keeps links between parts.
        subprocess.run(["cp", "-a", self.base / "seed", self.directory], check=True)
        with self.server.admin() as connection:
            found = connection.execute(
                "SELECT datname::text FROM pg_database WHERE datname LIKE 'keikaku\\_%%' OR datname = %s",
                [DATABASE],
            ).fetchall()
            for (name,) in found:
                with contextlib.suppress(psycopg.errors.InvalidCatalogName):
                    connection.execute(
                        sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(str(name)))
                    )
            connection.execute(f"CREATE DATABASE {DATABASE} TEMPLATE {PRISTINE} STRATEGY file_copy")

    # -- looking -----------------------------------------------------------------------

    def manager(self) -> SnapshotManager:
        """A manager in this process."""
        return SnapshotManager(self.url, self.directory, minimum_free_mb=0)

    def now_listed(self) -> dict[Key, str]:
        """What is listed now; a damaged one fails."""
        found = self.manager().list_snapshots()
        damaged = [f"{one}: {one.problem}" for one in found if not one.is_valid]
        assert damaged == []
        # Newest first; a killed overwrite in another format leaves both, and the newer one counts.
        return {(one.name, one.version): digest(one) for one in reversed(found)}

    def state(self) -> str:
        """State of the database now, once what was begun has ended."""
        self.wait_for_quiet()
        with self.server.admin() as connection:
            found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone()
        assert found is not None, "the database is gone"
        return bookstore.state(self.server, self.url)

    def unknown_files(self) -> list[str]:
        """Files in the directory that belong to no snapshot."""
        known = {".locks", "audit.log"}
        for one in self.manager().list_snapshots():
            known |= {one.path.name, one.path.name + ".manifest.json", f"{one.name}_latest.{one.suffix}"}
        return sorted(path.name for path in self.directory.iterdir() if path.name not in known)

    def siblings(self) -> list[str]:
        """Databases of ours beside the target."""
        with self.server.admin() as connection:
            return [one.name for one in databases.our_databases(connection, kinds=("new", "old"))]

    # -- waiting -----------------------------------------------------------------------

    def wait_for_server(self) -> None:
        """Start the server when it is down and wait until it takes connections."""
        for _ in _turns("the server does not answer"):
            if self.server.embedded.status() is None:
                self.server.start()
            with contextlib.suppress(psycopg.OperationalError), self.server.admin():
                return

    def wait_for_quiet(self) -> None:
        """Wait until no session of a dead process is at work any more."""
        self.wait_for_server()
        with self.server.admin() as connection:
            for _ in _turns("sessions of a dead process go on"):
                row = connection.execute(
                    "SELECT count(*) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                    " AND backend_type = 'client backend'"
                ).fetchone()
                if row == (0,):
                    return

    def wait_for_no_siblings(self) -> list[str]:
        """Wait until the server has dropped what it was left to drop; what stays is returned."""
        left: list[str] = []
        with contextlib.suppress(AssertionError):
            for _ in _turns("databases are left"):
                left = self.siblings()
                if not left:
                    return []
        return left


def _turns(what: str) -> Iterator[None]:
    """Turns of a wait, for at most `_WAIT_S` seconds."""
    deadline = time.monotonic() + _WAIT_S
    while True:
        yield
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def digest(snapshot: Snapshot) -> str:
    """A digest of the data of a snapshot, computed without the package."""
    found = hashlib.sha256()
    paths = [snapshot.path] if snapshot.path.is_file() else sorted(snapshot.path.iterdir())
    for path in paths:
        found.update(path.name.encode() if path != snapshot.path else b"")
        found.update(path.read_bytes())
    return found.hexdigest()
