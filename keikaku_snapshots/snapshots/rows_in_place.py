"""Put the rows of a snapshot back into tables that have its schema already (docs/design.md, In place).

Tables, owners, grants, OIDs and the clients' prepared statements stay. Foreign
keys are dropped and added again, because the rows of a full dump are not in
foreign-key order and circles have none. Triggers sleep, so that the rows are
those of the snapshot and not what a trigger makes of them. Every step is
transactional, sequences included: ``ALTER SEQUENCE … RESTART`` gives a
sequence a new file inside the transaction, and the ``setval`` behind it
changes that file only.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from psycopg import sql

from keikaku_snapshots.errors import UnsafeRestoreError
from keikaku_snapshots.postgres import catalog
from keikaku_snapshots.postgres.filters import USER_SCHEMA, not_extension_member
from keikaku_snapshots.snapshots.counts import compare_counts
from keikaku_snapshots.snapshots.resting import Resting
from keikaku_snapshots.snapshots.script import Kind, Part

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.snapshots.dump_script import Script
    from keikaku_snapshots.snapshots.load import Loader
    from keikaku_snapshots.snapshots.manifest import Manifest

#: Parts that carry rows and other content; everything else is there already.
ROW_KINDS = frozenset({Kind.COPY, Kind.SEQUENCE, Kind.LARGE_OBJECT})

_NAME = rb'(?:"(?:[^"]|"")+"|[A-Za-z0-9_$\x80-\xff]+)'
_COPY_TARGET = re.compile(rb"COPY (" + _NAME + rb"\." + _NAME + rb")\s")
_REFRESH_TARGET = re.compile(rb"REFRESH MATERIALIZED VIEW (" + _NAME + rb"\." + _NAME + rb")")

_SEQUENCES = f"""
SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'S' AND c.relpersistence <> 't' AND {USER_SCHEMA}
  AND {not_extension_member("pg_class", "c.oid")}
ORDER BY c.oid
"""  # noqa: S608 - constants of this package
_FORCED = """
SELECT n.nspname::text, c.relname::text
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relforcerowsecurity AND c.oid = ANY (%s) ORDER BY c.oid
"""
_KEY_COMMENTS = """
SELECT n.nspname::text, c.relname::text, k.conname::text, d.description
FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_description d
  ON d.classoid = 'pg_catalog.pg_constraint'::pg_catalog.regclass AND d.objoid = k.oid AND d.objsubid = 0
