"""The report as one HTML file that needs nothing else."""

from __future__ import annotations

import statistics
from html import escape
from typing import TYPE_CHECKING

from keikaku_snapshots.pages.html import document, facts, figure, findings_list, table
from keikaku_snapshots.pages.svg import seconds_text
from keikaku_snapshots.perf.charts import floors_chart, growth_chart, runs_chart
from keikaku_snapshots.perf.findings import findings
from keikaku_snapshots.perf.floors import floors
from keikaku_snapshots.perf.report import STEPS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keikaku_snapshots.perf.floors import Floor
    from keikaku_snapshots.perf.report import Measurement, PerformanceReport

_MARKS = {
    "holds": ("holds", "✓ holds"),
    "broken": ("broken", "✗ broken"),
    "not measured": ("open", "– not measured"),
}


def write_page(report: PerformanceReport, json_name: str) -> str:
    """Write the page.

    Args:
        report: The report.
        json_name: Name of the JSON file beside it.

    Returns:
        The HTML text.
    """
    lines = floors(report)
    title = f"Performance report, {report.created_at:%Y-%m-%d %H:%M} UTC"
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(_subtitle(report))}</p>',
        _verdict(lines),
        "<h2>What it means and what to do</h2>",
        findings_list(findings(report)),
        "<h2>Limits</h2>",
        _floor_table(lines),
        figure(floors_chart(lines), "The dashed line is the limit; the axis is logarithmic."),
    ]
    growth = growth_chart(report)
    if growth:
        body += [
            "<h2>Growth</h2>",
            figure(growth, "A line as steep as the dotted one grows in proportion to the data."),
        ]
    body.append("<h2>Runs</h2>")
    for scale in reversed(report.scales):
        body += _scale(report, scale)
    body += ["<h2>Environment</h2>", _environment(report), "<h2>Next time</h2>", _next(json_name)]
    return document(title, body)


def _subtitle(report: PerformanceReport) -> str:
    known = report.environment
    parts = [
        f"PostgreSQL {known.get('postgresql', '?')}",
        f"Python {known.get('python', '?')}",
        f"keikaku_snapshots {known.get('keikaku_snapshots', '?')}",
        f"{known.get('cores', '?')} cores",
        f"{report.runs} runs of each step after one that does not count",
        f"{report.total_s:,.0f} s in all",
    ]
    return " · ".join(parts)


def _verdict(lines: Sequence[Floor]) -> str:
    broken = [floor.title for floor in lines if floor.status == "broken"]
    measured = [floor for floor in lines if floor.status != "not measured"]
    if broken:
        return f'<p class="verdict broken">Too slow or failed: {escape("; ".join(broken))}.</p>'
    return f'<p class="verdict">Good: all {len(measured)} limits that were measured hold.</p>'


def _floor_table(lines: Sequence[Floor]) -> str:
    rows = []
    for floor in lines:
        kind, words = _MARKS[floor.status]
        rows.append([escape(floor.title), f'<span class="mark {kind}">{words}</span>', escape(floor.detail)])
    return table(["what must hold", "", "seen"], rows, numbers=frozenset())


def _scale(report: PerformanceReport, scale: str) -> list[str]:
    items = [item for item in report.measurements if item.scale == scale]
    head = f"{scale}: {items[0].units:,} offices, {max(item.rows for item in items):,} rows"
    caption = "Each dot is a run, the mark is the median."
    return [f"<h3>{escape(head)}</h3>", figure(runs_chart(items), caption), _run_table(items)]


def _run_table(items: Sequence[Measurement]) -> str:
    headers = ["step", "median", "fastest", "slowest", "an office", "queries", "memory", ""]
    rows = []
    for item in items:
        step = f'<span title="{escape(STEPS.get(item.step, ""))}">{escape(item.step)}</span>'
        if not item.seconds:
            failure = item.failures[0].message if item.failures else "not measured"
            rows.append(
                [step, "–", "–", "–", "–", "–", "–", f'<span class="broken">{escape(failure)}</span>']
            )
            continue
        median = statistics.median(item.seconds)
        rows.append(
            [
                step,
                seconds_text(median),
                seconds_text(min(item.seconds)),
                seconds_text(max(item.seconds)),
                seconds_text(item.office_s or 0),
                str(max(item.queries)) if item.queries else "–",
                f"{max(item.memory_peak_mb):.0f} MB" if item.memory_peak_mb else "–",
                escape(item.note) + "".join(f" {escape(failure.message)}" for failure in item.failures),
            ]
        )
    return table(headers, rows, numbers=frozenset(range(1, 7)))


def _environment(report: PerformanceReport) -> str:
    settings = report.environment.get("server_settings", {})
    entries = {name: value for name, value in report.environment.items() if name != "server_settings"}
    entries["seed, reference date"] = f"{report.seed}, {report.reference_date}"
    entries["server settings"] = ", ".join(f"{name} = {value}" for name, value in settings.items())
    return facts(entries)


def _next(json_name: str) -> str:
    return (
        f"<p>Keep <code>{escape(json_name)}</code>. After a change, measure again on the same machine and "
        f"run <code>keikaku perf compare {escape(json_name)} NEW.json</code>: it ends with 1 when something "
        "has become slower by more than a fifth and the runs prove it.</p>"
    )
