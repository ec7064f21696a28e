"""Which snapshots stay and which go: pure decisions, no files."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from datetime import UTC, timedelta
from typing import TYPE_CHECKING, Final

from keikaku_snapshots.errors import ParameterTypeError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable
    from datetime import datetime
    from pathlib import Path

    from keikaku_snapshots.snapshots.manifest import Snapshot

#: Days that a time span can hold; more is the same as for ever.
_LONGEST_DAYS: Final = 999_999_999


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionPolicy:
    """What to keep of each snapshot name; a version that no rule keeps is deleted.

    Days, weeks and months are those of UTC in which there is a snapshot, so a
    month without a run uses none up.
    """

    #: The newest N versions.
    keep_last: int | None = None
    #: The newest version of each of the newest N days.
    keep_daily: int | None = None
    #: The newest version of each of the newest N weeks (Monday to Sunday).
    keep_weekly: int | None = None
    #: The newest version of each of the newest N months.
    keep_monthly: int | None = None
    #: Everything that is not older than N days.
    older_than_days: float | None = None
    #: So many of the newest versions stay whatever the other rules say, at least 1.
    min_keep: int = 1

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if value is None and item.name != "min_keep":
                continue
            kinds = (int, float) if item.name == "older_than_days" else (int,)
            if isinstance(value, bool) or not isinstance(value, kinds):
                word = "number" if len(kinds) > 1 else "whole number"
                raise ParameterTypeError(f"{item.name} must be a {word}, not {type(value).__name__}")
            least = 0 if item.name == "older_than_days" else 1
            if not math.isfinite(value) or value < least:
                raise UsageError(f"{item.name} must be at least {least}, not {value}")

    @property
    def is_empty(self) -> bool:
        """True when no rule says what to keep."""
        rules = (self.keep_last, self.keep_daily, self.keep_weekly, self.keep_monthly, self.older_than_days)
        return all(rule is None for rule in rules)


#: What is done where nothing else is said (B10).
DEFAULT_POLICY: Final = RetentionPolicy(older_than_days=30)


@dataclass(frozen=True, slots=True)
class Decision:
    """One snapshot and why it stays or goes."""

    #: The snapshot.
    snapshot: Snapshot
    #: Why, in words; never empty.
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """What stays and what goes, newest first within each name."""

    #: What stays.
    keep: tuple[Decision, ...] = ()
    #: What goes, or went.
    delete: tuple[Decision, ...] = ()
    #: Files of interrupted runs that go, or went.
    swept: tuple[Path, ...] = ()
    #: True when nothing was deleted.
    dry_run: bool = True

    @property
    def deleted_names(self) -> list[str]:
        """Name and version of each that goes, as the audit log has it."""
        return [str(decision.snapshot) for decision in self.delete]


def plan(snapshots: Iterable[Snapshot], policy: RetentionPolicy, now: datetime) -> PrunePlan:
    """Decide which snapshots stay and which go; looks at nothing but its arguments.

    Every name is decided for itself. Damaged versions and those made after
    ``now`` neither count nor go; pinned ones count and stay. The newest valid
    version always stays. Doing it again changes nothing, and a larger number
    or a further rule never deletes more.

    Args:
        snapshots: All snapshots of a directory, in any order.
        policy: What to keep.
        now: Aware time.

    Returns:
        Every snapshot once, with reasons.

    Raises:
        UsageError: The policy is empty, or ``now`` has no time zone.
    """
    if policy.is_empty:
        raise UsageError(
            "the retention policy is empty",
            hint="Say what to keep: keep_last, keep_daily, keep_weekly, keep_monthly or older_than_days "
            "(--keep-last … --older-than, or retention: in the configuration).",
        )
    if now.tzinfo is None:
        raise UsageError("a time without time zone cannot decide what is old")
    keep: list[Decision] = []
    delete: list[Decision] = []
    # Equal ones stand in one order always; sorting backwards keeps it.
    ordered = sorted(
        sorted(snapshots, key=lambda item: str(item.path)), key=lambda item: item.sort_key, reverse=True
    )
    for name in sorted({item.name for item in ordered}):
        versions = [item for item in ordered if item.name == name]
        for snapshot, why in zip(versions, _reasons(versions, policy, now), strict=True):
            if why:
                keep.append(Decision(snapshot, tuple(why)))
            else:
                delete.append(Decision(snapshot, (_why_not(snapshot, policy, now),)))
    return PrunePlan(tuple(keep), tuple(delete))


def old_ones(snapshots: list[Snapshot], keep_count: int) -> list[Snapshot]:
    """Return which snapshots of one name go when ``keep_count`` valid ones are kept, newest first."""
    valid = sorted(
        (item for item in snapshots if item.is_valid), key=lambda item: item.sort_key, reverse=True
    )
    return [item for item in valid[max(1, keep_count) :] if not item.pinned]


def _reasons(versions: list[Snapshot], policy: RetentionPolicy, now: datetime) -> list[list[str]]:
    """Why each version of one name, newest first, stays; an empty list for those that go."""
    reasons = [_own_reasons(item, now) for item in versions]
    counted = [index for index, item in enumerate(versions) if item.is_valid and item.created_at <= now]
    newest = next((index for index, item in enumerate(versions) if item.is_valid), None)
    if newest is not None:
        reasons[newest].append("newest valid version")
    for index in counted[: policy.min_keep]:
        if index != newest:
            reasons[index].append(f"one of the newest {policy.min_keep}, which always stay")
    for index in counted[: policy.keep_last or 0]:
        reasons[index].append(f"one of the last {policy.keep_last}")
    for count, word, period in _PERIODS:
        _keep_periods(versions, counted, getattr(policy, count) or 0, word, period, reasons)
    if policy.older_than_days is not None:
        for index in counted:
            if not _is_older(versions[index], policy.older_than_days, now):
                reasons[index].append(f"not older than {policy.older_than_days:g} days")
    return reasons


def _own_reasons(item: Snapshot, now: datetime) -> list[str]:
    """Why a version stays whatever else there is."""
    if not item.is_valid:
        return [f"damaged, only deleted by hand: {item.problem}"]
    reasons = ["pinned"] if item.pinned else []
    if item.created_at > now:
        reasons.append(f"made in the future ({item.created_at:%Y-%m-%d %H:%M} UTC), not counted")
    return reasons


def _keep_periods(
    versions: list[Snapshot],
    counted: list[int],
    count: int,
    word: str,
    period: Callable[[datetime], Hashable],
    reasons: list[list[str]],
) -> None:
    seen: set[Hashable] = set()
    for index in counted:
        key = period(versions[index].created_at.astimezone(UTC))
        if key not in seen and len(seen) < count:
            seen.add(key)
            reasons[index].append(f"newest of {word} {len(seen)} of {count}")


_PERIODS: Final[tuple[tuple[str, str, Callable[[datetime], Hashable]], ...]] = (
    ("keep_daily", "day", lambda moment: moment.date()),
    ("keep_weekly", "week", lambda moment: moment.isocalendar()[:2]),
    ("keep_monthly", "month", lambda moment: (moment.year, moment.month)),
)


def _is_older(item: Snapshot, days: float, now: datetime) -> bool:
    return now - item.created_at > timedelta(days=min(days, _LONGEST_DAYS))


def _why_not(item: Snapshot, policy: RetentionPolicy, now: datetime) -> str:
    days = (now - item.created_at) / timedelta(days=1)
    if policy.older_than_days is not None:
        return f"{days:.1f} days old, and no other rule keeps it"
    return f"no rule keeps it ({days:.1f} days old)"
