"""What sleeps while rows come in, so that they are those of the snapshot and nothing else changes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from psycopg import sql

from keikaku_snapshots.postgres import catalog

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from keikaku_snapshots.postgres.connect import Connection

_TRIGGERS = """
SELECT n.nspname::text, c.relname::text, t.tgname::text, t.tgenabled = 'A'
FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE NOT t.tgisinternal AND t.tgenabled IN ('O', 'A') AND c.oid = ANY (%s)
ORDER BY c.oid, t.tgname
"""
_RULES = """
SELECT n.nspname::text, c.relname::text, r.rulename::text, r.ev_enabled = 'A'
FROM pg_catalog.pg_rewrite r JOIN pg_catalog.pg_class c ON c.oid = r.ev_class
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE r.ev_type <> '1' AND r.ev_enabled IN ('O', 'A') AND c.oid = ANY (%s)
ORDER BY c.oid, r.rulename
"""


@dataclass(frozen=True)
class Resting:
    """What is switched off while rows come in, as the statements that switch it on again."""

    #: Run before the rows.
    off: list[sql.Composed] = field(default_factory=list)
    #: Run after the rows, in this order.
    on: list[sql.Composed] = field(default_factory=list)

    def add_triggers(self, connection: Connection, oids: Sequence[int]) -> None:
        """Let the user's triggers of these tables sleep; foreign keys stay awake.

        Args:
            connection: The database.
            oids: Tables, partitions among them.
        """
        for row in connection.execute(_TRIGGERS, [list(oids)]).fetchall():
            names = {"table": sql.Identifier(row[0], row[1]), "name": sql.Identifier(row[2])}
            self.off.append(sql.SQL("ALTER TABLE ONLY {table} DISABLE TRIGGER {name}").format(**names))
            verb = sql.SQL("ENABLE ALWAYS" if row[3] else "ENABLE")
            self.on.append(
                sql.SQL("ALTER TABLE ONLY {table} {verb} TRIGGER {name}").format(verb=verb, **names)
            )

    def add_rules(self, connection: Connection, oids: Sequence[int]) -> None:
        """Let the rules of these tables sleep that INSERT or DELETE would invoke.

        Args:
            connection: The database.
            oids: Tables.
        """
        for row in connection.execute(_RULES, [list(oids)]).fetchall():
            names = {"table": sql.Identifier(row[0], row[1]), "name": sql.Identifier(row[2])}
            self.off.append(sql.SQL("ALTER TABLE {table} DISABLE RULE {name}").format(**names))
            verb = sql.SQL("ENABLE ALWAYS" if row[3] else "ENABLE")
            self.on.append(sql.SQL("ALTER TABLE {table} {verb} RULE {name}").format(verb=verb, **names))

    def add_circles(self, connection: Connection, circles: Collection[Collection[catalog.TableName]]) -> None:
        """Let foreign keys inside circles of tables wait for the end: no order of tables would do.

        Args:
            connection: The database.
            circles: Groups of tables.
        """
        for key in catalog.foreign_keys(connection):
            inside = any(key.table in circle and key.references in circle for circle in circles)
            if not inside or key.table == key.references or key.deferrable:
                continue
            names = {"table": key.table.identifier, "name": sql.Identifier(key.name)}
            self.off.append(
                sql.SQL("ALTER TABLE {table} ALTER CONSTRAINT {name} DEFERRABLE INITIALLY DEFERRED").format(
                    **names
                )
            )
            self.on.append(
                sql.SQL("ALTER TABLE {table} ALTER CONSTRAINT {name} NOT DEFERRABLE").format(**names)
            )
