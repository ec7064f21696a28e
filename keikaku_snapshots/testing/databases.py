"""Databases for one run of tests: made, marked, locked while the run lives, dropped.

Each is called ``keikaku_test_…`` and says so in its comment. A run holds an
advisory lock for each of its databases on one session in the maintenance
database; the server frees it when the run ends, however that comes about, and
the next run drops every database whose lock is free.
"""

from __future__ import annotations

import logging
import re
import secrets
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from keikaku_snapshots.errors import AccessDeniedError, KeikakuError
from keikaku_snapshots.postgres import databases
from keikaku_snapshots.postgres.connect import translated
from keikaku_snapshots.postgres.creation import comment_statement

if TYPE_CHECKING:
    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.postgres.identity import Kind
    from keikaku_snapshots.postgres.url import DatabaseURL

log = logging.getLogger("keikaku_snapshots.testing")

_KINDS: tuple[Kind, ...] = ("test",)
#: How long the database of a failed test is kept.
KEPT_FOR = timedelta(days=7)


class TestDatabases:
    """Makes and drops the databases of one process of a run."""

    __test__ = False

    def __init__(self, server: DatabaseURL, worker: str, *, maintenance: str = "postgres") -> None:
        """Prepare; the first database connects.

        Args:
            server: Any database of the server; those that are made sort and encode like it.
            worker: The xdist worker, which becomes part of the names.
            maintenance: The database from which others are made.
        """
        self._server = server
        self._worker = re.sub(r"[^A-Za-z0-9]", "", worker)[:16]
        self._maintenance = maintenance
        self._admin: Connection | None = None
        self._ours: set[str] = set()

    @property
    def admin(self) -> Connection:
        """The session that holds the locks; made again, with them, when it was lost."""
        if self._admin is None or self._admin.closed:
            self._admin = databases.connect_maintenance(
                self._server, maintenance=self._maintenance, application_name="keikaku_snapshots pytest"
            )
            self._admin.execute("SET idle_session_timeout = 0")
            for name in self._ours:
                databases.try_lock(self._admin, _life_of(name))
        return self._admin

    def create(self) -> DatabaseURL:
        """Make an empty database.

        Returns:
            Its URL.

        Raises:
            AccessDeniedError: The role may not create databases.
        """
        name = self._new_name()
        try:
            databases.create_scratch(self.admin, name, like=self._server.database, kind="test")
        except AccessDeniedError as error:
            raise AccessDeniedError(
                f"role {self._server.user!r} cannot make databases for tests",
                found=error.found or error.what,
                hint=f"Let a superuser say: ALTER ROLE {self._server.user} CREATEDB; "
                "or, with a database that holds nothing else, use --keikaku-named-database.",
            ) from error
        return self._server.with_database(name)

    def renew(self, url: DatabaseURL) -> None:
        """Make a database of ours empty again; sessions in it are ended.

        Args:
            url: The database.
        """
        databases.drop(self.admin, url.database)
        databases.create_scratch(self.admin, url.database, like=self._server.database, kind="test")

    def clone(self, source: DatabaseURL) -> DatabaseURL:
        """Make a copy of a database of ours; sessions in it are ended.

        Args:
            source: The database.

        Returns:
            URL of the copy.
        """
        name = self._new_name()
        with translated(source, "looking at the database's size"):
            row = self.admin.execute("SELECT pg_catalog.pg_database_size(%s)", (source.database,)).fetchone()
        method = databases.clone_method(self.admin, int(row[0]) if row else 0)
        method.prepare(self.admin)
        databases.terminate(self.admin, source.database)
        databases.clone(
            self.admin,
            source.database,
            name,
            target=self._server.database,
            kind="test",
            options=method.options,
        )
        return self._server.with_database(name)

    def keep(self, url: DatabaseURL, why: str) -> datetime:
        """Leave a database behind for people to look at.

        Args:
            url: The database.
            why: The test that failed.

        Returns:
            Until when later runs leave it alone.
        """
        until = datetime.now(UTC) + KEPT_FOR
        mark = databases.Identity(
            "test",
            self._server.database,
            keep_until=until.isoformat(timespec="seconds"),
            extra={"failed": why[:500]},
        )
        with translated(url, "keeping the database"):
            self.admin.execute(comment_statement(url.database, mark.to_comment()))
        self._ours.discard(url.database)
        databases.unlock(self.admin, _life_of(url.database))
        return until

    def drop(self, url: DatabaseURL) -> None:
        """Drop a database that `create` or `clone` made; sessions in it are ended."""
        if url.database not in self._ours:
            return
        databases.drop(self.admin, url.database)
        self._ours.discard(url.database)
        databases.unlock(self.admin, _life_of(url.database))

    def end_transactions(self, url: DatabaseURL) -> list[str]:
        """End the sessions that left a transaction open.

        Args:
            url: The database.

        Returns:
            What they were, in words.
        """
        ended = [one for one in databases.sessions_in(self.admin, url.database) if one.state != "idle"]
        for one in ended:
            self.admin.execute("SELECT pg_catalog.pg_terminate_backend(%s, 5000)", (one.pid,))
        return [one.text for one in ended]

    def sweep(self) -> list[str]:
        """Drop what runs that were killed left; databases of living runs and kept ones stay.

        Returns:
            Names of the dropped databases.
        """
        dropped = []
        for one in databases.our_databases(self.admin, kinds=_KINDS):
            if one.name in self._ours or one.identity.is_kept():
                continue
            if not databases.try_lock(self.admin, _life_of(one.name)):
                continue  # its run is alive
            try:
                if databases.drop(self.admin, one.name):
                    dropped.append(one.name)
            except KeikakuError as error:
                log.warning("database %s of an earlier run was not dropped: %s", one.name, error.what)
            finally:
                databases.unlock(self.admin, _life_of(one.name))
        # What a restore of theirs was building when it was killed; nobody will restore them again.
        targets = {one.identity.target for one in databases.leftovers(self.admin)}
        for target in sorted(target for target in targets if target.startswith("keikaku_test_")):
            dropped += databases.sweep(self.admin, target=target)
        if dropped:
            log.info("dropped databases of runs that were killed: %s", ", ".join(dropped))
        return dropped

    def close(self) -> None:
        """Drop everything that was made here and was not kept."""
        try:
            for name in sorted(self._ours):
                self.drop(self._server.with_database(name))
        finally:
            if self._admin is not None:
                self._admin.close()
                self._admin = None

    def _new_name(self) -> str:
        """A name that nobody has, locked before it exists."""
        name = databases.sibling_name("test", self._server.database, self._worker + secrets.token_hex(4))
        with translated(self._server, "taking the lock of a database for tests"):
            databases.try_lock(self.admin, _life_of(name))
        self._ours.add(name)
        return name


def _life_of(name: str) -> str:
    return f"life of {name}"
