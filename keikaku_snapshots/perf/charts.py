"""Charts as inline SVG: no script, no network, readable in print and for screen readers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from keikaku_snapshots.perf.floors import share_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from keikaku_snapshots.perf.floors import Floor
    from keikaku_snapshots.perf.report import Measurement, PerformanceReport

#: Width of every chart in its own units; the page scales it.
WIDTH = 760
_LABELS = 150
_VALUES = 120
_ROW = 38
_TOP = 12
_AXIS = 28


@dataclass(frozen=True, slots=True)
class _LogScale:
    """Places values on a logarithmic axis."""

    low: float
    high: float
    left: float
    right: float

    @classmethod
    def over(cls, values: Iterable[float], left: float, right: float) -> _LogScale:
        """An axis with a margin around all values, at least a factor of three long."""
        given = list(values)
        low, high = min(given) / 1.25, max(given) * 1.25
        stretch = max(1.0, math.sqrt(3 / (high / low)))
        return cls(low / stretch, high * stretch, left, right)

    def at(self, value: float) -> float:
        """The place of a value."""
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.left + share * (self.right - self.left)

    def ticks(self) -> list[float]:
        """Round values along the axis: 1, 2, 5 of each decade, on a long one 1 and 3."""
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        steps = (1, 3) if math.log10(self.high / self.low) > 2.2 else (1, 2, 5)
        found = (step * 10.0**power for power in range(first, last + 1) for step in steps)
        return [value for value in found if self.low <= value <= self.high]


def seconds_text(seconds: float) -> str:
    """Seconds with three digits that count, in ms below a second."""
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 1000 else f"{seconds:,.0f} s"


def runs_chart(measurements: Sequence[Measurement]) -> str:
    """Every run of every step as a dot, the median as a mark; empty when nothing was measured."""
    shown = [item for item in measurements if item.seconds]
    if not shown:
        return ""
    height = _TOP + _ROW * len(shown) + _AXIS
    scale = _LogScale.over((s for item in shown for s in item.seconds), _LABELS, WIDTH - _VALUES)
    parts = _axis(scale, height, seconds_text)
    for number, item in enumerate(shown):
        y = _TOP + _ROW * (number + 0.5)
        parts.append(_text(0, y + 5, item.step, "label"))
        parts.append(_line(scale.left, y, scale.right, y, "rail"))
        parts += [
            f'<circle class="dot" cx="{scale.at(value):.1f}" cy="{y:.1f}" r="5"/>' for value in item.seconds
        ]
        median = item.median_s or 0.0
        x = scale.at(median)
        parts.append(_line(x, y - 12, x, y + 12, "median"))
        parts.append(_text(WIDTH, y + 5, seconds_text(median), "value end"))
    title = f"Seconds of each run at {shown[0].scale}, logarithmic"
    listed = "; ".join(f"{item.step}: median {seconds_text(item.median_s or 0)}" for item in shown)
    return _svg(height, title, listed, parts)


def floors_chart(floors: Sequence[Floor]) -> str:
    """How much of each limit the slowest run uses; empty when no limit was measured."""
    shown = [(floor, floor.value_s / floor.limit_s) for floor in floors if floor.value_s and floor.limit_s]
    if not shown:
        return ""
    height = _TOP + _ROW * len(shown) + _AXIS
    low = min(0.001, min(share for _, share in shown) / 2)
    scale = _LogScale(low, max(1.6, max(share for _, share in shown) * 1.6), 235, WIDTH - 90)
    parts = _axis(scale, height, share_text)
    for number, (floor, share) in enumerate(shown):
        y = _TOP + _ROW * (number + 0.5)
        kind = "bar" if floor.status == "holds" else "bar broken"
        parts.append(_text(0, y + 5, floor.title, "label"))
        width = scale.at(share) - scale.left
        parts.append(
            f'<rect class="{kind}" x="{scale.left}" y="{y - 9:.1f}" width="{width:.1f}" height="18" rx="3"/>'
        )
        parts.append(_text(WIDTH, y + 5, share_text(share), "value end"))
    limit = scale.at(1.0)
    parts.append(_line(limit, _TOP, limit, height - _AXIS, "limit"))
    listed = "; ".join(f"{floor.title}: {share_text(share)}" for floor, share in shown)
    return _svg(height, "Share of each limit that the slowest run uses, logarithmic", listed, parts)


def growth_chart(report: PerformanceReport) -> str:
    """Median seconds by number of offices; empty with one scale only."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for item in report.measurements:
        if item.median_s:
            lines.setdefault(item.step, []).append((item.units, item.median_s))
    lines = {step: points for step, points in lines.items() if len(points) > 1}
    if not lines:
        return ""
    height, bottom = 300, 300 - 44
    x_scale = _LogScale.over((units for points in lines.values() for units, _ in points), 70, WIDTH - 130)
    y_scale = _LogScale.over((s for points in lines.values() for _, s in points), bottom, _TOP)
    parts = []
    for value in y_scale.ticks():
        y = y_scale.at(value)
        parts += [_line(70, y, WIDTH - 130, y, "grid"), _text(62, y + 4, seconds_text(value), "tick end")]
    for units in sorted({units for points in lines.values() for units, _ in points}):
        x = x_scale.at(units)
        parts += [_line(x, _TOP, x, bottom, "grid"), _text(x, bottom + 18, f"{units:,}", "tick middle")]
    parts.append(_text((70 + WIDTH - 130) / 2, bottom + 38, "offices", "tick middle"))
    parts.append(_guide(x_scale, y_scale))
    places = _apart({step: y_scale.at(points[-1][1]) for step, points in lines.items()}, 17)
    for number, (step, points) in enumerate(lines.items()):
        path = " ".join(f"{x_scale.at(units):.1f},{y_scale.at(s):.1f}" for units, s in points)
        parts.append(f'<polyline class="line s{number}" points="{path}"/>')
        parts += [
            f'<circle class="point s{number}" cx="{x_scale.at(units):.1f}" cy="{y_scale.at(s):.1f}" r="4"/>'
            for units, s in points
        ]
        parts.append(_text(WIDTH - 120, places[step] + 5, step, f"label s{number}"))
    listed = "; ".join(
        f"{step}: " + ", ".join(f"{units} offices {seconds_text(s)}" for units, s in points)
        for step, points in lines.items()
    )
    return _svg(height, "Median seconds by number of offices, both axes logarithmic", listed, parts)


