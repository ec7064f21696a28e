"""Writing the changes of a row-wise batch: one statement for each kind, table and set of columns.

Values travel as arrays of texts that the server casts to the types of the
columns, so that every type works: arrays, json, enums, ranges, bytea. The cast
goes to the type without its length; the assignment to the column then refuses
what is too long, where an explicit cast would cut it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from psycopg import sql
from psycopg.adapt import PyFormat, Transformer
from psycopg.types.json import Json, Jsonb

from keikaku_snapshots.errors import PatchFailedError
from keikaku_snapshots.patches.keyset import key_values
from keikaku_snapshots.patches.set_based import Counts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keikaku_snapshots.patches.keyset import Key, Keyset
    from keikaku_snapshots.patches.plan import Plan
    from keikaku_snapshots.patches.row_based import Group, Transformed
    from keikaku_snapshots.patches.targets import TargetColumn
    from keikaku_snapshots.postgres.connect import Connection


class Texts:
    """Values of Python as the texts that the server reads.

    Args:
        connection: Whose adapters are used.
    """

    def __init__(self, connection: Connection) -> None:
        self._transformer = Transformer(connection)

    def of(self, value: Any, column: TargetColumn) -> str | None:
        """Return a value as text.

        Args:
            value: A value for the column.
            column: The column; for json a text is a JSON string, not a document.

        Returns:
            The text; None for NULL.
        """
        if value is None:
            return None
        if column.is_json and not isinstance(value, Json | Jsonb):
            return json.dumps(value, ensure_ascii=False)
        kind = type(value)
        if kind is str:
            return str(value)
        if kind is int:
            return str(value)
        dumped = self._transformer.get_dumper(value, PyFormat.TEXT).dump(value)
        return None if dumped is None else bytes(dumped).decode()

    def arrays(
        self, rows: Sequence[Sequence[Any]], columns: Sequence[TargetColumn]
    ) -> list[list[str | None]]:
        """Return rows as one list of texts for each column.

        Args:
            rows: Values in the order of the columns.
            columns: The columns.
        """
        of = self.of
        return [[of(row[place], column) for row in rows] for place, column in enumerate(columns)]


def write(
    connection: Connection,
    plan: Plan,
    transformed: Transformed,
    wrong: sql.Composable | None,
    still_to_come: sql.Composable | None = None,
) -> Counts:
    """Write the changes of a batch in the caller's transaction.

    Args:
        connection: The work connection.
        plan: Tables and key.
        transformed: The changes.
        wrong: Condition of rows that are not as they should be; None when nothing is asked.
        still_to_come: Condition of rows that later batches will work on; None when there are none.

    Returns:
        What became of the rows.

    Raises:
        PatchFailedError: A row was added where a later batch would work on it as if it had been there.
    """
    texts = Texts(connection)
    changed = updated = 0
    touched: set[Key] = set()
    for group in transformed.groups:
        if group.kind == "insert":
            changed += _insert(connection, plan, group, texts, still_to_come)
            continue
        done = (_update if group.kind == "update" else _delete)(connection, plan, group, texts)
        changed += done
        updated += done
        touched.update(group.keys)
    rejected = {key for key, _ in transformed.rejects}
    violations = 0
    if wrong is not None:
        violations = count_wrong(
            connection, plan.walked, [key for key in transformed.keys if key not in rejected], wrong
        )
    processed = len(transformed.keys)
    unchanged = max(0, processed - len(rejected) - min(updated, len(touched)))
    return Counts(processed, changed, unchanged, len(rejected) + violations, len(rejected))


def updates_of(
    plan: Plan, group: Group, texts: Texts
) -> tuple[sql.Composed, sql.Composed, sql.Composed, dict[str, Any]]:
    """Return what an update of rows consists of.

    Args:
        plan: Tables and key.
        group: The updates.
        texts: Makes texts of values.

    Returns:
        The values as a table ``v``, which row of ``t`` belongs to which of it, whether they differ, and
        values for the placeholders.
    """
    keyset = plan.walked
    columns = [plan.targets[0].columns[name] for name in group.columns]
    keys, values = key_values(group.keys, keyset)
    names = [sql.Identifier(f"keikaku_value_{number}") for number in range(len(columns))]
    for number, column_texts in enumerate(texts.arrays(group.rows, columns)):
        values[f"keikaku_value_{number}"] = column_texts
    source = sql.SQL("unnest({}) AS v({})").format(
        sql.SQL(", ").join(sql.SQL("{}::text[]").format(sql.Placeholder(name)) for name in values),
        sql.SQL(", ").join([*keyset.names, *names]),
    )
    del keys
    differs = sql.SQL(" OR ").join(
        sql.SQL("t.{}::text IS DISTINCT FROM (v.{}::{})::text").format(
            sql.Identifier(column.name),
            name,
            sql.SQL(column.compare_type),
        )
        for column, name in zip(columns, names, strict=True)
    )
    return source, same_key(keyset), differs, values


def same_key(keyset: Keyset) -> sql.Composed:
    """Return the condition that a row of ``t`` has the key of a row of ``v``.

    Args:
        keyset: The key.
    """
    return sql.SQL(" AND ").join(
        sql.SQL("t.{} = v.{}::{}").format(sql.Identifier(column), name, sql.SQL(kind))
        for column, name, kind in zip(keyset.columns, keyset.names, keyset.types, strict=True)
    )


def _update(connection: Connection, plan: Plan, group: Group, texts: Texts) -> int:
    columns = [plan.targets[0].columns[name] for name in group.columns]
    source, same, differs, values = updates_of(plan, group, texts)
    assignments = sql.SQL(", ").join(
        sql.SQL("{} = v.{}::{}").format(
            sql.Identifier(column.name),
            sql.Identifier(f"keikaku_value_{number}"),
            sql.SQL(column.cast_type),
        )
        for number, column in enumerate(columns)
    )
    query = sql.SQL("UPDATE {} AS t SET {} FROM {} WHERE {} AND ({})").format(
        plan.walked.table, assignments, source, same, differs
    )
    return connection.execute(query, values).rowcount


def _delete(connection: Connection, plan: Plan, group: Group, texts: Texts) -> int:
    del texts
    source, values = key_values(group.keys, plan.walked)
    query = sql.SQL("DELETE FROM {} AS t USING {} WHERE {}").format(
        plan.walked.table, source, same_key(plan.walked)
    )
    return connection.execute(query, values).rowcount


def _insert(
    connection: Connection, plan: Plan, group: Group, texts: Texts, still_to_come: sql.Composable | None
) -> int:
    target = plan.target(group.table)
    assert target is not None
    if not group.columns:
        raise ValueError("an Insert without values")
    columns = [target.columns[name] for name in group.columns]
    names = [f"keikaku_value_{number}" for number in range(len(columns))]
    query = sql.SQL("INSERT INTO {} ({}) SELECT {} FROM unnest({}) AS v({})").format(
        target.name.identifier,
        sql.SQL(", ").join(sql.Identifier(column.name) for column in columns),
        sql.SQL(", ").join(
            sql.SQL("v.{}::{}").format(sql.Identifier(name), sql.SQL(column.cast_type))
            for name, column in zip(names, columns, strict=True)
        ),
        sql.SQL(", ").join(sql.SQL("{}::text[]").format(sql.Placeholder(name)) for name in names),
        sql.SQL(", ").join(map(sql.Identifier, names)),
    )
    values = dict(zip(names, texts.arrays(group.rows, columns), strict=True))
    if still_to_come is None or target is not plan.targets[0]:
        return connection.execute(query, values).rowcount
    query += sql.SQL(" RETURNING ({}) IS TRUE").format(still_to_come)
    added = connection.execute(query, plan.walked.values | values).fetchall()
    if any(row[0] for row in added):
        raise PatchFailedError(
            "a row patch added rows to its own table that it would come upon later",
            found=f"Table: {target.name.text}; the keys of these rows are below the last one of the run.",
            hint="Give added rows keys above all others, or values that the patch's `where` leaves out.",
            hint_ja="追加する行のキーを既存の最大値より大きくするか、"
            "`where` の条件に当てはまらない値にしてください。",
        )
    return len(added)


def count_wrong(connection: Connection, keyset: Keyset, keys: list[Key], wrong: sql.Composable) -> int:
    """Count the rows that are not as they should be.

    Args:
        connection: The database.
        keyset: Table and key.
        keys: Which rows.
        wrong: The condition.
    """
    if not keys:
        return 0
    source, values = key_values(keys, keyset)
    query = sql.SQL("SELECT count(*) FROM {} AS t JOIN {} ON {} WHERE {}").format(
        keyset.table, source, same_key(keyset), wrong
    )
    row = connection.execute(query, keyset.values | values).fetchone()
    return int(row[0]) if row else 0