WHERE k.contype = 'f' AND k.conparentid = 0 AND c.oid = ANY (%s)
"""
_FILLED_VIEWS = f"""
SELECT n.nspname::text, c.relname::text, c.oid FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'm' AND c.relispopulated AND {USER_SCHEMA} AND {not_extension_member("pg_class", "c.oid")}
ORDER BY c.oid
"""  # noqa: S608 - constants of this package


def restore_rows(
    connection: Connection,
    script: Script,
    loader: Loader,
    tables: list[catalog.TableInfo],
    manifest: Manifest,
) -> None:
    """Replace all rows; the caller holds the locks and commits.

    Args:
        connection: In the transaction that holds every table of ``tables``.
        script: The dump.
        loader: Runs its parts on ``connection``.
        tables: Every table of the user.
        manifest: What the snapshot held.

    Raises:
        RestoreFailedError: The rows are not as many as in the snapshot.
        UnsafeRestoreError: The dump fills other tables than there are.
        psycopg.Error: The server refused something; roll back.
    """
    _check_same_tables(connection, script, tables)
    resting = _resting(connection, [table.oid for table in tables])
    _run(connection, resting.off)
    _run(connection, _emptying(connection, tables))
    loader.run(
        part
        for part in script.parts
        if part.kind is Kind.SETTING and not script.text(part).startswith(b"SET lock_timeout")  # FAULTS 6
    )
    loader.run(part for part in script.parts if part.kind in ROW_KINDS)
    compare_counts(connection, manifest)
    # Events of deferred constraints would make the ALTER TABLEs below fail.
    connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
    _run(connection, resting.on)
    loader.run(part for part in script.parts if part.kind is Kind.REFRESH)
    _run(connection, _views_to_empty(connection, script))


def _run(connection: Connection, statements: Iterable[sql.Composed]) -> None:
    for statement in statements:
        connection.execute(statement)


def _check_same_tables(connection: Connection, script: Script, tables: list[catalog.TableInfo]) -> None:
    """Every table must be filled by the dump exactly once, and no other one (an extension's, say)."""
    names = [_target(_COPY_TARGET, script, part) for part in script.parts if part.kind is Kind.COPY]
    filled = set(_oids(connection, names))
    there = {table.oid for table in tables if table.holds_rows}
    if filled == there:
        return
    extra = [name for name, oid in zip(names, _oids(connection, names), strict=True) if oid not in there]
    missing = [table.name.text for table in tables if table.holds_rows and table.oid not in filled]
    lines = [f"In the snapshot only, or made by an extension: {', '.join(extra)}"] if extra else []
    lines += [f"In the database only: {', '.join(missing)}"] if missing else []
    raise UnsafeRestoreError(
        "the rows alone cannot be put back, because the snapshot fills other tables than there are",
        found="\n".join(lines),
        hint="Use strategy='swap'.",
    )


def _oids(connection: Connection, names: list[str]) -> list[int]:
    if not names:
        return []
    rows = connection.execute(
        "SELECT coalesce(pg_catalog.to_regclass(name)::pg_catalog.oid, 0)"
        " FROM pg_catalog.unnest(%s::text[]) WITH ORDINALITY AS u(name, place) ORDER BY place",
        [names],
    ).fetchall()
    return [int(row[0]) for row in rows]


def _target(pattern: re.Pattern[bytes], script: Script, part: Part) -> str:
    match = pattern.match(script.text(part))
    return match.group(1).decode("utf-8", "replace") if match else ""


def _resting(connection: Connection, oids: list[int]) -> Resting:
    resting = Resting()
    resting.add_triggers(connection, oids)
    for row in connection.execute(_FORCED, [oids]).fetchall():
        # COPY is refused to an owner that row security holds for.
        table = sql.Identifier(row[0], row[1])
        resting.off.append(sql.SQL("ALTER TABLE ONLY {} NO FORCE ROW LEVEL SECURITY").format(table))
        resting.on.append(sql.SQL("ALTER TABLE ONLY {} FORCE ROW LEVEL SECURITY").format(table))
    for key in catalog.foreign_keys(connection):
        names = {"table": key.table.identifier, "name": sql.Identifier(key.name)}
        resting.off.append(sql.SQL("ALTER TABLE {table} DROP CONSTRAINT {name}").format(**names))
        # The definition comes from pg_get_constraintdef and is SQL already.
        definition: Any = sql.SQL(key.definition)
        statement = sql.SQL("ALTER TABLE {table} ADD CONSTRAINT {name} {definition}")
        resting.on.append(statement.format(definition=definition, **names))
    for row in connection.execute(_KEY_COMMENTS, [oids]).fetchall():
        statement = sql.SQL("COMMENT ON CONSTRAINT {} ON {} IS {}")
        resting.on.append(
            statement.format(sql.Identifier(row[2]), sql.Identifier(row[0], row[1]), sql.Literal(row[3]))
        )
    return resting


def _emptying(connection: Connection, tables: list[catalog.TableInfo]) -> list[sql.Composed]:
    statements = []
    roots = [table for table in tables if table.root is None or table.root == table.name]
    if roots:
        names = [
            table.name.identifier
            if table.kind == "partitioned"
            else sql.SQL("ONLY {}").format(table.name.identifier)
            for table in roots
        ]
        statements.append(sql.SQL("TRUNCATE TABLE {}").format(sql.SQL(", ").join(names)))
    for schema, name in connection.execute(_SEQUENCES).fetchall():
        statements.append(sql.SQL("ALTER SEQUENCE {} RESTART").format(sql.Identifier(schema, name)))
    statements.append(
        sql.SQL("SELECT pg_catalog.lo_unlink(oid) FROM pg_catalog.pg_largeobject_metadata").format()
    )
    return statements


def _views_to_empty(connection: Connection, script: Script) -> list[sql.Composed]:
    """Materialized views that hold rows now and held none in the snapshot."""
    names = [_target(_REFRESH_TARGET, script, part) for part in script.parts if part.kind is Kind.REFRESH]
    refreshed = set(_oids(connection, names))
    return [
        sql.SQL("REFRESH MATERIALIZED VIEW {} WITH NO DATA").format(sql.Identifier(schema, name))
        for schema, name, oid in connection.execute(_FILLED_VIEWS).fetchall()
        if oid not in refreshed
    ]
