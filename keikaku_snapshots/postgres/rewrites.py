"""Tables that were emptied behind the back of a transaction's snapshot.

TRUNCATE, and an ALTER TABLE that rewrites, are not MVCC-safe: to a transaction
whose snapshot is older and which reaches the table only afterwards, the table
is empty (PostgreSQL, "Caveats" of Concurrency Control). A dump that waited for
such a table's lock would be complete, consistent in itself, and without rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from keikaku_snapshots.errors import LockBusyError
from keikaku_snapshots.postgres.filters import USER_SCHEMA

if TYPE_CHECKING:
    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.postgres.url import DatabaseURL

#: The row is as old as the snapshot, the function looks at the present.
_REWRITTEN = f"""
SELECT pg_catalog.format('%I.%I', n.nspname, c.relname)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE {USER_SCHEMA} AND c.relkind = 'r' AND c.relpersistence <> 't' AND c.relfilenode <> 0
  AND pg_catalog.pg_relation_filenode(c.oid) IS DISTINCT FROM c.relfilenode
ORDER BY 1
"""  # noqa: S608 - constants of this package


def refuse_rewritten(connection: Connection, url: DatabaseURL) -> None:
    """Refuse what was read when a table was emptied or rewritten since the transaction's snapshot.

    Call it at the end, when all tables were read: from then on their locks keep them as they are.

    Args:
        connection: In the REPEATABLE READ transaction that read.
        url: The database.

    Raises:
        LockBusyError: One was; reading again in a new transaction gives the right rows.
    """
    names = [str(name) for (name,) in connection.execute(_REWRITTEN).fetchall()]
    if names:
        raise LockBusyError(
            f"tables of {url.database} were emptied or rewritten by another session while they were read",
            found="\n".join([*names, f"Database: {url.location}"]),
            hint="Run it again when TRUNCATE, ALTER TABLE, or the restore that did it has ended.",
            rewritten=names,
        )


def were_rewritten(error: BaseException) -> bool:
    """Tell whether an error is that of `refuse_rewritten`.

    Args:
        error: What was raised.

    Returns:
        True if reading again may help.
    """
    return isinstance(error, LockBusyError) and bool(error.details.get("rewritten"))
