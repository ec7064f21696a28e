"""Maintenance windows: when a run may work. Pure; the clock is an argument.

A window is open exactly while a clock on the wall of its time zone shows a time from its start up to,
not including, its end, on one of its days. That one rule also decides the nights on which clocks are put
forward or back:

- A time that the clock jumps over is never shown. A window from 02:30 to 04:00 begins that night with the
  first moment after the gap (03:00 in New York); one that lies in the gap as a whole does not open.
- A time that the clock shows twice counts both times. A window from 01:00 to 02:00 is open for two hours;
  one from 01:30 to 02:30 closes when the clock goes back to 01:00 and opens again at the second 01:30.

A window whose end is not after its start crosses midnight and belongs to the day on which it starts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Final

from keikaku_snapshots.errors import ConfigurationError, UsageError, WindowClosedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from zoneinfo import ZoneInfo

DAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
DEFAULT_TIME_ZONE: Final = "Asia/Tokyo"
#: When a window closes that is open for ever.
NEVER: Final = datetime.max.replace(tzinfo=UTC)

_TIME: Final = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])", re.ASCII)
_WHOLE_DAY: Final = 24 * 60
#: How far to look. Windows come back each week, but one may fall into the gap of a night in spring.
_HORIZON: Final = timedelta(days=15)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A span of time on some days of each week.

    Raises:
        ConfigurationError: A day, a time or the time zone is wrong; all of them are listed.
    """

    #: Days on which it starts, such as ``sunday`` or ``sun``.
    days: tuple[str, ...]
    #: When it opens, as ``02:00``.
    start: str
    #: When it closes, as ``04:00``; ``24:00`` is the end of the day.
    end: str
    #: Name of the time zone, as the IANA database has it.
    time_zone: str = DEFAULT_TIME_ZONE

    def __post_init__(self) -> None:
        problems = [
            f"{name}: {text}" for name, text in window_problems(self.days, self.start, self.end)
        ] + time_zone_problems(self.time_zone, "time_zone: ")
        if problems:
            raise ConfigurationError("a maintenance window is wrong", found="\n".join(problems))

    def __str__(self) -> str:
        days = ", ".join(DAYS[number].capitalize() for number in sorted(self._weekdays))
        if len(self._weekdays) == len(DAYS):
            days = "Daily"
        return f"{days} {self.start}-{self.end} {self.time_zone}"

    @property
    def zone(self) -> ZoneInfo:
        """The time zone itself."""
        return find_zone(self.time_zone)

    @property
    def _weekdays(self) -> frozenset[int]:
        return frozenset(number for day in self.days if (number := _weekday(day)) is not None)

    def is_open(self, now: datetime) -> bool:
        """Tell whether it is open.

        Args:
            now: Aware time.

        Returns:
            True from its start up to, not including, its end.
        """
        local = _in_utc(now).astimezone(self.zone)
        minute, start, end = local.hour * 60 + local.minute, _minutes(self.start), _minutes(self.end)
        today = local.weekday() in self._weekdays
        if start < end:
            return today and start <= minute < end
        yesterday = (local.weekday() - 1) % len(DAYS) in self._weekdays
        return (today and minute >= start) or (yesterday and minute < end)

    def changes(self, now: datetime) -> Iterator[datetime]:
        """Name the moments at which it may open or close, in no order.

        Args:
            now: Aware time from which on.

        Yields:
            Aware times in UTC, all within the next two weeks.
        """
        zone = self.zone
        first = now.astimezone(zone).date() - timedelta(days=1)
        for offset in range(_HORIZON.days + 2):
            for minute in (_minutes(self.start), _minutes(self.end) % _WHOLE_DAY):
                yield from _moments(first + timedelta(days=offset), minute, zone)
        yield from _clock_changes(now.astimezone(UTC), zone)


