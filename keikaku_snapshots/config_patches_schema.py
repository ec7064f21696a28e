"""What stands in ``config/data_patches.yml``: frozen values that describe themselves.

The fields, their limits and the ``#:`` lines are what `keikaku_snapshots.config_patches` reads and checks and
what is printed in ``docs/reference/data_patches.md``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path  # noqa: TC003 - pydantic and `schema` read the types
from typing import Annotated, Any, Final, Literal

from annotated_types import Ge, Gt, Le  # a dependency of pydantic, part of its interface

#: How the shipped patches are run where the file says nothing else, as the file would say it.
SHIPPED: Final[dict[str, dict[str, Any]]] = {
    "inventory_price_adjustment": {
        "estimated_records": 100_000,
        "memory_limit": 1024,
        "batch_size": 2000,
    },
    "batch_expiry_update": {"estimated_records": 50_000, "memory_limit": 512, "batch_size": 1000},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchEntry:
    """How one patch is run."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - pydantic reads this name as it is

    #: What the patch is for, in a line; that of the patch itself when empty.
    description: str = ""
    #: Tables that the patch may change beside its own, as `schema.table`.
    target_tables: tuple[str, ...] = ()
    #: Rows that the patch is expected to work on; null when nobody knows.
    estimated_records: Annotated[int, Ge(0)] | None = None
    #: Seconds that the patch is expected to take; null: as the last dry run or rehearsal says, else 10,000
    #: rows a minute. A run that works three times as long fails and is rolled back.
    estimated_duration: Annotated[float, Gt(0)] | None = None
    #: Resident memory of the process above which the run fails, in megabytes.
    memory_limit: Annotated[int, Gt(0)] = 500
    #: Rows of a batch at the start.
    batch_size: Annotated[int, Gt(0)] = 1000
    #: Whether batches grow and shrink towards `target_batch_s`.
    adaptive: bool = True
    #: Seconds that a batch should take.
    target_batch_s: Annotated[float, Gt(0)] = 0.5
    #: Seconds of work after which the run fails and is rolled back; null: three times the estimate.
    max_runtime: Annotated[float, Gt(0)] | None = None
    #: Share of the processed rows that may be inconsistent; this much fails.
    inconsistency_limit: Annotated[float, Gt(0), Le(1)] = 0.1
    #: What a rollback does with rows that somebody else has changed since.
    on_conflict: Literal["skip_and_report", "abort", "force"] = "skip_and_report"
    #: What `keikaku patch reap` and the worker do with a run whose process has died.
    on_crash: Literal["resume", "rollback", "leave"] = "resume"
    #: Batches with a commit after each, or everything in one transaction.
    mode: Literal["batched", "single_transaction"] = "batched"
    #: Seconds that a statement of a batch may wait for a row that another session has locked.
    lock_timeout_s: Annotated[float, Gt(0)] = 3.0
    #: Seconds that a statement of a batch may take.
    statement_timeout_s: Annotated[float, Gt(0)] = 60.0
    #: Seconds to rest between two batches.
    pause_s: Annotated[float, Ge(0)] = 0.0
    #: Seconds that a replica may lag behind before the run waits for it; null does not look.
    max_replica_lag_s: Annotated[float, Gt(0)] | None = None
    #: Whether a run needs a successful dry run of the same source and parameters first.
    require_dry_run: bool = True
    #: Hours for which a dry run is good.
    dry_run_max_age_h: Annotated[float, Gt(0)] = 24.0
    #: Whether another person than the one who runs it must have approved it.
    require_approval: bool = False
    #: Whether a pg_dump of the target tables is made before the first batch.
    backup_dump: bool = False
    #: Values for the patch's parameters where the run gives none.
    parameters: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelEntry:
    """Somewhere that messages go."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - pydantic reads this name as it is

    #: Environment variable with its URL, as apprise reads it; the channel is off while it is not set.
    url_variable: str
    #: Events that are sent to it.
    events: tuple[
        Literal[
            "completed", "failed", "rolled_back", "rollback_incomplete", "memory", "overtime", "integrity"
        ],
        ...,
    ] = (
        "completed",
        "failed",
        "rolled_back",
        "rollback_incomplete",
        "memory",
        "overtime",
        "integrity",
    )
    #: Whether only the urgent ones of these are sent to it.
    urgent_only: bool = False
    #: Whether nothing runs while its variable is not set.
    required: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryGroup:
    """How messages are sent."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - pydantic reads this name as it is

    #: Seconds that one message may take.
    timeout_s: Annotated[float, Gt(0)] = 10.0
    #: Seconds that a run waits, when it has ended, for its messages to go out.
    linger_s: Annotated[float, Ge(0)] = 5.0
    #: Tries of a message on a channel before it is given up there.
    attempts: Annotated[int, Gt(0)] = 8
    #: Seconds before the second try; doubled before each further one.
    backoff_s: Annotated[float, Gt(0)] = 30.0
    #: Most seconds between two tries.
    backoff_max_s: Annotated[float, Gt(0)] = 3600.0
    #: Minutes after which an urgent message that was not delivered goes to the next channel.
    escalate_after_min: Annotated[float, Gt(0)] = 10.0
    #: Hours after which a message that no channel took is no longer news.
    expire_after_h: Annotated[float, Gt(0)] = 72.0


