"""Statistics for a restored database, gathered while the rest of it is being loaded (C2).

A second connection analyses each table as soon as its rows are there. It holds
the lock of one table at a time and never waits for another while it does, so
it can make the load wait for milliseconds but never block it.
"""

from __future__ import annotations

import logging
import queue
import re
import threading
from typing import TYPE_CHECKING, Self

import psycopg
from psycopg import sql

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from types import TracebackType

    from keikaku_snapshots.postgres.connect import Connection

log = logging.getLogger("keikaku_snapshots.restore")

_NAME = rb'(?:"(?:[^"]|"")+"|[A-Za-z0-9_$\x80-\xff]+)'
_COPIED = re.compile(rb"COPY (?P<table>" + _NAME + rb"\." + _NAME + rb") ")
#: Milliseconds to wait for a table that the load has locked; it is then done at the end.
_LOCK_TIMEOUT_MS = 5

#: Tables that are there, but for those whose statistics stand already. Partitions come with their
#: root, inheriting tables with their parent, and what is defined after the rows came (an expression
#: index, extended statistics) needs a look of its own.
_LEFT = """
SELECT n.nspname::text, c.relname::text
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND NOT c.relispartition
  AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_(toast|temp_)'
  AND (NOT (c.oid = ANY(%s)) OR c.relhassubclass OR c.relkind = 'p'
       OR EXISTS (SELECT 1 FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indexprs IS NOT NULL)
       OR EXISTS (SELECT 1 FROM pg_catalog.pg_statistic_ext s WHERE s.stxrelid = c.oid))
ORDER BY 1, 2
"""


class AnalyzeBeside:
    """Analyses tables on a connection of its own; leaving the block ends it.

    Args:
        connect: Makes the connection, in autocommit; called in the thread that uses it.
    """

    def __init__(self, connect: Callable[[], Connection]) -> None:
        self._connect = connect
        self._loaded: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._done: list[int] = []
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="keikaku-analyze", daemon=True)
        self._thread.start()

    def loaded(self, copy_statement: bytes) -> None:
        """Be told that a COPY has ended.

        Args:
            copy_statement: Its statement, as in the dump.
        """
        self._loaded.put(copy_statement)

    def finish(self) -> list[int]:
        """Wait until all that was told is done.

        Returns:
            Object ids of the tables whose statistics stand.
        """
        self._loaded.put(None)
        self._thread.join()
        return list(self._done)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped = True
        self.finish()

    def _run(self) -> None:
        statement = self._loaded.get()
        if statement is None:
            return
        try:
            with self._connect() as connection:
                connection.execute("SELECT set_config('lock_timeout', %s, false)", [f"{_LOCK_TIMEOUT_MS}ms"])
                while statement is not None and not self._stopped:
                    self._analyze(connection, statement)
                    statement = self._loaded.get()
        except Exception as error:  # noqa: BLE001 - only speed is lost; the rest is done at the end
            log.debug("statistics are gathered at the end (%s)", type(error).__name__)

    def _analyze(self, connection: Connection, statement: bytes) -> None:
        match = _COPIED.match(statement)
        if match is None:
            return
        table = match["table"]
        row = connection.execute(
            "SELECT c.oid, c.relkind = 'r' AND NOT c.relhassubclass FROM pg_catalog.pg_class c"
            " WHERE c.oid = %s::regclass",
            [table.decode()],
        ).fetchone()
        if row is None or not row[1]:
            return
        try:
            connection.execute(b"ANALYZE " + table)
        except psycopg.errors.LockNotAvailable:
            return
        self._done.append(row[0])


def analyze(connection: Connection, done: Collection[int] = ()) -> None:
    """Gather the statistics that a dump does not hold.

    Args:
        connection: The restored database.
        done: Object ids of tables from `AnalyzeBeside.finish`.

    Raises:
        psycopg.Error: The server refused it.
    """
    names = connection.execute(_LEFT, [list(done)]).fetchall()
    if names:
        statement = sql.SQL("ANALYZE {}").format(sql.SQL(", ").join(sql.Identifier(*name) for name in names))
        connection.execute(statement)
