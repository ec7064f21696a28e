"""Approving a patch: another person than the one who runs it has seen its source and parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from psycopg import sql

from keikaku_snapshots.patches.records import ensure_schema
from keikaku_snapshots.patches.records_schema import SCHEMA
from keikaku_snapshots.patches.source import source_hash

if TYPE_CHECKING:
    from keikaku_snapshots.patches.definition import Patch
    from keikaku_snapshots.patches.parameters import Parameters
    from keikaku_snapshots.patches.ports import Audit
    from keikaku_snapshots.postgres.connect import Connection


def approve(
    connection: Connection, patch: Patch, parameters: Parameters, actor: str, *, audit: Audit | None = None
) -> None:
    """Approve a patch as it is now, with these parameters.

    Args:
        connection: The database, in autocommit.
        patch: The patch.
        parameters: Its parameters.
        actor: Who approves; only others may run it on the strength of this.
        audit: Writes a line of the audit log, before anything else.
    """
    ensure_schema(connection)
    source = source_hash(patch)
    if audit is not None:
        audit(
            "approved",
            {
                "patch": patch.name,
                "version": patch.version,
                "source_hash": source,
                "parameters": parameters.shown,
                "actor": actor,
            },
        )
    query = sql.SQL(
        "INSERT INTO {} (patch_name, source_hash, parameters_hash, actor) VALUES (%s, %s, %s, %s)"
    ).format(sql.Identifier(SCHEMA, "approval"))
    connection.execute(query, [patch.name, source, parameters.hash, actor])
