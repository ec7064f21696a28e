"""What ``bulk_create_*`` gives back: one light, unchangeable object for each row.

They have the columns of their tables as attributes, in the types in which
SQLAlchemy would give them: `uuid.UUID`, `int`, `bool`, `date`, aware `datetime`,
and a dict for JSONB.
"""

from __future__ import annotations

import json
from datetime import date, datetime
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


class Office(NamedTuple):
    """A row of ``offices``."""

    id: UUID
    name: str
    type: str
    address: str
    phone_number: str
    email: str
    is_group: bool
    created_by: UUID
    last_modified_by: UUID
    is_deleted: bool
    is_test_data: bool
    created_at: datetime
    updated_at: datetime


class Staff(NamedTuple):
    """A row of ``staffs``."""

    id: UUID
    email: str
    hashed_password: str
    first_name: str
    last_name: str
    full_name: str
    first_name_furigana: str
    last_name_furigana: str
    role: str
    language: str
    is_email_verified: bool
    is_mfa_enabled: bool
    mfa_secret: str | None
    failed_login_attempts: int
    is_locked: bool
    last_login_at: datetime | None
    is_deleted: bool
    deleted_at: datetime | None
    notification_preferences: dict[str, Any]
    is_test_data: bool
    created_at: datetime
    updated_at: datetime


class WelfareRecipient(NamedTuple):
    """A row of ``welfare_recipients``."""

    id: UUID
    first_name: str
    last_name: str
    full_name: str
    first_name_furigana: str
    last_name_furigana: str
    date_of_birth: date
    gender: str
    is_test_data: bool
    created_at: datetime
    updated_at: datetime


class SupportPlan(NamedTuple):
    """A row of ``individual_support_plans``."""

    id: UUID
    office_id: UUID
    welfare_recipient_id: UUID
    responsible_staff_id: UUID | None
    is_test_data: bool
    created_at: datetime
    updated_at: datetime


class SupportPlanCycle(NamedTuple):
    """A row of ``support_plan_cycles``."""

    id: int
    individual_support_plan_id: UUID
    cycle_number: int
    start_date: date
    end_date: date
    status: str
    is_latest_cycle: bool
    is_test_data: bool
    created_at: datetime
    updated_at: datetime


RecordT = TypeVar("RecordT", Office, Staff, WelfareRecipient, SupportPlan, SupportPlanCycle)

# By the text of the annotation; what is not named here is text as it stands.
_CONVERTERS: dict[str, Callable[[str], Any]] = {
    "UUID": UUID,
    "int": int,
    "bool": "t".__eq__,
    "date": date.fromisoformat,
    "datetime": datetime.fromisoformat,
    "dict[str, Any]": json.loads,
}


def records_of(kind: type[RecordT], rows: Iterable[Sequence[str | None]]) -> list[RecordT]:
    """The records of rows of text.

    Args:
        kind: Their class.
        rows: Rows in the order of its fields, as they were copied.

    Returns:
        A record for each row.
    """
    columns = [
        _converted(values, annotation)
        for values, annotation in zip(zip(*rows, strict=True), _annotations(kind), strict=False)
    ]
    return [kind._make(values) for values in zip(*columns, strict=True)]


def _annotations(kind: type[Any]) -> list[str]:
    return [getattr(kind.__annotations__[name], "__forward_arg__", "") for name in kind._fields]


def _converted(values: Sequence[str | None], annotation: str) -> Sequence[Any]:
    convert = _CONVERTERS.get(annotation.removesuffix(" | None"))
    if convert is None:
        return values
    return [None if value is None else convert(value) for value in values]
