"""The PostgreSQL servers that the tests use, and databases on them.

One server of each version serves the whole run, all xdist workers together;
it starts when the first test asks for it and is stopped by the process that
began the run.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import fcntl
import hashlib
import hmac
import os
import secrets
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from keikaku_snapshots.errors import KeikakuError
from keikaku_snapshots.postgres.embedded import EmbeddedServer, installed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from keikaku_snapshots.postgres.url import DatabaseURL

#: Versions that the tests are run against, oldest first.
MAJORS = (15, 16, 18)
#: 15 is not in the wheel; it is used where the machine has it.
SYSTEM_15 = Path("/usr/lib/postgresql/15/bin")
#: Roles of every test server: attributes.
ROLES = {"keikaku_owner": "NOSUPERUSER NOCREATEDB", "keikaku_creator": "NOSUPERUSER CREATEDB"}
#: Has every character that a passfile, a URL or a shell treats specially.
ROLE_PASSWORD = "kei:ka\\ku@/ %41'\"$pass"
#: Speed instead of safety, and what single tests need of a server (slots, prepared transactions).
SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    # Each of ten thousand sessions maps what it touches of them, page by page.
    "shared_buffers": "16MB",
    # 15 of the system has a compiler, which takes longer than what it compiles here.
    "jit": "off",
    "max_connections": "150",
    "wal_level": "logical",
    "max_prepared_transactions": "10",
    "max_wal_size": "512MB",
    "autovacuum_naptime": "1min",
}
#: From 18 on: a hand-over to another process costs more than reading from memory.
SETTINGS_18 = {"io_method": "sync"}
_PREFIX = "kk-tests-"
_MEMORY = Path("/dev/shm")
#: What the servers of a whole run take at most, with as much left; containers often have 64 MB there.
_MEMORY_FREE_BYTES = 4 << 30


def programs() -> dict[int, Path]:
    """Folder of the server programs for each version that this machine has."""
    found = installed()
    if (SYSTEM_15 / "postgres").exists():
        found[15] = SYSTEM_15
    return {major: found[major] for major in MAJORS if major in found}


@dataclasses.dataclass(frozen=True, slots=True)
class Server:
    """A running test server."""

    #: What starts and stops it.
    embedded: EmbeddedServer

    @property
    def major(self) -> int:
        """Major version."""
        return self.embedded.major

    @property
    def bin(self) -> Path:
        """Folder of its programs: pg_dump, psql and so on."""
        return self.embedded.bin

    @property
    def url(self) -> DatabaseURL:
        """The maintenance database as superuser, over TCP with a password."""
        return self.embedded.url("postgres")

    @property
    def socket_directory(self) -> Path:
        """Directory of its unix socket."""
        status = self.embedded.status()
        assert status is not None
        return status.socket_directory

    def start(self) -> None:
        """Start it again after `stop` or `kill`."""
        self.embedded.start()

    def stop(self) -> None:
        """Stop it as an administrator would."""
        self.embedded.stop()

    def kill(self) -> None:
        """Kill the postmaster with SIGKILL and wait until it is gone."""
        status = self.embedded.status()
        assert status is not None
        os.kill(status.pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while self.embedded.status() is not None:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def admin(self, database: str = "postgres") -> psycopg.Connection[tuple[object, ...]]:
        """Open an autocommit connection of the superuser, not through the code under test."""
        return connect(self.url.with_database(database))


def connect(url: DatabaseURL) -> psycopg.Connection[tuple[object, ...]]:
    """Open an autocommit connection with nothing of the package in between."""
    return psycopg.connect(
        host=url.host,
        port=url.port,
        user=url.user,
        password=url.password,
        dbname=url.database,
        autocommit=True,
        connect_timeout=10,
    )


def start(directory: Path, major: int, settings: Mapping[str, str] | None = None) -> Server:
    """Start, or find running, the server of this directory; roles included."""
    chosen = {**SETTINGS, **(SETTINGS_18 if major >= 18 else {}), **(settings or {})}
    embedded = EmbeddedServer(directory, major, bin_directory=programs()[major], settings=chosen)
    embedded.start()
    server = Server(embedded)
    with _locked(directory / f"roles-{major}.lock") as first:
        if first:
            with server.admin() as connection:
                _make_cheap(connection, server)
                for role, attributes in ROLES.items():
                    connection.execute(
                        sql.SQL("CREATE ROLE {} LOGIN {} PASSWORD {}").format(
                            sql.Identifier(role), sql.SQL(attributes), _verifier(ROLE_PASSWORD)
                        )
                    )
    return server


def _make_cheap(connection: psycopg.Connection[tuple[object, ...]], server: Server) -> None:
    """Take work off the server that tests repeat a thousand times."""
    assert server.url.password is not None
    password = _verifier(server.url.password)
    connection.execute(sql.SQL("ALTER ROLE postgres PASSWORD {}").format(password))
    if server.major >= 16:
        connection.execute("ALTER SYSTEM SET scram_iterations = 1")
    if server.major >= 18:
        # For `create_database`: a third less than copying; not every platform has it.
        with contextlib.suppress(psycopg.errors.InvalidParameterValue):
            connection.execute("ALTER SYSTEM SET file_copy_method = clone")
    connection.execute("SELECT pg_reload_conf()")


def _verifier(password: str) -> sql.Literal:
    """Give the password as servers store it, to be proved once; 4096 times cost more than the connection.

    Before 16 no setting makes the server do that itself.
    """
    salt = secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, 1)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    keys = (salt, stored, hmac.digest(salted, b"Server Key", "sha256"))
    encoded = "{}${}:{}".format(*(base64.b64encode(key).decode("ascii") for key in keys))
    return sql.Literal(f"SCRAM-SHA-256$1:{encoded}")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold the lock; tell whether this is the first time that somebody does."""
    with path.open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.seek(0)
        yield not lock.read()
        lock.write("done")


