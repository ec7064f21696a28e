"""Tables of the user: their order by foreign keys, their rows; their columns are in `columns`.

Every function takes a connection and works inside the caller's transaction
where there is one, so that counts can be taken in an exported snapshot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from psycopg import sql

from keikaku_snapshots.postgres.filters import USER_SCHEMA, not_extension_member
from keikaku_snapshots.postgres.ordering import order_by_references
from keikaku_snapshots.postgres.session_settings import catalog_search_path, unfiltered

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keikaku_snapshots.postgres.connect import Connection

#: Tables counted by one statement: few round trips, yet a statement that is parsed in no time.
COUNT_BATCH = 50


@dataclass(frozen=True, slots=True, order=True)
class TableName:
    """A relation's schema and name."""

    #: Schema.
    schema: str
    #: Name within the schema.
    name: str

    @property
    def text(self) -> str:
        """``schema.name``, with quotes only where a name holds a dot or a quote."""
        return f"{_plain(self.schema)}.{_plain(self.name)}"

    @property
    def identifier(self) -> sql.Identifier:
        """The name for a psycopg statement."""
        return sql.Identifier(self.schema, self.name)

    def __str__(self) -> str:
        return self.text


def _plain(name: str) -> str:
    if "." in name or '"' in name:
        return '"' + name.replace('"', '""') + '"'
    return name


@dataclass(frozen=True, slots=True)
class TableInfo:
    """A table of the user and its place among partitions."""

    #: Schema and name.
    name: TableName
    #: Object id.
    oid: int
    #: "table", or "partitioned" for one that holds no rows itself.
    kind: Literal["table", "partitioned"]
    #: The topmost partitioned table, for a partition.
    root: TableName | None
    #: Direct parents by old-style inheritance.
    inherits: tuple[TableName, ...]
    #: True if rows are not written to the log and are empty after a crash.
    unlogged: bool
    #: Owner role.
    owner: str
    #: Bytes on disk, indexes and out-of-line values included.
    size_bytes: int

    @property
    def holds_rows(self) -> bool:
        """True for an ordinary table and for a leaf partition."""
        return self.kind == "table"


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """A foreign key between tables; of partitioned tables only the one that was declared."""

    #: Constraint name.
    name: str
    #: The table that refers.
    table: TableName
    #: Its columns.
    columns: tuple[str, ...]
    #: The table referred to.
    references: TableName
    #: Its columns.
    referenced_columns: tuple[str, ...]
    #: True if the check can wait until COMMIT.
    deferrable: bool
    #: True if it waits without being asked.
    initially_deferred: bool
    #: True if one of the columns may be NULL.
    nullable: bool
    #: "no action", "restrict", "cascade", "set null" or "set default".
    on_delete: str
    #: False for NOT VALID.
    validated: bool
    #: The constraint as SQL, every name with its schema.
    definition: str


@dataclass(frozen=True, slots=True)
class TableOrder:
    """Root tables, parents before children, and what stood in the way."""

    #: Every root table, referenced tables first; the same for the same schema.
    tables: tuple[TableName, ...]
    #: Groups of tables that refer to each other in a circle.
    cycles: tuple[tuple[TableName, ...], ...]
    #: Tables that refer to themselves.
    self_references: tuple[TableName, ...]


_TABLES = f"""
SELECT n.nspname, c.relname, c.oid, c.relkind::text, c.relispartition, c.relpersistence = 'u',
       pg_catalog.pg_get_userbyid(c.relowner), pg_catalog.pg_total_relation_size(c.oid),
       root_n.nspname, root_c.relname,
       ARRAY(SELECT ARRAY[pn.nspname::text, p.relname::text] FROM pg_catalog.pg_inherits i
             JOIN pg_catalog.pg_class p ON p.oid = i.inhparent
             JOIN pg_catalog.pg_namespace pn ON pn.oid = p.relnamespace
             WHERE i.inhrelid = c.oid AND NOT c.relispartition ORDER BY i.inhseqno)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_class root_c
    ON c.relispartition AND root_c.oid = pg_catalog.pg_partition_root(c.oid)
LEFT JOIN pg_catalog.pg_namespace root_n ON root_n.oid = root_c.relnamespace
WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND {USER_SCHEMA}
  AND {not_extension_member("pg_class", "c.oid")}
ORDER BY n.nspname, c.relname
"""  # noqa: S608 - constants of this package


def tables(connection: Connection) -> list[TableInfo]:
    """List every table of the user, partitions included, sorted by name.

    Tables of extensions, temporary tables and our own are left out.

    Args:
        connection: The database.

    Returns:
        Tables with their place among partitions.
    """
    found = []
    for row in connection.execute(_TABLES).fetchall():
        schema, name, oid, kind, _, unlogged, owner, size, root_schema, root_name, parents = row
        found.append(
            TableInfo(
                name=TableName(schema, name),
                oid=oid,
                kind="partitioned" if kind == "p" else "table",
                root=TableName(root_schema, root_name) if root_name is not None else None,
                inherits=tuple(TableName(*parent) for parent in parents),
                unlogged=unlogged,
                owner=owner,
                size_bytes=size or 0,
            )
        )
    return found


