"""What a report of one run tells: the execution and everything that hangs on it, as one frozen value.

Drawn by `report_page`; what it means is put into words by `report_meaning`.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from keikaku_snapshots.patches.execution import Execution

#: Bytes of a megabyte of resident memory, as limits count them.
MB = 1024 * 1024
#: Rows of a list that a page shows; the rest is counted.
SHOWN = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One committed transaction of a run or of its rollback."""

    #: ``run`` or ``rollback``.
    phase: Literal["run", "rollback"]
    #: Number within the phase, from one.
    number: int
    #: When it began.
    started_at: datetime
    #: Seconds until its commit.
    seconds: float
    #: Rows that it was to take.
    batch_size: int
    #: Rows that it took.
    processed: int
    #: Rows that it changed.
    changed: int
    #: Rows that are not as they should be.
    inconsistent: int
    #: Resident memory of the process at its end.
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One row of the sample: what was there and what is there now."""

    #: Its table.
    table: str
    #: Its key.
    key: tuple[str, ...]
    #: ``update``, ``insert`` or ``delete``.
    kind: str
    #: Old and new value of each column that differs; None stands for NULL or for no row.
    columns: dict[str, tuple[str | None, str | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """A row that a rollback left because somebody else had changed it."""

    #: Its table.
    table: str
    #: Its key.
    key: tuple[str, ...]
    #: The columns that had other values.
    columns: tuple[str, ...]
    #: What was found.
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A row that the patch rejected."""

    #: Its key.
    key: tuple[str, ...]
    #: What the patch says is wrong with it.
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One verification and how it ended."""

    #: What was verified.
    name: str
    #: True when it held.
    passed: bool
    #: What was found.
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A notification and what became of it."""

    #: What it was about.
    event: str
    #: When it was written.
    created_at: datetime
    #: When it arrived; None when it has not.
    delivered_at: datetime | None
    #: What went wrong at the last try.
    last_error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchReport:
    """Everything that a page shows of one run."""

    #: The run.
    execution: Execution
    #: When this was read.
    made_at: datetime
    #: Where: ``host:port/database``.
    location: str
    #: Its batches, those of the rollback last.
    batches: tuple[Batch, ...] = ()
    #: Verifications, in their order.
    checks: tuple[Check, ...] = ()
    #: A sample of changed rows.
    differences: tuple[Difference, ...] = ()
    #: Rows that a rollback left; at most `SHOWN`.
    conflicts: tuple[Conflict, ...] = ()
    #: Rows that the patch rejected; at most `SHOWN`.
    rejected: tuple[Rejected, ...] = ()
    #: Keys of rows that stay put off because others had locked them; at most `SHOWN`.
    deferred: tuple[tuple[str, ...], ...] = ()
    #: Notifications.
    messages: tuple[Message, ...] = ()
    #: Seconds since the last sign of life of its process; None when there is none.
    silent_s: float | None = None
    #: True when the undo log is still there.
    undo_kept: bool = False
    #: Bytes of the undo log; None when nobody looked.
    undo_bytes: int | None = None
    #: Days for which the undo log is kept.
    undo_retention_days: float = 30.0
    #: Seconds of silence after which a run is taken for dead.
    lease_s: float = 30.0
    #: Resident memory above which the run fails; None when it is not known.
    memory_limit_bytes: int | None = None
    #: More that was found, such as the plan of a batch.
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def run_batches(self) -> tuple[Batch, ...]:
        """The batches of the run itself."""
        return tuple(batch for batch in self.batches if batch.phase == "run")

    @property
    def rollback_batches(self) -> tuple[Batch, ...]:
        """The batches of its rollback."""
        return tuple(batch for batch in self.batches if batch.phase == "rollback")

    @property
    def rows_a_minute(self) -> float | None:
        """Rows of the run by minutes of work; None when nothing was done."""
        execution = self.execution
        if execution.active_s <= 0 or not execution.processed_records:
            return None
        return execution.processed_records / execution.active_s * 60


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of the values does not exceed.

    Args:
        values: At least one value.
        share: Between 0 and 1.

    Returns:
        One of the values (nearest rank).
    """
    ordered = sorted(values)
    return ordered[max(0, min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1))]


def pauses(batches: Sequence[Batch]) -> list[tuple[int, float]]:
    """The long silences between two batches.

    Args:
        batches: Batches of one phase in their order.

    Returns:
        Position of the batch after the silence, and its seconds. Long is
        more than 5 s and ten times a usual batch.
    """
    if len(batches) < 2:
        return []
    long_s = max(5.0, 10 * statistics.median(batch.seconds for batch in batches))
    found = []
    for position in range(1, len(batches)):
        before = batches[position - 1]
        silent = (batches[position].started_at - before.started_at).total_seconds() - before.seconds
        if silent > long_s:
            found.append((position, silent))
    return found
