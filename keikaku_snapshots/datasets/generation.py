"""Generating a dataset: delete, load, put sequences right, all in one transaction or not at all."""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, overload

from keikaku_snapshots.datasets.attempts import Attempt, Timeouts
from keikaku_snapshots.datasets.clean import count_test_rows, delete_test_rows
from keikaku_snapshots.datasets.constraints import add_constraints, drop_constraints
from keikaku_snapshots.datasets.copy import StepProgress, check_batch_size, copy_blocks, memory_check
from keikaku_snapshots.datasets.dataset import Dataset, Scale, find_dataset
from keikaku_snapshots.datasets.guards import PROTECTED_WORDS, check_allowed
from keikaku_snapshots.datasets.parameters import check_flag, check_seed
from keikaku_snapshots.datasets.schema import (
    Found,
    lock_tables,
    prepare_tables,
    reset_sequences,
    set_constraints,
    taken_numbers,
    waiting_keys,
)
from keikaku_snapshots.datasets.shards import TableSource
from keikaku_snapshots.datasets.steps import Execute
from keikaku_snapshots.datasets.targets import run
from keikaku_snapshots.errors import ForeignKeyError, ParameterTypeError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from concurrent.futures import Executor

    import asyncpg
    import psycopg
    import sqlalchemy
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
    from sqlalchemy.orm import Session

    from keikaku_snapshots.datasets.steps import Steps
    from keikaku_snapshots.postgres.connect import RetryPolicy
    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.progress import ProgressCallback

_CIRCLE_HINT = (
    "The tables refer to each other in a circle. Make one of the foreign keys DEFERRABLE, leave its "
    "column NULL, or pass drop_and_readd_constraints=True."
)
_log = logging.getLogger("keikaku_snapshots.datasets")


@dataclass(frozen=True, slots=True)
class Generated:
    """What `generate` wrote."""

    #: Name of the dataset.
    dataset: str
    #: Name of the scale.
    scale: str
    #: What every draw depended on.
    seed: int | str
    #: The day that dates hang on.
    reference_date: date
    #: Rows written to each table, parents first.
    rows: dict[str, int]
    #: Test rows of an earlier run that were deleted.
    deleted: int
    #: Seconds from the first statement to the end of COMMIT.
    seconds: float
    #: SHA-256 of the data: over the tables by name, their columns, and their rows as COPY text in
    #: the order in which they are generated. Equal for equal seed, scale and reference date,
    #: whatever the batch size, executor, driver, machine and version of the server. Numbers of an
    #: identity column count from 1, or after the highest of the rows that stay.
    checksum: str


@dataclass(frozen=True, slots=True)
class _Plan:
    """Everything that one call of `generate` was asked for."""

    dataset: Dataset
    scale: Scale
    seed: int | str
    reference_date: date
    batch_size: int
    clean_existing: bool
    create_tables: bool
    drop_constraints: bool
    analyze: bool
    schema: str | None
    timeouts: Timeouts
    check_memory: Callable[[], None]
    check_allowed: Callable[[], Steps[None]]
    progress: ProgressCallback | None
    executor: Executor | None
    began: float = field(default_factory=time.perf_counter)


class Options(TypedDict, total=False):
    """The keywords of `generate`, for type checkers."""

    seed: int | str
    reference_date: date | None
    batch_size: int
    clean_existing: bool
    create_tables: bool
    drop_and_readd_constraints: bool
    analyze: bool
    schema: str | None
    retry: RetryPolicy | None
    timeouts: Timeouts | None
    memory_limit_mb: float | None
    allow_protected: bool
    protected_words: Sequence[str]
    allowed_databases: Sequence[str]
    progress: ProgressCallback | None
    executor: Executor | None


