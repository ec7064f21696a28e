"""The functions that a rewind calls: all tables at once in one of three ways, then the sequences."""
# ruff: noqa: E501, S608 - SQL is put together from names that are quoted and constants of this package

from __future__ import annotations

from typing import TYPE_CHECKING

from keikaku_snapshots.postgres.capture import CaptureNames, function, literal
from keikaku_snapshots.postgres.capture_net import clear
from keikaku_snapshots.postgres.capture_owner import THOROUGH_STATE
from keikaku_snapshots.postgres.filters import USER_SCHEMA, not_extension_member
from keikaku_snapshots.postgres.url import quote_identifier

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from keikaku_snapshots.postgres.capture_tables import CapturedTable
    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.snapshots.rewind_suspension import Suspension

#: The rewind found that the schema is another one: it changed nothing.
STALE_STATE = "KRW01"
#: The thorough way did not come to an end: something still changes rows behind it.
RESTLESS_STATE = "KRW03"
#: Rounds of the thorough way; one does the work, one more sees that nothing is left, cascades need a few.
_ROUNDS = 12

_SEQUENCES = f"""
SELECT c.oid::bigint, n.nspname::text, c.relname::text
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'S' AND c.relpersistence <> 't' AND {USER_SCHEMA} AND {not_extension_member("pg_class", "c.oid")}
ORDER BY c.oid
"""


def sequence_names(connection: Connection) -> list[tuple[int, str]]:
    """List the sequences of the user: object id and name as SQL.

    Args:
        connection: The database.
    """
    rows = connection.execute(_SEQUENCES).fetchall()
    return [(oid, f"{quote_identifier(schema)}.{quote_identifier(name)}") for oid, schema, name in rows]


def main_functions(
    names: CaptureNames, parents_first: Sequence[CapturedTable], found: Collection[Suspension]
) -> str:
    """Make the three functions of which the client calls one: ``replica``, ``owner`` or ``suspended``.

    Each returns the number of tables and rows, whether sequences have to follow, and how many are back already.

    Args:
        names: Names of the capture.
        parents_first: All tables, those referred to first.
        found: What may have to rest.

    Returns:
        SQL.
    """
    # A crash of the server empties unlogged tables: ours tells that it happened.
    unlogged = any(table.is_unlogged for table in parents_first)
    alive = f"NOT EXISTS (SELECT FROM {names.schema}.alive)" if unlogged else "false"
    made = f"CREATE UNLOGGED TABLE {names.schema}.alive AS SELECT 1 AS beat;\n" if unlogged else ""
    body = f"BEGIN RETURN {alive}; END"
    crashed = function(f"{names.schema}.crashed", body, returns="boolean", definer=False, settings="")
    return (
        made
        + crashed
        + _replica(names, parents_first, {one.table_oid for one in found if one.in_replica})
        + _owner(names, parents_first, found)
        + _suspended(names, parents_first)
        + _move(names, parents_first)
    )


def _main(names: CaptureNames, way: str, declarations: str, work: str) -> str:
    schema = names.schema
    # The hash is read when the rows are back: until COMMIT nobody can alter a table that was written to.
    body = (
        f"DECLARE\n  touched oid[] := '{{}}';\n  written boolean[];\n{declarations}BEGIN\n"
        "rows := 0; tables := 0;\n"
        f"PERFORM pg_advisory_xact_lock({names.lock_arguments});\n"
        f"IF EXISTS (SELECT FROM {schema}.broken) OR {schema}.crashed() THEN\n"
        f"  RAISE EXCEPTION 'a capture failed' USING ERRCODE = {literal(STALE_STATE)};\nEND IF;\n"
        f"{work}"
        f"IF {schema}.ddl_changed() THEN\n"
        f"  RAISE EXCEPTION 'the schema was changed' USING ERRCODE = {literal(STALE_STATE)};\nEND IF;\n"
        "raised := 0;\n"
        f"sequences := {schema}.sequences_moved();\n"
        "IF sequences THEN\n"
        # Before the rows are committed: killed in between, we must leave no sequence behind them.
        f"  raised := {schema}.rewind_sequences(true);\n"
        f"  sequences := {schema}.sequences_moved();\n"
        # Kept until all sequences are back, so that nobody takes a number in between.
        f"  IF sequences THEN PERFORM pg_advisory_lock({names.lock_arguments}); END IF;\nEND IF;\n"
        "END"
    )
    name = f"{schema}.rewind_{way}"
    return (
        f"CREATE FUNCTION {name}"
        "(OUT tables bigint, OUT rows bigint, OUT sequences boolean, OUT raised bigint) LANGUAGE plpgsql"
        f" AS {literal(body)};\n"
        f"REVOKE ALL ON FUNCTION {name}() FROM PUBLIC;\n"
    )


