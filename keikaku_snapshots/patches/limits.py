"""Why a run stops before its end: errors of limits, and what is no error."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Final

from keikaku_snapshots.errors import (
    KeikakuError,
    MemoryLimitExceededError,
    OperationTimeoutError,
    PatchFailedError,
)

if TYPE_CHECKING:
    from keikaku_snapshots.patches.execution import SubState
    from keikaku_snapshots.patches.watchdog import Watchdog

_MB: Final = 1024 * 1024


class StoppedError(Exception):
    """The run stops between two batches, to be resumed."""

    def __init__(self, sub_state: SubState) -> None:
        super().__init__(sub_state)
        self.sub_state = sub_state


class CancelledError(Exception):
    """An operator wants the run to be taken back."""


def over_memory(used: int, limit: int) -> MemoryLimitExceededError:
    """Make the error of a run that needs too much memory.

    Args:
        used: Bytes that were in use.
        limit: Bytes that were allowed.
    """
    return MemoryLimitExceededError(
        "a data patch used more memory than it may",
        found=f"Used: {used / _MB:.0f} MB; limit: {limit / _MB:.0f} MB",
        used_bytes=used,
        limit_bytes=limit,
    )


def over_time(watch: Watchdog) -> KeikakuError:
    """Make the error of a run that takes too long.

    Args:
        watch: What measured it.
    """
    return OperationTimeoutError(
        "a data patch ran much longer than it should",
        found=f"Worked: {watch.active_s:.1f} s; limit: {watch.time_limit_s or 0:.1f} s",
        hint="Look for what slowed it down (locks, load), or set estimated_duration or max_runtime.",
        hint_ja="原因(ロック・負荷)を確認するか、max_runtime を設定してください。",
    )


def over_limit(watch: Watchdog) -> KeikakuError:
    """Make the error of a run that has passed a limit.

    Args:
        watch: What has noticed it.
    """
    if watch.cause == "time":
        return over_time(watch)
    return over_memory(watch.memory_bytes, watch.memory_limit_bytes)


def too_many_wrong(inconsistent: int, processed: int, share: float) -> None:
    """Give up when too many rows are not as they should be.

    Args:
        inconsistent: Those.
        processed: All.
        share: The share that is too much.

    Raises:
        PatchFailedError: Too many are.
    """
    # As a fraction, so that exactly 10 % is exactly 10 %.
    limit = Fraction(str(share))
    if inconsistent and inconsistent >= limit * processed:
        raise PatchFailedError(
            "too many rows are not as they should be",
            found=f"{inconsistent:,} of {processed:,} rows ({inconsistent / max(processed, 1):.1%});"
            f" {float(limit):.1%} or more fails",
            event="integrity",
        )
