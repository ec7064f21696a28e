"""The net effect of a log of changes, and the functions that take it back (docs/design.md, Rewind).

Of a table with a key: a row existed at the start if it exists now, and
deletions outnumber insertions in the log by none, or if they do by one. Its
first image in the log is what it was. In mode "images" the images that were
taken away more often than they came are those of the start.
"""
# ruff: noqa: E501, S608 - SQL is put together from names that are quoted and constants of this package

from __future__ import annotations

from typing import TYPE_CHECKING

from keikaku_snapshots.postgres.capture import CaptureNames, function, kept_value

if TYPE_CHECKING:
    from keikaku_snapshots.postgres.capture_tables import CapturedTable

#: The log has no statistics; without these the planner would read the user's whole table.
_BY_INDEX = "SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off"
#: A column of the user may have the name of a variable of ours; ours never mean one without its table.
VARIABLES_FIRST = "#variable_conflict use_variable\n"
#: A log that is larger is emptied by TRUNCATE, so that dead rows never pile up; 256 kB.
TRUNCATE_ABOVE_BYTES = 262_144


def rewind_function(names: CaptureNames, table: CapturedTable) -> str:
    """Make the function that brings one table back while foreign keys and triggers rest.

    Args:
        names: Names of the capture.
        table: The table.

    Returns:
        SQL. The function returns the number of rows that differed.
    """
    if table.mode == "keys":
        find = _by_keys(names, table)
    elif table.key:
        find = by_images(names, table) + _delete_by_key(names, table)
    else:
        find = by_images(names, table) + delete_copies(names, table)
    body = (
        f"{VARIABLES_FIRST}DECLARE\n  changed bigint;\n  restored bigint[];\n  copies bigint[];\n  gone bigint[];\n"
        f"  gone_copies bigint[];\n  stayed bigint[];\n  may_be_there boolean;\nBEGIN\n{find}{_insert(names, table)}{clear(names, table)}"
        "RETURN changed;\nEND"
    )
    name = f"{names.schema}.rewind_{table.number}"
    return function(name, body, returns="bigint", definer=False, settings=planning(table))


def planning(table: CapturedTable) -> str:
    """Return the settings of a function that joins a log with its table.

    Args:
        table: The table; without a key it is read as a whole, and all ways of joining are right.
    """
    return _BY_INDEX if table.key else ""


def among(value: str, array: str) -> str:
    """Return the condition that a value is in an array, in a form that is hashed whatever the planner thinks.

    Args:
        value: SQL.
        array: SQL.
    """
    return f"CASE WHEN {value} IN (SELECT unnest({array})) THEN true END"


def match(table: CapturedTable, row: str, kept: str) -> str:
    """Return the condition that a row of the table has a kept key.

    Args:
        table: The table.
        row: Alias of the table.
        kept: Alias of what has the kept columns.
    """
    parts = zip(table.key, table.key_columns(), strict=True)
    return " AND ".join(
        f"{row}.{column.identifier} {part.equals} {kept}.{column.kept}{column.cast}{part.collate}"
        for part, column in parts
    )


def _by_keys(names: CaptureNames, table: CapturedTable) -> str:
    """What the log says by itself needs no look at the table; a change of a row is taken back where it is."""
    key = ", ".join(column.kept for column in table.key_columns())
    net = (
        f"SELECT {key}, sum(CASE op WHEN '-' THEN 1 WHEN '+' THEN -1 ELSE 0 END) AS surplus,\n"
        f"         min(seq) FILTER (WHERE op <> '+') AS first, {_stays(table)} AS stays\n"
        f"  FROM {names.log(table)} GROUP BY {key}"
    )
    return (
        f"SELECT count(*) FILTER (WHERE stays OR surplus <> 0),\n"
        f"       coalesce(array_agg(first) FILTER (WHERE surplus = 1), '{{}}'),\n"
        f"       array_agg(first) FILTER (WHERE stays), bool_or(surplus <= 0 AND NOT stays)\n"
        f"INTO changed, restored, stayed, may_be_there FROM (\n  {net}) net;\n"
        f"IF may_be_there THEN\n"
        f"  WITH net AS MATERIALIZED (\n  {net}),\n"
        f"  now AS (DELETE FROM {table.only} t USING net\n"
        f"          WHERE net.surplus <= 0 AND NOT net.stays AND {match(table, 't', 'net')}\n"
        f"          RETURNING net.first, net.surplus)\n"
        f"  SELECT changed + count(*), restored || coalesce(array_agg(first), '{{}}')\n"
        f"  INTO changed, restored FROM now WHERE surplus = 0;\nEND IF;\n"
    ) + _change_back(names, table)


def _stays(table: CapturedTable) -> str:
    """SQL: the row of a key was changed only, never deleted or inserted; and UPDATE can set all of its columns."""
    key = table.key_columns()
    is_fixed = any(column.is_identity_always and column not in key for column in table.columns)
    return "false" if is_fixed else "bool_and(op = '=')"


