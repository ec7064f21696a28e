"""What a session of tests has: its databases, and how each test finds them as they were."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from keikaku_snapshots.errors import (
    DatabaseInUseError,
    SnapshotNotFoundError,
    UsageError,
)
from keikaku_snapshots.testing.databases import TestDatabases
from keikaku_snapshots.testing.options import ISOLATIONS

if TYPE_CHECKING:
    from collections.abc import Callable

    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.snapshots.manager import SnapshotManager
    from keikaku_snapshots.snapshots.manifest import Snapshot
    from keikaku_snapshots.testing.filling import Choice, Filler

log = logging.getLogger("keikaku_snapshots.testing")


@dataclass(frozen=True, slots=True)
class Request:
    """What the marks of one test ask for."""

    #: Snapshot and scale.
    choice: Choice
    #: ``rewind``, ``clone`` or ``none``.
    isolation: str

    def __post_init__(self) -> None:
        if self.isolation not in ISOLATIONS:
            raise UsageError(f"isolation must be one of {', '.join(ISOLATIONS)}, not {self.isolation!r}")


class FilledDatabase:
    """One database of the session, restored from a snapshot."""

    def __init__(
        self,
        manager: SnapshotManager,
        filler: Filler,
        choice: Choice,
        renew: Callable[[DatabaseURL], None] | None = None,
    ) -> None:
        """Fill it.

        Args:
            manager: Of the database.
            filler: Knows the snapshots.
            choice: Which one.
            renew: Makes the database empty; None where that must not be.
        """
        self.manager = manager
        self._filler = filler
        self._choice = choice
        self._renew = renew
        self.snapshot: Snapshot = filler.fill(manager, choice, renew)
        self._armed = False
        self._changed = False

    @property
    def url(self) -> DatabaseURL:
        """Where it is."""
        return self.manager.url

    def begin(self, *, rewinding: bool) -> None:
        """Make it ready for a test.

        Args:
            rewinding: The test's changes shall be undone.
        """
        if not rewinding:
            self._changed = True
            return
        if self._changed:
            self._go_back()
        if not self._armed:
            self._arm()
        self._changed = True

    def end(self) -> None:
        """Undo what a test did.

        Raises:
            DatabaseInUseError: It left a transaction open.
        """
        self._go_back()

    def _go_back(self) -> None:
        if not self._armed:
            self._fill_again()
            return
        try:
            rewound = self.manager.rewind()
        except SnapshotNotFoundError:
            log.info("the checkpoint of %s is gone, so it is restored", self.url.database)
            self._fill_again()
            self._arm()
            return
        for warning in rewound.warnings:
            log.warning("%s", warning)
        self._changed = False

    def _fill_again(self) -> None:
        self.snapshot = self._filler.fill(self.manager, self._choice, self._renew)
        self._changed = False

    def _arm(self) -> None:
        self.manager.checkpoint(
            snapshot=self.snapshot.name, version=self.snapshot.version, keep_connection=True
        )
        self._armed = True

    def close(self) -> None:
        """Give the connections back."""
        self.manager.close()


class TestSession:
    """The databases of one process of a run."""

    __test__ = False

    def __init__(
        self, server: DatabaseURL, worker: str, filler: Filler, *, named_database: bool = False
    ) -> None:
        """Prepare; what killed runs left is dropped when the first database is made.

        Args:
            server: Any database of the server, or the one to work in.
            worker: The xdist worker.
            filler: Knows the snapshots.
            named_database: Work in that database itself.
        """
        self._server = server
        self._filler = filler
        self._named = named_database
        self._databases = TestDatabases(server, worker)
        self._filled: dict[Choice, FilledDatabase] = {}
        self._sources: dict[Choice, DatabaseURL] = {}
        self._swept = False

    def database(self, choice: Choice) -> FilledDatabase:
        """Give the session's database of a snapshot, made when it is asked for first.

        Args:
            choice: Which snapshot.

        Returns:
            The database.
        """
        if choice not in self._filled:
            if self._named and self._filled:
                raise UsageError(
                    "with --keikaku-named-database there is one database, for one snapshot",
                    hint="Let all tests use the same snapshot and scale, or leave the option out.",
                )
            url = self._server if self._named else self._new()
            manager = self._filler.manager(url)
            try:
                renew = None if self._named else self._databases.renew
                self._filled[choice] = FilledDatabase(manager, self._filler, choice, renew)
            except BaseException:
                manager.close()
                if not self._named:
                    self._databases.drop(url)
                raise
        return self._filled[choice]

    def clone(self, choice: Choice) -> DatabaseURL:
        """Make a database for one test.

        Args:
            choice: Which snapshot it holds.

        Returns:
            Its URL; for `drop`.
        """
        if self._named:
            raise UsageError("isolation 'clone' makes databases, which --keikaku-named-database does not")
        if choice not in self._sources:
            source = self._new()
            with self._filler.manager(source) as manager:
                self._filler.fill(manager, choice, self._databases.renew)
            self._sources[choice] = source
        return self._databases.clone(self._sources[choice])

    def drop(self, url: DatabaseURL) -> None:
        """Drop a database that `clone` made."""
        self._databases.drop(url)

    def end_transactions(self, database: FilledDatabase) -> list[str]:
        """End the sessions that have a transaction open; see `TestDatabases.end_transactions`."""
        return self._databases.end_transactions(database.url)

    def keep(self, url: DatabaseURL, why: str) -> DatabaseURL:
        """Keep the present state of a database for people to look at.

        Args:
            url: The session's, of which a copy is kept, or a test's own.
            why: The test that failed.

        Returns:
            What is kept.
        """
        kept = url
        for filled in self._filled.values():
            if filled.url == url:
                filled.manager.close()
                kept = self._databases.clone(url)
                with self._filler.manager(kept) as manager:
                    manager.drop_checkpoint()
        self._databases.keep(kept, why)
        return kept

    def close(self) -> None:
        """Drop what was made."""
        for filled in self._filled.values():
            if self._named:
                filled.manager.drop_checkpoint()
            filled.close()
        self._databases.close()

    def _new(self) -> DatabaseURL:
        if not self._swept:
            self._databases.sweep()
            self._swept = True
        return self._databases.create()


def go_back(session: TestSession, database: FilledDatabase) -> None:
    """Undo what a test did; the transactions that it left open are ended first.

    Args:
        session: Of the run.
        database: Where the test was.

    Raises:
        DatabaseInUseError: It left transactions open; they are ended and undone.
    """
    try:
        database.end()
    except DatabaseInUseError as error:
        ended = session.end_transactions(database)
        if not ended:
            raise
        database.end()
        raise DatabaseInUseError(
            "the test left a transaction open, which was ended so that the next test finds the start state",
            found="\n".join(ended),
            hint="Commit, roll back or close every connection before the test ends.",
        ) from error
