"""The Keikaku data set: offices with their staff, recipients, plans and cycles.

A unit is an office. Its staff and recipients stand beside each other in every
shard, so child tables find their parents by counting: the first of an office's
staff is responsible for all its plans. Every staff can log in with `TEST_PASSWORD`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from keikaku_snapshots.datasets import keikaku_rows as rows
from keikaku_snapshots.datasets import keikaku_tables as tables
from keikaku_snapshots.datasets.bulk import (
    bulk_create_offices,
    bulk_create_staffs,
    bulk_create_support_plan_cycles,
    bulk_create_support_plans_and_cycles,
    bulk_create_welfare_recipients,
)
from keikaku_snapshots.datasets.dataset import Dataset, Row, Scale, Shard, Table
from keikaku_snapshots.datasets.keikaku_rows import TEST_PASSWORD
from keikaku_snapshots.datasets.row_parts import each

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "RECIPIENTS_PER_OFFICE",
    "SCALES",
    "STAFFS_PER_OFFICE",
    "TEST_PASSWORD",
    "bulk_create_offices",
    "bulk_create_staffs",
    "bulk_create_support_plan_cycles",
    "bulk_create_support_plans_and_cycles",
    "bulk_create_welfare_recipients",
    "dataset",
]

STAFFS_PER_OFFICE = 10
RECIPIENTS_PER_OFFICE = 100


def _scale(name: str, offices: int, limit_s: float) -> Scale:
    return Scale(name, offices, limit_s, {"staffs": STAFFS_PER_OFFICE, "recipients": RECIPIENTS_PER_OFFICE})


SCALES = (
    _scale("small", 10, 600),
    _scale("medium", 100, 1800),
    _scale("large", 500, 3600),
    _scale("xlarge", 5000, 36_000),
)


def _staffs(shard: Shard) -> int:
    return shard.scale.per_unit.get("staffs", STAFFS_PER_OFFICE)


def _recipients(shard: Shard) -> int:
    return shard.scale.per_unit.get("recipients", RECIPIENTS_PER_OFFICE)


def _system_staff_id(shard: Shard) -> str:
    # One for the whole data set, so it must not depend on the shard.
    first = Shard(0, 0, 1, shard.scale, shard.seed, shard.reference_date)
    return first.uuids("system_staff", 1)[0]


def _office_ids(shard: Shard) -> list[str]:
    return shard.uuids("offices", shard.units)


def _staff_ids(shard: Shard) -> list[str]:
    return shard.uuids("staffs", shard.units * _staffs(shard))


def _recipient_ids(shard: Shard) -> list[str]:
    return shard.uuids("welfare_recipients", shard.units * _recipients(shard))


def _plan_ids(shard: Shard) -> list[str]:
    return shard.uuids("individual_support_plans", shard.units * _recipients(shard))


def staff_rows(shard: Shard) -> Iterable[Row]:
    """Staff of the shard's offices; in the first shard also the system staff."""
    dates = rows.Dates(shard.reference_date)
    if shard.index == 0:
        yield rows.system_staff_row(_system_staff_id(shard), dates)
    yield from rows.staff_rows(shard.random("staffs"), _staff_ids(shard), dates)


def office_rows(shard: Shard) -> Iterable[Row]:
    """Offices, all created by the system staff."""
    return rows.office_rows(
        shard.random("offices"),
        _office_ids(shard),
        rows.Dates(shard.reference_date),
        first_number=shard.first_unit,
        created_by=_system_staff_id(shard),
    )


def office_staff_rows(shard: Shard) -> Iterable[Row]:
    """Links of staff to offices."""
    staff_ids = _staff_ids(shard)
    return rows.office_staff_rows(
        shard.uuids("office_staffs", len(staff_ids)),
        staff_ids,
        each(_office_ids(shard), _staffs(shard)),
        rows.Dates(shard.reference_date),
    )


def recipient_rows(shard: Shard) -> Iterable[Row]:
    """Welfare recipients."""
    dates = rows.Dates(shard.reference_date)
    return rows.recipient_rows(shard.random("welfare_recipients"), _recipient_ids(shard), dates)


def office_recipient_rows(shard: Shard) -> Iterable[Row]:
    """Links of recipients to offices."""
    recipient_ids = _recipient_ids(shard)
    return rows.office_recipient_rows(
        shard.uuids("office_welfare_recipients", len(recipient_ids)),
        recipient_ids,
        each(_office_ids(shard), _recipients(shard)),
        rows.Dates(shard.reference_date),
    )


def plan_rows(shard: Shard) -> Iterable[Row]:
    """One support plan for each recipient; the first staff of the office is responsible."""
    return rows.plan_rows(
        _plan_ids(shard),
        _recipient_ids(shard),
        each(_office_ids(shard), _recipients(shard)),
        each(_staff_ids(shard)[:: _staffs(shard)], _recipients(shard)),
        rows.Dates(shard.reference_date),
    )


def cycle_rows(shard: Shard) -> Iterable[Row]:
    """One cycle for each plan."""
    numbers = shard.identities("support_plan_cycles", _recipients(shard))
    cycles = rows.cycle_rows(_plan_ids(shard), rows.Dates(shard.reference_date))
    return ((str(number), *cycle) for number, cycle in zip(numbers, cycles, strict=True))


dataset = Dataset(
    name="keikaku",
    unit="offices",
    scales=SCALES,
    tables=(
        Table(tables.staffs, staff_rows, rows.STAFF_COLUMNS, "staffs", extra_rows=1),
        Table(tables.offices, office_rows, rows.OFFICE_COLUMNS, 1),
        Table(tables.office_staffs, office_staff_rows, rows.OFFICE_STAFF_COLUMNS, "staffs"),
        Table(tables.welfare_recipients, recipient_rows, rows.RECIPIENT_COLUMNS, "recipients"),
        Table(
            tables.office_welfare_recipients,
            office_recipient_rows,
            rows.OFFICE_RECIPIENT_COLUMNS,
            "recipients",
        ),
        Table(tables.individual_support_plans, plan_rows, rows.PLAN_COLUMNS, "recipients"),
        Table(tables.support_plan_cycles, cycle_rows, ("id", *rows.CYCLE_COLUMNS), "recipients"),
    ),
)
