"""The charts of a patch's report: duration, rows and memory of its batches, and rows over time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from keikaku_snapshots.pages.svg import WIDTH, LinearScale, box, line, seconds_text, svg, text
from keikaku_snapshots.patches.report import MB, pauses

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from keikaku_snapshots.patches.report import Batch, PatchReport

_LEFT = 78
_RIGHT = WIDTH - 10
_PANEL = 104
_GAP = 44
_TOP = 26
#: More bars than this are drawn as groups of neighbouring batches.
_MOST_BARS = 160
#: Distances of lines on an axis of time, in seconds.
_CLOCK_S = (2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 43200, 86400)


@dataclass(frozen=True, slots=True)
class _Bar:
    """Neighbouring batches that share one bar."""

    batches: Sequence[Batch]
    #: Place of the first one among all batches.
    position: int

    @property
    def is_rollback(self) -> bool:
        return self.batches[0].phase == "rollback"

    @property
    def seconds(self) -> float:
        return max(batch.seconds for batch in self.batches)

    @property
    def rows(self) -> float:
        return sum(batch.processed for batch in self.batches) / len(self.batches)

    @property
    def inconsistent(self) -> float:
        return sum(batch.inconsistent for batch in self.batches) / len(self.batches)

    @property
    def memory_bytes(self) -> int:
        return max(batch.memory_bytes for batch in self.batches)

    @property
    def words(self) -> str:
        first, last = self.batches[0], self.batches[-1]
        which = f"batch {first.number}" if first is last else f"batches {first.number}-{last.number}"
        phase = "rollback, " if self.is_rollback else ""
        return (
            f"{phase}{which}, {first.started_at:%H:%M:%S}: {seconds_text(self.seconds)}, "
            f"{self.rows:,.0f} rows, {memory_text(self.memory_bytes)}"
        )


def batches_chart(report: PatchReport) -> str:
    """Duration, rows and memory of each batch, one above the other; empty when there was none."""
    bars = _bars(report.batches)
    if not bars:
        return ""
    wide = LinearScale(float(len(report.batches)), _LEFT, _RIGHT)
    longest = LinearScale.over((bar.seconds for bar in bars), 0, _PANEL)
    rows = LinearScale.over((bar.rows for bar in bars), 0, _PANEL)
    limit = report.memory_limit_bytes or 0
    peak = max(bar.memory_bytes for bar in bars)
    # A limit far above would flatten the picture; it is in the words then.
    shown_limit = limit if limit <= 4 * peak else 0
    memory = LinearScale.over([*(bar.memory_bytes for bar in bars), shown_limit], 0, _PANEL)
    panels: list[tuple[str, LinearScale, Callable[[_Bar], float], Callable[[float], str]]] = [
        ("duration", longest, lambda bar: bar.seconds, seconds_text),
        ("rows", rows, lambda bar: bar.rows, lambda value: f"{value:,.0f}"),
        ("resident memory", memory, lambda bar: bar.memory_bytes, memory_text),
    ]
    parts: list[str] = []
    for number, (title, high, value_of, words) in enumerate(panels):
        bottom = _TOP + _PANEL + number * (_PANEL + _GAP)
        parts += [text(_LEFT, bottom - _PANEL - 10, title, "label"), *_levels(high, bottom, words)]
        for bar in bars:
            parts += _draw(bar, wide, bottom, high.at(value_of(bar)))
            if title == "rows" and bar.inconsistent:
                parts += _draw(bar, wide, bottom, max(4.0, high.at(bar.inconsistent)), kind="bar broken")
        if title == "resident memory" and shown_limit:
            y = bottom - high.at(shown_limit)
            parts.append(line(_LEFT, y, _RIGHT, y, "limit"))
    height = _TOP + len(panels) * (_PANEL + _GAP) + 6
    parts += _pause_marks(report, wide, height - _GAP)
    parts += _numbers(report.batches, wide, height - _GAP + 18)
    listed = (
        f"{len(report.batches)} batches; slowest {seconds_text(longest.high / 1.12)}; "
        f"highest memory {memory_text(peak)}"
    )
    return svg(height, "Duration, rows and memory of each batch", listed, parts)


def _bars(batches: Sequence[Batch]) -> list[_Bar]:
    """Bars in order; run and rollback never share one."""
    group = max(1, -(-len(batches) // _MOST_BARS))
    found: list[_Bar] = []
    start = 0
    while start < len(batches):
        end = start + 1
        while end < min(start + group, len(batches)) and batches[end].phase == batches[start].phase:
            end += 1
        found.append(_Bar(batches[start:end], start))
        start = end
    return found


def _draw(bar: _Bar, wide: LinearScale, bottom: float, tall: float, kind: str = "") -> list[str]:
    left, right = wide.at(bar.position), wide.at(bar.position + len(bar.batches))
    gap = min(1.5, (right - left) * 0.15)
    width = min(right - left - gap, 40)
    return [
        box(
            left + (right - left - width) / 2,
            bottom - tall,
            width,
            tall,
            kind or ("bar back" if bar.is_rollback else "bar run"),
            words=bar.words,
        )
    ]


def _levels(high: LinearScale, bottom: float, words: Callable[[float], str]) -> list[str]:
    parts = []
    for value in high.ticks(3):
        y = bottom - high.at(value)
        parts += [line(_LEFT, y, _RIGHT, y, "grid"), text(_LEFT - 8, y + 4, words(value), "tick end")]
    return parts


def _pause_marks(report: PatchReport, wide: LinearScale, bottom: float) -> list[str]:
    parts = []
    for position, silent_s in pauses(report.run_batches):
        x = wide.at(position)
        parts.append(line(x, _TOP - 8, x, bottom, "guide"))
        parts.append(text(x, _TOP - 12, f"rested {span_text(silent_s)}", "tick middle"))
    if report.run_batches and report.rollback_batches:
        x = wide.at(len(report.run_batches))
        parts.append(line(x, _TOP - 8, x, bottom, "limit"))
        parts.append(text(x - 6, _TOP - 12, "then the rollback", "tick end"))
    return parts


def _numbers(batches: Sequence[Batch], wide: LinearScale, y: float) -> list[str]:
    """Numbers of some batches below the bars."""
    step = max(1, round(LinearScale(float(len(batches)), 0, 1).ticks(6)[1]) if len(batches) > 6 else 1)
    parts = []
    for position, batch in enumerate(batches):
        if batch.number == 1 or (batch.number % step == 0 and batch.number - 1 >= 0.75 * step):
            x = (wide.at(position) + wide.at(position + 1)) / 2
            parts.append(text(x, y, f"{batch.number:,}", "tick middle"))
    parts.append(text((_LEFT + _RIGHT) / 2, y + 18, "batch", "tick middle"))
    return parts


def progress_chart(report: PatchReport) -> str:
    """Rows that were done by the time of day; empty with fewer than two batches."""
    batches = report.run_batches
    if len(batches) < 2:
        return ""
    height, bottom = 230, 230 - 44
    began = batches[0].started_at
    points, done = [(0.0, 0)], 0
    for batch in batches:
        start = (batch.started_at - began).total_seconds()
        points.append((start, done))
        done += batch.processed
        points.append((start + batch.seconds, done))
    wide = LinearScale(max(points[-1][0], 0.001), _LEFT, _RIGHT)
    tall = LinearScale.over([float(done)], bottom, _TOP)
    parts = []
    for value in tall.ticks():
        y = tall.at(value)
        parts += [line(_LEFT, y, _RIGHT, y, "grid"), text(_LEFT - 8, y + 4, f"{value:,.0f}", "tick end")]
    for value in _time_ticks(wide):
        x = wide.at(value)
        parts += [
            line(x, _TOP, x, bottom, "grid"),
            text(x, bottom + 18, span_text(value) if value else f"{began:%H:%M:%S}", "tick middle"),
        ]
    path = " ".join(f"{wide.at(x):.1f},{tall.at(y):.1f}" for x, y in _thinned(points))
    parts.append(f'<polyline class="line s0" points="{path}"/>')
    return svg(height, "Rows done over time", f"{done:,} rows in {span_text(points[-1][0])}", parts)


def _time_ticks(wide: LinearScale) -> list[float]:
    """Spans that a clock knows; below ten seconds round numbers."""
    if wide.high < 10:
        return wide.ticks(6)
    step = next((one for one in _CLOCK_S if wide.high / one <= 7), None) or wide.ticks(6)[1]
    return [step * number for number in range(int(wide.high / step) + 1)]


def _thinned(points: Sequence[tuple[float, int]]) -> list[tuple[float, int]]:
    step = max(1, len(points) // 600)
    return [*points[:-1:step], points[-1]]


def memory_text(size_bytes: float) -> str:
    """Write resident memory in the unit of its limit, 1024 times 1024 bytes."""
    return f"{size_bytes / MB:,.0f} MB"


def span_text(seconds: float) -> str:
    """Write a time span for people.

    Args:
        seconds: The span.

    Returns:
        Such as ``0.42 s``, ``12 s``, ``3 min 5 s`` or ``2 h 10 min``.
    """
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        rest = int(seconds) % 60
        return f"{int(seconds) // 60} min" + (f" {rest} s" if rest else "")
    rest = int(seconds) % 3600 // 60
    return f"{int(seconds) // 3600} h" + (f" {rest} min" if rest else "")