@overload
def generate(
    dataset: str | Dataset,
    scale: Scale | str,
    db: str | DatabaseURL | sqlalchemy.URL | psycopg.Connection[Any] | sqlalchemy.Connection | Session,
    **options: Unpack[Options],
) -> Generated: ...
@overload
def generate(
    dataset: str | Dataset,
    scale: Scale | str,
    db: psycopg.AsyncConnection[Any] | AsyncConnection | AsyncSession | asyncpg.Connection[Any],
    **options: Unpack[Options],
) -> Awaitable[Generated]: ...
def generate(
    dataset: str | Dataset,
    scale: Scale | str,
    db: Any,
    *,
    seed: int | str = 0,
    reference_date: date | None = None,
    batch_size: int = 500,
    clean_existing: bool = True,
    create_tables: bool = False,
    drop_and_readd_constraints: bool = False,
    analyze: bool = True,
    schema: str | None = None,
    retry: RetryPolicy | None = None,
    timeouts: Timeouts | None = None,
    memory_limit_mb: float | None = None,
    allow_protected: bool = False,
    protected_words: Sequence[str] = PROTECTED_WORDS,
    allowed_databases: Sequence[str] = (),
    progress: ProgressCallback | None = None,
    executor: Executor | None = None,
) -> Generated | Awaitable[Generated]:
    """Fill the tables of a dataset with the rows of a scale, all or nothing.

    On a URL or an idle autocommit connection the work is one transaction of
    its own, committed, and tried again when the connection is lost before
    COMMIT was sent. Inside a caller's transaction it is a savepoint, rolled back
    to on failure, and committed by the caller.

    Args:
        dataset: A dataset, its name, or ``package.module:attribute``.
        scale: How much; a scale or its name.
        db: A URL, a psycopg or asyncpg connection, or an SQLAlchemy connection
            or session on one of these.
        seed: The same seed, scale and reference date give the same bytes.
        reference_date: The day that dates hang on; today (UTC) when None.
        batch_size: Rows encoded at a time; errors name the batch. More than
            1,000 takes memory and gains nothing.
        clean_existing: First delete the rows with ``is_test_data = true`` of
            these tables. Other rows are never touched; when one refers to a row
            that would be deleted, nothing is.
        create_tables: Create tables (and their types and indexes) that are missing.
        drop_and_readd_constraints: Drop foreign keys and secondary indexes
            for the load and add them again, validated; for large loads. Locks
            the tables against readers too, and checks deferred constraints at once.
        analyze: Collect the planner's statistics of the tables, in the same
            transaction: the next query is planned for the rows that are there,
            without waiting for autovacuum.
        schema: Where tables without a schema of their own are; the connection's
            search path decides when None.
        retry: How often and how patiently; 3 tries, 2 to 10 s apart, when None.
        timeouts: How long waiting may take.
        memory_limit_mb: Resident memory of this process, in megabytes, above
            which the work stops.
        allow_protected: Also work on a database that looks like production.
        protected_words: Words in the name of database or host that look like it.
        allowed_databases: Patterns of the only databases to work on; all when empty.
        progress: Told about the rows of every step.
        executor: Makes and encodes the shards; this thread when None. The
            dataset's functions must be importable by its workers.

    Returns:
        What was written; an awaitable of it for an asynchronous `db`.

    Raises:
        UsageError: A parameter is wrong.
        ProtectedDatabaseError: The database looks like production.
        SchemaDriftError: Tables are missing or have another form.
        TestDataReferencedError: Rows that stay refer to test rows.
        DataError: A constraint refused a row.
        ConnectError: The server could not be reached, or was lost, to the last try.
        OutcomeUnknownError: The connection was lost after COMMIT was sent.
        OperationTimeoutError: A limit of `timeouts` was reached.
        MemoryLimitError: The memory limit was reached.
    """
    chosen = find_dataset(dataset)
    plan = _Plan(
        dataset=chosen,
        scale=_scale(chosen, scale),
        seed=check_seed(seed),
        reference_date=_date(reference_date),
        batch_size=check_batch_size(batch_size),
        clean_existing=check_flag("clean_existing", clean_existing),
        create_tables=check_flag("create_tables", create_tables),
        drop_constraints=check_flag("drop_and_readd_constraints", drop_and_readd_constraints),
        analyze=check_flag("analyze", analyze),
        schema=schema,
        timeouts=timeouts or Timeouts(),
        check_memory=memory_check(memory_limit_mb),
        check_allowed=check_allowed(
            db,
            allow_protected=allow_protected,
            protected_words=protected_words,
            allowed_databases=allowed_databases,
        ),
        progress=progress,
        executor=_executor(executor),
    )
    result: Generated | Awaitable[Generated] = run(
        db, partial(_generate, plan), policy=retry, timeouts=plan.timeouts, schema=schema, finish=_timed(plan)
    )
    return result


