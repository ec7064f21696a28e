"""Which tables are captured, and how: their columns, their key, their members (docs/design.md, Rewind)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from keikaku_snapshots.postgres.filters import USER_SCHEMA, not_extension_member
from keikaku_snapshots.postgres.session_settings import catalog_search_path
from keikaku_snapshots.postgres.tables import TableName
from keikaku_snapshots.postgres.url import quote_identifier

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keikaku_snapshots.postgres.connect import Connection

#: Of two images that belong to one key, the order in which they were written decides ("keys": only keys
#: are written for new rows), or the images themselves decide, whatever the order ("images": whole rows).
Mode = Literal["keys", "images"]


class KeyColumn(NamedTuple):
    """A column of the key that finds a row again."""

    #: Column name.
    name: str
    #: The operator of the key's index that compares it, as SQL.
    equals: str
    #: COLLATE clause of that index, or empty.
    collate: str


@dataclass(frozen=True, slots=True)
class CapturedColumn:
    """A column whose values are kept."""

    #: Column name, as SQL.
    identifier: str
    #: Name of the column that keeps it, as SQL.
    kept: str
    #: Type of the column that keeps it; text for a type that the user may drop.
    kept_type: str
    #: What brings a kept value back to the column's type, such as ``::public.mood``; often empty.
    cast: str
    #: True for GENERATED ALWAYS AS IDENTITY, which no UPDATE may set.
    is_identity_always: bool


@dataclass(frozen=True, slots=True)
class Member:
    """A table that needs triggers of its own: the table itself, or one of its partitions."""

    #: Object id.
    oid: int
    #: Schema and name, as SQL.
    identifier: str
    #: True for a table that holds rows; False for one that is only divided into partitions.
    holds_rows: bool


@dataclass(frozen=True, slots=True)
class CapturedTable:
    """A table, or all partitions of one, whose changes are kept together."""

    #: Number in the names of what belongs to it.
    number: int
    #: Object id.
    oid: int
    #: Schema and name.
    name: TableName
    #: True for a partitioned table.
    is_partitioned: bool
    #: True for a parent or child of old-style inheritance: statement triggers would lose columns there.
    is_inherited: bool
    #: True if the rows are gone after a crash of the server.
    is_unlogged: bool
    #: Owner.
    owner: str
    #: True if the connected role may act for the owner.
    is_ours: bool
    #: Columns, without generated ones.
    columns: tuple[CapturedColumn, ...]
    #: What finds a row again; empty when nothing does.
    key: tuple[KeyColumn, ...]
    #: Whether new rows are kept whole.
    mode: Mode
    #: The table and its partitions.
    members: tuple[Member, ...]

    @property
    def identifier(self) -> str:
        """Schema and name as SQL."""
        return _qualified(self.name.schema, self.name.name)

    @property
    def only(self) -> str:
        """The table as it stands in FROM: without children, with partitions."""
        return self.identifier if self.is_partitioned else f"ONLY {self.identifier}"

    def key_columns(self) -> list[CapturedColumn]:
        """The columns of the key, in the key's order."""
        by_name = {column.identifier: column for column in self.columns}
        return [by_name[quote_identifier(part.name)] for part in self.key]


def _qualified(schema: str, name: str) -> str:
    return f"{quote_identifier(schema)}.{quote_identifier(name)}"


