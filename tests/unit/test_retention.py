"""Which snapshots stay and which go, without a file."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keikaku_snapshots.errors import ParameterTypeError, UsageError
from keikaku_snapshots.snapshots.manifest import Manifest, Snapshot
from keikaku_snapshots.snapshots.retention import DEFAULT_POLICY, RetentionPolicy, plan

NOW = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)
RULES = ("keep_last", "keep_daily", "keep_weekly", "keep_monthly", "older_than_days")


def snapshot(
    age_hours: float, number: int = 1, *, name: str = "app", valid: bool = True, pinned: bool = False
) -> Snapshot:
    """Return a snapshot that lies on no disk."""
    moment = NOW - timedelta(hours=age_hours)
    version = f"{moment:%Y%m%d_%H%M%S}" + (f"_{number}" if number > 1 else "")
    manifest = Manifest(
        name=name, version=version, created_at=moment, data_file="x", size_bytes=1, sha256="0" * 64,
        format="plain", pinned=pinned, sequence=number,
    )  # fmt: skip
    path = Path(f"/s/{name}_{version}.sql")
    return Snapshot(path, name, version, moment, 1, {}, valid, "" if valid else "cut", manifest=manifest)


def daily(count: int) -> list[Snapshot]:
    """One snapshot every day at noon, the newest is of now."""
    return [snapshot(24 * day) for day in range(count)]


def ages(decisions: object) -> list[int]:
    """Ages in whole days of what a plan keeps or deletes."""
    assert isinstance(decisions, tuple)
    return [(NOW - decision.snapshot.created_at).days for decision in decisions]


snapshots = st.lists(
    st.builds(
        snapshot,
        st.integers(-50, 24 * 120),
        st.integers(1, 5),
        name=st.sampled_from(["app", "app2", "app_test"]),
        valid=st.booleans(),
        pinned=st.booleans(),
    ),
    max_size=25,
    unique_by=lambda item: item.path,
)
rule = st.none() | st.integers(1, 6)
policies = st.builds(
    RetentionPolicy,
    keep_last=rule,
    keep_daily=rule,
    keep_weekly=rule,
    keep_monthly=rule,
    older_than_days=st.none() | st.integers(0, 60),
    min_keep=st.integers(1, 3),
).filter(lambda policy: not policy.is_empty)


class TestPromises:
    """Design, Retention: what holds for every policy and every directory."""

    @given(snapshots, policies)
    @settings(max_examples=300, deadline=None)
    def test_what_must_never_go_stays(self, found: list[Snapshot], policy: RetentionPolicy) -> None:
        """PEERS 9; Design, Retention: newest valid, pinned, damaged and future-dated ones never go."""
        made = plan(found, policy, NOW)
        gone = [decision.snapshot for decision in made.delete]

        assert all(item.is_valid and not item.pinned and item.created_at <= NOW for item in gone)
        for name in {item.name for item in found}:
            valid = sorted(
                (item for item in found if item.name == name and item.is_valid),
                key=lambda item: item.sort_key,
            )
            assert not set(valid[-1:]) & set(gone), "the newest valid version"
            past = [item for item in valid if item.created_at <= NOW]
            assert not set(past[-policy.min_keep :]) & set(gone), "min_keep"

    @given(snapshots, policies)
    @settings(max_examples=200, deadline=None)
    def test_everything_is_decided_once_with_a_reason(
        self, found: list[Snapshot], policy: RetentionPolicy
    ) -> None:
        """Design, Retention: the plan has each snapshot exactly once, and says why."""
        made = plan(found, policy, NOW)
        decided = [decision.snapshot.path for decision in (*made.keep, *made.delete)]

        assert sorted(decided) == sorted(item.path for item in found)
        assert all(decision.reasons and all(decision.reasons) for decision in (*made.keep, *made.delete))

    @given(snapshots, policies, st.randoms(use_true_random=False))
    @settings(max_examples=150, deadline=None)
    def test_the_order_of_the_files_does_not_matter(
        self, found: list[Snapshot], policy: RetentionPolicy, random: object
    ) -> None:
        """Design, Retention: deterministic."""
        mixed = list(found)
        random.shuffle(mixed)  # type: ignore[attr-defined]

        assert plan(mixed, policy, NOW) == plan(found, policy, NOW)

    @given(snapshots, policies)
    @settings(max_examples=200, deadline=None)
    def test_doing_it_again_changes_nothing(self, found: list[Snapshot], policy: RetentionPolicy) -> None:
        """Design, Retention: idempotent."""
        kept = [decision.snapshot for decision in plan(found, policy, NOW).keep]

        assert plan(kept, policy, NOW).delete == ()

    @given(snapshots, policies, st.sampled_from([*RULES, "min_keep"]), st.integers(1, 5))
    @settings(max_examples=300, deadline=None)
    def test_a_larger_number_or_a_further_rule_never_deletes_more(
        self, found: list[Snapshot], policy: RetentionPolicy, rule: str, more: int
    ) -> None:
        """Design, Retention: monotone in the policy."""
        larger = dataclasses.replace(policy, **{rule: (getattr(policy, rule) or 0) + more})
        gone = {decision.snapshot.path for decision in plan(found, policy, NOW).delete}

        assert {decision.snapshot.path for decision in plan(found, larger, NOW).delete} <= gone

    @given(snapshots, policies)
    @settings(max_examples=200, deadline=None)
    def test_damaged_and_future_ones_do_not_count(
        self, found: list[Snapshot], policy: RetentionPolicy
    ) -> None:
        """Design, Retention: without them the same ones go, but for the newest valid one."""
        sound = [item for item in found if item.is_valid and item.created_at <= NOW]

        assert plan(found, policy, NOW).delete == plan(sound, policy, NOW).delete

    @given(snapshots, policies)
    @settings(max_examples=150, deadline=None)
    def test_each_name_is_decided_for_itself(self, found: list[Snapshot], policy: RetentionPolicy) -> None:
        """PEERS 10, FAULTS 22: app never touches app2, whatever lies beside it."""
        alone = [item for item in found if item.name == "app"]
        together = [d for d in plan(found, policy, NOW).delete if d.snapshot.name == "app"]

        assert tuple(together) == plan(alone, policy, NOW).delete


class TestRules:
    """What each rule keeps."""

    def test_last(self) -> None:
        """The newest N."""
        assert ages(plan(daily(9), RetentionPolicy(keep_last=3), NOW).keep) == [0, 1, 2]

    def test_older_than_is_to_the_second(self) -> None:
        """B10: thirty days old to the second stays, one second more goes."""
        edge = [snapshot(0), snapshot(30 * 24), snapshot(30 * 24 + 1 / 3600)]
        made = plan(edge, DEFAULT_POLICY, NOW)

        assert [d.snapshot for d in made.delete] == [edge[2]]
        assert made.delete[0].reasons == ("30.0 days old, and no other rule keeps it",)

    def test_daily_keeps_the_newest_of_each_day_of_utc(self) -> None:
        """A day is a day of UTC, whatever zone the time is given in (FAULTS 91)."""
        tokyo = timezone(timedelta(hours=9))
        found = [snapshot(hours) for hours in (0, 11, 13, 23, 37)]
        abroad = [dataclasses.replace(item, created_at=item.created_at.astimezone(tokyo)) for item in found]
        policy = RetentionPolicy(keep_daily=2)

        kept = [[d.snapshot.version for d in plan(items, policy, NOW).keep] for items in (found, abroad)]
        assert kept[0] == kept[1] == ["20261120_120000", "20261119_230000"]

    def test_days_without_a_run_use_none_up(self) -> None:
        """After three weeks of silence the last three days with a snapshot are still there."""
        found = [snapshot(24 * day) for day in (0, 21, 22, 23)]

        assert ages(plan(found, RetentionPolicy(keep_daily=3), NOW).keep) == [0, 21, 22]

    def test_weekly_and_monthly(self) -> None:
        """Weeks begin on Monday, also over the turn of the year; months are those of the calendar."""
        found = daily(70)

        weeks = plan(found, RetentionPolicy(keep_weekly=3), NOW).keep
        months = plan(found, RetentionPolicy(keep_monthly=3), NOW).keep
        assert [f"{d.snapshot.created_at:%a %d}" for d in weeks] == ["Fri 20", "Sun 15", "Sun 08"]
        assert [f"{d.snapshot.created_at:%b %d}" for d in months] == ["Nov 20", "Oct 31", "Sep 30"]

    def test_rules_add_up(self) -> None:
        """One is kept when any rule keeps it, and all of the reasons are told."""
        policy = RetentionPolicy(keep_last=2, keep_monthly=2, older_than_days=1)
        made = plan(daily(40), policy, NOW)

        assert ages(made.keep) == [0, 1, 20]
        assert made.keep[0].reasons == (
            "newest valid version",
            "one of the last 2",
            "newest of month 1 of 2",
            "not older than 1 days",
        )
        assert made.keep[2].reasons == ("newest of month 2 of 2",)

    def test_old_ones_alone_are_kept(self) -> None:
        """Design, Retention: a name whose runs have stopped keeps its newest valid one for ever."""
        found = [snapshot(24 * 400), snapshot(24 * 399, valid=False)]

        assert plan(found, DEFAULT_POLICY, NOW).delete == ()

    def test_a_future_one_does_not_let_the_newest_of_today_go(self) -> None:
        """FAULTS 92: a clock that was wrong once costs no good snapshot."""
        found = [snapshot(-24 * 365), snapshot(24 * 40), snapshot(24 * 41)]
        made = plan(found, RetentionPolicy(keep_last=1), NOW)

        assert [d.snapshot for d in made.delete] == [found[2]]


class TestPolicy:
    """What a policy may be."""

    def test_an_empty_one_is_refused(self) -> None:
        """Design, Retention: deleting by no rule is a slip, not a wish; min_keep alone is no rule."""
        with pytest.raises(UsageError, match="the retention policy is empty"):
            plan(daily(3), RetentionPolicy(min_keep=2), NOW)

    @pytest.mark.parametrize("rule", [*RULES, "min_keep"])
    @pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), True, "3"])
    def test_impossible_numbers_are_refused(self, rule: str, value: object) -> None:
        """B16: the error names the rule."""
        with pytest.raises(UsageError, match=rule):
            RetentionPolicy(**{rule: value})  # type: ignore[arg-type]

    @pytest.mark.parametrize("rule", [*RULES[:4], "min_keep"])
    def test_a_count_that_keeps_nothing_is_refused(self, rule: str) -> None:
        """Design, Retention: at least one."""
        with pytest.raises(UsageError, match="at least 1"):
            RetentionPolicy(**{rule: 0})
        with pytest.raises(ParameterTypeError, match="whole number"):
            RetentionPolicy(**{rule: 1.5})  # type: ignore[arg-type]

    def test_any_number_of_days_works(self) -> None:
        """A span longer than the calendar keeps everything."""
        assert plan(daily(3), RetentionPolicy(older_than_days=1e300), NOW).delete == ()

    def test_the_time_needs_a_zone(self) -> None:
        """FAULTS 91: local time decides nothing."""
        with pytest.raises(UsageError, match="time zone"):
            plan([], DEFAULT_POLICY, NOW.replace(tzinfo=None))
