"""Restore inside the database that people are connected to: one transaction, all or nothing.

When the schema is the snapshot's, only rows are replaced (`rows_in_place`);
otherwise everything that the user made is dropped and made again (`clear`).
Locks on all tables come first, so that a session in the way is met before
anything is changed, and row counts are compared before COMMIT.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from keikaku_snapshots.errors import (
    DatabaseInUseError,
    KeikakuError,
    OutcomeUnknownError,
    RestoreFailedError,
    UnsafeRestoreError,
)
from keikaku_snapshots.postgres import catalog
from keikaku_snapshots.postgres.connect import connect
from keikaku_snapshots.postgres.filters import USER_SCHEMA, not_extension_member
from keikaku_snapshots.postgres.outcome import transaction_outcome
from keikaku_snapshots.snapshots.checkpoint import drop_capture
from keikaku_snapshots.snapshots.clear import (
    OwnObject,
    drop_everything,
    drop_public,
    kept_schemas,
    own_objects,
)
from keikaku_snapshots.snapshots.counts import compare_counts
from keikaku_snapshots.snapshots.dump import ownership_digest
from keikaku_snapshots.snapshots.load import Loader, restore_failed
from keikaku_snapshots.snapshots.parameters import LOCK_TIMEOUT_S
from keikaku_snapshots.snapshots.rows_in_place import restore_rows
from keikaku_snapshots.snapshots.script import Kind, Part

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.snapshots.dump_script import Script
    from keikaku_snapshots.snapshots.manifest import Manifest
    from keikaku_snapshots.snapshots.rights import RoleRights

log = logging.getLogger("keikaku_snapshots.restore")


_SCHEMA = re.compile(rb'CREATE SCHEMA (?:"((?:[^"]|"")+)"|([^\s;"]+));\Z')
#: Of an object that stays where it is only these are touched when rows are replaced.
_HOLDERS_OF_ROWS = frozenset({"table", "sequence", "materialized view"})
_BUSY = frozenset({"55P03", "40P01"})

_HOLDERS = """
SELECT DISTINCT a.pid, coalesce(a.usename::text, '?'), coalesce(nullif(a.application_name, ''), '?'),
       coalesce(a.state, ''), coalesce(host(a.client_addr), 'local'),
       coalesce(extract(epoch FROM statement_timestamp() - a.xact_start)::float, 0)
FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
WHERE l.granted AND l.locktype = 'relation' AND l.pid <> pg_catalog.pg_backend_pid()
  AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
  AND l.relation >= 16384
  AND (a.backend_type = 'client backend' OR a.backend_type IS NULL AND a.usesysid IS NOT NULL)
ORDER BY 1
"""
_RELATIONS = f"""
SELECT count(*) FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE ({USER_SCHEMA} OR n.nspname = 'pg_toast') AND c.oid >= 16384
"""  # noqa: S608 - constants of this package
#: Tables and sequences whose own owner has taken the right to fill them from himself.
_UNWRITABLE = f"""
SELECT count(*) FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE {USER_SCHEMA} AND {not_extension_member("pg_class", "c.oid")} AND CASE
  WHEN c.relkind IN ('r', 'p') THEN NOT (
    pg_catalog.has_table_privilege(c.oid, 'INSERT') AND pg_catalog.has_table_privilege(c.oid, 'TRUNCATE'))
  WHEN c.relkind = 'S' THEN NOT pg_catalog.has_sequence_privilege(c.oid, 'UPDATE') ELSE false END
"""  # noqa: S608 - constants of this package
_LOCK_TABLE = """
SELECT current_setting('max_locks_per_transaction')::bigint
       * (current_setting('max_connections')::bigint + current_setting('max_prepared_transactions')::bigint),
       (SELECT count(*) FROM pg_catalog.pg_locks WHERE NOT fastpath)
