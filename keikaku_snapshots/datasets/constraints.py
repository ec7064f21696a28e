"""Taking foreign keys and secondary indexes off for a large load, and putting them back validated.

All inside the load's transaction: a failure leaves them as they were.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from keikaku_snapshots.datasets.steps import Execute, Steps

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keikaku_snapshots.datasets.schema import Found

# The server itself writes every statement, quoted; a constraint keeps its comment.
_FOREIGN_KEYS = """
SELECT format('ALTER TABLE %s DROP CONSTRAINT %I', c.conrelid::regclass, c.conname),
       format('ALTER TABLE %s ADD CONSTRAINT %I %s', c.conrelid::regclass, c.conname,
              pg_catalog.pg_get_constraintdef(c.oid)),
       CASE WHEN d.description IS NOT NULL THEN
         format('COMMENT ON CONSTRAINT %I ON %s IS %L', c.conname, c.conrelid::regclass, d.description) END
FROM pg_catalog.pg_constraint c
LEFT JOIN pg_catalog.pg_description d
  ON d.objoid = c.oid AND d.classoid = 'pg_catalog.pg_constraint'::regclass AND d.objsubid = 0
WHERE c.contype = 'f' AND c.conparentid = 0 AND c.conrelid = ANY ($1::int8[]::oid[])
ORDER BY c.conname, c.conrelid
"""

# Only indexes that nothing stands on and that CREATE INDEX brings back whole: none of a
# constraint, of a partition, of replication or clustering, none with statistics targets.
_INDEXES = """
SELECT format('DROP INDEX %s', i.indexrelid::regclass),
       pg_catalog.pg_get_indexdef(i.indexrelid),
       CASE WHEN d.description IS NOT NULL THEN
         format('COMMENT ON INDEX %s IS %L', i.indexrelid::regclass, d.description) END
FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
LEFT JOIN pg_catalog.pg_description d
  ON d.objoid = c.oid AND d.classoid = 'pg_catalog.pg_class'::regclass AND d.objsubid = 0
WHERE i.indrelid = ANY ($1::int8[]::oid[]) AND c.relkind = 'i' AND NOT c.relispartition
  AND NOT i.indisunique AND NOT i.indisprimary AND NOT i.indisexclusion AND NOT i.indisreplident
  AND NOT i.indisclustered AND i.indisvalid
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint x WHERE x.conindid = i.indexrelid)
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attstattarget > 0)
ORDER BY c.relname, c.oid
"""


def drop_constraints(found: Sequence[Found]) -> Steps[list[str]]:
    """Drop the tables' foreign keys and secondary indexes.

    Args:
        found: The tables.

    Returns:
        The statements that bring them back, for `add_constraints`.
    """
    oids = [table.oid for table in found]
    # ALTER TABLE refuses a table with a check that still waits for COMMIT.
    yield Execute("SET CONSTRAINTS ALL IMMEDIATE")
    back: list[str] = []
    # Keys are listed before an index is dropped, and come back after the indexes.
    keys = yield Execute(_FOREIGN_KEYS, (oids,))
    indexes = yield Execute(_INDEXES, (oids,))
    for drop, *_ in (*keys, *indexes):
        yield Execute(drop)
    for _, add, comment in (*indexes, *keys):
        back += [statement for statement in (add, comment) if statement is not None]
    return back


def add_constraints(statements: Sequence[str]) -> Steps[None]:
    """Bring back what `drop_constraints` dropped; the server checks every row."""
    for statement in statements:
        yield Execute(statement)
