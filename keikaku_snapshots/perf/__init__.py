"""The performance-test environment: a database, an engine, a workload, a report and a comparison.

::

    from keikaku_snapshots.perf import create_performance_test_session, send_deadline_alert_emails

    async with create_performance_test_session() as session:
        result = await send_deadline_alert_emails(db=session, dry_run=True)
        print(result["email_sent"], "mails")

`keikaku perf run` measures generation, restore and this workload; `keikaku perf compare` tells
whether something has become slower.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keikaku_snapshots.perf.comparison import ReportComparison, compare_reports
    from keikaku_snapshots.perf.database import (
        create_performance_test_engine,
        create_performance_test_session,
        get_performance_test_db_url,
    )
    from keikaku_snapshots.perf.files import write_report
    from keikaku_snapshots.perf.measuring import Measured, measured
    from keikaku_snapshots.perf.report import PerformanceReport, read_report
    from keikaku_snapshots.perf.runs import run_performance_tests
    from keikaku_snapshots.perf.scales import performance_test_scale
    from keikaku_snapshots.perf.workload import DeadlineAlert, DeadlineMail, send_deadline_alert_emails

__all__ = [
    "DeadlineAlert",
    "DeadlineMail",
    "Measured",
    "PerformanceReport",
    "ReportComparison",
    "compare_reports",
    "create_performance_test_engine",
    "create_performance_test_session",
    "get_performance_test_db_url",
    "measured",
    "performance_test_scale",
    "read_report",
    "run_performance_tests",
    "send_deadline_alert_emails",
    "write_report",
]

# Answered on first use: the engine needs SQLAlchemy, the comparison of two files does not.
_HOME = {
    "DeadlineAlert": "workload",
    "DeadlineMail": "workload",
    "Measured": "measuring",
    "PerformanceReport": "report",
    "ReportComparison": "comparison",
    "compare_reports": "comparison",
    "create_performance_test_engine": "database",
    "create_performance_test_session": "database",
    "get_performance_test_db_url": "database",
    "measured": "measuring",
    "performance_test_scale": "scales",
    "read_report": "report",
    "run_performance_tests": "runs",
    "send_deadline_alert_emails": "workload",
    "write_report": "files",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
