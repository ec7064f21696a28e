"""Row counts against the manifest: the last check before a change goes live."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from keikaku_snapshots.errors import RestoreFailedError
from keikaku_snapshots.postgres import catalog

if TYPE_CHECKING:
    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.snapshots.manifest import Manifest

log = logging.getLogger("keikaku_snapshots.restore")

#: Lines of differing tables that an error shows.
_SHOWN = 20


def compare_counts(connection: Connection, manifest: Manifest) -> None:
    """Compare the rows of every table with the manifest.

    Args:
        connection: The restored database, or the transaction that restores it.
        manifest: What the snapshot held.

    Raises:
        RestoreFailedError: A table has another number of rows, is missing, or is one too many.
    """
    tables = [table for table in catalog.tables(connection) if table.holds_rows]
    # Forced row security hides rows from their own owner; only a superuser can count there.
    rows = connection.execute(
        "SELECT oid FROM pg_catalog.pg_class WHERE oid = ANY(%s) AND relrowsecurity AND relforcerowsecurity"
        " AND NOT (SELECT rolsuper OR rolbypassrls FROM pg_catalog.pg_roles WHERE rolname = current_user)",
        [[table.oid for table in tables]],
    ).fetchall()
    hidden = {row[0] for row in rows}
    uncounted = {table.name.text for table in tables if table.oid in hidden}
    if uncounted:
        log.warning(
            "not counted, because row security hides rows from this role: %s", ", ".join(sorted(uncounted))
        )
    found = catalog.row_counts(connection, [table.name for table in tables if table.oid not in hidden])
    wanted = {name: count for name, count in manifest.row_counts.items() if name not in uncounted}
    if found == wanted:
        return
    lines = [
        f"{name}: {wanted.get(name, 'no table')} in the snapshot, {found.get(name, 'no table')} restored"
        for name in sorted(found.keys() | wanted.keys())
        if found.get(name) != wanted.get(name)
    ]
    raise RestoreFailedError(
        "the restored rows are not those of the snapshot",
        found="\n".join(lines[:_SHOWN]),
        hint="The database is unchanged. Check the snapshot with verify_snapshot, or make it again.",
    )
