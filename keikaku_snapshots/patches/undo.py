"""The backup point of a run: triggers that keep what the run changes, committed before its first batch.

Each execution has logs, functions and triggers of its own (`postgres.capture`,
strict). They work only in a transaction that said `switch`, so what
applications write never appears in them. The logs stay after the run, until
their retention ends; `undo_clean` removes the rest.
"""
# ruff: noqa: S608 - SQL is put together from names that are quoted and constants of this package

from __future__ import annotations

import json
import random
import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus

from keikaku_snapshots.errors import (
    AccessDeniedError,
    LockBusyError,
    PatchRefusedError,
)
from keikaku_snapshots.patches.records_schema import SCHEMA
from keikaku_snapshots.postgres.capture import CaptureNames, log_statements, trigger_statements
from keikaku_snapshots.postgres.capture_tables import (
    CapturedColumn,
    CapturedTable,
    KeyColumn,
    Member,
    captured_tables,
)
from keikaku_snapshots.postgres.sessions import lock_holders
from keikaku_snapshots.postgres.tables import TableName

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from keikaku_snapshots.postgres.connect import Connection

T = TypeVar("T")

#: The setting that turns capture on for a transaction; its value is the execution.
SETTING: Final = "keikaku.patch"
#: Seconds of one try to lock tables: shorter than the server's deadlock_timeout (1 s), so that it is always
#: we who give way, and nobody queues behind us for longer.
TRY_S: Final = 0.5
_BUSY = frozenset({"55P03", "40P01"})


@dataclass(frozen=True, slots=True)
class UndoTable:
    """A table whose changes are kept for one execution."""

    #: Number within the execution.
    number: int
    #: The table as it was when the capture was made.
    table: CapturedTable


def tag(execution_id: UUID) -> str:
    """Return what tells the objects of one execution from those of others.

    Args:
        execution_id: The execution.
    """
    return f"_{execution_id.hex[:12]}"


def names_of(execution_id: UUID) -> CaptureNames:
    """Return what the objects of an execution's capture are called.

    Args:
        execution_id: The execution.
    """
    return CaptureNames(
        schema=SCHEMA,
        active=f"pg_catalog.current_setting('{SETTING}', true) IS NOT DISTINCT FROM '{execution_id}'",
        tag=tag(execution_id),
        is_strict=True,
    )


def switch(execution_id: UUID) -> sql.Composed:
    """Return the statement that turns capture on until the present transaction ends.

    Args:
        execution_id: The execution.
    """
    return sql.SQL("SET LOCAL {} = {}").format(sql.SQL(SETTING), sql.Literal(str(execution_id)))


def arm(
    connection: Connection, execution_id: UUID, tables: Sequence[str], *, lock_wait_s: float = 30.0
) -> tuple[UndoTable, ...]:
    """Make logs, functions and triggers, in one transaction that is committed; harmless when repeated.

    Args:
        connection: In autocommit, or outside of a transaction.
        execution_id: The execution, which has its record already.
        tables: Tables that the patch may change, as ``schema.table``.
        lock_wait_s: Seconds to wait for transactions that write to these tables.

    Returns:
        The tables.

    Raises:
        PatchRefusedError: A table is missing, is a partition, or has no key.
        AccessDeniedError: The role does not own a table.
        LockBusyError: A transaction stayed open; the text says which.
    """

    def work() -> tuple[UndoTable, ...]:
        known = undo_tables(connection, execution_id)
        if known and all(is_armed(connection, execution_id, undo) for undo in known):
            return known
        return _arm(connection, execution_id, tables, known)

    return patiently(connection, work, tables, wait_s=lock_wait_s, doing="making the backup point")


def patiently(
    connection: Connection, work: Callable[[], T], tables: Sequence[str], *, wait_s: float, doing: str
) -> T:
    """Run the work in a transaction of its own; try again while somebody holds a table.

    Args:
        connection: Outside of a transaction.
        work: What to do inside.
        tables: The tables, for the error.
        wait_s: Seconds to go on trying.
        doing: For the error.

    Returns:
        What the work returns.

    Raises:
        LockBusyError: Somebody held a table all the time.
    """
    if connection.info.transaction_status != TransactionStatus.IDLE:
        raise ValueError("a backup point is committed by itself: no transaction may be open")
    deadline = time.monotonic() + wait_s
    while True:
        try:
            with connection.transaction():
                connection.execute(
                    "SELECT pg_catalog.set_config('lock_timeout', %s, true),"
                    " pg_catalog.set_config('client_min_messages', 'warning', true)",
                    [f"{round(TRY_S * 1000)}ms"],
                )
                connection.execute("SET LOCAL synchronous_commit = on")
                return work()
        except psycopg.Error as error:
            if error.sqlstate not in _BUSY:
                raise
            if time.monotonic() >= deadline:
                raise _busy(connection, tables, wait_s, doing) from error
        # Whoever queued behind our try goes first.
        time.sleep(random.uniform(0.05, 0.25))


def _busy(connection: Connection, tables: Sequence[str], wait_s: float, doing: str) -> LockBusyError:
    with connection.transaction():
        roots = [table.name for table in captured_tables(connection, SCHEMA) if table.name.text in tables]
        holders = lock_holders(connection, roots)
    return LockBusyError(
        f"transactions of other sessions stayed open for {wait_s:g} s while {doing}; no row was changed",
        found="\n".join(holder.text for holder in holders) or "they have ended in the meantime",
        hint="Commit or roll back the transactions named above, then run the patch again.",
        hint_ja="上記のトランザクションを終了(COMMIT/ROLLBACK)してから、パッチを再実行してください。",
        pids=[holder.pid for holder in holders],
    )