_FOREIGN_KEYS = f"""
SELECT k.conname, n.nspname, c.relname, fn.nspname, f.relname,
       ARRAY(SELECT a.attname::text FROM unnest(k.conkey) WITH ORDINALITY u(num, pos)
             JOIN pg_catalog.pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.num ORDER BY u.pos),
       ARRAY(SELECT a.attname::text FROM unnest(k.confkey) WITH ORDINALITY u(num, pos)
             JOIN pg_catalog.pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = u.num ORDER BY u.pos),
       k.condeferrable, k.condeferred,
       EXISTS (SELECT 1 FROM pg_catalog.pg_attribute a
               WHERE a.attrelid = k.conrelid AND a.attnum = ANY (k.conkey) AND NOT a.attnotnull),
       k.confdeltype::text, k.convalidated, pg_catalog.pg_get_constraintdef(k.oid)
FROM pg_catalog.pg_constraint k
JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_class f ON f.oid = k.confrelid
JOIN pg_catalog.pg_namespace fn ON fn.oid = f.relnamespace
WHERE k.contype = 'f' AND k.conparentid = 0 AND {USER_SCHEMA}
  AND {not_extension_member("pg_class", "c.oid")}
ORDER BY n.nspname, c.relname, k.conname
"""  # noqa: S608 - constants of this package
_ON_DELETE = {"a": "no action", "r": "restrict", "c": "cascade", "n": "set null", "d": "set default"}


def foreign_keys(connection: Connection) -> list[ForeignKey]:
    """List the foreign keys of the user's tables, sorted by table and name.

    Args:
        connection: The database.

    Returns:
        Foreign keys; the copies that the server keeps on partitions are left out.
    """
    with catalog_search_path(connection):
        rows = connection.execute(_FOREIGN_KEYS).fetchall()
    return [
        ForeignKey(
            name=row[0],
            table=TableName(row[1], row[2]),
            references=TableName(row[3], row[4]),
            columns=tuple(row[5]),
            referenced_columns=tuple(row[6]),
            deferrable=row[7],
            initially_deferred=row[8],
            nullable=row[9],
            on_delete=_ON_DELETE[row[10]],
            validated=row[11],
            definition=row[12],
        )
        for row in rows
    ]


def table_order(connection: Connection) -> TableOrder:
    """Order the root tables so that referenced tables come first.

    Self references are no obstacle; of tables in a circle, foreign keys that
    may be NULL or deferred give way first.

    Args:
        connection: The database.

    Returns:
        The order, the circles, and the tables that refer to themselves.
    """
    infos = tables(connection)
    root_of = {info.name: info.root or info.name for info in infos}
    hard: set[tuple[TableName, TableName]] = set()
    soft: set[tuple[TableName, TableName]] = set()
    selves: set[TableName] = set()
    for key in foreign_keys(connection):
        child, parent = root_of.get(key.table), root_of.get(key.references)
        if child is None or parent is None:
            continue
        if child == parent:
            selves.add(child)
        else:
            (soft if key.nullable or key.deferrable else hard).add((child, parent))
    for info in infos:
        hard.update((info.name, parent) for parent in info.inherits if parent in root_of)
    ordered, cycles = order_by_references(sorted(set(root_of.values())), hard, soft)
    return TableOrder(tuple(ordered), tuple(tuple(cycle) for cycle in cycles), tuple(sorted(selves)))


def user_tables(connection: Connection) -> list[TableName]:
    """List the root tables of the user, referenced tables first.

    Args:
        connection: The database.

    Returns:
        Ordinary tables and the roots of partitioned ones.
    """
    return list(table_order(connection).tables)


def row_counts(connection: Connection, tables: Iterable[TableName] | None = None) -> dict[str, int]:
    """Count rows exactly, in the caller's transaction where there is one.

    Args:
        connection: The database; each statement counts up to `COUNT_BATCH` tables.
        tables: The tables to count, each without its children; every table
            that holds rows when None.

    Returns:
        Rows by ``schema.table``, sorted by name.

    Raises:
        psycopg.errors.InsufficientPrivilege: Row security would hide rows.
    """
    if tables is None:
        wanted = [info.name for info in _tables(connection) if info.holds_rows]
    else:
        wanted = sorted(set(tables))
    counts: dict[str, int] = {}
    with unfiltered(connection):
        for start in range(0, len(wanted), COUNT_BATCH):
            batch = wanted[start : start + COUNT_BATCH]
            parts = [
                sql.SQL("SELECT {}::int, count(*) FROM ONLY {}").format(sql.Literal(number), name.identifier)
                for number, name in enumerate(batch)
            ]
            found = {
                row[0]: row[1] for row in connection.execute(sql.SQL(" UNION ALL ").join(parts)).fetchall()
            }
            counts.update({name.text: found[number] for number, name in enumerate(batch)})
    return counts


_tables = tables  # row_counts has a parameter of that name