def _for_each(
    names: CaptureNames, tables: Iterable[CapturedTable], step: str, *, looked: bool = False
) -> str:
    """Do something for each table whose log has entries; ``looked`` if `_look` said which, and capture is off."""
    return "".join(
        f"IF {f'written[{table.number}]' if looked else f'EXISTS (SELECT FROM {names.log(table)})'} THEN\n"
        f"{step.format(schema=names.schema, number=table.number, oid=table.oid, clear=clear(names, table))}END IF;\n"
        for table in tables
    )


def _look(names: CaptureNames, tables: Sequence[CapturedTable]) -> str:
    """Ask all logs at once: with many tables most of them are empty."""
    in_order = sorted(tables, key=lambda table: table.number)
    asked = ", ".join(f"EXISTS (SELECT FROM {names.log(table)})" for table in in_order)
    return f"written := ARRAY[{asked}]::boolean[];\n"


_QUIET = "PERFORM set_config('keikaku.rewinding', 'on', true);\n"
_TOUCHED = "  tables := tables + 1; touched := touched || {oid}::oid;\n"


def _replica(names: CaptureNames, tables: Sequence[CapturedTable], noisy: Collection[int]) -> str:
    """Foreign keys and triggers rest by themselves; only ALWAYS and REPLICA ones have to be told."""
    step = "  rows := rows + {schema}.rewind_{number}(); tables := tables + 1;\n"
    suspended = "  PERFORM {schema}.suspend(ARRAY[{oid}::oid], true);\n" + step
    suspended += "  PERFORM {schema}.resume(ARRAY[{oid}::oid], true);\n"
    work = "".join(
        _for_each(names, [table], suspended if table.oid in noisy else step, looked=True) for table in tables
    )
    return _main(names, "replica", "", _QUIET + _look(names, tables) + work)


def _owner(names: CaptureNames, parents_first: Sequence[CapturedTable], found: Collection[Suspension]) -> str:
    """The quick way of an owner, for what most tests do; it gives up where it would not be exact."""
    give_up = f"RAISE EXCEPTION 'the thorough way is needed' USING ERRCODE = {literal(THOROUGH_STATE)};"
    noisy = {one.table_oid for one in found if one.in_origin and "ALTER CONSTRAINT" not in one.off}
    children_first = list(reversed(parents_first))
    loud = [table for table in parents_first if table.oid in noisy]
    look = "  SELECT * INTO wanted_{number} FROM {schema}.wanted_{number}(); tables := tables + 1;\n"
    delete = (
        look + "  IF wanted_{number}.unwanted THEN\n"
        "    IF {schema}.would_cascade_{number}() THEN " + give_up + " END IF;\n"
        "    rows := rows + {schema}.delete_back_{number}(NULL);\n  END IF;\n"
    )
    back = (
        "  IF wanted_{number}.present THEN\n"
        "    rows := rows + {schema}.update_back_{number}(wanted_{number}.restored);\n  END IF;\n"
        "  IF wanted_{number}.missing THEN\n"
        "    rows := rows + {schema}.insert_back_{number}(wanted_{number}.restored);\n  END IF;\n"
    )
    work = (
        _QUIET
        + _look(names, parents_first)
        + _for_each(names, loud, f"  {give_up}\n", looked=True)
        + _for_each(names, children_first, delete, looked=True)
        + _for_each(names, parents_first, back, looked=True)
        + _for_each(names, parents_first, "{clear}", looked=True)
    )
    declarations = "".join(f"  wanted_{table.number} record;\n" for table in parents_first)
    return _main(names, "owner", declarations, work)


