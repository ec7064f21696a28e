"""What a performance run must hold (requirement C6): a line for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from keikaku_snapshots.perf.report import Measurement, PerformanceReport

#: Step, scale, and the seconds under which every run must stay.
_LIMITS = (
    ("generate", "medium", 300.0),
    ("restore", "medium", 10.0),
    ("workload", "small", 30.0),
    ("workload", "medium", 300.0),
)


@dataclass(frozen=True, slots=True)
class Floor:
    """One promise and whether it was kept."""

    #: What is promised.
    title: str
    #: Whether it was kept; a scale that was not asked for is not measured.
    status: Literal["holds", "broken", "not measured"]
    #: Seconds under which every run must stay; None for a promise without a number.
    limit_s: float | None
    #: Seconds of the slowest run.
    value_s: float | None
    #: The facts, in words.
    detail: str


def floors(report: PerformanceReport) -> list[Floor]:
    """Compare a report with what it must hold.

    Args:
        report: The report.

    Returns:
        A line for each floor.
    """
    lines = [_timed(report.find(step, scale), step, scale, limit_s) for step, scale, limit_s in _LIMITS]
    timeouts = [
        f"{item.title}: {failure.message}"
        for item in report.measurements
        for failure in item.failures
        if failure.is_timeout
    ]
    detail = "; ".join(timeouts) or f"none in {sum(len(item.seconds) for item in report.measurements)} runs"
    lines.append(Floor("no database timeout error", "broken" if timeouts else "holds", None, None, detail))
    return lines


def _timed(found: Measurement | None, step: str, scale: str, limit_s: float) -> Floor:
    title = f"{step} {scale} under {limit_s:g} s"
    if found is None:
        return Floor(title, "not measured", limit_s, None, f"run with --scale {scale}")
    if found.failures:
        failure = found.failures[0]
        return Floor(title, "broken", limit_s, None, f"failed: {failure.message}")
    if not found.seconds:
        return Floor(title, "not measured", limit_s, None, "an earlier step failed")
    slowest = max(found.seconds)
    return Floor(
        title,
        "holds" if slowest < limit_s else "broken",
        limit_s,
        slowest,
        f"slowest of {len(found.seconds)}: {slowest:.3g} s, {share_text(slowest / limit_s)} of the limit",
    )


def share_text(share: float) -> str:
    """A share in percent, with two digits that count."""
    percent = share * 100
    return f"{percent:.0f} %" if percent >= 9.95 else f"{percent:.2g} %"
