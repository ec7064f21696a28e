"""Watch over a step of own SQL: it ends as it began, in one transaction, and wrote only to declared tables.

`step_statements` refuses what can be seen in the text; this looks at what was
done, whatever function or trigger did it, before the engine commits.
"""
# ruff: noqa: S608 - SQL is put together from names that are quoted and constants of this package

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from psycopg.pq import TransactionStatus

from keikaku_snapshots.errors import PatchFailedError, PatchRefusedError
from keikaku_snapshots.patches.records_schema import SCHEMA
from keikaku_snapshots.patches.undo import SETTING, find_tables
from keikaku_snapshots.postgres.catalog_hashes import contents_query

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from uuid import UUID

    from keikaku_snapshots.postgres.connect import Connection

# Whoever writes rows holds this lock until the transaction ends, be it through a function, a trigger or a
# cascade; reading and referring take weaker ones. Large objects (2613) belong to no table of the user; of
# a new one only its row tells.
_WRITTEN: Final = f"""
SELECT DISTINCT CASE WHEN c.oid = 2613 THEN 'large objects' ELSE n.nspname || '.' || c.relname END
FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_class c ON c.oid = l.relation
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE l.locktype = 'relation' AND l.pid = pg_catalog.pg_backend_pid() AND l.mode = 'RowExclusiveLock'
  AND c.relkind IN ('r', 'p', 'f') AND c.relpersistence <> 't' AND c.oid <> ALL (%s::oid[])
  AND n.nspname NOT IN ('{SCHEMA}', 'keikaku_rewind')
  AND (n.nspname !~ '^(pg_|information_schema$)' OR c.oid = 2613)
UNION SELECT 'large objects' FROM pg_catalog.pg_largeobject_metadata
WHERE xmin = pg_catalog.pg_current_xact_id()::xid
ORDER BY 1
"""
# Another session may change the schema meanwhile; whoever changes it holds locks like these.
_CHANGES_SCHEMA: Final = """
SELECT EXISTS (SELECT FROM pg_catalog.pg_locks l WHERE l.pid = pg_catalog.pg_backend_pid() AND l.granted
  AND (l.locktype = 'object' OR l.locktype = 'relation'
       AND l.mode NOT IN ('AccessShareLock', 'RowShareLock', 'RowExclusiveLock')))
"""


@contextmanager
def guarded(connection: Connection, execution_id: UUID, tables: Sequence[str]) -> Iterator[None]:
    """Look after a step whether it kept to what can be taken back.

    Args:
        connection: In the transaction of the step, capture switched on.
        execution_id: The execution, armed.
        tables: Tables that it may change, as ``schema.table``.

    Yields:
        While the step works.

    Raises:
        PatchFailedError: The step ended its transaction: part of it may be committed.
        PatchRefusedError: It wrote to another table, changed the schema or switched capture off. The
            transaction has to be rolled back.
    """
    before = _state(connection)
    yield
    check_transaction(connection, before[0])
    after = _state(connection)
    if after[1] != before[1] and _changes_schema(connection):
        raise _refused("changed the schema", "")
    if after[2] != str(execution_id):
        raise _refused("switched off what keeps its changes", "")
    # A rehearsal has no backup point, so the catalog is asked, and not what was armed.
    declared = [member.oid for table in find_tables(connection, tables) for member in table.members]
    written = [row[0] for row in connection.execute(_WRITTEN, [declared]).fetchall()]
    if written:
        raise _refused(
            "wrote to what the patch does not declare",
            f"Written: {', '.join(written)}\nDeclared: {', '.join(tables)}",
        )


def check_transaction(connection: Connection, transaction: str = "") -> None:
    """Make sure that the step's transaction is still open.

    Args:
        connection: The step's connection.
        transaction: Its number when the step began; empty to look only whether one is open.

    Raises:
        PatchFailedError: It has ended.
    """
    is_open = connection.info.transaction_status == TransactionStatus.INTRANS
    if is_open and transaction:
        is_open = _state(connection)[0] == transaction
    if not is_open:
        raise PatchFailedError(
            "a step of the data patch ended its own transaction, so it may be applied in part",
            found="What it wrote before that is kept in the undo; what it wrote after that is not.",
            hint="Roll the execution back, look at the target tables, and take COMMIT and ROLLBACK out of "
            "the step.",
            hint_ja="実行をロールバックし、対象テーブルを確認して、ステップから COMMIT・ROLLBACK を"
            "取り除いてください。",
        )


def _changes_schema(connection: Connection) -> bool:
    row = connection.execute(_CHANGES_SCHEMA).fetchone()
    return bool(row and row[0])


def _state(connection: Connection) -> tuple[str, int, str]:
    query = (
        "SELECT pg_catalog.pg_current_xact_id()::text,"
        f" ({contents_query()}), pg_catalog.current_setting('{SETTING}', true)"
    )
    row = connection.execute(query.encode()).fetchone()
    return (row[0], row[1], row[2]) if row else ("", 0, "")


def _refused(what: str, found: str) -> PatchRefusedError:
    return PatchRefusedError(
        f"a step of the data patch {what}; the step was rolled back",
        found=found,
        hint="Declare every table that the step changes in target_tables; change the schema in a migration.",
        hint_ja="変更するテーブルを target_tables に宣言し、スキーマ変更はマイグレーションで行ってください。",
    )
