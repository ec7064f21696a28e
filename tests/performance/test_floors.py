"""C6: what must hold, measured through the same door as `keikaku perf run`, with a report to keep."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from keikaku_snapshots.datasets import get_scale
from keikaku_snapshots.perf import run_performance_tests, write_report
from keikaku_snapshots.perf.floors import floors

if TYPE_CHECKING:
    from pathlib import Path

    from keikaku_snapshots.perf.report import PerformanceReport
    from keikaku_snapshots.postgres.url import DatabaseURL


def _run(url: DatabaseURL, scale: str, reports: Path) -> PerformanceReport:
    report = run_performance_tests(url, scale=scale, runs=5, directory=reports)
    write_report(report, reports, f"tests_{scale}")
    return report


def _check(report: PerformanceReport, scale: str) -> None:
    """Every limit that was measured holds, every mail was built, and queries do not grow with offices."""
    broken = [f"{line.title}: {line.detail}" for line in floors(report) if line.status == "broken"]
    workload = report.find("workload", scale)
    generate = report.find("generate", scale)

    assert broken == []
    assert workload is not None
    assert generate is not None
    assert workload.note == f"{get_scale(scale).units * 10:,} mails"
    assert max(workload.queries) <= 3 + workload.units / 50
    assert generate.median_s is not None
    assert generate.median_s < (get_scale(scale).limit_s or 0)


@pytest.mark.performance
def test_small_holds_its_limits(performance_database: DatabaseURL, reports: Path) -> None:
    """10 offices: the workload under 30 s, no database timeout."""
    _check(_run(performance_database, "small", reports), "small")


@pytest.mark.performance(scale="medium")
def test_medium_holds_its_limits(performance_database: DatabaseURL, reports: Path) -> None:
    """100 offices: generated under 300 s, restored under 10 s, 1,000 mails under 300 s."""
    report = _run(performance_database, "medium", reports)

    _check(report, "medium")
    assert {line.status for line in floors(report)} == {"holds"}


@pytest.mark.performance(scale="large")
def test_large_holds_its_limits(performance_database: DatabaseURL, reports: Path) -> None:
    """500 offices: the same limits, and the time that the scale allows for generating."""
    _check(_run(performance_database, "large", reports), "large")