def _channels() -> dict[str, ChannelEntry]:
    return {
        "slack": ChannelEntry(url_variable="KEIKAKU_SLACK_URL"),
        "email": ChannelEntry(url_variable="KEIKAKU_EMAIL_URL"),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class SecurityGroup:
    """The audit log and the messages."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - pydantic reads this name as it is

    #: Whether lines of the audit log are encrypted (needs the extra [audit]); chained and signed they are
    #: in any case.
    log_encryption: bool = True
    #: Days for which lines of the audit log are kept; whole months are dropped.
    audit_retention_days: Annotated[int, Gt(0)] = 90
    #: Environment variable with the key of the audit log: 32 bytes in hex or base64.
    audit_key_variable: str = "KEIKAKU_AUDIT_KEY"
    #: Environment variable with the keys of before, separated by spaces or commas.
    audit_old_keys_variable: str = "KEIKAKU_AUDIT_OLD_KEYS"
    #: Whether nothing runs while the variable of the key is not set; else a key file is made.
    audit_key_required: bool = False
    #: That key file; null: in the user's configuration directory.
    audit_key_file: Path | None = None
    #: What an audit line that cannot be written does: `error` stops a run before it changes anything.
    on_audit_failure: Literal["warn", "error"] = "error"
    #: Where messages go, by name, in the order in which an urgent one tries them.
    notification_channels: dict[str, ChannelEntry] = field(default_factory=_channels)
    #: How messages are sent.
    delivery: DeliveryGroup = field(default_factory=DeliveryGroup)


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowEntry:
    """When runs may work."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - pydantic reads this name as it is

    #: Days of the week on which the window opens, such as `sunday` or `sun`.
    days: tuple[str, ...]
    #: When it opens, such as `02:00`.
    start: str
    #: When it closes, such as `04:00`; not after `start` means on the next day; `24:00` is midnight.
    end: str
    #: Its time zone, such as `Asia/Tokyo`; null: `scheduling.default_timezone`.
    timezone: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleItem:
    """A run that `keikaku patch worker` starts by itself."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - pydantic reads this name as it is

    #: Its name, by which its last run is remembered; the patch's own when null.
    name: str | None = None
    #: The patch.
    patch: str
    #: When: minute, hour, day of the month, month, day of the week, as in a crontab.
    cron: str
    #: Time zone of these; null: `scheduling.default_timezone`.
    timezone: str | None = None
    #: Values for the patch's parameters, above those of `patches.NAME.parameters`.
    parameters: dict[str, object] = field(default_factory=dict)


def _windows() -> tuple[WindowEntry, ...]:
    return (WindowEntry(days=("sunday", "wednesday"), start="02:00", end="04:00"),)


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulingGroup:
    """When patches run."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - pydantic reads this name as it is

    #: Time zone of windows and schedules that name none.
    default_timezone: str = "Asia/Tokyo"
    #: When runs may work; an empty list is always.
    maintenance_windows: tuple[WindowEntry, ...] = field(default_factory=_windows)
    #: Runs that the worker starts by itself.
    schedule: tuple[ScheduleItem, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineGroup:
    """What all runs share."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - pydantic reads this name as it is

    #: Seconds after which a run that gives no sign of life is taken for dead.
    lease_s: Annotated[float, Gt(0)] = 30.0
    #: Seconds between two signs of life.
    heartbeat_s: Annotated[float, Gt(0)] = 2.0
    #: Seconds between two looks at memory and time.
    watch_s: Annotated[float, Gt(0)] = 0.1
    #: Tries of a batch that met a deadlock, a lock or a timeout, before its rows are put off.
    batch_attempts: Annotated[int, Gt(0)] = 5
    #: Days for which the undo of an ended run is kept; as long it can be rolled back.
    undo_retention_days: Annotated[float, Ge(0)] = 30.0


def _shipped() -> dict[str, PatchEntry]:
    return {name: PatchEntry(**values) for name, values in SHIPPED.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchesFile:
    """The whole file with its defaults."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - pydantic reads this name as it is

    #: Own patches: modules such as `shop.patches`, or paths of `.py` files.
    patch_modules: tuple[str, ...] = ()
    #: How patches are run, by name; a patch that is not named here is run by the defaults.
    patches: dict[str, PatchEntry] = field(default_factory=_shipped)
    #: When patches run.
    scheduling: SchedulingGroup = field(default_factory=SchedulingGroup)
    #: The audit log and the messages.
    security: SecurityGroup = field(default_factory=SecurityGroup)
    #: What all runs share.
    engine: EngineGroup = field(default_factory=EngineGroup)