_TABLES = f"""
SELECT c.oid::bigint, n.nspname::text, c.relname::text, c.relkind = 'p', c.relispartition,
       CASE WHEN c.relispartition THEN pg_partition_root(c.oid)::oid::bigint END,
       NOT c.relispartition AND EXISTS (SELECT 1 FROM pg_inherits i WHERE i.inhrelid = c.oid
                                        OR (i.inhparent = c.oid AND c.relkind = 'r')),
       c.relpersistence = 'u', pg_get_userbyid(c.relowner)::text, pg_has_role(c.relowner, 'USAGE'),
       EXISTS (SELECT 1 FROM pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal
               AND t.tgname !~ %(ours)s),
       EXISTS (SELECT 1 FROM pg_constraint k WHERE k.conrelid = c.oid AND k.contype = 'f'
               AND (k.confupdtype IN ('c', 'n', 'd') OR k.confdeltype = 'd'))
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND {USER_SCHEMA}
  AND {not_extension_member("pg_class", "c.oid")}
ORDER BY c.oid
"""  # noqa: S608 - constants of this package
_COLUMNS = f"""
SELECT a.attrelid::bigint, a.attname::text,
       t.oid < 16384 AND t.typtype IN ('b', 'r', 'm'),
       format_type(a.atttypid, -1), format_type(a.atttypid, a.atttypmod), a.attnum::int, a.attidentity = 'a'
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_type t ON t.oid = a.atttypid
WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND {USER_SCHEMA}
  AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
ORDER BY a.attrelid, a.attnum
"""  # noqa: S608 - constants of this package
# Only what is unique at every moment and whatever the collation finds one row for certain.
_KEYS = f"""
SELECT i.indrelid::bigint, k.names, k.operators, k.collations, k.is_hashed
FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_class c ON c.oid = i.indrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN LATERAL (
  SELECT array_agg(a.attname::text ORDER BY p.pos) AS names,
         array_agg('OPERATOR(' || quote_ident(os.nspname) || '.' || o.oprname || ')' ORDER BY p.pos)
           AS operators,
         array_agg(CASE WHEN l.oid IS NULL THEN ''
                        ELSE ' COLLATE ' || quote_ident(ls.nspname) || '.' || quote_ident(l.collname) END
                   ORDER BY p.pos) AS collations,
         bool_and(a.attnotnull AND a.attgenerated = '' AND coalesce(l.collisdeterministic, true)
                  AND i.indcollation[p.pos] = a.attcollation)
           AS is_usable,
         bool_and(o.oprcanhash AND t.oid < 16384) AS is_hashed
  FROM generate_series(0, i.indnkeyatts - 1) p(pos)
  JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[p.pos]
  JOIN pg_type t ON t.oid = a.atttypid
  JOIN pg_opclass oc ON oc.oid = i.indclass[p.pos]
  JOIN pg_amop am ON am.amopfamily = oc.opcfamily AND am.amopstrategy = 3
    AND am.amoplefttype = oc.opcintype AND am.amoprighttype = oc.opcintype
  JOIN pg_operator o ON o.oid = am.amopopr JOIN pg_namespace os ON os.oid = o.oprnamespace
  LEFT JOIN pg_collation l ON l.oid = i.indcollation[p.pos]
  LEFT JOIN pg_namespace ls ON ls.oid = l.collnamespace) k
WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND {USER_SCHEMA}
  AND i.indisunique AND i.indimmediate AND i.indisvalid AND NOT i.indisexclusion
  AND i.indpred IS NULL AND i.indexprs IS NULL
  AND x.relam = (SELECT m.oid FROM pg_am m WHERE m.amname = 'btree')
  AND k.is_usable AND cardinality(k.names) = i.indnkeyatts
ORDER BY i.indrelid, NOT i.indisprimary, i.indnkeyatts, x.relname
"""  # noqa: S608 - constants of this package


def captured_tables(connection: Connection, own_triggers: str) -> list[CapturedTable]:
    """Read what is needed to capture every table of the user.

    Args:
        connection: The database.
        own_triggers: Prefix of the names of our own triggers, which are no user's triggers.

    Returns:
        Tables in the order in which they were made; partitions under their topmost table.
    """
    with catalog_search_path(connection):
        rows = connection.execute(_TABLES, {"ours": f"^{own_triggers}"}).fetchall()
        columns = _by_table(connection.execute(_COLUMNS).fetchall())
        keys = _by_table(connection.execute(_KEYS).fetchall())
    members: dict[int, list[Any]] = {}
    for row in rows:
        members.setdefault(row[5] or row[0], []).append(row)
    roots = [row for row in rows if not row[4]]
    return [
        _table(number, row, members[row[0]], columns.get(row[0], []), keys.get(row[0], []))
        for number, row in enumerate(roots, 1)
    ]


def _by_table(rows: Iterable[Any]) -> dict[int, list[Any]]:
    grouped: dict[int, list[Any]] = {}
    for row in rows:
        grouped.setdefault(row[0], []).append(row[1:])
    return grouped


def _table(number: int, row: Any, members: list[Any], columns: list[Any], keys: list[Any]) -> CapturedTable:
    key = tuple(KeyColumn(*part) for part in zip(*keys[0][:3], strict=True)) if keys else ()
    # A trigger of the user may change a row that its own statement has just changed, and a cascade
    # the key of one row twice: our triggers then see the second image before the first.
    out_of_order = any(member[10] or member[11] for member in members)
    trusted = bool(keys) and keys[0][3] and not out_of_order and not row[6]
    return CapturedTable(
        number=number,
        oid=row[0],
        name=TableName(row[1], row[2]),
        is_partitioned=row[3],
        is_inherited=row[6],
        is_unlogged=any(member[7] for member in members),
        owner=row[8],
        is_ours=all(member[9] for member in members),
        columns=tuple(_column(*column) for column in columns),
        key=key,
        mode="keys" if trusted else "images",
        members=tuple(
            Member(member[0], _qualified(member[1], member[2]), not member[3]) for member in members
        ),
    )


def _column(
    name: str, is_builtin: bool, kept_type: str, full_type: str, position: int, is_identity_always: bool
) -> CapturedColumn:
    return CapturedColumn(
        identifier=quote_identifier(name),
        kept=f"c{position}",
        kept_type=kept_type if is_builtin else "text",
        cast="" if is_builtin else f"::{full_type}",
        is_identity_always=is_identity_always,
    )
