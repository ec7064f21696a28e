"""What one restore takes from the templates of the server, and what it leaves there.

`WarmSource.beside` gives the database that the swap puts in place: a spare that waits,
a clone of the template, or one built from the file, which then becomes the template
and is cloned. Whoever dies at any step leaves databases with a mark, which
the next command uses or drops.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import psycopg

from keikaku_snapshots.errors import KeikakuError, RefusedError
from keikaku_snapshots.postgres import capacity, databases
from keikaku_snapshots.snapshots import templates
from keikaku_snapshots.snapshots.template_sources import of_deleted_snapshots, source_facts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.snapshots.reading import OpenSnapshot

log = logging.getLogger("keikaku_snapshots.templates")

#: Most seconds to wait for somebody else who builds the same template, or for a spare that is on its way;
#: after it the restore goes its own way.
BUILDER_WAIT_S = 600.0
SPARE_WAIT_S = 30.0
_POLL_S = 0.005
#: Files whose last check is remembered: copies of one snapshot in several directories.
_REMEMBERED = 4
#: Smaller templates are copied before it is known whether the copy is wanted; that takes less than a second.
AHEAD_BYTES = databases.FILE_COPY_BYTES
#: A template and its first clone must fit on the disk twice over.
_ROOM = 1.2


@dataclass(frozen=True, slots=True)
class Beside:
    """A complete database that waits to be put in place."""

    #: What it is called.
    database: str
    #: What was not given back exactly.
    warnings: tuple[str, ...] = ()
    #: Where it comes from: ``file``, ``cold`` (the file, and there is a template now), ``warm``, ``spare``.
    origin: str = "file"
    #: Why no template took part, or what became of it; for people.
    reason: str = ""


class WarmSource:
    """The templates of one snapshot, for one restore."""

    def __init__(
        self,
        url: DatabaseURL,
        lock: databases.TargetLock,
        opened: OpenSnapshot,
        key: str,
        session: databases.SessionAhead,
        *,
        spares: int = 0,
        maintenance: str = databases.MAINTENANCE_DATABASE,
    ) -> None:
        """Prepare; nothing is looked at yet.

        Args:
            url: The database to restore.
            lock: Its lock, held.
            opened: The snapshot.
            key: From `templates.template_key`.
            session: One that has nothing else to do until the swap.
            spares: Clones to leave for later restores.
            maintenance: The maintenance database.
        """
        self._url = url
        self._lock = lock
        self._opened = opened
        self._key = key
        self._spares = spares
        self._maintenance = maintenance
        self._file = file_identity(opened)
        self._verified = [self._file]
        self._schema: list[object] | None = None
        self._session = session
        self._found: templates.Found | None = None
        self._begun: Future[str] | None = None
        self._reason = ""

    @property
    def _admin(self) -> Connection:
        return self._lock.connection

    @property
    def _name(self) -> str:
        return templates.template_name(self._key)

    # -- ahead of the decision -------------------------------------------------------

    def begin(self) -> None:
        """Have the server begin to copy a small template, before it is known whether that will be wanted."""
        # In this order: a spare that comes in between is seen.
        in_flight = databases.clones_in_flight(self._admin, self._name)
        found = self._found = templates.find(self._admin, self._key)
        if found is None or found.spares or in_flight or self._file not in found.verified:
            return
        size_bytes = found.template.size_bytes
        if size_bytes >= AHEAD_BYTES:
            return
        pool = ThreadPoolExecutor(1, "keikaku-copy")
        self._begun = pool.submit(lambda: self._copy(self._session.take(), self._name, size_bytes))
        pool.shutdown(wait=False)

    @property
    def has_begun(self) -> bool:
        """Whether a copy is being made that nobody has taken yet."""
        return self._begun is not None

    def abandon(self) -> None:
        """Drop the copy that was begun, unless `beside` gave it away."""
        begun, self._begun = self._begun, None
        if begun is None:
            return
        # Not cancelled: between the two statements there would be a database without a mark.
        with contextlib.suppress(KeikakuError, psycopg.Error):
            name = begun.result()
            try:
                databases.drop(self._admin, name)
            except (KeikakuError, psycopg.Error):
                databases.drop_quietly(self._url, name, maintenance=self._maintenance)

    def _collect(self) -> Beside | None:
        if self._begun is None or self._found is None:
            return None
        try:
            name = self._begun.result()
        except (KeikakuError, psycopg.Error) as error:
            log.debug("the copy that was begun failed (%s)", error)
            return None
        finally:
            if self._begun.done():
                self._begun = None
        self._verified = self._verified_with(self._found)
        return Beside(name, self._found.warnings, "warm")

    # -- the database ----------------------------------------------------------------

    def beside(self, build: Callable[[], Beside], verify: Callable[[], object]) -> Beside:
        """Give a complete database under a name of its own.

        Args:
            build: Makes one from the file, checked.
            verify: Checks the file; called unless this very file was checked before.

        Returns:
            The database; the caller drops it when the restore fails.
        """
        if taken := self._collect() or self._take(verify):
            return taken
        self._session.close()  # it would wait for minutes
        with self._turn() as ours:
            if taken := self._take(verify):  # built meanwhile
                return taken
            built = build()
            return self._keep(built) if ours else replace(built, reason=self._reason)

    # -- the schema ------------------------------------------------------------------

    def knows_schema(self, state: list[object]) -> bool:
        """Say whether an earlier restore found the snapshot's schema where the catalog was in this state.

        Args:
            state: What identifies the state, for JSON.
        """
        if self._found is None:
            self._found = templates.find(self._admin, self._key)
        return self._found is not None and self._found.known_schema == state

    def remember_schema(self, state: list[object]) -> None:
        """Have the next restore know that a catalog in this state has the snapshot's schema.

        Args:
            state: As in `knows_schema`.
        """
        self._schema = state

    # -- taking ----------------------------------------------------------------------

    def _take(self, verify: Callable[[], object]) -> Beside | None:
        found = templates.find(self._admin, self._key)
        if found is None:
            return None
        trusted = self._file in found.verified
        self._verified = self._verified_with(found)
        with ThreadPoolExecutor(1, "keikaku-verify") as beside:
            check = None if trusted else beside.submit(verify)
            taken = self._spare(found) or self._clone(found)
            try:
                if check is not None:
                    check.result()
            except BaseException:
                if taken is not None:
                    databases.drop(self._admin, taken.database)
                raise
        return taken

    def _verified_with(self, found: templates.Found) -> list[str]:
        return [self._file, *(one for one in found.verified if one != self._file)][:_REMEMBERED]

    def _spare(self, found: templates.Found) -> Beside | None:
        """A clone that waits; two restores never get the same, because only one can rename it."""
        deadline = time.monotonic() + SPARE_WAIT_S
        tried: set[str] = set()
        while True:
            in_flight = databases.clones_in_flight(self._admin, self._name)
            again = templates.find(self._admin, self._key)
            for spare in again.spares if again is not None and again.oid == found.oid else ():
                if spare in tried:
                    continue
                tried.add(spare)
                name = databases.sibling_name("new", self._url.database)
                mark = databases.Identity("new", self._url.database, backend_pid=self._lock.backend_pid)
                try:
                    databases.become(self._admin, spare, name, mark, closed=False)
                except KeikakuError as error:
                    log.debug("spare %s was not taken: %s", spare, error.what)
                else:
                    return Beside(name, found.warnings, "spare")
            if not in_flight or time.monotonic() > deadline:
                return None
            time.sleep(_POLL_S)

    def _clone(self, found: templates.Found) -> Beside | None:
        template = found.template
        try:
            name = self._copy(self._admin, template.database, template.size_bytes)
            return Beside(name, found.warnings, "warm")
        except RefusedError as error:
            # The system's collations have changed: the template is of no use any more (FAULTS 76).
            self._reason = f"its template is made anew: {error.found}"
            templates.drop_databases(self._admin, [template.database, *template.spares])
        except KeikakuError as error:
            self._reason = f"its template cannot be used: {error.what}"
        log.info("%s: %s", template.database, self._reason)
        return None

    def _copy(self, connection: Connection, template: str, size_bytes: int) -> str:
        method = databases.clone_method(connection, size_bytes)
        method.prepare(connection)
        name = databases.sibling_name("new", self._url.database)
        databases.clone(
            connection,
            template,
            name,
            target=self._url.database,
            backend_pid=self._lock.backend_pid,
            options=method.options,
        )
        return name

    # -- making ----------------------------------------------------------------------

    @contextlib.contextmanager
    def _turn(self) -> Iterator[bool]:
        """Be the only one who builds this template; false when somebody else does and does not end."""
        deadline = time.monotonic() + BUILDER_WAIT_S
        ours = databases.try_lock(self._admin, self._name)
        while not ours and time.monotonic() < deadline:
            time.sleep(_POLL_S)
            ours = databases.try_lock(self._admin, self._name)
        if not ours:
            self._reason = "somebody else builds its template and does not end"
        try:
            yield ours
        finally:
            if ours and not self._admin.closed:
                with contextlib.suppress(psycopg.Error):
                    databases.unlock(self._admin, self._name)

    def _keep(self, built: Beside) -> Beside:
        """Make the new database the template, and a clone of it what is put in place."""
        size_bytes = self._size(built.database)
        free_bytes = capacity.free_disk_bytes(self._admin)
        if free_bytes is not None and free_bytes < size_bytes * _ROOM:
            return replace(built, reason="the server's disk has no room for a template")
        facts = {
            "size_bytes": size_bytes,
            "warnings": list(built.warnings),
            "verified": [self._file],
            **source_facts(self._opened.snapshot),
        }
        mark = templates.new_mark(self._url.database, self._key, str(self._opened.snapshot), **facts)
        try:
            databases.terminate(self._admin, built.database)
            databases.become(self._admin, built.database, self._name, mark, closed=True)
        except KeikakuError as error:
            log.info("no template was made of %s: %s", built.database, error.what)
            return replace(built, reason=f"no template was made: {error.what}")
        try:
            name = self._copy(self._admin, self._name, size_bytes)
        except KeikakuError as error:
            # The disk is full, for example. What was built is right, so it goes live itself.
            log.info("the template %s could not be cloned: %s", self._name, error.what)
            mark = databases.Identity("new", self._url.database, backend_pid=self._lock.backend_pid)
            databases.become(self._admin, self._name, built.database, mark, closed=False)
            return replace(built, reason=f"no template was made: {error.what}")
        return Beside(name, built.warnings, "cold", "a template was made for the next restore")

    def _size(self, database: str) -> int:
        row = self._admin.execute("SELECT pg_catalog.pg_database_size(%s)", (database,)).fetchone()
        return int(row[0]) if row else 0

    # -- afterwards ------------------------------------------------------------------

    def leave(self) -> None:
        """After the swap: note the use, leave spares, and let the server drop what is too much."""
        try:
            found, orphans = templates.look(self._admin)
            ours = next((one for one in found if one.template.key == self._key), None)
            if ours is not None:
                facts = {} if self._schema is None else {"schema": self._schema}
                templates.note_use(self._admin, ours, verified=self._verified, **facts)
                others = [one for one in found if one is not ours]
                gone = of_deleted_snapshots(others, self._opened.snapshot.path.parent)
                self._drop([name for one in gone for name in (one.template.database, *one.spares)])
                self._drop(self._too_much([one.template for one in found if one not in gone]))
                self._leave_spares(ours)
            self._drop(orphans)
        except (KeikakuError, psycopg.Error) as error:
            # The restore is done; what is missing costs the next one some time.
            log.warning("the templates were not put in order (%s)", type(error).__name__)

    def _leave_spares(self, found: templates.Found) -> None:
        if not self._spares:
            return
        missing = self._spares - len(found.spares) - databases.clones_in_flight(self._admin, self._name)
        if missing <= 0:
            return
        owner = databases.database_settings(self._admin, self._name).owner
        method = databases.clone_method(self._admin, found.template.size_bytes)
        extra = {"key": self._key, "template": found.oid}
        for _ in range(missing):
            mark = databases.Identity("spare", self._url.database, extra=extra)
            databases.leave_clone_to_server(
                self._url,
                self._name,
                templates.spare_name(self._key),
                mark,
                owner=owner,
                method=method,
                maintenance=self._maintenance,
            ).abandon()

    def _too_much(self, present: list[templates.Template]) -> list[str]:
        """Least recently used templates beyond count and bytes, with their spares."""
        if len(present) < 2:
            return []
        free_bytes = capacity.free_disk_bytes(self._admin)
        doomed = templates.to_drop(present, self._name, limit_bytes=templates.byte_limit(free_bytes, present))
        return [name for one in doomed for name in (one.database, *one.spares)]

    def _drop(self, names: list[str]) -> None:
        for name in names:
            databases.leave_to_server(self._url, drop_database=name, maintenance=self._maintenance).abandon()


def file_identity(opened: OpenSnapshot) -> str:
    """Say which file, in which state, is open: device, inode, size and time of its last change.

    Args:
        opened: The snapshot; of a directory every part counts.

    Returns:
        A short text, equal for a file that nobody has written to.
    """
    text = repr(opened.state())
    return hashlib.sha256(text.encode()).hexdigest()[:32]