"""


@dataclass(frozen=True, slots=True)
class InPlaceResult:
    """How a restore inside the database went."""

    #: "rows" when only rows were replaced, "full" when everything was made again.
    form: str
    #: What was not given back exactly.
    warnings: tuple[str, ...]


def restore_in_place(
    url: DatabaseURL,
    script: Script,
    manifest: Manifest | None,
    rights: RoleRights,
    *,
    lock_timeout_s: float = LOCK_TIMEOUT_S,
    progress: Callable[[int], None] | None = None,
) -> InPlaceResult:
    """Make the database what the snapshot is, in one transaction.

    Args:
        url: The database.
        script: The verified dump; for an archive the script made of it.
        manifest: What is known about the snapshot; None when it is restored on trust.
        rights: Which roles the connected role can serve.
        lock_timeout_s: Seconds to wait for each lock.
        progress: Told the position in the file, bytes.

    Returns:
        Which form ran, and warnings.

    Raises:
        DatabaseInUseError: Another session holds a table; nothing was changed.
        UnsafeRestoreError: It would not be exact; nothing was changed.
        RestoreFailedError: The server refused something; nothing was changed.
        OutcomeUnknownError: The connection was lost while COMMIT ran.
    """
    parts = script.parts  # the whole file is checked before the database is touched
    connection = connect(url, statement_timeout_s=0, lock_timeout_s=lock_timeout_s, row_security=False)
    try:
        result = _in_transaction(connection, url, script, parts, manifest, rights, progress)
        commit(connection, url)
        _analyze(connection)
    finally:
        connection.close()
    return result


def _in_transaction(
    connection: Connection,
    url: DatabaseURL,
    script: Script,
    parts: list[Part],
    manifest: Manifest | None,
    rights: RoleRights,
    progress: Callable[[int], None] | None,
) -> InPlaceResult:
    loader = Loader(connection, script, rights, progress=progress)
    what = f"restoring {script.name} into {url.database} was stopped and rolled back"
    try:
        _unlimited(connection)
        tables = _lock_tables(connection)
        drop_capture(connection, strict=False)  # a checkpoint ends; its triggers would log the restore
        same, warning = _rows_suffice(connection, script, manifest, rights) if manifest else (False, "")
        objects = own_objects(connection)
        _refuse_foreign(connection, objects, rows_only=same)
        _refuse_too_many_locks(connection, script, rows_only=same)
        if same and manifest is not None:
            restore_rows(connection, script, loader, tables, manifest)
        else:
            kept = kept_schemas(connection)
            drop_everything(connection, objects, kept)
            loader.run(_full(script, parts, kept))
            if manifest is not None:
                drop_public(connection, manifest)
                compare_counts(connection, manifest)
    except psycopg.Error as error:
        connection.close()
        if error.sqlstate in _BUSY:
            raise in_use(url) from error
        raise restore_failed(error, url, what, statement=loader.current) from error
    warnings = (*loader.warnings, warning) if warning else tuple(loader.warnings)
    return InPlaceResult("rows" if same else "full", warnings)


def _unlimited(connection: Connection) -> None:
    """No limit of the role or database may end the transaction half-way."""
    connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
    connection.execute(
        "SELECT set_config(name, '0', true) FROM pg_settings WHERE name = 'transaction_timeout'"
    )
    connection.execute("SET LOCAL client_min_messages = error")


def _lock_tables(connection: Connection) -> list[catalog.TableInfo]:
    """Take every table of the user, in the order of their making, so that two restores meet at the first."""
    tables = sorted(catalog.tables(connection), key=lambda table: table.oid)
    if tables:
        names = sql.SQL(", ").join(sql.SQL("ONLY {}").format(table.name.identifier) for table in tables)
        connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(names))
    # Tables may have come and gone while we waited.
    return catalog.tables(connection)


def _rows_suffice(
    connection: Connection, script: Script, manifest: Manifest, rights: RoleRights
) -> tuple[bool, str]:
    """Whether everything but the rows is the snapshot's already, owners and grants included; and a warning.

    Where a role of the snapshot is missing, or an owner out of reach, owners
    and grants can never agree; then those of the database stay.
    """
    now = catalog.fingerprint(connection)
    if now.major != manifest.server_major or now.digest != manifest.schema_fingerprint:
        return False, ""
    if _number(connection, _UNWRITABLE):
        return False, ""  # the full form makes them anew and takes the owner's rights away last
    if not manifest.owners or ownership_digest(connection) == manifest.ownership_digest:
        return True, ""
    out_of_reach = rights.missing | (rights.unreachable & script.owner_roles())
    if not out_of_reach:
        return False, ""
    return True, (
        "owners and grants were left as they are in the database; the snapshot's cannot all be given back,"
        f" because of role {', '.join(sorted(out_of_reach))}"
    )


def _full(script: Script, parts: Iterable[Part], kept: frozenset[str]) -> Iterable[Part]:
    """All parts but those that end the transaction or make what is there."""
    for part in parts:
        if part.kind is Kind.TRANSACTION:
            continue
        text = script.text(part) if part.end - part.start < 4096 else b""
        if part.kind is Kind.SETTING and text.startswith(b"SET lock_timeout"):
            continue  # the dump would wait for ever (FAULTS 6)
        match = _SCHEMA.match(text)
        if match and (match[1] or match[2]).decode().replace('""', '"') in kept:
            continue
        yield part


def _refuse_foreign(connection: Connection, objects: list[OwnObject], *, rows_only: bool) -> None:
    foreign = [
        item for item in objects if not item.is_ours and (not rows_only or item.type in _HOLDERS_OF_ROWS)
    ]
    lines = [f"{item.type} {item.identity} of {item.owner}" for item in foreign[:10]]
    row = connection.execute(
        "SELECT count(*) FROM pg_catalog.pg_largeobject_metadata"
        " WHERE NOT pg_has_role(current_user, lomowner, 'USAGE')"
    ).fetchone()
    if row and row[0]:
        lines.append(f"{row[0]} large objects of other roles")
    subscriptions = connection.execute(
        "SELECT subname::text FROM pg_catalog.pg_subscription WHERE subdbid ="
        " (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())"
    ).fetchall()
    if not rows_only:
        lines += [f"subscription {name}" for (name,) in subscriptions]
    if lines:
        raise UnsafeRestoreError(
            "restoring in place would have to replace objects that the role does not own",
            found="\n".join(lines + ([f"and {len(foreign) - 10} more"] if len(foreign) > 10 else [])),
            hint="Restore as their owner or as a superuser, or use strategy='swap'.",
        )


def _refuse_too_many_locks(connection: Connection, script: Script, *, rows_only: bool) -> None:
    """Look whether one transaction can hold that many locks; the server says so only half-way."""
    relations = _number(connection, _RELATIONS)
    large_objects = catalog.large_object_count(connection)
    if rows_only:
        needed = relations + large_objects
    else:
        made = sum(1 for part in script.parts if part.kind is Kind.DEFINITION)
        needed = relations + large_objects + made * 2
    row = connection.execute(_LOCK_TABLE).fetchone()
    capacity, used = (int(row[0]), int(row[1])) if row else (0, 0)
    if needed > capacity - used:
        raise UnsafeRestoreError(
            f"restoring in place needs about {needed:,} locks in one transaction",
            found=f"the server has room for {capacity:,}, of which {used:,} are taken",
            hint="Raise max_locks_per_transaction and restart the server, or use strategy='swap'.",
            needed=needed,
            capacity=capacity,
        )


def _number(connection: Connection, statement: str) -> int:
    row = connection.execute(statement).fetchone()
    return int(row[0]) if row else 0


def commit(connection: Connection, url: DatabaseURL) -> None:
    """End the transaction of a restore.

    Args:
        connection: In that transaction.
        url: The database.

    Raises:
        RestoreFailedError: A deferred constraint refused; nothing was changed.
        OutcomeUnknownError: The connection was lost meanwhile.
    """
    row = connection.execute("SELECT pg_catalog.pg_current_xact_id()::text").fetchone()
    try:
        connection.commit()
    except psycopg.Error as error:
        if error.sqlstate and not error.sqlstate.startswith(("08", "57P")):
            raise restore_failed(
                error, url, f"restoring into {url.database} was refused at its end"
            ) from error
        connection.close()
        outcome = _outcome(url, str(row[0]) if row else "")
        if outcome == "committed":
            log.warning("the connection was lost at COMMIT; the server says that it is done")
            return
        if outcome == "aborted":
            what = f"restoring into {url.database} was rolled back: the connection was lost at its end"
            raise RestoreFailedError(what, found=f"Database: {url.location}", transient=True) from error
        raise OutcomeUnknownError(
            f"the connection was lost while the restore of {url.database} was being committed",
            found=f"Database: {url.location}",
            hint="Look into the database: it is either as before or restored. Restoring again is safe.",
        ) from error


def _outcome(url: DatabaseURL, transaction: str) -> str:
    """Ask the server what became of a transaction whose COMMIT was not answered; empty if nobody knows."""
    try:
        with connect(url, autocommit=True, statement_timeout_s=5) as connection:
            return transaction_outcome(connection, transaction)
    except (psycopg.Error, KeikakuError):
        log.debug("the outcome of the restore could not be asked for", exc_info=True)
        return ""


def _analyze(connection: Connection) -> None:
    """Give the planner statistics of the new rows; not having them is no reason to fail."""
    try:
        connection.autocommit = True
        connection.execute("SET client_min_messages = error")
        names = [table.name.identifier for table in catalog.tables(connection)]
        if names:
            connection.execute(sql.SQL("ANALYZE {}").format(sql.SQL(", ").join(names)))
    except psycopg.Error as error:
        log.warning("ANALYZE after the restore was not possible (%s)", error.sqlstate or type(error).__name__)


def in_use(url: DatabaseURL) -> DatabaseInUseError:
    """Name who holds the tables; asked on a fresh connection, because the waiting one was rolled back.

    Args:
        url: The database.

    Returns:
        The error to raise.
    """
    lines: list[str] = []
    pids: list[int] = []
    try:
        with connect(url, autocommit=True, lock_timeout_s=1) as connection:
            for pid, user, application, state, address, seconds in connection.execute(_HOLDERS).fetchall():
                pids.append(pid)
                detail = f", {state} for {seconds:.0f} s" if state else ""
                lines.append(f"pid {pid}, user {user}, application {application}, from {address}{detail}")
    except psycopg.Error:
        log.debug("the sessions in the way could not be listed", exc_info=True)
    return DatabaseInUseError(
        f"other sessions hold tables of {url.database}; nothing was changed",
        found="\n".join(lines) or "they have ended in the meantime",
        pids=pids,
    )