def create_database(server: Server, owner: str = "postgres", name: str | None = None) -> DatabaseURL:
    """Create an empty database and give its address as its owner."""
    name = name or f"t_{os.environ.get('PYTEST_XDIST_WORKER', 'main')}_{secrets.token_hex(5)}"
    with server.admin() as connection:
        connection.execute(
            # A third less work than by the log, where nothing has to be safe on the disk.
            sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE template0 STRATEGY file_copy").format(
                sql.Identifier(name), sql.Identifier(owner)
            )
        )
    url = server.url.with_database(name)
    return url if owner == "postgres" else as_role(url, owner)


def as_role(url: DatabaseURL, role: str) -> DatabaseURL:
    """The same database for one of the plain test roles."""
    return dataclasses.replace(url, user=role, password=ROLE_PASSWORD)


def drop_database(server: Server, name: str) -> None:
    """Drop a database and the ones that were made from it, whatever stands in the way."""
    alone = "PYTEST_XDIST_WORKER" not in os.environ
    with server.admin() as connection:
        rows = connection.execute(
            """
            SELECT datname::text FROM pg_database
            WHERE datname = %(name)s
               OR (datname LIKE 'keikaku\\_%%'
                   AND (%(alone)s
                        OR position(%(name)s in datname) > 0
                        OR position(%(name)s in coalesce(shobj_description(oid, 'pg_database'), '')) > 0))
            """,
            {"name": name, "alone": alone},
        ).fetchall()
        for (found,) in rows:
            assert isinstance(found, str)
            _release(server, connection, found)
            identifier = sql.Identifier(found)
            # A database that the server is dropping at this moment can be dropped again, but not altered;
            # the server even ends the session that tries (FATAL), so it is one of its own.
            gone = (psycopg.errors.ObjectNotInPrerequisiteState, psycopg.errors.InvalidCatalogName)
            with contextlib.suppress(*gone), server.admin() as altering:
                altering.execute(sql.SQL("ALTER DATABASE {} WITH IS_TEMPLATE false").format(identifier))
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(identifier))


