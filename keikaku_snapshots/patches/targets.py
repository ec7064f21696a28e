"""What the catalog says of the tables of a patch, and why it may not be run on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from keikaku_snapshots.errors import PatchDefinitionError, PatchRefusedError
from keikaku_snapshots.patches.definition import Patch, RowPatch, SqlPatch, lone_percent
from keikaku_snapshots.postgres.tables import TableName

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from keikaku_snapshots.postgres.connect import Connection


@dataclass(frozen=True, slots=True)
class TargetColumn:
    """A column of a target table."""

    #: Name.
    name: str
    #: Its type as SQL, below all domains and without a length, so that a cast to it cuts nothing.
    cast_type: str
    #: The same with precision and length, where values are compared.
    compare_type: str
    #: True for json and jsonb.
    is_json: bool
    #: True for NOT NULL.
    not_null: bool
    #: True for GENERATED ALWAYS AS (…).
    generated: bool


@dataclass(frozen=True, slots=True)
class Target:
    """A table that a patch may change."""

    #: Object id.
    oid: int
    #: Schema and name.
    name: TableName
    #: Columns by name, in the table's order.
    columns: dict[str, TargetColumn]
    #: Columns of the primary key; none without one.
    primary_key: tuple[str, ...]
    #: Columns of each unique index that takes no NULL, in its order.
    unique_keys: tuple[tuple[str, ...], ...]
    #: Triggers of the user that are switched on.
    triggers: tuple[str, ...]
    #: Rewrite rules, inheritance and the like, in words.
    obstacles: tuple[str, ...]
    #: Foreign keys that change other rows: constraint, referring table, its oid, columns referred to,
    #: whether deleting and whether updating does it.
    cascades: tuple[tuple[str, str, int, tuple[str, ...], bool, bool], ...]


def read_name(text: str) -> TableName:
    """Read ``schema.table``; without a schema it is ``public``.

    Args:
        text: What a patch declares.
    """
    schema, dot, name = text.partition(".")
    return TableName(schema, name) if dot else TableName("public", text)


_TABLES = """
SELECT c.oid::bigint, n.nspname::text, c.relname::text, c.relkind::text,
  (SELECT array_agg(a.attname::text ORDER BY k.place) FROM pg_index i
   CROSS JOIN LATERAL unnest(i.indkey::smallint[]) WITH ORDINALITY k(number, place)
   JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.number
   WHERE i.indrelid = c.oid AND i.indisprimary AND k.place <= i.indnkeyatts) AS primary_key,
  (SELECT jsonb_agg(columns) FROM (
     SELECT (SELECT jsonb_agg(a.attname::text ORDER BY k.place)
             FROM unnest(i.indkey::smallint[]) WITH ORDINALITY k(number, place)
             JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.number AND a.attnotnull
             WHERE k.place <= i.indnkeyatts
             HAVING count(*) = i.indnkeyatts) AS columns
     FROM pg_index i WHERE i.indrelid = c.oid AND i.indisunique AND i.indimmediate
       AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL) u
   WHERE columns IS NOT NULL) AS unique_keys,
  (SELECT array_agg(DISTINCT t.tgname::text ORDER BY t.tgname::text) FROM pg_trigger t
   WHERE t.tgrelid = ANY (m.oids) AND NOT t.tgisinternal AND t.tgenabled <> 'D'
     AND t.tgname NOT LIKE 'keikaku\\_%%')
   AS triggers,
  (SELECT count(*) FROM pg_rewrite r WHERE r.ev_class = c.oid) AS rules,
  c.relkind = 'r' AND EXISTS (SELECT FROM pg_inherits i WHERE i.inhparent = c.oid) AS has_children,
  (SELECT jsonb_agg(jsonb_build_array(f.conname, f.conrelid::regclass::text,
     coalesce(pg_partition_root(f.conrelid)::oid, f.conrelid)::bigint,
     (SELECT jsonb_agg(a.attname) FROM pg_attribute a
      WHERE a.attrelid = f.confrelid AND a.attnum = ANY (f.confkey)),
     f.confdeltype IN ('c', 'n', 'd'), f.confupdtype IN ('c', 'n', 'd')) ORDER BY f.conname)
   FROM pg_constraint f WHERE f.confrelid = ANY (m.oids) AND f.contype = 'f'
     AND f.conparentid = 0
     AND (f.confdeltype IN ('c', 'n', 'd') OR f.confupdtype IN ('c', 'n', 'd'))) AS cascades
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
-- A trigger, or a foreign key that refers to it, may belong to a single partition.
CROSS JOIN LATERAL (SELECT array_agg(p.relid::oid) || c.oid AS oids FROM pg_partition_tree(c.oid) p) m
WHERE (n.nspname, c.relname) IN (SELECT * FROM unnest(%s::text[], %s::text[]))
"""
_COLUMNS = """
SELECT a.attrelid::bigint, a.attname::text,
  pg_catalog.format_type(b.oid, -1),
  CASE WHEN b.typcategory IN ('S', 'V') OR b.typmod = -1
       OR EXISTS (SELECT FROM pg_type e JOIN pg_type l ON l.typelem = e.oid
                  WHERE l.oid = b.oid AND b.typcategory = 'A' AND e.typcategory IN ('S', 'V'))
       THEN pg_catalog.format_type(b.oid, -1)
       ELSE pg_catalog.format_type(b.oid, b.typmod) END,
  b.oid IN ('json'::regtype, 'jsonb'::regtype), a.attnotnull, a.attgenerated <> ''
