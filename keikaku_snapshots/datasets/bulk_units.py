"""The work of ``bulk_create_*`` as steps; every function here runs in one transaction."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from itertools import chain, repeat
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

from keikaku_snapshots.datasets import keikaku_records as records
from keikaku_snapshots.datasets import keikaku_rows as rows
from keikaku_snapshots.datasets.copy import copy_rows, memory_check
from keikaku_snapshots.datasets.ids import draw_ids
from keikaku_snapshots.datasets.steps import Execute, Steps
from keikaku_snapshots.errors import ForeignKeyError, UsageError
from keikaku_snapshots.postgres.failures import translate
from keikaku_snapshots.postgres.url import quote_identifier

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from keikaku_snapshots.datasets.row_parts import Row
    from keikaku_snapshots.progress import ProgressCallback

ItemT = TypeVar("ItemT")

_CREATE_SYSTEM_STAFF = (
    "Create the system staff first: leave created_by out, and bulk_create_offices makes or reuses it; "
    "or insert the staff with this id (and flush it) before the offices."
)

_CREATE_SYSTEM_STAFF_JA = (
    "先にシステムスタッフを作成してください。"
    "created_by を省略すると bulk_create_offices が作成または再利用します。"
    "または、この id のスタッフを事業所より先に登録(flush)してください。"
)


@dataclass(frozen=True, slots=True)
class Call:
    """What one call of a ``bulk_create_*`` function was asked for, checked."""

    #: Rows encoded at a time.
    batch_size: int
    #: What the rows hang on; None draws a fresh one for every try.
    seed: int | str | None
    #: The dates of the rows.
    dates: rows.Dates
    #: The tables' schema; None leaves it to the search path.
    schema: str | None
    #: Told about the rows of each table.
    progress: ProgressCallback | None
    #: Above this the work stops; None for no limit.
    memory_limit_mb: float | None
    #: Seconds in which the server may take no row.
    stall_s: float | None

    def drawing(self) -> Drawing:
        """The draws of one try."""
        # 64 bits: two calls without a seed never draw the same rows, also in two
        # transactions at once, where nobody could see what the other has.
        return Drawing(self, secrets.token_hex(8) if self.seed is None else str(self.seed))


@dataclass(frozen=True, slots=True)
class Drawing:
    """The draws of one try of a call, and the copying of what was drawn."""

    #: The call.
    call: Call
    #: What all draws depend on.
    seed: str

    def random(self, table: str, parents: Iterable[str] = ()) -> Random:
        """A generator of random numbers for a table.

        Args:
            table: Its name.
            parents: Ids that the rows belong to: the same seed draws other rows for
                other parents, so two calls with one seed do not collide.
        """
        digest = hashlib.sha256("".join(parents).encode()).hexdigest()[:16]
        return Random(f"{self.seed}/bulk/{table}/{digest}")

    def copy(self, table: str, columns: Sequence[str], values: Sequence[Row]) -> Steps[int]:
        """Copy the rows."""
        if not values:
            return 0
        call = self.call
        return (
            yield from copy_rows(
                table,
                columns,
                lambda: values,
                batch_size=call.batch_size,
                schema=call.schema,
                progress=call.progress,
                total=len(values),
                check_memory=memory_check(call.memory_limit_mb),
                stall_timeout_s=call.stall_s,
            )
        )

    def qualified(self, table: str) -> str:
        """The table's name for a statement."""
        if self.call.schema is None:
            return quote_identifier(table)
        return f"{quote_identifier(self.call.schema)}.{quote_identifier(table)}"


def create_offices(
    call: Call, count: int, created_by: str | None, *, immediate: bool
) -> Steps[list[records.Office]]:
    """Offices, and the system staff that owns them when nobody else does.

    Args:
        call: What was asked for.
        count: How many.
        created_by: Who owns them; the system staff when None.
        immediate: Check deferred constraints too, which a caller's own transaction leaves for its end.
    """
    drawing = call.drawing()
    owner = created_by or (yield from _system_staff(drawing))
    first_number = 0
    if call.seed is None:  # telephone numbers continue after the offices that are there
        found = yield Execute(f"SELECT count(*) FROM {drawing.qualified('offices')}")  # noqa: S608 - quoted
        first_number = found[0][0]
    random = drawing.random("offices")
    ids = draw_ids(random, count)
    values = list(rows.office_rows(random, ids, call.dates, first_number=first_number, created_by=owner))
    try:
        yield from drawing.copy("offices", rows.OFFICE_COLUMNS, values)
        if immediate:
            yield Execute("SET CONSTRAINTS ALL IMMEDIATE")
    except Exception as error:
        explained = translate(error, doing="copying offices", table="offices")
        if created_by is None or not isinstance(explained, ForeignKeyError):
            raise
        explained.hint, explained.hint_ja = _CREATE_SYSTEM_STAFF, _CREATE_SYSTEM_STAFF_JA
        raise explained from (error.__cause__ if explained is error else error)
    return records.records_of(records.Office, values)


