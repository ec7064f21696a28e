"""What a caller may hand in as ``db``, and how steps are done on it.

A URL, a psycopg or asyncpg connection, or an SQLAlchemy connection or session
on one of these. SQLAlchemy is only asked for its driver's connection: COPY goes
past it, inside the same transaction.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import psycopg

from keikaku_snapshots.datasets.attempts import FAILED_TRANSACTION, Timeouts, Unit, attempts
from keikaku_snapshots.datasets.parameters import check_schema
from keikaku_snapshots.datasets.steps import (
    AsyncTarget,
    Begin,
    Commit,
    Copy,
    Execute,
    Rollback,
    Sleep,
    Step,
    Steps,
    SyncTarget,
    drive_async,
    drive_sync,
)
from keikaku_snapshots.datasets.watch import StallWatch
from keikaku_snapshots.errors import ConnectError, ParameterTypeError, UsageError
from keikaku_snapshots.postgres.connect import RetryPolicy, connect
from keikaku_snapshots.postgres.url import DatabaseURL

if TYPE_CHECKING:
    from collections.abc import Callable

    import sqlalchemy
    from sqlalchemy.orm import Session

ResultT = TypeVar("ResultT")
#: A connection, session or URL that data is written to.
Database: TypeAlias = Any

#: The savepoint inside a caller's transaction.
SAVEPOINT = "keikaku_snapshots"
_TAKEN = (
    "db must be a database URL, a psycopg Connection or AsyncConnection, an asyncpg Connection, or an "
    "SQLAlchemy Connection, Session, AsyncConnection or AsyncSession on psycopg or asyncpg"
)


def run(
    db: Database,
    unit: Unit[ResultT],
    *,
    policy: RetryPolicy | None = None,
    timeouts: Timeouts | None = None,
    unseeded: bool = False,
    schema: str | None = None,
    finish: Callable[[ResultT], ResultT] | None = None,
) -> Any:
    """Do a unit of work on whatever the caller handed in; see `attempts` for what is tried again.

    Args:
        db: A URL, connection or session.
        unit: Makes the steps of one try.
        policy: How often and how patiently.
        timeouts: How long waiting may take.
        unseeded: True when a unique collision may be answered with fresh values.
        schema: Put before the search path for this unit.
        finish: Called with the result when it is committed.

    Returns:
        What the unit returned; an awaitable of it when `db` is asynchronous.

    Raises:
        ParameterTypeError: `db` is none of these.
        KeikakuError: The work failed and is undone.
    """
    for name, value, kind in (("retry", policy, RetryPolicy), ("timeouts", timeouts, Timeouts)):
        if value is not None and not isinstance(value, kind):
            what = f"{name} must be a {kind.__name__}, not {type(value).__name__}: {value!r}"
            raise ParameterTypeError(what)
    check_schema(schema)
    timeouts = timeouts or Timeouts()
    target = open_target(db, timeouts)
    steps = finished(
        unit,
        finish,
        reconnects=isinstance(target, UrlTarget),
        policy=policy,
        timeouts=timeouts,
        unseeded=unseeded,
        schema=schema,
    )
    if is_async(db):
        return drive_async(steps, target)
    return drive_sync(steps, target)


def finished(
    unit: Unit[ResultT], finish: Callable[[ResultT], ResultT] | None, **options: Any
) -> Steps[ResultT]:
    """The attempts, then what is left to do with their result."""
    result = yield from attempts(unit, **options)
    return finish(result) if finish is not None else result


def is_async(db: Database) -> bool:
    """True when work on this connection or session must be awaited."""
    return _kind(db) in {"psycopg-async", "asyncpg", "sqlalchemy-async", "sqlalchemy-async-session"}


def open_target(db: Database, timeouts: Timeouts | None = None) -> Any:
    """The target for what the caller handed in; nothing is sent to the server yet."""
    from keikaku_snapshots.datasets import async_targets

    kind = _kind(db)
    if kind == "url":
        return UrlTarget(DatabaseURL.parse(db), timeouts or Timeouts())
    if kind == "psycopg":
        return PsycopgTarget(db)
    if kind == "psycopg-async":
        return async_targets.AsyncPsycopgTarget(db)
    if kind == "asyncpg":
        return async_targets.AsyncpgTarget(db, timeouts or Timeouts())
    if kind.startswith("sqlalchemy-async"):
        return async_targets.AsyncSQLAlchemyTarget(db, timeouts or Timeouts())
    return SQLAlchemyTarget(db, timeouts or Timeouts())


def _kind(db: Database) -> str:
    if isinstance(db, str | DatabaseURL):
        return "url"
    if isinstance(db, psycopg.Connection):
        return "psycopg"
    if isinstance(db, psycopg.AsyncConnection):
        return "psycopg-async"
    # A caller cannot hold an object of a library that was never imported.
    if (asyncpg := sys.modules.get("asyncpg")) and isinstance(
        db, asyncpg.Connection | asyncpg.pool.PoolConnectionProxy
    ):
        return "asyncpg"
    if sqlalchemy := sys.modules.get("sqlalchemy"):
        if isinstance(db, sqlalchemy.URL):
            return "url"
        if isinstance(db, sqlalchemy.Connection):
            return "sqlalchemy"
    if (orm := sys.modules.get("sqlalchemy.orm")) and isinstance(db, orm.Session | orm.scoped_session):
        return "sqlalchemy-session"
    if aio := sys.modules.get("sqlalchemy.ext.asyncio"):
        if isinstance(db, aio.AsyncConnection):
            return "sqlalchemy-async"
        if isinstance(db, aio.AsyncSession | aio.async_scoped_session):
            return "sqlalchemy-async-session"
    raise ParameterTypeError(f"{_TAKEN}; not {type(db).__module__}.{type(db).__name__}")


def begin_statement(*, autocommit: bool, status: psycopg.pq.TransactionStatus) -> str | None:
    """What begins a unit of work: None for a savepoint, else the statement of an own transaction.

    Raises:
        UsageError: The caller's transaction has failed, or the connection is busy.
    """
    states = psycopg.pq.TransactionStatus
    if status == states.INERROR:
        raise UsageError(FAILED_TRANSACTION, hint="Roll it back, then call again.")
    if status == states.ACTIVE:
        raise busy()
    return "BEGIN" if autocommit and status == states.IDLE else None


def busy() -> UsageError:
    """The error for a connection that does something else at the same time."""
    return UsageError(
        "the connection is busy with another statement",
        hint="Finish it (await it, read its rows, end its COPY or pipeline), or use another connection.",
    )


class PsycopgTarget:
    """Steps on a psycopg connection of the caller's."""

    def __init__(self, connection: psycopg.Connection[Any] | None) -> None:
        self._connection = connection
        self._owned = False

    @property
    def connection(self) -> psycopg.Connection[Any]:
        """The connection; an error when it is closed."""
        if self._connection is None or self._connection.closed:
            raise ConnectError(
                "the connection is closed", hint="Open a new one and call again.", transient=False
            )
        return self._connection

    def perform(self, step: Step) -> Any:
        """Do the step and return its answer."""
        match step:
            case Execute(sql, parameters):
                return self._execute(sql, parameters)
            case Copy():
                return self._copy(step)
            case Begin():
                return self._begin()
            case Commit():
                return self._execute("COMMIT" if self._owned else f"RELEASE SAVEPOINT {SAVEPOINT}")
            case Rollback():
                return self._rollback()
            case Sleep(seconds):
                return time.sleep(seconds)

    def close(self) -> None:
        """Nothing here is the library's."""

    def _execute(self, sql: str, parameters: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        with psycopg.RawCursor(self.connection, row_factory=psycopg.rows.tuple_row) as cursor:
            cursor.execute(sql.encode(), parameters or None, prepare=False)
            return cursor.fetchall() if cursor.description is not None else []

    def _copy(self, step: Copy) -> int:
        connection = self.connection
        with (
            StallWatch(step, lambda: connection.cancel_safe(timeout=5)) as watch,
            psycopg.RawCursor(connection) as cursor,
        ):
            with cursor.copy(step.statement.encode()) as copy:
                for block in watch.blocks(step):
                    if isinstance(block, bytes):  # else asking for the next one waits for it
                        copy.write(block)
            return cursor.rowcount

    def _begin(self) -> bool:
        connection = self.connection
        if connection.pgconn.pipeline_status != psycopg.pq.PipelineStatus.OFF:
            raise busy()  # COPY cannot be part of a pipeline
        statement = begin_statement(
            autocommit=connection.autocommit, status=connection.info.transaction_status
        )
        self._execute(statement or f"SAVEPOINT {SAVEPOINT}")
        self._owned = statement is not None
        return self._owned

    def _rollback(self) -> bool:
        try:
            self._execute("ROLLBACK" if self._owned else f"ROLLBACK TO SAVEPOINT {SAVEPOINT}")
            if not self._owned:
                self._execute(f"RELEASE SAVEPOINT {SAVEPOINT}")
        except (psycopg.Error, ConnectError):
            if self._connection is not None:
                self._connection.close()  # what could not be undone must not be committed by anybody
            return False
        return True


class UrlTarget(PsycopgTarget):
    """Steps on a connection that is opened for the work and closed after it."""

    def __init__(self, url: DatabaseURL, timeouts: Timeouts) -> None:
        super().__init__(None)
        self._url, self._timeouts = url, timeouts

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()

    def _begin(self) -> bool:
        if self._connection is None or self._connection.closed:
            self._connection = connect(self._url, autocommit=True, connect_timeout_s=self._timeouts.connect_s)
        return super()._begin()

    def _rollback(self) -> bool:
        if not super()._rollback():
            self.close()
        return True


class SQLAlchemyTarget(PsycopgTarget):
    """Steps on the driver's connection below an SQLAlchemy connection or session.

    Inside ``AsyncSession.run_sync`` the driver is an asynchronous one; then its steps are
    awaited as SQLAlchemy's own statements are there.
    """

    def __init__(self, db: sqlalchemy.Connection | Session, timeouts: Timeouts) -> None:
        super().__init__(None)
        self._db, self._timeouts = db, timeouts
        self._bridged: Any = None
        self._bound: Any = None

    def perform(self, step: Step) -> Any:
        """Do the step and return its answer."""
        if isinstance(step, Begin):
            return self._begin()
        if self._bridged is None:
            answer = super().perform(step)
        else:
            from sqlalchemy.util import await_only

            answer = await_only(self._bridged.perform(step))
        if isinstance(step, Rollback) and not answer:
            # Else the end of the caller's block would try to roll back what is gone, and its
            # error would stand in the place of ours.
            self._bound.invalidate()
        return answer

    def _begin(self) -> bool:
        connection: Any = self._db
        if hasattr(connection, "flush"):
            connection.flush()  # rows the session has not sent yet may be the parents of ours
            connection = connection.connection()
        check_driver(connection.dialect)
        # SQLAlchemy must know that a transaction has begun, or its commit() would do nothing.
        connection.exec_driver_sql("SELECT 1").close()
        self._bound = connection
        driver = connection.connection.driver_connection
        if not connection.dialect.is_async:
            self._connection = driver
            return super()._begin()
        from sqlalchemy.util import await_only

        self._bridged = open_target(driver, self._timeouts)
        owned: bool = await_only(self._bridged.perform(Begin()))
        return owned


def check_driver(dialect: Any) -> None:
    """Refuse drivers whose COPY the library does not speak.

    Raises:
        ParameterTypeError: Another database than PostgreSQL, or another driver.
    """
    if dialect.name != "postgresql" or dialect.driver not in {"psycopg", "psycopg_async", "asyncpg"}:
        found = f"{dialect.name}+{dialect.driver}"
        what = f"SQLAlchemy uses {found}; needed is postgresql+psycopg or postgresql+asyncpg"
        raise ParameterTypeError(what, hint="Create the engine with postgresql+psycopg://…")


if TYPE_CHECKING:
    # The protocols are kept by the type checker.
    _sync: SyncTarget = PsycopgTarget(None)
    _async: type[AsyncTarget]
