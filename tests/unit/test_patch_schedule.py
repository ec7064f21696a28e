"""Scheduled runs: which time is due."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import takewhile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keikaku_snapshots.errors import ConfigurationError
from keikaku_snapshots.patches.schedule import ScheduleEntry, cron_problem, last_due, times

ENTRIES = [
    ScheduleEntry(name="x", patch="x", cron=cron, time_zone=zone)
    for cron in ("*/15 * * * *", "0 2 * * sun", "30 2 * * *", "30 1 1 * *", "5 */6 * * *", "0 0 29 2 *")
    for zone in ("Asia/Tokyo", "America/New_York", "Europe/Berlin")
]
BEGIN = datetime(2026, 2, 1, tzinfo=UTC)
moments = st.integers(0, 365 * 24 * 60).map(lambda minute: BEGIN + timedelta(minutes=minute))


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(ENTRIES), moments, st.integers(0, 70 * 24 * 60))
def test_the_latest_time_that_has_come_is_due(entry: ScheduleEntry, since: datetime, minutes: int) -> None:
    """However many were missed, it is one."""
    now = since + timedelta(minutes=minutes)

    missed = list(takewhile(lambda moment: moment <= now, times(entry, since)))

    assert last_due(entry, since, now) == (missed[-1] if missed else None)


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(ENTRIES), st.lists(moments, min_size=2, max_size=12))
def test_however_often_one_looks_no_time_is_due_twice(entry: ScheduleEntry, looks: list[datetime]) -> None:
    """A worker remembers what was due; times only grow and lie within what it asked for."""
    handled, *others = sorted(looks)
    for now in others:
        due = last_due(entry, handled, now)
        if due is not None:
            assert handled < due <= now
            handled = due
        else:
            assert next(times(entry, handled), now + timedelta(days=1)) > now


@pytest.mark.parametrize(
    ("cron", "expected"),
    [
        ("30 2 * * *", ["03-08 03:00 EDT", "03-09 02:30 EDT"]),
        ("30 3 * * *", ["03-08 03:30 EDT", "03-09 03:30 EDT"]),
    ],
)
def test_a_time_in_the_gap_comes_right_after_it(cron: str, expected: list[str]) -> None:
    """New York, 8 March 2026, as Debian's cron does."""
    entry = ScheduleEntry(name="x", patch="x", cron=cron, time_zone="America/New_York")
    found = times(entry, datetime(2026, 3, 8, 5, tzinfo=UTC))

    assert [_local(next(found)), _local(next(found))] == expected


def test_a_time_that_is_shown_twice_comes_once() -> None:
    """New York, 1 November 2026."""
    entry = ScheduleEntry(name="x", patch="x", cron="30 1 * * *", time_zone="America/New_York")
    found = times(entry, datetime(2026, 11, 1, 4, tzinfo=UTC))

    assert [_local(next(found)), _local(next(found))] == ["11-01 01:30 EDT", "11-02 01:30 EST"]


def _local(moment: datetime) -> str:
    from zoneinfo import ZoneInfo

    return f"{moment.astimezone(ZoneInfo('America/New_York')):%m-%d %H:%M %Z}"


@pytest.mark.parametrize(
    "cron",
    [
        "",
        "* * * *",
        "0 0 2 * * sun",
        "61 * * * *",
        "* * 31 2 *",
        "x * * * *",
        "@daily",
        "5-1 * * * *",
        "L/2 * * * *",
    ],
)
def test_times_that_are_none_are_refused(cron: str) -> None:
    """Five fields; one with seconds would run each second."""
    assert cron_problem(cron).startswith("must be five fields such as '0 2 * * sun'")
    with pytest.raises(ConfigurationError, match="times of the schedule 'x'"):
        next(times(ScheduleEntry(name="x", patch="x", cron=cron), BEGIN))


def test_names_of_days_and_lists_are_understood() -> None:
    """As in a crontab."""
    assert [cron_problem(cron) for cron in ("0 2 * * sun,wed", "*/5 2-4 1,15 JAN *")] == ["", ""]
