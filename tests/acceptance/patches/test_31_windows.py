"""Acceptance 31: maintenance windows, on every kind of night."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import pytest

from keikaku_snapshots.config_patches import load_patch_configuration
from keikaku_snapshots.errors import ConfigurationError, WindowClosedError
from keikaku_snapshots.patches.windows import Window, Windows

if TYPE_CHECKING:
    from pathlib import Path

TOKYO = ZoneInfo("Asia/Tokyo")
NEW_YORK = ZoneInfo("America/New_York")


def _windows(days: str, start: str, end: str, zone: str = "America/New_York") -> Windows:
    return Windows((Window(days=(days,), start=start, end=end, time_zone=zone),))


def _openings(windows: Windows, begin: datetime, hours: int = 24) -> list[str]:
    """When the windows are open within some hours, by the clock on the wall, with its zone."""
    zone = windows.windows[0].zone
    found, now, end = [], begin, begin.astimezone(ZoneInfo("UTC")) + timedelta(hours=hours)
    while (opens := windows.next_open(now)) is not None and opens < end:
        closes = windows.closes_at(opens)
        assert closes is not None
        found.append(f"{opens.astimezone(zone):%a %H:%M %Z} - {closes.astimezone(zone):%a %H:%M %Z}")
        now = closes
    return found


def test_the_shipped_windows_are_two_nights_in_tokyo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sunday and Wednesday from 02:00 to 04:00, wherever the machine stands."""
    monkeypatch.chdir(tmp_path)
    windows = load_patch_configuration(environment={}).windows

    assert _openings(windows, datetime(2026, 11, 28, tzinfo=TOKYO), hours=7 * 24) == [
        "Sun 02:00 JST - Sun 04:00 JST",
        "Wed 02:00 JST - Wed 04:00 JST",
    ]
    # 02:00 on Sunday in Tokyo is 17:00 on Saturday in London.
    assert windows.is_open(datetime(2026, 11, 28, 17, 0, tzinfo=ZoneInfo("Europe/London")))


def test_a_closed_window_says_which_there_are_and_which_comes_next() -> None:
    """Exit code 29, with all that somebody needs who wonders why nothing ran."""
    windows = _windows("sun", "02:00", "04:00", "Asia/Tokyo")

    with pytest.raises(WindowClosedError) as caught:
        windows.check_open(datetime(2026, 11, 27, 10, 30, tzinfo=TOKYO))

    assert caught.value.exit_code == 29
    assert caught.value.found.splitlines() == [
        "Now: Fri 2026-11-27 10:30 JST",
        "Windows: Sunday 02:00-04:00 Asia/Tokyo",
        "Next: Sun 2026-11-29 02:00 JST",
    ]


def test_the_end_does_not_belong_to_it() -> None:
    """Open at the first moment, closed at the last one that is named."""
    windows = _windows("sun", "02:00", "04:00", "Asia/Tokyo")
    start, end = datetime(2026, 11, 29, 2, tzinfo=TOKYO), datetime(2026, 11, 29, 4, tzinfo=TOKYO)

    assert [windows.is_open(start), windows.is_open(end - timedelta(microseconds=1))] == [True, True]
    assert [windows.is_open(start - timedelta(microseconds=1)), windows.is_open(end)] == [False, False]
    assert windows.closes_at(start) == end


def test_a_window_over_midnight_belongs_to_the_day_on_which_it_opens() -> None:
    """Saturday 22:00 to 02:00 is open early on Sunday and not early on Saturday."""
    windows = _windows("sat", "22:00", "02:00", "Asia/Tokyo")

    assert _openings(windows, datetime(2026, 11, 27, tzinfo=TOKYO), hours=7 * 24) == [
        "Sat 22:00 JST - Sun 02:00 JST"
    ]


@pytest.mark.parametrize(
    ("start", "end", "openings"),
    [
        ("01:30", "04:00", ["Sun 01:30 EST - Sun 04:00 EDT"]),
        ("02:30", "04:00", ["Sun 03:00 EDT - Sun 04:00 EDT"]),
        ("01:00", "02:30", ["Sun 01:00 EST - Sun 03:00 EDT"]),
        ("02:15", "02:45", []),
        ("23:00", "02:30", ["Sun 00:00 EST - Sun 03:00 EDT", "Sun 23:00 EDT - Mon 02:30 EDT"]),
    ],
)
def test_a_time_that_the_clock_jumps_over_is_never_shown(start: str, end: str, openings: list[str]) -> None:
    """New York, 8 March 2026: after 01:59 EST comes 03:00 EDT."""
    windows = Windows((Window(days=("sat", "sun"), start=start, end=end, time_zone="America/New_York"),))

    assert _openings(windows, datetime(2026, 3, 8, tzinfo=NEW_YORK), hours=23) == openings


@pytest.mark.parametrize(
    ("start", "end", "openings"),
    [
        ("01:00", "02:00", ["Sun 01:00 EDT - Sun 02:00 EST"]),
        ("01:15", "01:45", ["Sun 01:15 EDT - Sun 01:45 EDT", "Sun 01:15 EST - Sun 01:45 EST"]),
        ("00:30", "01:30", ["Sun 00:30 EDT - Sun 01:30 EDT", "Sun 01:00 EST - Sun 01:30 EST"]),
        ("01:30", "02:30", ["Sun 01:30 EDT - Sun 01:00 EST", "Sun 01:30 EST - Sun 02:30 EST"]),
        ("02:00", "04:00", ["Sun 02:00 EST - Sun 04:00 EST"]),
    ],
)
def test_a_time_that_the_clock_shows_twice_counts_both_times(
    start: str, end: str, openings: list[str]
) -> None:
    """New York, 1 November 2026: after 01:59 EDT comes 01:00 EST."""
    assert _openings(_windows("sun", start, end), datetime(2026, 11, 1, tzinfo=NEW_YORK)) == openings


def test_the_end_is_right_for_who_asks_in_the_hour_that_comes_twice() -> None:
    """A local time of the first and of the second hour are told apart."""
    windows = _windows("sun", "01:15", "01:45")
    first = datetime(2026, 11, 1, 1, 20, tzinfo=NEW_YORK)

    closes = [windows.closes_at(first.replace(fold=fold)) for fold in (0, 1)]

    assert [f"{moment:%H:%M}" for moment in closes if moment] == ["05:45", "06:45"]


def test_an_unknown_time_zone_is_refused_before_anything_runs(tmp_path: Path) -> None:
    """It is named with its path and the nearest name."""
    file = tmp_path / "data_patches.yml"
    file.write_text(
        "scheduling:\n  maintenance_windows:\n"
        "    - {days: [sun], start: 02:00, end: 04:00, timezone: Asia/Tokio}\n",
        encoding="utf-8",
    )

    with pytest.raises(ConfigurationError) as caught:
        load_patch_configuration(file, {})

    assert caught.value.found == (
        "scheduling.maintenance_windows.0.timezone: must be a time zone such as Asia/Tokyo, "
        "got 'Asia/Tokio'; did you mean Asia/Tokyo?"
    )
