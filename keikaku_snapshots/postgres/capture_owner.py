"""Take a log back as a plain owner: foreign keys watch, so rows are deleted, changed and put back in order.

Each table gets three steps, taken one after the other over all tables: delete the rows that were not there (children first), change back those that
were (a row is never deleted and made again without need, a cascade would take
others along), and put back those that are missing (parents first). Each looks
at the table as it is now, so they may be repeated until nothing is left to do.
"""
# ruff: noqa: E501, S608 - SQL is put together from names that are quoted and constants of this package

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from keikaku_snapshots.postgres.capture import CaptureNames, function, literal
from keikaku_snapshots.postgres.capture_net import (
    VARIABLES_FIRST,
    among,
    by_images,
    delete_copies,
    image,
    match,
    planning,
)
from keikaku_snapshots.postgres.filters import USER_SCHEMA
from keikaku_snapshots.postgres.session_settings import catalog_search_path
from keikaku_snapshots.postgres.url import quote_identifier

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keikaku_snapshots.postgres.capture_tables import CapturedTable
    from keikaku_snapshots.postgres.connect import Connection

#: Raised by the quick way of an owner where it would not be exact; the thorough way follows.
THOROUGH_STATE = "KRW02"


@dataclass(frozen=True, slots=True)
class Cascade:
    """A foreign key, which may change rows by itself when the row that it refers to goes."""

    #: Root table that refers: object id.
    child_oid: int
    #: Root table referred to: object id.
    parent_oid: int
    #: The table that refers, as SQL.
    child: str
    #: Pairs of columns and the operator between them: referred to, operator, refers.
    columns: tuple[tuple[str, str, str], ...]
    #: True if the change of a referred value cascades too.
    on_update: bool
    #: True if a deletion cascades.
    on_delete: bool


_CASCADES = f"""
SELECT CASE WHEN c.relispartition THEN pg_partition_root(c.oid)::oid ELSE c.oid END::bigint,
       CASE WHEN f.relispartition THEN pg_partition_root(f.oid)::oid ELSE f.oid END::bigint,
       c.oid::regclass::text,
       ARRAY(SELECT ARRAY[fa.attname::text, 'OPERATOR(' || quote_ident(os.nspname) || '.' || o.oprname || ')',
                          ca.attname::text]
             FROM unnest(k.conkey, k.confkey, k.conpfeqop) WITH ORDINALITY u(mine, theirs, op, pos)
             JOIN pg_attribute ca ON ca.attrelid = k.conrelid AND ca.attnum = u.mine
             JOIN pg_attribute fa ON fa.attrelid = k.confrelid AND fa.attnum = u.theirs
             JOIN pg_operator o ON o.oid = u.op JOIN pg_namespace os ON os.oid = o.oprnamespace
             ORDER BY u.pos),
       k.confupdtype IN ('c', 'n', 'd'), k.confdeltype IN ('c', 'n', 'd')
FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_class f ON f.oid = k.confrelid
WHERE k.contype = 'f' AND k.conparentid = 0 AND {USER_SCHEMA}
  AND (%s OR k.confupdtype IN ('c', 'n', 'd') OR k.confdeltype IN ('c', 'n', 'd'))
ORDER BY k.oid
"""


def cascades(connection: Connection, *, all_keys: bool = False) -> list[Cascade]:
    """List the foreign keys that cascade, set NULL or set a default.

    Args:
        connection: The database.
        all_keys: List those that do nothing by themselves too.
    """
    with catalog_search_path(connection):
        rows = connection.execute(_CASCADES, [all_keys]).fetchall()
    return [
        Cascade(
            child,
            parent,
            name,
            tuple((theirs, operator, mine) for theirs, operator, mine in pairs),
            update,
            delete,
        )
        for child, parent, name, pairs, update, delete in rows
    ]


