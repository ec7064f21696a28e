"""What has to rest while rows go back: user triggers, rules and immediate foreign keys, one by one.

Each is switched off inside the transaction of the rewind and put back to
exactly what it was before that transaction ends; nobody else ever sees it off.
"""
# ruff: noqa: E501, S608 - SQL is put together from names that the server quoted and constants of this package

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from keikaku_snapshots.postgres.capture import CaptureNames, function, literal
from keikaku_snapshots.postgres.filters import USER_SCHEMA
from keikaku_snapshots.postgres.session_settings import catalog_search_path

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keikaku_snapshots.postgres.connect import Connection


class Suspension(NamedTuple):
    """Something that rests during a rewind."""

    #: Root table: object id.
    table_oid: int
    #: Statement that switches it off.
    off: str
    #: Statement that brings back what it was.
    on: str
    #: True if it works even while session_replication_role is replica.
    in_replica: bool
    #: True if it works in an ordinary session.
    in_origin: bool


_ROOT = "CASE WHEN c.relispartition THEN pg_partition_root(c.oid)::oid ELSE c.oid END::bigint"
_TRIGGERS = f"""
SELECT {_ROOT}, format('ALTER TABLE ONLY %s DISABLE TRIGGER %I', c.oid::regclass, t.tgname),
       format('ALTER TABLE ONLY %s ENABLE %s TRIGGER %I', c.oid::regclass,
              CASE t.tgenabled WHEN 'A' THEN 'ALWAYS' WHEN 'R' THEN 'REPLICA' ELSE '' END, t.tgname),
       t.tgenabled IN ('A', 'R'), t.tgenabled IN ('A', 'O')
FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE NOT t.tgisinternal AND t.tgenabled <> 'D' AND t.tgname !~ {{ours}}
  AND c.relkind IN ('r', 'p') AND {USER_SCHEMA}
ORDER BY t.oid
"""
_RULES = f"""
SELECT {_ROOT}, format('ALTER TABLE ONLY %s DISABLE RULE %I', c.oid::regclass, r.rulename),
       format('ALTER TABLE ONLY %s ENABLE %s RULE %I', c.oid::regclass,
              CASE r.ev_enabled WHEN 'A' THEN 'ALWAYS' WHEN 'R' THEN 'REPLICA' ELSE '' END, r.rulename),
       r.ev_enabled IN ('A', 'R'), r.ev_enabled IN ('A', 'O')
FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE r.ev_enabled <> 'D' AND r.rulename <> '_RETURN' AND c.relkind IN ('r', 'p') AND {USER_SCHEMA}
ORDER BY r.oid
"""
# Both tables of a foreign key count: it has triggers on both.
_FOREIGN_KEYS = f"""
SELECT {_ROOT}, format('ALTER TABLE %s ALTER CONSTRAINT %I DEFERRABLE INITIALLY DEFERRED', k.conrelid::regclass, k.conname),
       format('ALTER TABLE %s ALTER CONSTRAINT %I %s', k.conrelid::regclass, k.conname,
              CASE WHEN k.condeferrable THEN 'DEFERRABLE INITIALLY IMMEDIATE' ELSE 'NOT DEFERRABLE' END),
       false, true
FROM pg_constraint k JOIN pg_class o ON o.oid = k.conrelid JOIN pg_namespace n ON n.oid = o.relnamespace
JOIN pg_class c ON c.oid IN (k.conrelid, k.confrelid)
WHERE k.contype = 'f' AND k.conparentid = 0 AND NOT k.condeferred AND {USER_SCHEMA}
ORDER BY k.oid
"""


def suspensions(connection: Connection, own_triggers: str) -> list[Suspension]:
    """List what may be in the way of a rewind.

    Args:
        connection: The database.
        own_triggers: Prefix of our own triggers' names.
    """
    with catalog_search_path(connection):
        rows = connection.execute(_TRIGGERS.format(ours=literal(f"^{own_triggers}"))).fetchall()
        rows += connection.execute(_RULES).fetchall()
        rows += connection.execute(_FOREIGN_KEYS).fetchall()
    return [Suspension(*row) for row in rows]


def suspension_functions(
    names: CaptureNames, found: Iterable[Suspension], cascading: Iterable[tuple[int, int]]
) -> str:
    """Make the table of what rests, and the functions that switch it off and on.

    Args:
        names: Names of the capture.
        found: What there is.
        cascading: Pairs of root tables: a change of the first may change the second.

    Returns:
        SQL.
    """
    schema = names.schema
    rows = ",\n".join(
        f"({number}, {one.table_oid}, {literal(one.off)}, {literal(one.on)}, {one.in_replica}, {one.in_origin})"
        for number, one in enumerate(found, 1)
    )
    pairs = ", ".join(f"({parent}, {child})" for parent, child in sorted(set(cascading)))
    switch = (
        "DECLARE statement text;\nBEGIN\n"
        "FOR statement IN SELECT {column} FROM (\n"
        "  SELECT DISTINCT ON ({column}) number, {column} FROM {schema}.suspensions s\n"
        "  WHERE s.relation = ANY (relations) AND CASE WHEN is_replica THEN in_replica ELSE in_origin END\n"
        "  ORDER BY {column}, number) s ORDER BY number {order}\n"
        "LOOP EXECUTE statement; END LOOP;\nEND"
    )
    reach = (
        "BEGIN RETURN ARRAY(WITH RECURSIVE reached(relation) AS (\n"
        "    SELECT unnest(relations) UNION\n"
        f"    SELECT c.child FROM reached r JOIN {schema}.cascades c ON c.parent = r.relation)\n"
        "  SELECT relation FROM reached); END"
    )
    arguments = "(relations oid[], is_replica boolean)"
    return (
        f"CREATE TABLE {schema}.suspensions (number int, relation oid, off_statement text, on_statement text,"
        " in_replica boolean, in_origin boolean);\n"
        f"CREATE TABLE {schema}.cascades (parent oid, child oid);\n"
        + (f"INSERT INTO {schema}.suspensions VALUES {rows};\n" if rows else "")
        + (f"INSERT INTO {schema}.cascades VALUES {pairs};\n" if pairs else "")
        + function(
            f"{schema}.suspend",
            switch.format(column="off_statement", schema=schema, order=""),
            arguments=arguments,
            returns="void",
            definer=False,
            settings="",
        )
        + function(
            f"{schema}.resume",
            switch.format(column="on_statement", schema=schema, order="DESC"),
            arguments=arguments,
            returns="void",
            definer=False,
            settings="",
        )
        + function(
            f"{schema}.reach",
            reach,
            arguments="(relations oid[])",
            returns="oid[]",
            definer=False,
            settings="",
        )
    )
