"""Factories for the Keikaku tables: many rows by COPY instead of one INSERT each.

::

    offices = bulk_create_offices(db, count=10)
    staffs = bulk_create_staffs(db, offices, 10)
    recipients = bulk_create_welfare_recipients(db, offices, 100)
    plans, cycles = bulk_create_support_plans_and_cycles(db, recipients, staffs)

``db`` is a URL, a psycopg ``Connection`` or ``AsyncConnection``, an SQLAlchemy
``Connection``, ``Session``, ``AsyncConnection`` or ``AsyncSession`` (on psycopg or
asyncpg), or an asyncpg ``Connection``. On an asynchronous one every function
returns an awaitable.

Databases whose name or host looks like production are refused, as by `generate`.

Each call is all or nothing. In the caller's transaction it is a savepoint, which is
rolled back to when it fails; it is never committed for the caller. On an autocommit
connection or a URL it is committed, and tried again when the connection is lost.

Numbers drawn from a sequence are not given back by a rollback (FAULTS 83): the ids of
plan cycles have gaps afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict, Unpack, overload
from uuid import UUID

from keikaku_snapshots.datasets import bulk_units
from keikaku_snapshots.datasets.attempts import Timeouts
from keikaku_snapshots.datasets.copy import check_batch_size
from keikaku_snapshots.datasets.dataset import check_count
from keikaku_snapshots.datasets.guards import PROTECTED_WORDS, check_allowed
from keikaku_snapshots.datasets.keikaku_rows import Dates
from keikaku_snapshots.datasets.parameters import check_seed
from keikaku_snapshots.datasets.targets import run
from keikaku_snapshots.errors import ParameterTypeError, UsageError

if TYPE_CHECKING:
    from collections.abc import Awaitable

    import asyncpg
    import psycopg
    import sqlalchemy
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
    from sqlalchemy.orm import Session

    from keikaku_snapshots.datasets.attempts import Attempt, Unit
    from keikaku_snapshots.datasets.keikaku_records import (
        Office,
        Staff,
        SupportPlan,
        SupportPlanCycle,
        WelfareRecipient,
    )
    from keikaku_snapshots.datasets.steps import Steps
    from keikaku_snapshots.postgres.connect import RetryPolicy
    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.progress import ProgressCallback

    #: A URL, a psycopg ``Connection``, an SQLAlchemy ``Connection`` or ``Session``.
    SyncDatabase: TypeAlias = (
        str | DatabaseURL | sqlalchemy.URL | psycopg.Connection[Any] | sqlalchemy.Connection | Session
    )
    #: A psycopg ``AsyncConnection``, an SQLAlchemy ``AsyncConnection`` or ``AsyncSession`` (on psycopg or
    #: asyncpg), an asyncpg ``Connection``.
    AsyncDatabase: TypeAlias = (
        psycopg.AsyncConnection[Any] | AsyncSession | AsyncConnection | asyncpg.Connection[Any]
    )
    #: Office id to the staff of the office.
    StaffsByOffice: TypeAlias = dict[UUID, list[Staff]]
    #: Office id to its welfare recipients.
    RecipientsByOffice: TypeAlias = dict[UUID, list[WelfareRecipient]]
    #: Plans and their cycles, in the same order.
    PlansAndCycles: TypeAlias = tuple[list[SupportPlan], list[SupportPlanCycle]]


class BulkOptions(TypedDict, total=False):
    """Options that every ``bulk_create_*`` function takes."""

    #: The same seed gives the same rows (for the same parents); a second call with it is refused
    #: by the unique constraints. None: rows that were never there, drawn anew after a collision.
    seed: int | str | None
    #: The day that cycle dates, ages and bookkeeping hang on; today (UTC) when None.
    reference_date: date | None
    #: The tables' schema; the search path decides when None.
    schema: str | None
    #: Told how many rows of each table are sent.
    progress: ProgressCallback | None
    #: How often and how patiently a lost connection is tried again (URL and autocommit only).
    retry: RetryPolicy | None
    #: How long connecting, statements, locks and a COPY without progress may take.
    timeouts: Timeouts | None
    #: Megabytes of resident memory above which the work stops with nothing written.
    memory_limit_mb: float | None
    #: Also work on a database that looks like production. The staff that is made there has a
    #: password that everybody can read in the documentation.
    allow_protected: bool
    #: Words in the name of database or host that look like it; the usual ones when left out.
    protected_words: Sequence[str]
    #: Patterns of the only databases to work on; all when empty.
    allowed_databases: Sequence[str]


@overload
def bulk_create_offices(
    db: SyncDatabase,
    count: int = 100,
    batch_size: int = 500,
    *,
    created_by: object = None,
    **options: Unpack[BulkOptions],
) -> list[Office]: ...
@overload
def bulk_create_offices(
    db: AsyncDatabase,
    count: int = 100,
    batch_size: int = 500,
    *,
    created_by: object = None,
    **options: Unpack[BulkOptions],
) -> Awaitable[list[Office]]: ...
def bulk_create_offices(
    db: Any,
    count: int = 100,
    batch_size: int = 500,
    *,
    created_by: object = None,
    **options: Unpack[BulkOptions],
) -> Any:
    """Create offices.

    Args:
        db: URL, connection or session, see `SyncDatabase` and `AsyncDatabase`.
        count: How many, at least 1.
        batch_size: Rows encoded at a time; above 1,000 only warns.
        created_by: The staff that owns them (its id, or an object with ``.id``). None:
            the one system staff, which is made when there is none.
        **options: See `BulkOptions`.

    Returns:
        The offices; an awaitable of them when `db` is asynchronous.

    Raises:
        UsageError: A number is not above 0 (a `ValueError`).
        ParameterTypeError: A parameter has the wrong type (a `TypeError`).
        ForeignKeyError: There is no staff `created_by`.
        DataError: Another constraint refused a row; nothing is written.
    """
    check_count("count", count)
    call = _call(check_batch_size(batch_size), options)
    owner = None if created_by is None else _id("created_by", created_by)

    def unit(attempt: Attempt) -> Steps[list[Office]]:
        return bulk_units.create_offices(call, count, owner, immediate=attempt.owned)

    return _run(db, unit, options)


@overload
def bulk_create_staffs(
    db: SyncDatabase,
    offices: Iterable[Any],
    count_per_office: int = 10,
    batch_size: int = 500,
    **options: Unpack[BulkOptions],
) -> StaffsByOffice: ...
@overload
def bulk_create_staffs(
    db: AsyncDatabase,
    offices: Iterable[Any],
    count_per_office: int = 10,
    batch_size: int = 500,
    **options: Unpack[BulkOptions],
) -> Awaitable[StaffsByOffice]: ...
def bulk_create_staffs(
    db: Any,
    offices: Iterable[Any],
    count_per_office: int = 10,
    batch_size: int = 500,
    **options: Unpack[BulkOptions],
) -> Any:
    """Create staff and link them to their offices.

    Args:
        db: URL, connection or session, see `SyncDatabase` and `AsyncDatabase`.
        offices: Offices (anything with ``.id``) or their ids.
        count_per_office: Staff for each office, at least 1.
        batch_size: Rows encoded at a time; above 1,000 only warns.
        **options: See `BulkOptions`.

    Returns:
        Office id to its staff; an awaitable of it when `db` is asynchronous.

    Raises:
        UsageError: A number is not above 0 (a `ValueError`).
        ParameterTypeError: A parameter has the wrong type (a `TypeError`).
        ForeignKeyError: An office does not exist.
        DataError: Another constraint refused a row; nothing is written.
    """
    check_count("count_per_office", count_per_office)
    call = _call(check_batch_size(batch_size), options)
    ids = _ids("offices", offices)
    return _run(db, lambda _: bulk_units.create_staffs(call, ids, count_per_office), options)


@overload
def bulk_create_welfare_recipients(
    db: SyncDatabase,
    offices: Iterable[Any],
    count_per_office: int = 100,
    batch_size: int = 500,
    **options: Unpack[BulkOptions],
) -> RecipientsByOffice: ...
@overload
def bulk_create_welfare_recipients(
    db: AsyncDatabase,
    offices: Iterable[Any],
    count_per_office: int = 100,
    batch_size: int = 500,
    **options: Unpack[BulkOptions],
) -> Awaitable[RecipientsByOffice]: ...
def bulk_create_welfare_recipients(
    db: Any,
    offices: Iterable[Any],
    count_per_office: int = 100,
    batch_size: int = 500,
    **options: Unpack[BulkOptions],
) -> Any:
    """Create welfare recipients and link them to their offices.

    Args:
        db: URL, connection or session, see `SyncDatabase` and `AsyncDatabase`.
        offices: Offices (anything with ``.id``) or their ids.
        count_per_office: Recipients for each office, at least 1.
        batch_size: Rows encoded at a time; above 1,000 only warns.
        **options: See `BulkOptions`.

    Returns:
        Office id to its recipients; an awaitable of it when `db` is asynchronous.

    Raises:
        UsageError: A number is not above 0 (a `ValueError`).
        ParameterTypeError: A parameter has the wrong type (a `TypeError`).
        ForeignKeyError: An office does not exist.
        DataError: Another constraint refused a row; nothing is written.
    """
    check_count("count_per_office", count_per_office)
    call = _call(check_batch_size(batch_size), options)
    ids = _ids("offices", offices)
    return _run(db, lambda _: bulk_units.create_recipients(call, ids, count_per_office), options)


@overload
def bulk_create_support_plans_and_cycles(
    db: SyncDatabase,
    recipients_by_office: Mapping[Any, Sequence[Any]],
    staffs_by_office: Mapping[Any, Sequence[Any]],
    batch_size: int = 500,
    **options: Unpack[BulkOptions],
) -> PlansAndCycles: ...
@overload
def bulk_create_support_plans_and_cycles(
    db: AsyncDatabase,
    recipients_by_office: Mapping[Any, Sequence[Any]],
    staffs_by_office: Mapping[Any, Sequence[Any]],
    batch_size: int = 500,
    **options: Unpack[BulkOptions],
) -> Awaitable[PlansAndCycles]: ...
def bulk_create_support_plans_and_cycles(
    db: Any,
    recipients_by_office: Mapping[Any, Sequence[Any]],
    staffs_by_office: Mapping[Any, Sequence[Any]],
    batch_size: int = 500,
    **options: Unpack[BulkOptions],
) -> Any:
    """Create one support plan and its first cycle for each recipient.

    The first staff of an office is responsible. An office without staff gets no plan.

    Args:
        db: URL, connection or session, see `SyncDatabase` and `AsyncDatabase`.
        recipients_by_office: What `bulk_create_welfare_recipients` returned.
        staffs_by_office: What `bulk_create_staffs` returned.
        batch_size: Rows encoded at a time; above 1,000 only warns.
        **options: See `BulkOptions`.

    Returns:
        The plans and the cycles, in the same order; an awaitable of both when `db` is asynchronous.

    Raises:
        UsageError: A number is not above 0 (a `ValueError`).
        ParameterTypeError: A parameter has the wrong type (a `TypeError`).
        ForeignKeyError: An office, recipient or staff does not exist.
        DataError: Another constraint refused a row; nothing is written.
    """
    call = _call(check_batch_size(batch_size), options)
    recipients = _ids_by_office("recipients_by_office", recipients_by_office)
    staffs = _ids_by_office("staffs_by_office", staffs_by_office)
    responsible = {office: ids[0] for office, ids in staffs.items() if ids}
    return _run(db, lambda _: bulk_units.create_plans_and_cycles(call, recipients, responsible), options)


@overload
def bulk_create_support_plan_cycles(
    db: SyncDatabase, plans: Iterable[Any], batch_size: int = 500, **options: Unpack[BulkOptions]
) -> list[SupportPlanCycle]: ...
@overload
def bulk_create_support_plan_cycles(
    db: AsyncDatabase, plans: Iterable[Any], batch_size: int = 500, **options: Unpack[BulkOptions]
) -> Awaitable[list[SupportPlanCycle]]: ...
def bulk_create_support_plan_cycles(
    db: Any, plans: Iterable[Any], batch_size: int = 500, **options: Unpack[BulkOptions]
) -> Any:
    """Create the first cycle of plans that have none.

    It began 335 days before the reference date and ends 25 days after it.

    Args:
        db: URL, connection or session, see `SyncDatabase` and `AsyncDatabase`.
        plans: Plans (anything with ``.id``) or their ids.
        batch_size: Rows encoded at a time; above 1,000 only warns.
        **options: See `BulkOptions`.

    Returns:
        The cycles, one for each plan; an awaitable of them when `db` is asynchronous.

    Raises:
        UsageError: A number is not above 0 (a `ValueError`).
        ParameterTypeError: A parameter has the wrong type (a `TypeError`).
        ForeignKeyError: A plan does not exist.
        DataError: Another constraint refused a row; nothing is written.
    """
    call = _call(check_batch_size(batch_size), options)
    ids = [str(plan) for plan in _ids("plans", plans)]
    return _run(db, lambda _: bulk_units.create_cycles(call, ids), options)


def _run(db: Any, unit: Unit[Any], options: BulkOptions) -> Any:
    check = check_allowed(
        db,
        allow_protected=options.get("allow_protected", False),
        protected_words=options.get("protected_words", PROTECTED_WORDS),
        allowed_databases=options.get("allowed_databases", ()),
    )

    def guarded(attempt: Attempt) -> Steps[Any]:
        yield from check()
        return (yield from unit(attempt))

    return run(
        db,
        guarded,
        policy=options.get("retry"),
        timeouts=options.get("timeouts"),
        unseeded=options.get("seed") is None,
        schema=options.get("schema"),
    )


def _call(batch_size: int, options: BulkOptions) -> bulk_units.Call:
    unknown = sorted(set(options) - set(BulkOptions.__annotations__))
    if unknown:
        known = ", ".join(BulkOptions.__annotations__)
        raise ParameterTypeError(f"there is no option {unknown[0]!r}", found=f"Options are: {known}")
    seed = options.get("seed")
    timeouts = options.get("timeouts")
    day: object = options.get("reference_date") or datetime.now(UTC).date()
    if not isinstance(day, date) or isinstance(day, datetime):
        raise ParameterTypeError(f"reference_date must be a date, not {type(day).__name__}: {day!r}")
    return bulk_units.Call(
        batch_size=batch_size,
        seed=None if seed is None else check_seed(seed),
        dates=Dates(day),
        schema=options.get("schema"),
        progress=options.get("progress"),
        memory_limit_mb=options.get("memory_limit_mb"),
        # What is no Timeouts is refused by `run`.
        stall_s=(timeouts if isinstance(timeouts, Timeouts) else Timeouts()).stall_s,
    )


def _id(parameter: str, item: object) -> str:
    """The id of a row: its own ``.id``, or the id itself."""
    value = getattr(item, "id", item)
    if isinstance(value, UUID):
        return str(value)
    if not isinstance(value, str):
        what = f"{parameter} must be ids or objects with an id, not {type(item).__name__}: {item!r}"
        raise ParameterTypeError(what)
    try:
        return str(UUID(value))
    except ValueError as error:
        raise UsageError(f"{parameter} has an id that is no UUID: {value!r}") from error


def _ids(parameter: str, items: object) -> list[UUID]:
    """The ids without doubles, in their order."""
    if isinstance(items, str | bytes | Mapping) or not isinstance(items, Iterable):
        raise ParameterTypeError(f"{parameter} must be a list, not {type(items).__name__}: {items!r}")
    return list(dict.fromkeys(UUID(_id(parameter, item)) for item in items))


def _ids_by_office(parameter: str, items: object) -> dict[str, list[str]]:
    if not isinstance(items, Mapping):
        what = f"{parameter} must map office ids to lists, not be a {type(items).__name__}: {items!r}"
        raise ParameterTypeError(what)
    return {_id(parameter, office): list(map(str, _ids(parameter, rows))) for office, rows in items.items()}