def _change_back(names: CaptureNames, table: CapturedTable) -> str:
    """Change rows back where they are, which leaves the indexes alone unless an indexed column was changed."""
    values = ", ".join(
        f"{column.identifier} = u.{column.kept}{column.cast}"
        for column in table.columns
        if not column.is_identity_always
    )
    if not values:
        return ""
    where = f"{among('u.seq', 'stayed')} AND {match(table, 't', 'u')}"
    return (
        "IF stayed IS NOT NULL THEN\nBEGIN\n"
        f"  UPDATE {table.only} t SET {values}\n  FROM {names.log(table)} u WHERE {where};\n"
        # One after the other, rows may meet a unique value that the next one is still to give back.
        "EXCEPTION WHEN unique_violation OR exclusion_violation THEN\n"
        f"  DELETE FROM {table.only} t USING {names.log(table)} u WHERE {where};\n"
        "  restored := restored || stayed;\nEND;\nEND IF;\n"
    )


def image(table: CapturedTable, *, row: str = "", kept: str = "") -> str:
    """Return the text of a whole row, kept or present: equal for equal rows, and for no others.

    Args:
        table: The table.
        row: Alias of the table; without it the kept columns are meant.
        kept: Alias of what has the kept columns.
    """
    if not row:
        source = f"{kept}." if kept else ""
        return f"ROW({', '.join(source + column.kept for column in table.columns)})::text"
    values = ", ".join(f"{kept_value(column, f'{row}.')}::{column.kept_type}" for column in table.columns)
    return f"ROW({values})::text"


def by_images(names: CaptureNames, table: CapturedTable) -> str:
    """Return the statements that find the images to put back and those to take away.

    Args:
        names: Names of the capture.
        table: The table.
    """
    return (
        "SELECT count(*) FILTER (WHERE surplus > 0), coalesce(array_agg(any_seq) FILTER (WHERE surplus > 0), '{}'),\n"
        "       array_agg(surplus) FILTER (WHERE surplus > 0),\n"
        "       coalesce(array_agg(any_seq) FILTER (WHERE surplus < 0), '{}'),\n"
        "       array_agg(-surplus) FILTER (WHERE surplus < 0)\n"
        "INTO changed, restored, copies, gone, gone_copies FROM (\n"
        "  SELECT min(seq) AS any_seq, sum(CASE op WHEN '-' THEN 1 ELSE -1 END) AS surplus\n"
        f"  FROM {names.log(table)} GROUP BY {image(table)}) net WHERE surplus <> 0;\n"
        "changed := greatest(cardinality(restored), cardinality(gone));\n"
    )


def _delete_by_key(names: CaptureNames, table: CapturedTable) -> str:
    return (
        f"DELETE FROM {table.only} t USING {names.log(table)} u\n"
        f"WHERE {among('u.seq', 'gone')} AND {match(table, 't', 'u')};\n"
    )


def delete_copies(names: CaptureNames, table: CapturedTable) -> str:
    """Without a key the whole table is read, and only when rows have to go."""
    return (
        "IF cardinality(gone) > 0 THEN\n"
        f"  DELETE FROM {table.only} t USING (\n"
        f"    SELECT p.place, p.part FROM (\n"
        f"      SELECT r.ctid AS place, r.tableoid AS part, {image(table, row='r')} AS image,\n"
        f"             row_number() OVER (PARTITION BY {image(table, row='r')}) AS copy FROM {table.only} r) p\n"
        f"    JOIN (SELECT {image(table)} AS image, g.copies FROM unnest(gone, gone_copies) g(seq, copies)\n"
        f"          JOIN {names.log(table)} u ON u.seq = g.seq) net\n"
        f"      ON p.image = net.image AND p.copy <= net.copies) d\n"
        "  WHERE t.ctid = d.place AND t.tableoid = d.part;\n"
        "END IF;\n"
    )


def _insert(names: CaptureNames, table: CapturedTable) -> str:
    columns = ", ".join(column.identifier for column in table.columns)
    values = ", ".join(f"{column.kept}{column.cast}" for column in table.columns)
    head = (
        f"INSERT INTO {table.identifier} ({columns}) OVERRIDING SYSTEM VALUE\n"
        if columns
        else (f"INSERT INTO {table.identifier}\n")
    )
    if table.key:
        rows = f"SELECT {values} FROM {names.log(table)} WHERE {among('seq', 'restored')}"
        return f"IF cardinality(restored) > 0 THEN\n{head}{rows};\nEND IF;\n"
    return (
        f"{head}SELECT {values} FROM {names.log(table)} u JOIN unnest(restored, copies) r(seq, copies)\n"
        "  ON u.seq = r.seq CROSS JOIN generate_series(1, r.copies);\n"
    )


def clear(names: CaptureNames, table: CapturedTable) -> str:
    """Return the statements that empty a log.

    Args:
        names: Names of the capture.
        table: The table.
    """
    log = names.log(table)
    return (
        f"DELETE FROM {log};\n"
        f"IF pg_relation_size('{log}') > {TRUNCATE_ABOVE_BYTES} THEN TRUNCATE {log}; END IF;\n"
    )
