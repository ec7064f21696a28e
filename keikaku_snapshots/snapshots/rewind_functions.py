"""The functions that a rewind calls: all tables at once, and the sequences after their commit."""
# ruff: noqa: E501, S608 - SQL is put together from names that are quoted and constants of this package

from __future__ import annotations

from typing import TYPE_CHECKING

from keikaku_snapshots.postgres.capture import CaptureNames, function, literal
from keikaku_snapshots.postgres.filters import USER_SCHEMA, not_extension_member
from keikaku_snapshots.postgres.url import quote_identifier

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keikaku_snapshots.postgres.capture_tables import CapturedTable
    from keikaku_snapshots.postgres.connect import Connection

#: The rewind found that the schema is another one, or that a capture failed: it changed nothing.
STALE_STATE = "KRW01"

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
    names: CaptureNames, tables: Sequence[CapturedTable], sequences: Sequence[tuple[int, str]]
) -> str:
    """Make the functions that the client calls.

    Args:
        names: Names of the capture.
        tables: All tables.
        sequences: All sequences.

    Returns:
        SQL, with the sequences as they stand at this moment.
    """
    return _rewind_all(names, tables) + _sequence_functions(names, sequences)


def _rewind_all(names: CaptureNames, tables: Sequence[CapturedTable]) -> str:
    schema = names.schema
    steps = "".join(
        f"IF EXISTS (SELECT FROM {names.log(table)}) THEN\n"
        f"  rows := rows + {schema}.rewind_{table.number}(); tables := tables + 1;\nEND IF;\n"
        for table in tables
    )
    # The hash is read when the rows are back: until COMMIT nobody can change a table that was written to.
    body = (
        "BEGIN\n"
        "rows := 0; tables := 0;\n"
        f"PERFORM pg_advisory_xact_lock({names.lock_arguments});\n"
        f"IF EXISTS (SELECT FROM {schema}.broken) THEN\n"
        f"  RAISE EXCEPTION 'a capture failed' USING ERRCODE = {literal(STALE_STATE)};\nEND IF;\n"
        "PERFORM set_config('keikaku.rewinding', 'on', true);\n"
        f"{steps}"
        f"IF {schema}.ddl_hash() IS DISTINCT FROM (SELECT ddl FROM {schema}.state) THEN\n"
        f"  RAISE EXCEPTION 'the schema was changed' USING ERRCODE = {literal(STALE_STATE)};\nEND IF;\n"
        "END"
    )
    arguments = "(OUT tables bigint, OUT rows bigint)"
    return (
        f"CREATE FUNCTION {schema}.rewind_all{arguments} LANGUAGE plpgsql AS {literal(body)};\n"
        f"REVOKE ALL ON FUNCTION {schema}.rewind_all() FROM PUBLIC;\n"
    )


def _sequence_functions(names: CaptureNames, sequences: Sequence[tuple[int, str]]) -> str:
    schema = names.schema
    present = (
        " UNION ALL ".join(
            f"SELECT {oid}::oid AS relation, last_value, is_called FROM {name}" for oid, name in sequences
        )
        or "SELECT 0::oid AS relation, 0::bigint AS last_value, false AS is_called WHERE false"
    )
    body = (
        "DECLARE moved record; number bigint := 0;\nBEGIN\n"
        "FOR moved IN SELECT s.relation, s.last_value, s.is_called\n"
        f"  FROM ({present}) now JOIN {schema}.sequences s ON s.relation = now.relation\n"
        "  WHERE s.last_value <> now.last_value OR s.is_called <> now.is_called\n"
        "LOOP\n  PERFORM setval(moved.relation, moved.last_value, moved.is_called); number := number + 1;\n"
        "END LOOP;\nRETURN number;\nEND"
    )
    return (
        f"CREATE TABLE {schema}.sequences (relation oid PRIMARY KEY, last_value bigint, is_called boolean);\n"
        f"INSERT INTO {schema}.sequences {present};\n"
        + function(f"{schema}.rewind_sequences", body, returns="bigint", definer=False, settings="")
    )