def create_staffs(call: Call, office_ids: Sequence[Any], each: int) -> Steps[dict[Any, list[records.Staff]]]:
    """Staff for offices, with their links."""
    drawing = call.drawing()
    offices = list(map(str, office_ids))
    random = drawing.random("staffs", offices)
    ids = draw_ids(random, each * len(offices))
    values = list(rows.staff_rows(random, ids, call.dates))
    links = rows.office_staff_rows(
        draw_ids(drawing.random("office_staffs", offices), len(ids)), ids, _times(offices, each), call.dates
    )
    yield from drawing.copy("staffs", rows.STAFF_COLUMNS, values)
    yield from drawing.copy("office_staffs", rows.OFFICE_STAFF_COLUMNS, list(links))
    return _by_office(office_ids, records.records_of(records.Staff, values), each)


def create_recipients(
    call: Call, office_ids: Sequence[Any], each: int
) -> Steps[dict[Any, list[records.WelfareRecipient]]]:
    """Recipients for offices, with their links."""
    drawing = call.drawing()
    offices = list(map(str, office_ids))
    random = drawing.random("welfare_recipients", offices)
    ids = draw_ids(random, each * len(offices))
    values = list(rows.recipient_rows(random, ids, call.dates))
    links = rows.office_recipient_rows(
        draw_ids(drawing.random("office_welfare_recipients", offices), len(ids)),
        ids,
        _times(offices, each),
        call.dates,
    )
    yield from drawing.copy("welfare_recipients", rows.RECIPIENT_COLUMNS, values)
    yield from drawing.copy("office_welfare_recipients", rows.OFFICE_RECIPIENT_COLUMNS, list(links))
    return _by_office(office_ids, records.records_of(records.WelfareRecipient, values), each)


def create_plans_and_cycles(
    call: Call, recipients: Mapping[str, Sequence[str]], responsible: Mapping[str, str]
) -> Steps[tuple[list[records.SupportPlan], list[records.SupportPlanCycle]]]:
    """Plans with their cycles.

    Args:
        call: What was asked for.
        recipients: Ids of the recipients of each office.
        responsible: Id of the responsible staff of each office that has one; others get no plan.
    """
    drawing = call.drawing()
    offices = [office for office in recipients if office in responsible]
    recipient_ids = [recipient for office in offices for recipient in recipients[office]]
    ids = draw_ids(drawing.random("individual_support_plans", recipient_ids), len(recipient_ids))
    values = list(
        rows.plan_rows(
            ids,
            recipient_ids,
            [office for office in offices for _ in recipients[office]],
            [responsible[office] for office in offices for _ in recipients[office]],
            call.dates,
        )
    )
    yield from drawing.copy("individual_support_plans", rows.PLAN_COLUMNS, values)
    cycles = yield from _copy_cycles(drawing, ids)
    return records.records_of(records.SupportPlan, values), cycles


def create_cycles(call: Call, plan_ids: Sequence[str]) -> Steps[list[records.SupportPlanCycle]]:
    """The first cycle of each plan."""
    return (yield from _copy_cycles(call.drawing(), plan_ids))


def _copy_cycles(drawing: Drawing, plan_ids: Sequence[str]) -> Steps[list[records.SupportPlanCycle]]:
    table = "support_plan_cycles"
    numbers = yield Execute(
        "SELECT pg_catalog.nextval(pg_catalog.pg_get_serial_sequence($1::text, 'id')::regclass) "
        "FROM pg_catalog.generate_series(1, $2::integer)",
        (drawing.qualified(table), len(plan_ids)),
    )
    if numbers and numbers[0][0] is None:
        what = f"column id of table {table!r} has no sequence"
        raise UsageError(what, hint="Make it an identity column: bigint GENERATED BY DEFAULT AS IDENTITY.")
    cycles = rows.cycle_rows(plan_ids, drawing.call.dates)
    values = [(str(number), *cycle) for (number,), cycle in zip(numbers, cycles, strict=True)]
    yield from drawing.copy(table, ("id", *rows.CYCLE_COLUMNS), values)
    return records.records_of(records.SupportPlanCycle, values)


def _system_staff(drawing: Drawing) -> Steps[str]:
    """The id of the system staff, which is made when there is none."""
    found = yield Execute(
        f"SELECT id::text FROM {drawing.qualified('staffs')} "  # noqa: S608 - quoted
        "WHERE is_test_data AND role::text = 'app_admin' AND starts_with(email, $1::text) "
        "ORDER BY created_at, id LIMIT 1",
        (rows.SYSTEM_STAFF_EMAIL_PREFIX,),
    )
    if found:
        return str(found[0][0])
    (staff_id,) = draw_ids(drawing.random("system_staff"), 1)
    yield from drawing.copy(
        "staffs", rows.STAFF_COLUMNS, [rows.system_staff_row(staff_id, drawing.call.dates)]
    )
    return staff_id


def _times(items: Iterable[ItemT], each: int) -> Iterable[ItemT]:
    return chain.from_iterable(repeat(item, each) for item in items)


def _by_office(office_ids: Sequence[Any], items: list[ItemT], each: int) -> dict[Any, list[ItemT]]:
    return {office: items[at * each : (at + 1) * each] for at, office in enumerate(office_ids)}