@dataclass(frozen=True, slots=True)
class Windows:
    """All maintenance windows together; without any, it is always open."""

    #: The windows; they may overlap and lie in different time zones.
    windows: tuple[Window, ...] = ()

    def __str__(self) -> str:
        return "; ".join(map(str, self.windows)) or "always open"

    def is_open(self, now: datetime) -> bool:
        """Tell whether any window is open.

        Args:
            now: Aware time.

        Returns:
            True when a run may work.
        """
        _in_utc(now)
        return not self.windows or any(window.is_open(now) for window in self.windows)

    def closes_at(self, now: datetime) -> datetime | None:
        """Tell when what is open now ends.

        Args:
            now: Aware time.

        Returns:
            The first moment at which no window is open, in UTC; `NEVER` when there is none; None when no
            window is open now.
        """
        if not self.is_open(now):
            return None
        return next((moment for moment in self._moments(now) if not self.is_open(moment)), NEVER)

    def next_open(self, now: datetime) -> datetime | None:
        """Tell when a run may work next.

        Args:
            now: Aware time.

        Returns:
            The same moment when a window is open; else that at which the next one opens; in UTC. None when
            none opens in the next two weeks.
        """
        if self.is_open(now):
            return _in_utc(now)
        return next((moment for moment in self._moments(now) if self.is_open(moment)), None)

    def check_open(self, now: datetime) -> None:
        """Refuse work while no window is open.

        Args:
            now: Aware time.

        Raises:
            WindowClosedError: None is open; the text names the windows and the next opening.
        """
        if self.is_open(now):
            return
        zone = self.windows[0].zone
        opens = self.next_open(now)
        following = f"{opens.astimezone(zone):%a %Y-%m-%d %H:%M %Z}" if opens else "not in two weeks"
        raise WindowClosedError(
            "no maintenance window is open",
            found=f"Now: {now.astimezone(zone):%a %Y-%m-%d %H:%M %Z}\nWindows: {self}\nNext: {following}",
            next_open=opens,
        )

    def _moments(self, now: datetime) -> list[datetime]:
        """All moments after now at which something may open or close, in their order."""
        now = _in_utc(now)
        return sorted({moment for window in self.windows for moment in window.changes(now) if moment > now})


def find_zone(name: str) -> ZoneInfo:
    """Return a time zone.

    Args:
        name: As the IANA database has it, such as ``Asia/Tokyo``.

    Returns:
        The zone.

    Raises:
        ConfigurationError: There is none of this name.
    """
    problems = time_zone_problems(name, "")
    if problems:
        raise ConfigurationError("the time zone is unknown", found=problems[0])
    from zoneinfo import ZoneInfo

    return ZoneInfo(name)


def time_zone_problems(name: str, prefix: str) -> list[str]:
    """Say what is wrong with the name of a time zone.

    Args:
        name: What was given.
        prefix: Goes before the sentence.

    Returns:
        One sentence, or none.
    """
    from zoneinfo import ZoneInfo, available_timezones

    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # OSError: the name of a directory, such as "America"
        from difflib import get_close_matches

        near = get_close_matches(name, available_timezones(), n=1)
        suggestion = f"; did you mean {near[0]}?" if near else ""
        return [f"{prefix}must be a time zone such as Asia/Tokyo, got {name!r}{suggestion}"]
    return []


def window_problems(days: Iterable[str], start: str, end: str) -> Iterator[tuple[str, str]]:
    """Say what is wrong with a window.

    Args:
        days: Names of days.
        start: When it opens.
        end: When it closes.

    Yields:
        The field and a sentence.
    """
    days = tuple(days)
    if not days:
        yield "days", "must name at least one day"
    for day in days:
        if _weekday(day) is None:
            yield "days", f"must be days such as sunday or sun, got {day!r}"
    for name, text in (("start", start), ("end", end)):
        if not _TIME.fullmatch(text) and (name, text) != ("end", "24:00"):
            yield name, f"must be a time such as 02:00, got {text!r}"
    if start == end:
        yield "end", f"must not be the start, got {end!r} for both; a whole day is 00:00 to 24:00"


def _weekday(name: str) -> int | None:
    """Number of a day, 0 for Monday; its first three letters are enough."""
    short = 3
    text = name.strip().lower()
    return next((n for n, day in enumerate(DAYS) if text in {day, day[:short]}), None)


def _minutes(text: str) -> int:
    hour, _, minute = text.partition(":")
    return int(hour) * 60 + int(minute)


def _in_utc(moment: datetime) -> datetime:
    # Everything is compared in UTC: two local times of one zone are compared by what the wall shows, which
    # is wrong in the hour that a clock shows twice.
    if moment.tzinfo is None:
        raise UsageError("a time needs its time zone", found=f"Given: {moment.isoformat()}")
    return moment.astimezone(UTC)


def _moments(day: date, minute: int, zone: ZoneInfo) -> Iterator[datetime]:
    """When a clock of the zone shows a time; two moments when it shows it twice."""
    naive = datetime.combine(day, time(minute // 60, minute % 60))
    for fold in (0, 1):
        yield naive.replace(tzinfo=zone, fold=fold).astimezone(UTC)


def _clock_changes(now: datetime, zone: ZoneInfo) -> Iterator[datetime]:
    """When clocks of the zone are put forward or back.

    Two changes within one day of each other that cancel out would not be seen; no zone has such.
    """
    for offset in range(-1, _HORIZON.days + 1):
        before, after = now + timedelta(days=offset), now + timedelta(days=offset + 1)
        was = before.astimezone(zone).utcoffset()
        if was == after.astimezone(zone).utcoffset():
            continue
        while after - before > timedelta(microseconds=1):
            middle = before + (after - before) / 2
            if middle.astimezone(zone).utcoffset() == was:
                before = middle
            else:
                after = middle
        yield after
