"""Arm a database for rewinding: everything in one transaction, so a crash leaves the old or the new state.

The schema `keikaku_rewind` holds a log for each table, functions that fill it
and functions that take it back, the sequences as they stood, and a hash of
the catalog. See docs/design.md, Rewind.
"""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

import psycopg
from psycopg import sql

from keikaku_snapshots.errors import AccessDeniedError, RefusedError
from keikaku_snapshots.postgres import catalog
from keikaku_snapshots.postgres.capture import CaptureNames, common_statements, literal, table_statements
from keikaku_snapshots.postgres.capture_net import rewind_function
from keikaku_snapshots.postgres.capture_owner import cascades, owner_functions
from keikaku_snapshots.postgres.capture_tables import CapturedTable, captured_tables
from keikaku_snapshots.postgres.connect import connect, translated
from keikaku_snapshots.postgres.ddl_watch import ddl_functions
from keikaku_snapshots.snapshots import guards
from keikaku_snapshots.snapshots.rewind_functions import main_functions, sequence_functions, sequence_names
from keikaku_snapshots.snapshots.rewind_suspension import suspension_functions, suspensions
from keikaku_snapshots.snapshots.rewind_waiting import in_the_way

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.postgres.url import DatabaseURL

T = TypeVar("T")

#: Key of the advisory lock that writers share: "kei-" and "rewi" in ASCII, roughly.
LOCK = (1_802_202_477, 1_919_252_341)
#: What everything of ours in the database is called.
NAMES = CaptureNames(
    schema="keikaku_rewind",
    lock=LOCK,
    active="pg_catalog.current_setting('keikaku.rewinding', true) IS DISTINCT FROM 'on'",
)
#: Comment of the schema, which makes it ours; the number is the layout.
MARK = "keikaku_snapshots rewind 4"
#: Seconds for one try to lock all tables: shorter than the server's deadlock_timeout (1 s), so that it is
#: always we who give way, never a transaction of the application.
_TRY_S = 0.5
_BUSY = frozenset({"55P03", "40P01"})