def _arm(
    connection: Connection, execution_id: UUID, tables: Sequence[str], known: tuple[UndoTable, ...]
) -> tuple[UndoTable, ...]:
    from keikaku_snapshots.patches.undo_clean import drop_functions

    names = names_of(execution_id)
    found = find_tables(connection, tables)
    _refuse(connection, found)
    members = [member.identifier for table in found for member in table.members]
    # LOCK on a partitioned table takes its partitions along; all at once, so that we wait only here.
    connection.execute(f"LOCK TABLE ONLY {', ONLY '.join(members)} IN SHARE ROW EXCLUSIVE MODE")
    if find_tables(connection, tables) != found:
        raise psycopg.errors.LockNotAvailable("tables were changed meanwhile")
    if known:
        if [undo.table.columns for undo in known] != [table.columns for table in found]:
            raise PatchRefusedError(
                "the columns of a target table were changed since the run began",
                found=", ".join(table.name.text for table in found),
                hint="Roll the execution back, then run the patch again.",
                hint_ja="実行をロールバックしてから、パッチを再実行してください。",
            )
        drop_functions(connection, execution_id)
    else:
        # Numbers need no order between transactions, so each session may keep a stock of them.
        connection.execute(f"CREATE SEQUENCE {names.counter} CACHE 1000")
    for table in found:
        if not known:
            connection.execute(log_statements(names, table))
            connection.execute(
                f"INSERT INTO {SCHEMA}.undo (execution_id, number, table_name, description)"
                " VALUES (%s, %s, %s, %s)",
                [execution_id, table.number, table.name.text, json.dumps(asdict(table))],
            )
        connection.execute(trigger_statements(names, table))
    return tuple(UndoTable(table.number, table) for table in found)


def find_tables(connection: Connection, tables: Sequence[str]) -> list[CapturedTable]:
    """Read from the catalog what capture needs to know of tables.

    Args:
        connection: The database.
        tables: Their names, as ``schema.table``.

    Returns:
        The tables in the order of their names in the argument, whole rows to be kept.

    Raises:
        PatchRefusedError: A table is not there, or is a partition of another one.
    """
    by_name = {table.name.text: table for table in captured_tables(connection, SCHEMA)}
    missing = [name for name in tables if name not in by_name]
    if missing:
        raise PatchRefusedError(
            "a target table is not there, or is a partition of another table",
            found=", ".join(missing),
            hint="Name each table as schema.table; of a partitioned table, the topmost one.",
            hint_ja="schema.table の形式で指定してください(パーティションは最上位の親テーブル)。",
        )
    return [
        replace(by_name[name], number=number, mode="images")
        for number, name in enumerate(dict.fromkeys(tables), 1)
    ]


def _refuse(connection: Connection, tables: Sequence[CapturedTable]) -> None:
    without_key = [table.name.text for table in tables if not table.key]
    if without_key:
        raise PatchRefusedError(
            "a target table has no key by which a row is found again",
            found=", ".join(without_key),
            hint="Add a primary key, or a unique index over NOT NULL columns that is never deferred.",
            hint_ja="主キー、または NOT NULL 列の(遅延されない)一意インデックスを追加してください。",
        )
    foreign = [table for table in tables if not table.is_ours]
    if foreign:
        raise AccessDeniedError(
            "the role does not own every target table, so it cannot keep their changes",
            found="\n".join(f"{table.name} of {table.owner}" for table in foreign),
            hint=f"Use a superuser, or: GRANT {foreign[0].owner} TO {connection.info.user};",
        )


def undo_tables(connection: Connection, execution_id: UUID) -> tuple[UndoTable, ...]:
    """Read which tables have a log of an execution.

    Args:
        connection: The database.
        execution_id: The execution.

    Returns:
        The tables by number; none when nothing was armed, or all was dropped.
    """
    rows = connection.execute(
        f"SELECT number, description FROM {SCHEMA}.undo WHERE execution_id = %s ORDER BY number",
        [execution_id],
    ).fetchall()
    return tuple(UndoTable(number, _read(description)) for number, description in rows)


def _read(described: dict[str, Any]) -> CapturedTable:
    fields = dict(described)
    return CapturedTable(
        **fields
        | {
            "name": TableName(**fields["name"]),
            "columns": tuple(CapturedColumn(**column) for column in fields["columns"]),
            # A named tuple is an array in JSON.
            "key": tuple(KeyColumn(*part) for part in fields["key"]),
            "members": tuple(Member(**member) for member in fields["members"]),
        }
    )


def is_armed(connection: Connection, execution_id: UUID, undo: UndoTable) -> bool:
    """Tell whether all triggers of a table are there and switched on.

    Args:
        connection: The database.
        execution_id: The execution.
        undo: The table.
    """
    names = names_of(execution_id)
    kinds = ("row",) if undo.table.is_inherited else ("insert", "update", "delete")
    wanted = [names.trigger(kind) for kind in (*kinds, "write_truncate")]
    row = connection.execute(
        "SELECT count(*) FROM pg_catalog.pg_trigger"
        " WHERE tgrelid = ANY (%s::oid[]) AND tgname = ANY (%s) AND tgenabled = 'A'",
        [[member.oid for member in undo.table.members], wanted],
    ).fetchone()
    return row is not None and row[0] == len(undo.table.members) * len(wanted)
