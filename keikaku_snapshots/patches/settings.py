"""How patches are run: plain frozen values, filled by the configuration or in code."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from pathlib import Path

OnConflict: TypeAlias = Literal["skip_and_report", "abort", "force"]
OnCrash: TypeAlias = Literal["resume", "rollback", "leave"]
Mode: TypeAlias = Literal["batched", "single_transaction"]
OnAuditFailure: TypeAlias = Literal["warn", "error"]
#: What messages are sent about.
EVENTS: Final = (
    "completed",
    "failed",
    "rolled_back",
    "rollback_incomplete",
    "memory",
    "overtime",
    "integrity",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchSettings:
    """How one patch is run; what the patch class itself does not decide."""

    #: What the patch is for, in a line; the class's docstring when empty.
    description: str = ""
    #: Tables that the patch may change beside its own, as ``schema.table``.
    target_tables: tuple[str, ...] = ()
    #: Rows that the patch is expected to work on; None when nobody knows.
    estimated_records: int | None = None
    #: Seconds that the patch is expected to take; None: that of the last dry run, else by the records.
    estimated_duration_s: float | None = None
    #: Resident memory of our process above which the run fails, in megabytes.
    memory_limit_mb: int = 500
    #: Rows of a batch at the start.
    batch_size: int = 1000
    #: Whether batches grow and shrink towards `target_batch_s`.
    adaptive: bool = True
    #: Seconds that a batch should take.
    target_batch_s: float = 0.5
    #: Seconds of work after which the run fails and is rolled back; None: three times the estimate.
    max_runtime_s: float | None = None
    #: Share of the processed rows that may be inconsistent; this much fails.
    inconsistency_limit: float = 0.1
    #: What a rollback does with rows that somebody else has changed since.
    on_conflict: OnConflict = "skip_and_report"
    #: What `keikaku patch reap` does with a run whose process has died.
    on_crash: OnCrash = "resume"
    #: Batches with commits in between, or all in one transaction.
    mode: Mode = "batched"
    #: Seconds a statement of a batch may wait for a row that another session has locked.
    lock_timeout_s: float = 3.0
    #: Seconds a statement of a batch may take.
    statement_timeout_s: float = 60.0
    #: Seconds to rest between two batches.
    pause_s: float = 0.0
    #: Seconds a replica may lag behind before the run waits for it; None does not look.
    max_replica_lag_s: float | None = None
    #: Whether the run needs a successful dry run of the same source and parameters first.
    require_dry_run: bool = True
    #: Hours for which a dry run is good.
    dry_run_max_age_h: float = 24.0
    #: Whether another person than the one who runs it must have approved it.
    require_approval: bool = False
    #: Whether a pg_dump of the target tables is made before the first batch.
    backup_dump: bool = False
    #: Values for the patch's parameters where the run gives none.
    parameters: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """What all runs share."""

    #: Seconds after which a run that gives no sign of life is taken for dead.
    lease_s: float = 30.0
    #: Seconds between two signs of life.
    heartbeat_s: float = 2.0
    #: Seconds between two looks at memory and time.
    watch_s: float = 0.1
    #: Tries of a batch that met a deadlock, a lock or a timeout, before its rows are put off.
    batch_attempts: int = 5
    #: Days for which the undo of an ended run is kept.
    undo_retention_days: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditSettings:
    """How the audit log is kept."""

    #: Whether lines are encrypted (needs the extra [audit]); they are chained and signed in any case.
    log_encryption: bool = True
    #: Days for which lines are kept; whole months are dropped.
    audit_retention_days: int = 90
    #: Environment variable with the key: 32 bytes in hex or base64.
    key_variable: str = "KEIKAKU_AUDIT_KEY"
    #: Environment variable with the keys of before, separated by spaces or commas.
    old_keys_variable: str = "KEIKAKU_AUDIT_OLD_KEYS"
    #: File of the key where the variable is not set, made on first use; None: in the user's configuration.
    key_file: Path | None = None
    #: What a line that cannot be written does: ``error`` stops the run before it changes anything.
    on_failure: OnAuditFailure = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """A way to somebody: Slack, an e-mail address, or anything else that apprise knows."""

    #: Name of the channel, such as ``slack``.
    name: str
    #: Environment variable with the channel's URL; the channel is switched off while it is not set.
    url_variable: str
    #: Events that are sent to it; an empty one gets only urgent messages that went nowhere else.
    events: tuple[str, ...] = EVENTS
    #: Whether only urgent ones of these events are sent to it.
    urgent_only: bool = False
    #: Whether it is an error that its variable is not set.
    required: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NotifySettings:
    """How messages are sent."""

    #: The channels; an urgent message that was not delivered goes to the next one in this order.
    channels: tuple[Channel, ...] = ()
    #: Seconds that one message may take.
    timeout_s: float = 10.0
    #: Seconds that a run waits, when it has ended, for its messages to go out.
    linger_s: float = 5.0
    #: Tries of a message on a channel before it is given up there.
    attempts: int = 8
    #: Seconds before the second try; doubled before each further one.
    backoff_s: float = 30.0
    #: Most seconds between two tries.
    backoff_max_s: float = 3600.0
    #: Minutes after which an urgent message that was not delivered goes to the next channel.
    escalate_after_min: float = 10.0
    #: Hours after which a message that no channel took is no longer news.
    expire_after_h: float = 72.0