@dataclass(frozen=True, slots=True)
class SnapshotReference:
    """The snapshot whose state a checkpoint is, as far as the caller said."""

    #: Its name.
    name: str
    #: Its version.
    version: str
    #: Directory it is in.
    directory: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A point that `rewind` goes back to."""

    #: When it was made, UTC.
    created_at: datetime
    #: Tables whose changes are kept; a partitioned table counts once.
    tables: int
    #: Sequences that go back too.
    sequences: int
    #: Seconds that making it took.
    seconds: float
    #: The snapshot to restore when the schema is changed, or None.
    snapshot: SnapshotReference | None = None
    #: What does not go back, or only slowly.
    warnings: tuple[str, ...] = ()


def make_checkpoint(
    url: DatabaseURL,
    *,
    wait_s: float,
    snapshot: SnapshotReference | None,
    keep: Callable[[Connection], object] | None = None,
) -> Checkpoint:
    """Make the present state the one to go back to.

    Args:
        url: The database.
        wait_s: Seconds to wait for open transactions that have written.
        snapshot: What the database was restored from and still equals.
        keep: Gets the connection, which is open still, when all is done.

    Returns:
        The checkpoint.

    Raises:
        DatabaseInUseError: A transaction stayed open.
        AccessDeniedError: The role may not put triggers on a table, or row security hides rows from it.
    """
    begun = time.monotonic()
    with ExitStack() as at_the_end, translated(url, "making a checkpoint"):
        connection = connect(url, statement_timeout_s=0)
        at_the_end.callback(connection.close)
        guards.check_writing(connection, url, "")
        guards.check_row_security(connection, url)
        connection.rollback()

        def arm() -> Checkpoint:
            return _arm(connection, url, snapshot, begun)

        made = _patiently(connection, url, arm, wait_s=wait_s)
        if keep is not None:
            at_the_end.pop_all()
            keep(connection)
        return made


def drop_checkpoint(url: DatabaseURL, *, wait_s: float) -> bool:
    """Remove everything of ours from a database.

    Args:
        url: The database.
        wait_s: Seconds to wait for sessions that use the tables; readers too.

    Returns:
        False if there was nothing.

    Raises:
        DatabaseInUseError: A session held a table.
    """
    with connect(url, statement_timeout_s=0) as connection, translated(url, "removing the checkpoint"):

        def drop() -> bool:
            _lock_writers(connection)
            return drop_capture(connection)

        return _patiently(connection, url, drop, wait_s=wait_s)


def drop_capture(connection: Connection, *, strict: bool = True) -> bool:
    """Drop our schema inside the caller's transaction.

    Args:
        connection: The database.
        strict: A schema of that name that is not ours is an error; it stays in either case.

    Returns:
        True if it was there.

    Raises:
        RefusedError: It is not ours.
    """
    row = connection.execute(
        "SELECT pg_catalog.obj_description(oid, 'pg_namespace') FROM pg_catalog.pg_namespace"
        " WHERE nspname = %s",
        [NAMES.schema],
    ).fetchone()
    if row is None:
        return False
    if not str(row[0] or "").startswith("keikaku_snapshots "):
        if not strict:
            return False
        raise RefusedError(
            f"the database has a schema {NAMES.schema} that is not ours",
            found="its comment does not begin with 'keikaku_snapshots'",
            hint=f"Rename it: ALTER SCHEMA {NAMES.schema} RENAME TO …",
        )
    connection.execute("SET LOCAL client_min_messages = warning")
    connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(NAMES.schema)))
    return True


def _patiently(connection: Connection, url: DatabaseURL, work: Callable[[], T], *, wait_s: float) -> T:
    """Run the work in a transaction; try again while somebody is in the way, until the time is over."""
    deadline = time.monotonic() + wait_s
    while True:
        left_s = deadline - time.monotonic()
        try:
            with connection.transaction():
                timeout_ms = max(1, round(1000 * min(_TRY_S, max(left_s, 0.01))))
                connection.execute("SELECT set_config('lock_timeout', %s, true)", [f"{timeout_ms}ms"])
                connection.execute("SET LOCAL synchronous_commit = on")
                return work()
        except psycopg.Error as error:
            if error.sqlstate not in _BUSY:
                raise
            if time.monotonic() >= deadline:
                raise in_the_way(url, LOCK, wait_s, tables=True) from error


def _lock_writers(connection: Connection) -> None:
    connection.execute("SELECT pg_catalog.pg_advisory_xact_lock(%s, %s)", list(LOCK))


def _arm(
    connection: Connection, url: DatabaseURL, snapshot: SnapshotReference | None, begun: float
) -> Checkpoint:
    _lock_writers(connection)
    if _moved(connection, snapshot):
        return _described(connection, snapshot, begun)
    drop_capture(connection)
    tables = captured_tables(connection, NAMES.schema)
    _check_owners(tables, url)
    members = [member.identifier for table in tables for member in table.members]
    if members:
        # LOCK on a partitioned table takes its partitions along; all at once, so that we wait only here.
        connection.execute(f"LOCK TABLE ONLY {', ONLY '.join(members)} IN SHARE ROW EXCLUSIVE MODE")
    if captured_tables(connection, NAMES.schema) != tables:
        raise psycopg.errors.LockNotAvailable("tables were changed meanwhile")
    sequences = sequence_names(connection)
    connection.execute(_script(connection, tables, sequences))
    connection.execute(f"SELECT {NAMES.schema}.note_sequences()")
    about = {
        "tables": len(tables),
        "warnings": _limits(connection, tables),
        "objects": dict(catalog.fingerprint(connection).objects),
    }
    connection.execute(
        f"INSERT INTO {NAMES.schema}.state (made_at, snapshot, about, versions, ddl)"  # noqa: S608
        f" VALUES (now(), %s, %s, {NAMES.schema}.ddl_versions(), {NAMES.schema}.ddl_hash())",
        [json.dumps(_as_fields(snapshot)), json.dumps(about)],
    )
    return _described(connection, snapshot, begun)


def _moved(connection: Connection, snapshot: SnapshotReference | None) -> bool:
    """Make the present state the one to go back to where the triggers are there and fit; milliseconds."""
    row = connection.execute(
        "SELECT pg_catalog.obj_description(oid, 'pg_namespace') = %s FROM pg_catalog.pg_namespace"
        " WHERE nspname = %s",
        [MARK, NAMES.schema],
    ).fetchone()
    if row is None or not row[0]:
        return False
    row = connection.execute(f"SELECT {NAMES.schema}.move(%s)", [json.dumps(_as_fields(snapshot))]).fetchone()
    return bool(row and row[0])


def _described(connection: Connection, snapshot: SnapshotReference | None, begun: float) -> Checkpoint:
    row = connection.execute(
        "SELECT made_at, (about->>'tables')::int, about->'warnings',"  # noqa: S608 - constants
        f" (SELECT count(*) FROM {NAMES.schema}.sequences) FROM {NAMES.schema}.state"
    ).fetchone()
    made_at, tables, warnings, sequences = row or (datetime.now(UTC), 0, [], 0)
    return Checkpoint(
        created_at=made_at.astimezone(UTC),
        tables=tables,
        sequences=sequences,
        seconds=time.monotonic() - begun,
        snapshot=snapshot,
        warnings=tuple(warnings),
    )


def _as_fields(snapshot: SnapshotReference | None) -> dict[str, str] | None:
    if snapshot is None:
        return None
    return {"name": snapshot.name, "version": snapshot.version, "directory": snapshot.directory}


def _check_owners(tables: Sequence[CapturedTable], url: DatabaseURL) -> None:
    foreign = [table for table in tables if not table.is_ours]
    if foreign:
        shown = [f"{table.name} of {table.owner}" for table in foreign[:10]]
        raise AccessDeniedError(
            f"role {url.user!r} does not own every table, so it cannot watch their changes",
            found="\n".join([*shown, *([f"and {len(foreign) - 10} more"] if len(foreign) > 10 else [])]),
            hint=f"Use a superuser, or: GRANT {foreign[0].owner} TO {url.user};",
            tables=[table.name.text for table in foreign],
        )


def _script(
    connection: Connection, tables: Sequence[CapturedTable], sequences: Sequence[tuple[int, str]]
) -> str:
    schema = NAMES.schema
    cascading = cascades(connection)
    resting = suspensions(connection, schema)
    rank = {name: number for number, name in enumerate(catalog.table_order(connection).tables)}
    parents_first = sorted(tables, key=lambda table: rank.get(table.name, 0))
    parts = [
        f"CREATE SCHEMA {schema};\nCOMMENT ON SCHEMA {schema} IS {literal(MARK)};\n",
        (
            f"CREATE TABLE {schema}.state"
            " (made_at timestamptz, snapshot jsonb, about jsonb, versions bigint, ddl bigint);\n"
        ),
        f"ALTER TABLE {schema}.state REPLICA IDENTITY FULL;\n",
        common_statements(NAMES),
        ddl_functions(NAMES),
    ]
    for table in tables:
        parts += [
            table_statements(NAMES, table),
            rewind_function(NAMES, table),
            owner_functions(NAMES, table, cascading),
        ]
    parts += [
        suspension_functions(NAMES, resting, ((one.parent_oid, one.child_oid) for one in cascading)),
        main_functions(NAMES, parents_first, resting),
        sequence_functions(NAMES, sequences),
    ]
    return "SET LOCAL client_min_messages = warning;\n" + "".join(parts)


def _limits(connection: Connection, tables: Sequence[CapturedTable]) -> list[str]:
    """Say what will not go back."""
    warnings = []
    row = connection.execute(
        "SELECT (SELECT count(*) FROM pg_catalog.pg_largeobject_metadata),"
        " (SELECT count(*) FROM pg_catalog.pg_foreign_table),"
        " (SELECT string_agg(s.seqrelid::regclass::text, ', ') FROM pg_catalog.pg_sequence s"
        "  WHERE s.seqcache > 1),"
        " (SELECT count(*) FROM pg_catalog.pg_subscription s"
        "  JOIN pg_catalog.pg_database d ON d.oid = s.subdbid WHERE d.datname = current_database()),"
        " (SELECT string_agg(pubname::text, ', ') FROM pg_catalog.pg_publication WHERE puballtables),"
        " (SELECT string_agg(d.objid::regclass::text, ', ') FROM pg_catalog.pg_depend d"
        "  JOIN pg_catalog.pg_class c ON c.oid = d.objid AND c.relkind IN ('r', 'p')"
        "  WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.deptype = 'e')"
    ).fetchone()
    large_objects, foreign_tables, cached, subscriptions, publications, of_extensions = row or (
        0,
        0,
        None,
        0,
        None,
        None,
    )
    if large_objects:
        warnings.append("large objects do not go back (their oids in tables do)")
    if foreign_tables:
        warnings.append("rows of foreign tables do not go back")
    if subscriptions:
        warnings.append("what logical replication applies to this database does not go back")
    if of_extensions:
        warnings.append(f"tables of extensions do not go back: {of_extensions}")
    if publications:
        warnings.append(f"subscribers of all tables get those of the checkpoint too: {publications}")
    if cached:
        warnings.append(f"other sessions keep values of sequences with CACHE above 1: {cached}")
    without_key = [table.name.text for table in tables if not table.key]
    if without_key:
        warnings.append(
            f"rewinding reads the whole table where there is no key: {', '.join(without_key[:10])}"
            + (f" and {len(without_key) - 10} more" if len(without_key) > 10 else "")
        )
    return warnings