def _suspended(names: CaptureNames, parents_first: Sequence[CapturedTable]) -> str:
    """The thorough way of an owner: capture stays on, so that what cascades is found and taken back too."""
    schema = names.schema
    children_first = list(reversed(parents_first))
    # Deleting first frees unique values; RESTRICT needs the references gone before; a swap needs room.
    delete = "{schema}.delete_back_{number}(NULL)"
    update = "{schema}.update_back_{number}(wanted_{number})"
    step = (
        "  SELECT restored INTO wanted_{number} FROM {schema}.wanted_{number}();\n  BEGIN\n"
        f"    step := {delete}; step := step + {update};\n"
        "  EXCEPTION WHEN foreign_key_violation OR restrict_violation THEN\n"
        f"    step := {update}; step := step + {delete};\n"
        "  WHEN unique_violation OR exclusion_violation THEN\n"
        f"    step := {delete}; step := step + {{schema}}.clear_way_{{number}}(wanted_{{number}});\n"
        "  END;\n  changed := changed + step;\n"
    )
    # Capture is on: a table that a cascade has only just reached has a log now, and nothing wanted yet.
    insert = "  changed := changed + {schema}.insert_back_{number}(wanted_{number});\n"
    touch = _for_each(names, parents_first, "  touched := touched || {oid}::oid;\n")
    work = (
        touch + "IF cardinality(touched) > 0 THEN\n"
        f"tables := cardinality(touched);\ntouched := {schema}.reach(touched);\n"
        f"PERFORM {schema}.suspend(touched, false);\n"
        "SET CONSTRAINTS ALL DEFERRED;\n"
        f"FOR round IN 1..{_ROUNDS} LOOP\nchanged := 0;\n"
        + _for_each(names, children_first, step)
        + _for_each(names, parents_first, insert)
        + "rows := greatest(rows, changed);\nEXIT WHEN changed = 0;\nEND LOOP;\n"
        "IF changed > 0 THEN\n"
        f"  RAISE EXCEPTION 'rows still change' USING ERRCODE = {literal(RESTLESS_STATE)};\nEND IF;\n"
        "SET CONSTRAINTS ALL IMMEDIATE;\n"
        f"PERFORM {schema}.resume(touched, false);\n"
        + _for_each(names, parents_first, "{clear}")
        + "END IF;\n"
    )
    return _main(
        names,
        "suspended",
        "  changed bigint := 0; step bigint := 0;\n"
        + "".join(f"  wanted_{table.number} bigint[];\n" for table in parents_first),
        work,
    )


def _move(names: CaptureNames, tables: Sequence[CapturedTable]) -> str:
    """A new checkpoint of an unchanged schema: the logs are emptied, the sequences noted."""
    schema = names.schema
    body = (
        f"BEGIN\nIF EXISTS (SELECT FROM {schema}.broken) OR {schema}.crashed()\n"
        f"   OR {schema}.ddl_changed() THEN RETURN false; END IF;\n"
        + _for_each(names, tables, "{clear}")
        + f"PERFORM {schema}.note_sequences();\n"
        f"UPDATE {schema}.state SET made_at = now(), snapshot = source;\nRETURN true;\nEND"
    )
    arguments = "(source jsonb)"
    return function(
        f"{schema}.move", body, arguments=arguments, returns="boolean", definer=False, settings=""
    )


def sequence_functions(names: CaptureNames, sequences: Sequence[tuple[int, str]]) -> str:
    """Make the table of sequences as they stand, and the functions that compare them and put them back.

    Args:
        names: Names of the capture.
        sequences: Object ids and names as SQL.

    Returns:
        SQL.
    """
    schema = names.schema
    present = (
        " UNION ALL ".join(
            f"SELECT {oid}::oid AS relation, last_value, is_called FROM {name}" for oid, name in sequences
        )
        or "SELECT 0::oid AS relation, 0::bigint AS last_value, false AS is_called WHERE false"
    )
    others = (
        f"FROM ({present}) now JOIN {schema}.sequences s ON s.relation = now.relation\n"
        "  WHERE (s.last_value <> now.last_value OR s.is_called <> now.is_called)"
    )
    forward = (
        "CASE WHEN s.last_value = now.last_value THEN s.is_called"
        " WHEN (SELECT seqincrement FROM pg_sequence WHERE seqrelid = s.relation) > 0"
        " THEN s.last_value > now.last_value ELSE s.last_value < now.last_value END"
    )
    moved = f"BEGIN RETURN {f'EXISTS (SELECT {others})' if sequences else 'false'}; END"
    body = (
        "DECLARE moved record; number bigint := 0;\nBEGIN\n"
        f"FOR moved IN SELECT s.relation, s.last_value, s.is_called\n  {others}\n"
        f"  AND ({forward} OR NOT only_forward)\n"
        "LOOP\n  PERFORM setval(moved.relation, moved.last_value, moved.is_called); number := number + 1;\n"
        "END LOOP;\nIF NOT only_forward THEN PERFORM pg_advisory_unlock_all(); END IF;\nRETURN number;\nEND"
    )
    note = f"BEGIN\nTRUNCATE {schema}.sequences;\nINSERT INTO {schema}.sequences {present};\nEND"
    return (
        f"CREATE TABLE {schema}.sequences (relation oid PRIMARY KEY, last_value bigint, is_called boolean);\n"
        + function(f"{schema}.note_sequences", note, returns="void", definer=False, settings="")
        + function(f"{schema}.sequences_moved", moved, returns="boolean", definer=False, settings="")
        + function(
            f"{schema}.rewind_sequences",
            body,
            arguments="(only_forward boolean)",
            returns="bigint",
            definer=False,
            settings="",
        )
    )
