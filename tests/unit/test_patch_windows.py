"""Maintenance windows: one rule about a clock on the wall."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keikaku_snapshots.errors import ConfigurationError, UsageError
from keikaku_snapshots.patches.windows import DAYS, NEVER, Window, Windows, find_zone

ZONES = (
    "Asia/Tokyo",
    "America/New_York",
    "Europe/Berlin",
    "Australia/Lord_Howe",  # puts its clocks back by half an hour
    "America/Havana",  # at midnight
    "Asia/Kathmandu",
    "UTC",
)
minutes = st.integers(0, 24 * 60 - 1).map(lambda minute: f"{minute // 60:02}:{minute % 60:02}")
windows = (
    st.tuples(st.sets(st.sampled_from(DAYS), min_size=1), minutes, minutes | st.just("24:00"))
    .filter(lambda parts: parts[1] != parts[2])
    .flatmap(
        lambda parts: st.builds(
            Window,
            days=st.just(tuple(parts[0])),
            start=st.just(parts[1]),
            end=st.just(parts[2]),
            time_zone=st.sampled_from(ZONES),
        )
    )
)
#: Moments of two years; half of them near a night in which clocks are changed somewhere.
NIGHTS = [
    datetime(2026, 3, 8, 7, tzinfo=UTC),
    datetime(2026, 3, 8, 5, tzinfo=UTC),
    datetime(2026, 3, 29, 1, tzinfo=UTC),
    datetime(2026, 4, 4, 15, tzinfo=UTC),
    datetime(2026, 10, 3, 16, tzinfo=UTC),
    datetime(2026, 10, 25, 1, tzinfo=UTC),
    datetime(2026, 11, 1, 5, tzinfo=UTC),
    datetime(2026, 11, 1, 6, tzinfo=UTC),
]
near = st.builds(
    lambda night, seconds: night + timedelta(seconds=seconds),
    st.sampled_from(NIGHTS),
    st.integers(-36 * 3600, 36 * 3600),
)
moments = near | st.integers(0, 2 * 365 * 24 * 60).map(
    lambda minute: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minute)
)


def _shown(window: Window, moment: datetime) -> bool:
    """The rule told in another way: is the time that a clock shows one of the window's minutes?"""
    local = moment.astimezone(ZoneInfo(window.time_zone)).replace(tzinfo=None)
    hour, minute = (int(part) for part in window.start.split(":"))
    until_hour, until_minute = (int(part) for part in window.end.split(":"))
    for days_ago in (0, 1):
        midnight = datetime.combine(local.date() - timedelta(days=days_ago), datetime.min.time())
        start = midnight + timedelta(hours=hour, minutes=minute)
        end = midnight + timedelta(hours=until_hour, minutes=until_minute)
        if end <= start:
            end += timedelta(days=1)
        if DAYS[midnight.weekday()] in window.days and start <= local < end:
            return True
    return False


@settings(max_examples=300, deadline=None)
@given(windows, moments)
def test_a_window_is_open_while_a_clock_on_the_wall_shows_one_of_its_minutes(
    window: Window, moment: datetime
) -> None:
    """Whatever the zone does that night."""
    assert window.is_open(moment) == _shown(window, moment)


@settings(max_examples=60, deadline=None)
@given(st.lists(windows, min_size=1, max_size=3).map(tuple), moments)
def test_nothing_changes_before_the_moment_that_is_named(chosen: tuple[Window, ...], now: datetime) -> None:
    """`closes_at` and `next_open` name the first change: looked at each minute up to it."""
    all_windows = Windows(chosen)
    is_open = all_windows.is_open(now)
    change = all_windows.closes_at(now) if is_open else all_windows.next_open(now)
    if change is None or change == NEVER:
        change = now + timedelta(days=8)
    else:
        assert all_windows.is_open(change) != is_open
        assert all_windows.is_open(change - timedelta(microseconds=1)) == is_open

    minute = now
    while minute < change:
        assert all_windows.is_open(minute) == is_open, minute
        minute += timedelta(minutes=1)


@settings(max_examples=100, deadline=None)
@given(st.lists(windows, max_size=3).map(tuple), moments)
def test_open_and_closed_exclude_each_other(chosen: tuple[Window, ...], now: datetime) -> None:
    """What is open has an end and opens now; what is closed has no end."""
    all_windows = Windows(chosen)
    closes = all_windows.closes_at(now)

    assert all_windows.is_open(now) == (closes is not None) == (all_windows.next_open(now) == now)
    assert closes is None or closes > now


def test_without_windows_it_is_always_open() -> None:
    """An empty list is no limit."""
    now = datetime(2026, 11, 28, tzinfo=UTC)

    assert Windows().is_open(now)
    assert Windows().closes_at(now) == NEVER
    Windows().check_open(now)


def test_windows_that_touch_are_one() -> None:
    """A run need not stop where the next window begins at once."""
    chosen = Windows(
        (
            Window(days=("sun",), start="22:00", end="24:00"),
            Window(days=("mon",), start="00:00", end="02:00"),
        )
    )
    now = datetime(2026, 11, 29, 23, 0, tzinfo=ZoneInfo("Asia/Tokyo"))

    assert chosen.closes_at(now) == datetime(2026, 11, 30, 2, 0, tzinfo=ZoneInfo("Asia/Tokyo"))


@pytest.mark.parametrize("name", ["Asia/Tokio", "America", "", "../etc/passwd", "Asia/Tokyo\0", "/etc"])
def test_an_unknown_time_zone_is_one_clear_error(name: str) -> None:
    """Also a directory of the database, an empty name and a path."""
    with pytest.raises(ConfigurationError, match="time zone"):
        find_zone(name)
    with pytest.raises(ConfigurationError, match="time_zone: must be a time zone"):
        Window(days=("sun",), start="02:00", end="04:00", time_zone=name)


def test_a_wrong_window_lists_all_its_problems() -> None:
    """Days, both times and the zone in one message."""
    with pytest.raises(ConfigurationError) as caught:
        Window(days=("sunday", "sonntag"), start="2:00", end="25:00", time_zone="Tokyo")

    assert caught.value.found.splitlines()[:3] == [
        "days: must be days such as sunday or sun, got 'sonntag'",
        "start: must be a time such as 02:00, got '2:00'",
        "end: must be a time such as 02:00, got '25:00'",
    ]
    assert "time_zone: must be a time zone such as Asia/Tokyo, got 'Tokyo'" in caught.value.found


def test_a_time_without_a_zone_is_refused() -> None:
    """A naive time would be taken for that of this machine."""
    chosen = Windows((Window(days=("sun",), start="02:00", end="04:00"),))

    for question in (chosen.is_open, chosen.closes_at, chosen.next_open):
        with pytest.raises(UsageError, match="time zone"):
            question(datetime(2026, 11, 29, 2, 30))  # noqa: DTZ001 - that is the mistake


def test_a_window_says_what_it_is() -> None:
    """Days in the order of the week, in full."""
    assert str(Window(days=("sun", "Wednesday"), start="02:00", end="04:00")) == (
        "Wednesday, Sunday 02:00-04:00 Asia/Tokyo"
    )
    assert str(Window(days=DAYS, start="22:00", end="04:00", time_zone="UTC")) == "Daily 22:00-04:00 UTC"