def _guide(x_scale: _LogScale, y_scale: _LogScale) -> str:
    """A line that grows in proportion, from the left edge as far as the axes go."""
    factor = min(x_scale.high / x_scale.low, y_scale.high / y_scale.low)
    return _line(
        x_scale.left,
        y_scale.left,
        x_scale.at(x_scale.low * factor),
        y_scale.at(y_scale.low * factor),
        "guide",
    )


def _apart(places: dict[str, float], distance: float) -> dict[str, float]:
    """Move labels so far down that none covers another."""
    moved: dict[str, float] = {}
    lowest = -math.inf
    for name, place in sorted(places.items(), key=lambda item: item[1]):
        lowest = max(place, lowest + distance)
        moved[name] = lowest
    return moved


def _axis(scale: _LogScale, height: float, words: Callable[[float], str]) -> list[str]:
    parts = []
    for value in scale.ticks():
        x = scale.at(value)
        parts.append(_line(x, _TOP, x, height - _AXIS, "grid"))
        parts.append(_text(x, height - 8, words(value), "tick middle"))
    return parts


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _svg(height: float, title: str, description: str, parts: list[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" xmlns="http://www.w3.org/2000/svg">'
        f"<title>{escape(title)}</title><desc>{escape(description)}</desc>{''.join(parts)}</svg>"
    )
