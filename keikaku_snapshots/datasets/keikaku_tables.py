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
    CheckConstraint,
    Column,
    Date,
    DateTime,
    Enum,
    Identity,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from keikaku_snapshots.datasets.table_parts import (
    NAMING_CONVENTION,
    bookkeeping,
    flag,
    reference,
    required,
)

metadata = MetaData(naming_convention=NAMING_CONVENTION)

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


def _reference(name: str, table: str, **options: Any) -> Column[Any]:
    return reference(name, table, Uuid(), **options)


staffs = Table(
    "staffs",
    metadata,
    _id(),
    required("email", String(255), unique=True),
    required("hashed_password", String(255)),
    required("first_name", String(50)),
    required("last_name", String(50)),
    required("full_name", String(255)),
    required("first_name_furigana", String(100)),
    required("last_name_furigana", String(100)),
    required("role", staff_role),
    required("language", String(10), server_default="ja"),
    flag("is_email_verified"),
    flag("is_mfa_enabled"),
    Column("mfa_secret", String(255)),
    required("failed_login_attempts", Integer, server_default=text("0")),
    flag("is_locked"),
    Column("last_login_at", DateTime(timezone=True)),
    flag("is_deleted"),
    Column("deleted_at", DateTime(timezone=True)),
    required(
        "notification_preferences",
        JSONB,
        server_default=text(
            '\'{"in_app_notification": true, "email_notification": true, "system_notification": false,'
            ' "email_threshold_days": 30, "push_threshold_days": 10}\''
        ),
    ),
    *bookkeeping(),
)

offices = Table(
    "offices",
    metadata,
    _id(),
    required("name", String(255)),
    required("type", office_type),
    Column("address", String(500)),
    Column("phone_number", String(20)),
    Column("email", String(255)),
    flag("is_group"),
    _reference("created_by", "staffs", ondelete="RESTRICT"),
    _reference("last_modified_by", "staffs", ondelete="RESTRICT"),
    flag("is_deleted"),
    *bookkeeping(),
)

office_staffs = Table(
    "office_staffs",
    metadata,
    _id(),
    _reference("staff_id", "staffs", ondelete="CASCADE", index=False),
    _reference("office_id", "offices", ondelete="CASCADE"),
    flag("is_primary"),
    *bookkeeping(),
    UniqueConstraint("staff_id", "office_id"),
)

welfare_recipients = Table(
    "welfare_recipients",
    metadata,
    _id(),
    required("first_name", String(50)),
    required("last_name", String(50)),
    required("full_name", String(255)),
    required("first_name_furigana", String(100)),
    required("last_name_furigana", String(100)),
    required("date_of_birth", Date),
    required("gender", gender_type),
    *bookkeeping(),
)

office_welfare_recipients = Table(
    "office_welfare_recipients",
    metadata,
    _id(),
    _reference("welfare_recipient_id", "welfare_recipients", ondelete="CASCADE", index=False),
    _reference("office_id", "offices", ondelete="CASCADE"),
    *bookkeeping(),
    UniqueConstraint("welfare_recipient_id", "office_id"),
)

individual_support_plans = Table(
    "individual_support_plans",
    metadata,
    _id(),
    _reference("office_id", "offices", ondelete="CASCADE"),
    _reference("welfare_recipient_id", "welfare_recipients", ondelete="CASCADE"),
    _reference("responsible_staff_id", "staffs", ondelete="SET NULL", nullable=True),
    *bookkeeping(),
)

support_plan_cycles = Table(
    "support_plan_cycles",
    metadata,
    Column("id", BigInteger, Identity(always=False), primary_key=True),
    _reference("individual_support_plan_id", "individual_support_plans", ondelete="CASCADE", index=False),
    required("cycle_number", Integer),
    required("start_date", Date),
    required("end_date", Date),
    required("status", cycle_status, server_default="active"),
    flag("is_latest_cycle", default=True),
    *bookkeeping(),
    CheckConstraint("cycle_number >= 1", name="cycle_number"),
    CheckConstraint("end_date > start_date", name="dates"),
    UniqueConstraint("individual_support_plan_id", "cycle_number"),
    # The question the deadline notification asks every morning.
    Index("ix_support_plan_cycles_deadline", "end_date", postgresql_where=text("is_latest_cycle")),
)