def owner_functions(names: CaptureNames, table: CapturedTable, found: Sequence[Cascade]) -> str:
    """Make the functions of a table, and the one that looks whether a deletion would cascade.

    Args:
        names: Names of the capture.
        table: The table.
        found: All cascading foreign keys.

    Returns:
        SQL: ``wanted`` tells what belongs there (entries of the log), whether rows are there that do not,
        rows that do, and whether rows are missing. ``delete_back``, ``update_back``, ``insert_back`` and
        ``clear_way`` return the number of rows that they changed.
    """
    images = "" if table.key else by_images(names, table)
    delete = (
        f"DELETE FROM {table.only} t USING ({_wanted(names, table)}) w\n"
        f"WHERE w.wanted IS NULL AND {match(table, 't', 'w')};\n{_COUNT}"
        if table.key
        else images + delete_copies(names, table) + "changed := cardinality(gone);\n"
    )
    bodies = {
        "delete_back": delete,
        "update_back": _update(names, table) if table.key else "",
        "insert_back": _insert_missing(names, table) if table.key else images + _insert_copies(names, table),
        # Where changing rows one by one meets a unique value of the next.
        "clear_way": f"DELETE FROM {table.only} t USING {names.log(table)} u\nWHERE {_differs(table)};\n{_COUNT}"
        if table.key
        else "",
    }
    parts = [_wanted_function(names, table)]
    for what, body in bodies.items():
        parts.append(
            function(
                f"{names.schema}.{what}_{table.number}",
                f"{VARIABLES_FIRST}{_DECLARED}BEGIN\n{body}RETURN changed;\nEND",
                arguments="(restored bigint[])",
                returns="bigint",
                definer=False,
                settings=planning(table),
            )
        )
    parts.append(_would_cascade(names, table, found))
    return "".join(parts)


_DECLARED = "DECLARE\n  changed bigint := 0;\n  copies bigint[];\n  gone bigint[];\n  gone_copies bigint[];\n"
_COUNT = "GET DIAGNOSTICS changed = ROW_COUNT;\n"


def _wanted(names: CaptureNames, table: CapturedTable) -> str:
    """Return the query of all keys in the log: the entry that belongs there or NULL, and whether a row is there."""
    key = ", ".join(column.kept for column in table.key_columns())
    if table.mode == "keys":
        return (
            f"SELECT {key}, CASE WHEN surplus + is_there::int > 0 THEN first END AS wanted, is_there\n"
            f"FROM (SELECT net.*, EXISTS (SELECT FROM {table.only} x WHERE {match(table, 'x', 'net')}) AS is_there\n"
            f"      FROM (SELECT {key}, sum(CASE op WHEN '-' THEN 1 WHEN '+' THEN -1 ELSE 0 END) AS surplus,\n"
            f"                   min(seq) FILTER (WHERE op <> '+') AS first\n"
            f"            FROM {names.log(table)} GROUP BY {key}) net OFFSET 0) both_sides"
        )
    return (
        f"SELECT {key}, max(any_seq) FILTER (WHERE surplus > 0) AS wanted, bool_or(surplus < 0) AS is_there\n"
        f"FROM (SELECT {key}, min(seq) AS any_seq, sum(CASE op WHEN '-' THEN 1 ELSE -1 END) AS surplus\n"
        f"      FROM {names.log(table)} GROUP BY {key}, {image(table)}) net\n"
        f"WHERE surplus <> 0 GROUP BY {key}"
    )


def _wanted_function(names: CaptureNames, table: CapturedTable) -> str:
    query = (
        "SELECT array_agg(wanted) FILTER (WHERE wanted IS NOT NULL),\n"
        "  coalesce(bool_or(wanted IS NULL AND is_there), false),\n"
        "  coalesce(bool_or(wanted IS NOT NULL AND is_there), false),\n"
        "  coalesce(bool_or(wanted IS NOT NULL AND NOT is_there), false)\n"
        f"INTO restored, unwanted, present, missing FROM ({_wanted(names, table)}) w;\n"
        if table.key
        else "unwanted := true; present := false; missing := true;\n"
    )
    name = f"{names.schema}.wanted_{table.number}"
    outputs = "(OUT restored bigint[], OUT unwanted boolean, OUT present boolean, OUT missing boolean)"
    body = f"{VARIABLES_FIRST}BEGIN\n{query}END"
    return (
        f"CREATE FUNCTION {name}{outputs} LANGUAGE plpgsql {planning(table)}\n"
        f"AS {literal(body)};\n"
        f"REVOKE ALL ON FUNCTION {name}() FROM PUBLIC;\n"
    )


def _differs(table: CapturedTable) -> str:
    return (
        f"{among('u.seq', 'restored')} AND {match(table, 't', 'u')}\n"
        f"  AND {image(table, row='t')} <> {image(table, kept='u')}"
    )


