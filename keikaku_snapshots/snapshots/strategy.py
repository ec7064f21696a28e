"""Which way a restore goes: inside the database, or by a new one beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keikaku_snapshots.errors import DatabaseInUseError, UnsafeRestoreError
from keikaku_snapshots.postgres import databases
from keikaku_snapshots.snapshots import guards
from keikaku_snapshots.snapshots.swap import refuse_obstacles

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.snapshots.manifest import Snapshot
    from keikaku_snapshots.snapshots.restore import RestoreOptions


class StrategyChoice:
    """Chooses between ``in_place`` and ``swap``; ``auto`` disconnects nobody who was not given up."""

    def __init__(self, url: DatabaseURL, snapshot: Snapshot, options: RestoreOptions) -> None:
        """Prepare; nothing is looked at yet.

        Args:
            url: The database.
            snapshot: What is restored.
            options: What the caller asked for.
        """
        self._url = url
        self._snapshot = snapshot
        self._options = options

    def choose(self, connection: Connection, admin: Connection) -> tuple[str, str]:
        """Say which strategy, and why.

        Args:
            connection: The database.
            admin: The maintenance database.

        Returns:
            ``in_place`` or ``swap``, and the reason in words.

        Raises:
            UnsafeRestoreError: What was asked for cannot work.
            DatabaseInUseError: Hooks need a swap, and sessions are in the way.
        """
        wanted = self._options.strategy
        manifest = self._snapshot.manifest
        lacking = {
            fresh: guards.missing_extensions(connection, manifest, fresh=fresh) if manifest else []
            for fresh in (False, True)
        }
        if wanted == "in_place":
            self._refuse_extensions(lacking[False])
            return "in_place", "asked for"
        kept = guards.records_of_patches(connection)
        if wanted in {"swap", "template"}:
            self._refuse_extensions(lacking[True])
            if kept:
                raise UnsafeRestoreError(
                    f"a swap of {self._url.database} would lose the records of its patches",
                    found="\n".join([*kept, f"Database: {self._url.location}"]),
                    hint="Use strategy='in_place', which keeps them.",
                )
            refuse_obstacles(admin, self._url, disconnect=True)
            return "swap", "asked for"
        me = connection.info.backend_pid
        others = [one for one in databases.sessions_in(admin, self._url.database) if one.pid != me]
        if others and not self._options.disconnect:
            self._refuse_in_place_with_hooks([one.text for one in others], sessions=others)
            self._refuse_extensions(lacking[False])
            return "in_place", (
                f"{len(others)} other {'session is' if len(others) == 1 else 'sessions are'} connected"
                " and nobody is"
                " disconnected; --disconnect allows the fast way"
            )
        reasons = [*lacking[True], *kept]
        try:
            refuse_obstacles(admin, self._url, disconnect=True)
        except UnsafeRestoreError as error:
            reasons += [line for line in error.found.splitlines() if not line.startswith("Database: ")]
        if reasons:
            self._refuse_in_place_with_hooks(reasons)
            self._refuse_extensions(lacking[False])
            return "in_place", f"a swap is not possible: {'; '.join(reasons)}"
        return "swap", "sessions are disconnected as asked" if others else "nobody else is connected"

    def _refuse_in_place_with_hooks(self, reasons: Sequence[str], **fields: Any) -> None:
        """Hooks need the database beside: never silently without them."""
        if not self._options.hooks:
            return
        found = "\n".join([*reasons, f"Database: {self._url.location}"])
        if fields:
            raise DatabaseInUseError(
                f"other sessions are in {self._url.database!r}, and after-restore hooks need a swap, which"
                " would disconnect them",
                found=found,
                hint="End these sessions, or allow it with --disconnect (disconnect=True); "
                "--no-after-restore restores in place, without hooks.",
                **fields,
            )
        raise UnsafeRestoreError(
            f"after-restore hooks need a swap, which is not possible for {self._url.database!r}",
            found=found,
            hint="Remove the causes named above; --no-after-restore restores in place, without hooks.",
        )

    def _refuse_extensions(self, reasons: Sequence[str]) -> None:
        if reasons:
            raise UnsafeRestoreError(
                f"the extensions of snapshot {self._snapshot} cannot be made in {self._url.database}",
                found="\n".join([*reasons, f"Database: {self._url.location}"]),
                hint="Install them on the server, or have a superuser run CREATE EXTENSION in the database; "
                "then strategy='in_place' keeps them.",
            )