def _timed(plan: _Plan) -> Callable[[Generated], Generated]:
    from dataclasses import replace

    return lambda generated: replace(generated, seconds=time.perf_counter() - plan.began)


def _generate(plan: _Plan, attempt: Attempt) -> Steps[Generated]:
    """One try."""
    del attempt
    yield from plan.check_allowed()
    plan.check_memory()
    tables = yield from prepare_tables(plan.dataset, create=plan.create_tables, schema=plan.schema)
    if plan.clean_existing or any(table.sequences for table in tables):
        yield from lock_tables(tables)
    present = (yield from count_test_rows(tables, plan.dataset.marker)) if plan.clean_existing else {}
    back = (yield from drop_constraints(tables)) if plan.drop_constraints else []
    waiting = [] if plan.drop_constraints else (yield from waiting_keys(tables))
    yield from set_constraints(waiting, "DEFERRED")
    deleted = (yield from _delete(plan, tables, present)) if plan.clean_existing else 0
    taken = yield from taken_numbers(tables)
    rows, checksum = yield from _load(plan, tables, taken)
    yield from add_constraints(back)
    yield from set_constraints(waiting, "IMMEDIATE")
    yield from reset_sequences(tables)
    if plan.analyze:
        yield Execute(f"ANALYZE {', '.join(table.sql for table in tables)}")
    return Generated(
        dataset=plan.dataset.name,
        scale=plan.scale.name,
        seed=plan.seed,
        reference_date=plan.reference_date,
        rows=rows,
        deleted=deleted,
        seconds=0.0,
        checksum=checksum,
    )


def _delete(plan: _Plan, tables: Sequence[Found], present: dict[int, int]) -> Steps[int]:
    counter = StepProgress(plan.progress, "delete old test rows", None)
    deleted = yield from delete_test_rows(tables, plan.dataset.marker, present)
    counter.add(deleted)
    counter.finish()
    _log.info("deleted %d old test rows", deleted)
    return deleted


def _load(plan: _Plan, tables: Sequence[Found], taken: dict[str, int]) -> Steps[tuple[dict[str, int], str]]:
    rows: dict[str, int] = {}
    checksums: dict[str, str] = {}
    shards = partial(
        plan.dataset.shards, plan.scale, seed=plan.seed, reference_date=plan.reference_date, taken=taken
    )
    for table in tables:
        began = time.perf_counter()
        source = TableSource(table, shards, plan.batch_size, plan.executor)
        rows[table.table.name] = yield from _copy(plan, table, source)
        checksums[table.table.name] = source.checksum
        _log.info(
            "copied %d rows into %s in %.2f s",
            rows[table.table.name],
            table.name,
            time.perf_counter() - began,
        )
    lines = "".join(f"{name}\t{checksums[name]}\n" for name in sorted(checksums))
    return rows, hashlib.sha256(lines.encode()).hexdigest()


def _copy(plan: _Plan, table: Found, source: TableSource) -> Steps[int]:
    try:
        return (
            yield from copy_blocks(
                table.name,
                table.columns,
                source.blocks,
                batch_size=plan.batch_size,
                schema=table.schema,
                rows_again=source.rows,
                progress=plan.progress,
                total=table.table.expected_rows(plan.scale),
                check_memory=plan.check_memory,
                stall_timeout_s=plan.timeouts.stall_s,
            )
        )
    except ForeignKeyError as error:
        if table.circle:
            error.hint = _CIRCLE_HINT
        raise


def _scale(dataset: Dataset, scale: Scale | str) -> Scale:
    if isinstance(scale, Scale):
        return scale
    if not isinstance(scale, str):
        raise ParameterTypeError(f"scale must be a Scale or a name, not {type(scale).__name__}: {scale!r}")
    return dataset.scale(scale)


def _executor(executor: Executor | None) -> Executor | None:
    if executor is not None and not callable(getattr(executor, "submit", None)):
        what = f"executor must have submit() as those of concurrent.futures, not {type(executor).__name__}"
        raise ParameterTypeError(f"{what}: {executor!r}")
    return executor


def _date(value: date | None) -> date:
    if value is None:
        from datetime import UTC

        return datetime.now(tz=UTC).date()
    if isinstance(value, datetime) or not isinstance(value, date):
        raise ParameterTypeError(f"reference_date must be a date, not {type(value).__name__}: {value!r}")
    return value
