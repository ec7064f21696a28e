"""The tables of the Keikaku welfare-office application, as SQLAlchemy Core tables.

Offices are created by a member of staff, and staff are linked to offices by
``office_staffs``; so staff come first, and the one system staff that owns the
offices belongs to none. Deleting follows the application: rows that only
describe a link or a plan go with their parents, authors of offices cannot be
deleted.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    DateTime,
    Enum,
    ForeignKey,
    Identity,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

metadata = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

staff_role = Enum("employee", "manager", "owner", "app_admin", name="staff_role", metadata=metadata)
office_type = Enum(
    "type_A_office",
    "type_B_office",
    "transition_to_employment",
    "group_home",
    "daily_care",
    name="office_type",
    metadata=metadata,
)
gender_type = Enum("male", "female", "other", name="gender_type", metadata=metadata)
cycle_status = Enum("active", "completed", "cancelled", name="support_plan_cycle_status", metadata=metadata)


def _id() -> Column[Any]:
    return Column("id", Uuid, primary_key=True, server_default=text("gen_random_uuid()"))


def _flag(name: str, *, default: bool = False) -> Column[Any]:
    return Column(name, Boolean, nullable=False, server_default=text("true" if default else "false"))


def _required(name: str, kind: Any, **options: Any) -> Column[Any]:
    return Column(name, kind, nullable=False, **options)


def _reference(
    name: str, table: str, *, ondelete: str, nullable: bool = False, index: bool = True
) -> Column[Any]:
    # index=False where a unique constraint already begins with the column.
    return Column(name, Uuid, ForeignKey(f"{table}.id", ondelete=ondelete), nullable=nullable, index=index)


def _bookkeeping() -> list[Column[Any]]:
    return [
        _flag("is_test_data"),
        _required("created_at", DateTime(timezone=True), server_default=func.now()),
        _required("updated_at", DateTime(timezone=True), server_default=func.now()),
    ]


staffs = Table(
    "staffs",
    metadata,
    _id(),
    _required("email", String(255), unique=True),
    _required("hashed_password", String(255)),
    _required("first_name", String(50)),
    _required("last_name", String(50)),
    _required("full_name", String(255)),
    _required("first_name_furigana", String(100)),
    _required("last_name_furigana", String(100)),
    _required("role", staff_role),
    _required("language", String(10), server_default="ja"),
    _flag("is_email_verified"),
    _flag("is_mfa_enabled"),
    Column("mfa_secret", String(255)),
    _required("failed_login_attempts", Integer, server_default=text("0")),
    _flag("is_locked"),
    Column("last_login_at", DateTime(timezone=True)),
    _flag("is_deleted"),
    Column("deleted_at", DateTime(timezone=True)),
    _required(
        "notification_preferences",
        JSONB,
        server_default=text(
            '\'{"in_app_notification": true, "email_notification": true, "system_notification": false,'
            ' "email_threshold_days": 30, "push_threshold_days": 10}\''
        ),
    ),
    *_bookkeeping(),
)

offices = Table(
    "offices",
    metadata,
    _id(),
    _required("name", String(255)),
    _required("type", office_type),
    Column("address", String(500)),
    Column("phone_number", String(20)),
    Column("email", String(255)),
    _flag("is_group"),
    _reference("created_by", "staffs", ondelete="RESTRICT"),
    _reference("last_modified_by", "staffs", ondelete="RESTRICT"),
    _flag("is_deleted"),
    *_bookkeeping(),
)

office_staffs = Table(
    "office_staffs",
    metadata,
    _id(),
    _reference("staff_id", "staffs", ondelete="CASCADE", index=False),
    _reference("office_id", "offices", ondelete="CASCADE"),
    _flag("is_primary"),
    *_bookkeeping(),
    UniqueConstraint("staff_id", "office_id"),
)

welfare_recipients = Table(
    "welfare_recipients",
    metadata,
    _id(),
    _required("first_name", String(50)),
    _required("last_name", String(50)),
    _required("full_name", String(255)),
    _required("first_name_furigana", String(100)),
    _required("last_name_furigana", String(100)),
    _required("date_of_birth", Date),
    _required("gender", gender_type),
    *_bookkeeping(),
)

office_welfare_recipients = Table(
    "office_welfare_recipients",
    metadata,
    _id(),
    _reference("welfare_recipient_id", "welfare_recipients", ondelete="CASCADE", index=False),
    _reference("office_id", "offices", ondelete="CASCADE"),
    *_bookkeeping(),
    UniqueConstraint("welfare_recipient_id", "office_id"),
)

individual_support_plans = Table(
    "individual_support_plans",
    metadata,
    _id(),
    _reference("office_id", "offices", ondelete="CASCADE"),
    _reference("welfare_recipient_id", "welfare_recipients", ondelete="CASCADE"),
    _reference("responsible_staff_id", "staffs", ondelete="SET NULL", nullable=True),
    *_bookkeeping(),
)

support_plan_cycles = Table(
    "support_plan_cycles",
    metadata,
    Column("id", BigInteger, Identity(always=False), primary_key=True),
    _reference("individual_support_plan_id", "individual_support_plans", ondelete="CASCADE", index=False),
    _required("cycle_number", Integer),
    _required("start_date", Date),
    _required("end_date", Date),
    _required("status", cycle_status, server_default="active"),
    _flag("is_latest_cycle", default=True),
    *_bookkeeping(),
    CheckConstraint("cycle_number >= 1", name="cycle_number"),
    CheckConstraint("end_date > start_date", name="dates"),
    UniqueConstraint("individual_support_plan_id", "cycle_number"),
    # The question the deadline notification asks every morning.
    Index("ix_support_plan_cycles_deadline", "end_date", postgresql_where=text("is_latest_cycle")),
)
