"""What is known of one run of a patch: a frozen value, read from the records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

Status: TypeAlias = Literal["pending", "running", "completed", "failed"]
SubState: TypeAlias = Literal[
    "pending",
    "validating",
    "batching",
    "paused",
    "window_closed",
    "verifying",
    "done",
    "failed",
    "rolling_back",
    "rolled_back",
    "rolled_back_with_conflicts",
    "cancelled",
]
Kind: TypeAlias = Literal["run", "dry_run", "rehearsal"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """A run, dry run or rehearsal of a patch, as the table ``keikaku_patches.execution`` has it."""

    #: Number of the run.
    execution_id: UUID
    #: Name of the patch.
    patch_name: str
    #: Version of the patch.
    patch_version: int
    #: A run, a dry run or a rehearsal.
    kind: Kind
    #: ``pending``, ``running``, ``completed`` or ``failed``.
    status: Status
    #: Where exactly it is.
    sub_state: SubState
    #: True when nothing was to be changed.
    dry_run: bool
    #: When it was asked for.
    created_at: datetime
    #: When it began to work.
    started_at: datetime | None
    #: When it ended.
    completed_at: datetime | None
    #: Who runs it.
    actor: str
    #: Parameters, secrets masked.
    parameters: dict[str, Any]
    #: SHA-256 of the parameters, the secret ones left out.
    parameters_hash: str
    #: SHA-256 of the patch's source and version.
    source_hash: str
    #: Tables that it may change, as ``schema.table``.
    target_tables: tuple[str, ...]
    #: ``batched`` or ``single_transaction``.
    mode: str
    #: Key of the last row that was worked on, as texts; None before the first batch.
    cursor: tuple[str, ...] | None
    #: Greatest key when the run began; rows above it are not touched.
    upper_key: tuple[str, ...] | None
    #: Batches that were committed.
    batch_number: int
    #: Rows of the next batch.
    batch_size: int
    #: Rows that match, counted or estimated.
    estimated_records: int | None
    #: Seconds it should take.
    estimated_s: float | None
    #: Seconds of work so far, without pauses and closed windows.
    active_s: float
    #: Rows that were worked on.
    processed_records: int
    #: Rows that were changed, added or removed.
    changed_records: int
    #: Rows that are as they should be already.
    unchanged_records: int
    #: Rows that the patch rejected.
    rejected_records: int
    #: Rows that are not as they should be: rejected ones, and violations of `verify_batch`.
    inconsistent_records: int
    #: Most resident memory, in bytes.
    peak_memory_bytes: int
    #: Which worker may go on; grows with each one that takes it over.
    lease_token: int
    #: Where the dump of the target tables lies, if there is one.
    backup_reference: str
    #: Why it ran outside of a maintenance window, if it did.
    outside_window_reason: str
    #: Who approved it, if anybody did.
    approved_by: str
    #: What went wrong.
    error_message: str
    #: SQLSTATE of what went wrong, where the server said it.
    error_sqlstate: str
    #: True when everything that it had changed was taken back, without conflicts.
    rollback_performed: bool
    #: Rows that a rollback left because somebody else had changed them.
    conflicts: int
    #: What a dry run, a verification or a report found: diffs, plans, sizes; small.
    findings: dict[str, Any]

    @property
    def is_over(self) -> bool:
        """True when it has ended, in whatever way."""
        return self.status in {"completed", "failed"}
