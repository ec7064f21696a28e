"""The charts of a performance report: runs, limits, growth."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keikaku_snapshots.pages.svg import WIDTH, LogScale, apart, axis, line, seconds_text, svg, text
from keikaku_snapshots.perf.floors import share_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keikaku_snapshots.perf.floors import Floor
    from keikaku_snapshots.perf.report import Measurement, PerformanceReport

_LABELS = 150
_VALUES = 120
_ROW = 38
_TOP = 12
_AXIS = 28


def runs_chart(measurements: Sequence[Measurement]) -> str:
    """Every run of every step as a dot, the median as a mark; empty when nothing was measured."""
    shown = [item for item in measurements if item.seconds]
    if not shown:
        return ""
    height = _TOP + _ROW * len(shown) + _AXIS
    scale = LogScale.over((s for item in shown for s in item.seconds), _LABELS, WIDTH - _VALUES)
    parts = axis(scale, _TOP, height - _AXIS, seconds_text)
    for number, item in enumerate(shown):
        y = _TOP + _ROW * (number + 0.5)
        parts.append(text(0, y + 5, item.step, "label"))
        parts.append(line(scale.left, y, scale.right, y, "rail"))
        parts += [
            f'<circle class="dot" cx="{scale.at(value):.1f}" cy="{y:.1f}" r="5"/>' for value in item.seconds
        ]
        median = item.median_s or 0.0
        x = scale.at(median)
        parts.append(line(x, y - 12, x, y + 12, "median"))
        parts.append(text(WIDTH, y + 5, seconds_text(median), "value end"))
    title = f"Seconds of each run at {shown[0].scale}, logarithmic"
    listed = "; ".join(f"{item.step}: median {seconds_text(item.median_s or 0)}" for item in shown)
    return svg(height, title, listed, parts)


def floors_chart(floors: Sequence[Floor]) -> str:
    """How much of each limit the slowest run uses; empty when no limit was measured."""
    shown = [(floor, floor.value_s / floor.limit_s) for floor in floors if floor.value_s and floor.limit_s]
    if not shown:
        return ""
    height = _TOP + _ROW * len(shown) + _AXIS
    low = min(0.001, min(share for _, share in shown) / 2)
    scale = LogScale(low, max(1.6, max(share for _, share in shown) * 1.6), 235, WIDTH - 90)
    parts = axis(scale, _TOP, height - _AXIS, share_text)
    for number, (floor, share) in enumerate(shown):
        y = _TOP + _ROW * (number + 0.5)
        kind = "bar" if floor.status == "holds" else "bar broken"
        parts.append(text(0, y + 5, floor.title, "label"))
        width = scale.at(share) - scale.left
        parts.append(
            f'<rect class="{kind}" x="{scale.left}" y="{y - 9:.1f}" width="{width:.1f}" height="18" rx="3"/>'
        )
        parts.append(text(WIDTH, y + 5, share_text(share), "value end"))
    limit = scale.at(1.0)
    parts.append(line(limit, _TOP, limit, height - _AXIS, "limit"))
    listed = "; ".join(f"{floor.title}: {share_text(share)}" for floor, share in shown)
    return svg(height, "Share of each limit that the slowest run uses, logarithmic", listed, parts)


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
    x_scale = LogScale.over((units for points in lines.values() for units, _ in points), 70, WIDTH - 130)
    y_scale = LogScale.over((s for points in lines.values() for _, s in points), bottom, _TOP)
    parts = []
    for value in y_scale.ticks():
        y = y_scale.at(value)
        parts += [line(70, y, WIDTH - 130, y, "grid"), text(62, y + 4, seconds_text(value), "tick end")]
    for units in sorted({units for points in lines.values() for units, _ in points}):
        x = x_scale.at(units)
        parts += [line(x, _TOP, x, bottom, "grid"), text(x, bottom + 18, f"{units:,}", "tick middle")]
    parts.append(text((70 + WIDTH - 130) / 2, bottom + 38, "offices", "tick middle"))
    parts.append(_guide(x_scale, y_scale))
    places = apart({step: y_scale.at(points[-1][1]) for step, points in lines.items()}, 17)
    for number, (step, points) in enumerate(lines.items()):
        path = " ".join(f"{x_scale.at(units):.1f},{y_scale.at(s):.1f}" for units, s in points)
        parts.append(f'<polyline class="line s{number}" points="{path}"/>')
        parts += [
            f'<circle class="point s{number}" cx="{x_scale.at(units):.1f}" cy="{y_scale.at(s):.1f}" r="4"/>'
            for units, s in points
        ]
        parts.append(text(WIDTH - 120, places[step] + 5, step, f"label s{number}"))
    listed = "; ".join(
        f"{step}: " + ", ".join(f"{units} offices {seconds_text(s)}" for units, s in points)
        for step, points in lines.items()
    )
    return svg(height, "Median seconds by number of offices, both axes logarithmic", listed, parts)


def _guide(x_scale: LogScale, y_scale: LogScale) -> str:
    """A line that grows in proportion, from the left edge as far as the axes go."""
    factor = min(x_scale.high / x_scale.low, y_scale.high / y_scale.low)
    return line(
        x_scale.left,
        y_scale.left,
        x_scale.at(x_scale.low * factor),
        y_scale.at(y_scale.low * factor),
        "guide",
    )