def _update(names: CaptureNames, table: CapturedTable) -> str:
    changeable = [column for column in table.columns if not column.is_identity_always]
    if not changeable:
        return ""
    values = ", ".join(f"{column.identifier} = u.{column.kept}{column.cast}" for column in changeable)
    return (
        _make_room_for_identities(names, table)
        + f"UPDATE {table.only} t SET {values} FROM {names.log(table)} u\nWHERE {_differs(table)};\n{_COUNT}"
    )


def _make_room_for_identities(names: CaptureNames, table: CapturedTable) -> str:
    """No UPDATE sets GENERATED ALWAYS AS IDENTITY: a row with another number goes and is put back whole."""
    key = {column.identifier for column in table.key_columns()}
    fixed = [column for column in table.columns if column.is_identity_always and column.identifier not in key]
    if not fixed:
        return ""
    differs = " OR ".join(f"t.{column.identifier} <> u.{column.kept}" for column in fixed)
    where = f"{among('u.seq', 'restored')} AND {match(table, 't', 'u')} AND ({differs})"
    return (
        f"IF EXISTS (SELECT FROM {table.only} t, {names.log(table)} u WHERE {where}) THEN\n"
        # Only the thorough way sees what a deletion takes along.
        f"  IF NOT ({names.active}) THEN\n    RAISE EXCEPTION 'the thorough way is needed'"
        f" USING ERRCODE = {literal(THOROUGH_STATE)};\n  END IF;\n"
        f"  DELETE FROM {table.only} t USING {names.log(table)} u WHERE {where};\nEND IF;\n"
    )


def _insert_missing(names: CaptureNames, table: CapturedTable) -> str:
    columns = ", ".join(column.identifier for column in table.columns)
    values = ", ".join(f"u.{column.kept}{column.cast}" for column in table.columns)
    return (
        f"INSERT INTO {table.identifier} ({columns}) OVERRIDING SYSTEM VALUE\n"
        f"SELECT {values} FROM {names.log(table)} u WHERE {among('u.seq', 'restored')}\n"
        f"  AND NOT EXISTS (SELECT FROM {table.only} x WHERE {match(table, 'x', 'u')});\n{_COUNT}"
    )


def _insert_copies(names: CaptureNames, table: CapturedTable) -> str:
    columns = ", ".join(column.identifier for column in table.columns)
    values = ", ".join(f"u.{column.kept}{column.cast}" for column in table.columns)
    into = f"({columns}) OVERRIDING SYSTEM VALUE" if columns else ""
    return (
        f"INSERT INTO {table.identifier} {into}\nSELECT {values} FROM {names.log(table)} u\n"
        "JOIN unnest(restored, copies) r(seq, copies) ON u.seq = r.seq CROSS JOIN generate_series(1, r.copies);\n"
        f"{_COUNT}"
    )


def _would_cascade(names: CaptureNames, table: CapturedTable, found: Sequence[Cascade]) -> str:
    """Make the function that tells whether deleting the new rows would take rows of others along."""
    checks = []
    key = {column.identifier for column in table.key_columns()} if table.key else set()
    for cascade in found:
        if cascade.parent_oid != table.oid:
            continue
        referred = {quote_identifier(pair[0]) for pair in cascade.columns}
        if not table.key or (cascade.on_update and not referred <= key):
            checks.append("RETURN true;\n")
            break
        if not cascade.on_delete:
            continue
        on = " AND ".join(
            f"t.{quote_identifier(theirs)} {operator} c.{quote_identifier(mine)}"
            for theirs, operator, mine in cascade.columns
        )
        # A new row that refers to a new row of the same table goes with it anyway.
        among_new = (
            f" AND NOT EXISTS (SELECT FROM ({_wanted(names, table)}) o WHERE o.wanted IS NULL"
            f" AND {match(table, 'c', 'o')})"
            if cascade.child_oid == table.oid
            else ""
        )
        checks.append(
            f"IF EXISTS (SELECT FROM ({_wanted(names, table)}) w JOIN {table.only} t ON {match(table, 't', 'w')}\n"
            f"  JOIN {cascade.child} c ON {on} WHERE w.wanted IS NULL{among_new}) THEN RETURN true; END IF;\n"
        )
    body = f"{VARIABLES_FIRST}BEGIN\n{''.join(checks)}RETURN false;\nEND"
    name = f"{names.schema}.would_cascade_{table.number}"
    return function(name, body, returns="boolean", definer=False, settings=planning(table))