FROM pg_attribute a
CROSS JOIN LATERAL (
  WITH RECURSIVE below AS (
    SELECT t.oid, t.typtype, t.typbasetype, t.typtypmod, t.typcategory, a.atttypmod AS typmod
    FROM pg_type t WHERE t.oid = a.atttypid
    UNION ALL
    SELECT u.oid, u.typtype, u.typbasetype, u.typtypmod, u.typcategory, below.typtypmod
    FROM below JOIN pg_type u ON u.oid = below.typbasetype WHERE below.typtype = 'd')
  SELECT oid, typcategory, typmod FROM below WHERE typtype <> 'd') b
WHERE a.attrelid = ANY (%s::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attrelid, a.attnum
"""


def read_targets(connection: Connection, names: Sequence[str]) -> tuple[Target, ...]:
    """Read tables from the catalog.

    Args:
        connection: The database.
        names: Tables as ``schema.table``.

    Returns:
        Targets in the same order.

    Raises:
        PatchDefinitionError: A table is missing, or is none.
    """
    wanted = [read_name(text) for text in names]
    rows = {
        TableName(row[1], row[2]): row
        for row in connection.execute(
            _TABLES, [[name.schema for name in wanted], [name.name for name in wanted]]
        )
    }
    missing = [name.text for name in wanted if name not in rows or rows[name][3] not in {"r", "p"}]
    if missing:
        raise PatchDefinitionError(
            f"the table {missing[0]} is not in the database" if len(missing) == 1 else "tables are missing",
            found="Missing, or no ordinary table: " + ", ".join(missing),
            hint="Run the migrations first, or correct the patch's tables.",
            hint_ja="先にマイグレーションを実行するか、パッチのテーブル名を修正してください。",
        )
    columns: dict[int, dict[str, TargetColumn]] = {}
    for oid, *values in connection.execute(_COLUMNS, [[row[0] for row in rows.values()]]):
        columns.setdefault(oid, {})[values[0]] = TargetColumn(*values)
    return tuple(_target(rows[name], columns.get(rows[name][0], {})) for name in wanted)


def _target(row: Sequence[Any], columns: dict[str, TargetColumn]) -> Target:
    oid, schema, name, _, primary_key, unique_keys, triggers, rules, has_children, cascades = row
    obstacles = []
    if rules:
        obstacles.append("it has rewrite rules")
    if has_children:
        obstacles.append("other tables inherit from it")
    return Target(
        oid=oid,
        name=TableName(schema, name),
        columns=columns,
        primary_key=tuple(primary_key or ()),
        unique_keys=tuple(tuple(key) for key in unique_keys or ()),
        triggers=tuple(triggers or ()),
        obstacles=tuple(obstacles),
        cascades=tuple(
            (constraint, table, child, tuple(referred), on_delete, on_update)
            for constraint, table, child, referred, on_delete, on_update in cascades or ()
        ),
    )


def check_targets(patch: Patch, targets: Sequence[Target]) -> None:
    """Refuse what could not be done safely, or not be undone.

    Args:
        patch: The patch.
        targets: Its tables, its own first.

    Raises:
        PatchDefinitionError: Columns or key do not fit the table.
        PatchRefusedError: A table has no primary key, triggers, rules or cascades that are not acknowledged.
    """
    misfits = list(_misfits(patch, targets[0])) if isinstance(patch, SqlPatch | RowPatch) else []
    if misfits:
        raise PatchDefinitionError(
            f"data patch {patch.name!r} does not fit the table {targets[0].name}", found="\n".join(misfits)
        )
    refused = [line for target in targets for line in _refusals(patch, target, targets)]
    if refused:
        raise PatchRefusedError(
            f"data patch {patch.name!r} cannot be run safely on these tables",
            found="\n".join(refused),
            hint="Change the tables or the patch; what is meant to be so can be named in its `acknowledges`.",
            hint_ja="テーブルまたはパッチを修正してください。意図的なら `acknowledges` に記載してください。",
        )


def _misfits(patch: SqlPatch | RowPatch, target: Target) -> Iterator[str]:
    changed = tuple(patch.set) if isinstance(patch, SqlPatch) else patch.writes
    read = patch.reads if isinstance(patch, RowPatch) else ()
    for column in dict.fromkeys((*patch.key, *read, *changed)):
        if column not in target.columns:
            yield f"There is no column {column}."
        elif "%" in column:
            yield f"Column {column} has a percent sign in its name, which is read as a parameter."
        elif column in changed and target.columns[column].generated:
            yield f"Column {column} is generated and cannot be written."
        elif column in changed and column in target.primary_key:
            yield f"Column {column} belongs to the primary key; then no row could be followed."
    # With parameters it may be made when it is asked for, so it is not known before.
    yield from lone_percent("verify_batch", patch.verify_batch())
    if target.primary_key and patch.key not in target.unique_keys:
        keys = " or ".join(f"({', '.join(key)})" for key in target.unique_keys)
        yield f"Its key must be the columns of a unique index without NULLs, in that order: {keys}"


def _refusals(patch: Patch, target: Target, targets: Sequence[Target]) -> Iterator[str]:
    if not target.primary_key:
        yield f"{target.name}: it has no primary key."
    for obstacle in target.obstacles:
        yield f"{target.name}: {obstacle}."
    if target.triggers and "triggers" not in patch.acknowledges:
        yield f"{target.name}: triggers would run in each batch: {', '.join(target.triggers)}"
    if "cascades" in patch.acknowledges:
        return
    declared = {other.oid for other in targets}
    changed = set(patch.set) if isinstance(patch, SqlPatch) else set(target.columns)
    for constraint, table, child, referred, on_delete, on_update in target.cascades:
        by_update = on_update and bool(changed & set(referred))
        by_delete = on_delete and not isinstance(patch, SqlPatch)
        if child not in declared and (by_update or by_delete):
            yield (
                f"{target.name}: foreign key {constraint} would change rows of {table}; "
                "add it to target_tables."
            )