def empty_database(url: DatabaseURL) -> None:
    """End all other sessions and drop every schema; what a test must not leave behind is an error."""
    with connect(url) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        rows = connection.execute(
            "SELECT nspname::text FROM pg_namespace "
            "WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'"
        ).fetchall()
        names = sql.SQL(", ").join(sql.Identifier(str(name)) for (name,) in rows)
        connection.execute(
            sql.SQL(
                "DROP SCHEMA {} CASCADE; CREATE SCHEMA public AUTHORIZATION pg_database_owner; "
                "GRANT USAGE ON SCHEMA public TO PUBLIC"
            ).format(names)
        )
        left = connection.execute(
            "SELECT (SELECT count(*) FROM pg_extension WHERE extname <> 'plpgsql')"
            " + (SELECT count(*) FROM pg_publication) + (SELECT count(*) FROM pg_largeobject_metadata)"
            " + (SELECT count(*) FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase"
            "    WHERE datname = current_database())"
        ).fetchone()
    assert left == (0,), "the test needs a database of its own"


def _release(server: Server, connection: psycopg.Connection[tuple[object, ...]], name: str) -> None:
    """Let go of what makes DROP DATABASE fail even with FORCE."""
    prepared = connection.execute("SELECT gid FROM pg_prepared_xacts WHERE database = %s", [name]).fetchall()
    if prepared:
        with server.admin(name) as inside:
            for (gid,) in prepared:
                inside.execute(sql.SQL("ROLLBACK PREPARED {}").format(sql.Literal(gid)))
    connection.execute(
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots"
        " WHERE database = %s AND active_pid IS NOT NULL",
        [name],
    )
    connection.execute(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = %s", [name]
    )
    subscriptions = connection.execute(
        "SELECT subname::text FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid"
        " WHERE datname = %s",
        [name],
    ).fetchall()
    if subscriptions:
        with server.admin(name) as inside:
            for (subscription,) in subscriptions:
                assert isinstance(subscription, str)
                for action in (
                    "ALTER SUBSCRIPTION {} DISABLE",
                    "ALTER SUBSCRIPTION {} SET (slot_name = NONE)",
                    "DROP SUBSCRIPTION {}",
                ):
                    inside.execute(sql.SQL(action).format(sql.Identifier(subscription)))


def make_base_directory(*, on_disk: bool = False) -> Path:
    """Make the directory of this run's servers; runs that were killed are cleaned up first.

    In memory where there is room, unless the disk is wanted: `CREATE DATABASE` makes 300 files, and
    tests make a thousand databases.
    """
    for old in (found for place in _places() for found in place.glob(f"{_PREFIX}*")):
        pid = old.name.removeprefix(_PREFIX).split("-")[0]
        # Another run may be removing its own at this moment.
        with contextlib.suppress(FileNotFoundError):
            if pid.isdigit() and old.owner() == _me() and not Path(f"/proc/{pid}").exists():
                remove(old)
    *memory, disk = _places()
    roomy = [place for place in memory if shutil.disk_usage(place).free >= _MEMORY_FREE_BYTES]
    place = disk if on_disk or not roomy else roomy[0]
    base = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=place))
    base.chmod(0o755)
    return base


def _places() -> list[Path]:
    """Where servers can be: in memory, where the system has it, and on the disk."""
    memory = [_MEMORY] if _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK) else []
    return [*memory, Path(tempfile.gettempdir())]


def remove(base: Path) -> None:
    """Stop every server below the directory, by its process id, and delete it."""
    for data in base.glob("**/PG_VERSION"):
        home = data.parent.parent
        if data.parent.name == "data" and home.name.isdigit():
            major = int(home.name)
            with contextlib.suppress(KeikakuError, KeyError):
                EmbeddedServer(home.parent, major, bin_directory=programs()[major]).stop(immediate=True)
    shutil.rmtree(base, ignore_errors=True)


def _me() -> str:
    import pwd

    return pwd.getpwuid(os.geteuid()).pw_name
