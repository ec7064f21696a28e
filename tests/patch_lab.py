"""A database in which patches are tried: its checksum, its leftovers, and executors on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from psycopg import sql

from keikaku_snapshots.patches.executor import DataPatchExecutor
from keikaku_snapshots.patches.outbox import enqueue
from keikaku_snapshots.patches.registry import DataPatchRegistry
from keikaku_snapshots.patches.settings import EngineSettings, PatchSettings

if TYPE_CHECKING:
    import psycopg

    from keikaku_snapshots.patches.definition import Patch
    from keikaku_snapshots.patches.execution import Execution
    from keikaku_snapshots.postgres.url import DatabaseURL


@dataclass
class Lab:
    """One database and an autocommit connection to look at it."""

    #: The database.
    url: DatabaseURL
    #: Looks at it, and is the application that works beside.
    connection: psycopg.Connection[tuple[Any, ...]] = field(repr=False)

    def run(self, query: str, *values: Any) -> None:
        """Run statements."""
        self.connection.execute(query.encode(), values or None)

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Ask for rows."""
        return self.connection.execute(query.encode(), values or None).fetchall()

    def value(self, query: str, *values: Any) -> Any:
        """Ask for one value."""
        return self.rows(query, *values)[0][0]

    def items(self, rows: int, *, every: int = 1, first: int = 1) -> None:
        """Make a table ``public.item`` with gaps in its ids."""
        self.run(
            "CREATE TABLE public.item (id bigint PRIMARY KEY, qty integer NOT NULL, name text NOT NULL);"
            f"INSERT INTO item SELECT i * {every} + {first} - {every}, i % 100, 'item ' || i"
            f" FROM generate_series(1, {rows}) i; ANALYZE item"
        )

    def checksum(self, *tables: str) -> str:
        """All rows of tables as one short text."""
        return "".join(
            str(
                self.connection.execute(
                    sql.SQL("SELECT md5(string_agg(t::text, '|' ORDER BY t::text)) FROM {} t").format(
                        sql.Identifier(*table.split("."))
                    )
                ).fetchone()
            )
            for table in tables or ("public.item",)
        )

    def leftovers(self) -> list[str]:
        """Triggers and functions of ours."""
        found = self.rows(
            "SELECT tgname::text FROM pg_trigger WHERE tgname LIKE 'keikaku%' UNION ALL"
            " SELECT proname::text FROM pg_proc WHERE pronamespace = to_regnamespace('keikaku_patches')"
        )
        return [str(row[0]) for row in found]

    def events(self) -> list[str]:
        """What was put into the outbox, oldest first."""
        return [str(row[0]) for row in self.rows("SELECT event FROM keikaku_patches.outbox ORDER BY number")]

    def states(self) -> list[tuple[str, str]]:
        """Status and sub-state of all executions, oldest first."""
        return [
            (str(row[0]), str(row[1]))
            for row in self.rows(
                "SELECT status, sub_state FROM keikaku_patches.execution ORDER BY created_at"
            )
        ]

    def executor(
        self,
        *patches: type[Patch],
        engine: EngineSettings | None = None,
        url: DatabaseURL | None = None,
        options: dict[str, Any] | None = None,
        **settings: Any,
    ) -> DataPatchExecutor:
        """Make an executor of these patches; no dry run is required unless said."""
        chosen = PatchSettings(**{"require_dry_run": False, **settings})
        return DataPatchExecutor(
            url or self.url,
            registry=DataPatchRegistry(patches, shipped=not patches, entry_points=False),
            settings={patch.name: chosen for patch in patches},
            engine=engine or EngineSettings(heartbeat_s=0.2),
            notify=enqueue,
            **(options or {}),
        )

    def latest(self) -> Execution:
        """The latest execution."""
        return self.executor().status()[0]
