"""The report as one HTML file that needs nothing else; its style is page.css."""

from __future__ import annotations

import os
import statistics
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from keikaku_snapshots.perf.charts import floors_chart, growth_chart, runs_chart, seconds_text
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
        _findings(report),
        "<h2>Limits</h2>",
        _floor_table(lines),
        _figure(floors_chart(lines), "The dashed line is the limit; the axis is logarithmic."),
    ]
    growth = growth_chart(report)
    if growth:
        body += [
            "<h2>Growth</h2>",
            _figure(growth, "A line as steep as the dotted one grows in proportion to the data."),
        ]
    body.append("<h2>Runs</h2>")
    for scale in reversed(report.scales):
        body += _scale(report, scale)
    body += ["<h2>Environment</h2>", _environment(report), "<h2>Next time</h2>", _next(json_name)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_style()}</style></head>\n<body><main>\n"
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


def _style() -> str:
    return Path(__file__).with_name("page.css").read_text(encoding="utf-8")


def _subtitle(report: PerformanceReport) -> str:
    facts = report.environment
    parts = [
        f"PostgreSQL {facts.get('postgresql', '?')}",
        f"Python {facts.get('python', '?')}",
        f"keikaku_snapshots {facts.get('keikaku_snapshots', '?')}",
        f"{facts.get('cores', '?')} cores",
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


def _findings(report: PerformanceReport) -> str:
    items = []
    in_japanese = os.environ.get("KEIKAKU_LANG", "").lower().startswith("ja")
    for finding in findings(report):
        words = [escape(finding.text)]
        if finding.advice:
            words.append(f'<span class="advice">→ {escape(finding.advice)}</span>')
        if in_japanese:
            advice_ja = f"<br>→ {escape(finding.advice_ja)}" if finding.advice_ja else ""
            words.append(f'<span class="ja" lang="ja">{escape(finding.text_ja)}{advice_ja}</span>')
        items.append(f'<li class="{finding.kind}">{"<br>".join(words)}</li>')
    return f'<ul class="findings">{"".join(items)}</ul>'


def _floor_table(lines: Sequence[Floor]) -> str:
    rows = []
    for floor in lines:
        kind, words = _MARKS[floor.status]
        rows.append([escape(floor.title), f'<span class="mark {kind}">{words}</span>', escape(floor.detail)])
    return _table(["what must hold", "", "seen"], rows, numbers=frozenset())


def _scale(report: PerformanceReport, scale: str) -> list[str]:
    items = [item for item in report.measurements if item.scale == scale]
    head = f"{scale}: {items[0].units:,} offices, {max(item.rows for item in items):,} rows"
    caption = "Each dot is a run, the mark is the median."
    return [f"<h3>{escape(head)}</h3>", _figure(runs_chart(items), caption), _run_table(items)]


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
    return _table(headers, rows, numbers=frozenset(range(1, 7)))


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: frozenset[int]) -> str:
    def cells(row: Sequence[str], tag: str) -> str:
        kinds = (' class="number"' if index in numbers else "" for index in range(len(row)))
        return "".join(f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in zip(kinds, row, strict=True))

    lines = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    head = f"<thead><tr>{cells(headers, 'th')}</tr></thead>"
    return f'<div class="wide"><table>{head}<tbody>{lines}</tbody></table></div>'


def _figure(chart: str, caption: str) -> str:
    return f"<figure>{chart}<figcaption>{escape(caption)}</figcaption></figure>" if chart else ""


def _environment(report: PerformanceReport) -> str:
    settings = report.environment.get("server_settings", {})
    facts = {name: value for name, value in report.environment.items() if name != "server_settings"}
    facts["seed, reference date"] = f"{report.seed}, {report.reference_date}"
    facts["server settings"] = ", ".join(f"{name} = {value}" for name, value in settings.items())
    entries = (f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items())
    return f"<dl>{''.join(entries)}</dl>"


def _next(json_name: str) -> str:
    return (
        f"<p>Keep <code>{escape(json_name)}</code>. After a change, measure again on the same machine and "
        f"run <code>keikaku perf compare {escape(json_name)} NEW.json</code>: it ends with 1 when something "
        "has become slower by more than a fifth and the runs prove it.</p>"
    )
