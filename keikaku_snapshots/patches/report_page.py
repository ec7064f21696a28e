"""The report of one run as one HTML file that needs nothing else."""

from __future__ import annotations

import json
from html import escape
from typing import TYPE_CHECKING

from keikaku_snapshots.pages.html import document, facts, figure, findings_list, table
from keikaku_snapshots.pages.svg import seconds_text
from keikaku_snapshots.patches.report import SHOWN
from keikaku_snapshots.patches.report_charts import batches_chart, memory_text, progress_chart, span_text
from keikaku_snapshots.patches.report_meaning import meanings, verdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from keikaku_snapshots.patches.report import PatchReport

#: Letters of a value that are shown; the rest is cut.
_LONGEST_VALUE = 120
_KINDS = {"run": "run", "dry_run": "dry run", "rehearsal": "rehearsal"}


def write_page(report: PatchReport) -> str:
    """Write the page.

    Args:
        report: The run with its records.

    Returns:
        The HTML text. It shows values of the sampled rows, so treat it like the data itself.
    """
    execution = report.execution
    title = f"Data patch {execution.patch_name}, {_KINDS[execution.kind]}"
    kind, line = verdict(report)
    verdict_class = {"good": "verdict", "note": "verdict note", "broken": "verdict broken"}[kind]
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(_subtitle(report))}</p>',
        f'<p class="{verdict_class}">{escape(line)}</p>',
        _cells(report),
        "<h2>What it means and what to do</h2>",
        findings_list(meanings(report)),
        *_checks(report),
        *_timeline(report),
        *_differences(report),
        *_conflicts(report),
        *_rejected(report),
        *_messages(report),
        *_plan(report),
        "<h2>The run</h2>",
        _run(report),
        _foot(report),
    ]
    return document(title, body)


def _foot(report: PatchReport) -> str:
    return (
        f'<p class="soft">Made {report.made_at:%Y-%m-%d %H:%M:%S %Z}. The sample shows values of rows: '
        "keep this page as you would keep the data.</p>"
    )


def _subtitle(report: PatchReport) -> str:
    execution = report.execution
    began = execution.started_at or execution.created_at
    return (
        f"{report.location} · {began:%Y-%m-%d %H:%M:%S %Z} · by {execution.actor} · {execution.execution_id}"
    )


def _cells(report: PatchReport) -> str:
    execution = report.execution
    rate = report.rows_a_minute
    entries = [
        (f"{execution.processed_records:,}", "rows looked at"),
        (f"{execution.changed_records:,}", "changed" if execution.kind == "run" else "would change"),
        (f"{execution.inconsistent_records:,}", "inconsistent"),
        (span_text(execution.active_s), "of work"),
        ("–" if rate is None else f"{rate:,.0f}", "rows a minute"),
        (memory_text(execution.peak_memory_bytes), "most memory"),
    ]
    return (
        '<div class="cells">'
        + "".join(f"<div><b>{b}</b>{escape(word)}</div>" for b, word in entries)
        + "</div>"
    )


def _checks(report: PatchReport) -> Iterator[str]:
    if not report.checks:
        return
    yield "<h2>Verification</h2>"
    rows = [
        [
            escape(check.name),
            '<span class="mark holds">✓ holds</span>'
            if check.passed
            else '<span class="mark broken">✗ broken</span>',
            escape(check.detail),
        ]
        for check in report.checks
    ]
    yield table(["what must hold", "", "seen"], rows, numbers=frozenset())


def _timeline(report: PatchReport) -> Iterator[str]:
    chart = batches_chart(report)
    if not chart:
        return
    yield "<h2>Batches</h2>"
    limit = report.memory_limit_bytes
    words = "Each bar is a batch, or the slowest of a few neighbours; the mouse shows which and when."
    if limit:
        words += f" The memory limit is {memory_text(limit)}."
    if any(batch.inconsistent for batch in report.batches):
        words += " Red: inconsistent rows."
    if report.rollback_batches:
        words += " Amber: the rollback."
    yield figure(chart, words)
    yield figure(progress_chart(report), "Rows done over time; where the line is flat, the run rested.")
    yield _batch_table(report)


def _batch_table(report: PatchReport) -> str:
    slowest = sorted(report.batches, key=lambda batch: -batch.seconds)[:5]
    rows = [
        [
            f"{'rollback ' if batch.phase == 'rollback' else ''}{batch.number:,}",
            f"{batch.started_at:%H:%M:%S}",
            seconds_text(batch.seconds),
            f"{batch.processed:,}",
            f"{batch.changed:,}",
            f"{batch.inconsistent:,}",
            memory_text(batch.memory_bytes),
        ]
        for batch in slowest
    ]
    headers = ["slowest", "began", "took", "rows", "changed", "inconsistent", "memory"]
    return table(headers, rows, numbers=frozenset(range(1, 7)))


def _differences(report: PatchReport) -> Iterator[str]:
    if not report.differences:
        return
    yield "<h2>Sampled differences</h2>"
    rows = []
    for item in report.differences:
        for number, (column, (old, new)) in enumerate(item.columns.items()):
            rows.append(
                [
                    escape(item.table) if not number else "",
                    escape(_key(item.key)) if not number else "",
                    escape(item.kind) if not number else "",
                    escape(column),
                    "" if item.kind == "insert" else f'<span class="old">{_value(old)}</span>',
                    "" if item.kind == "delete" else f'<span class="new">{_value(new)}</span>',
                ]
            )
    yield table(["table", "key", "", "column", "before", "after"], rows, numbers=frozenset())


def _conflicts(report: PatchReport) -> Iterator[str]:
    if not report.conflicts:
        return
    yield "<h2>Conflicts</h2>"
    rows = [
        [escape(one.table), escape(_key(one.key)), escape(", ".join(one.columns)), escape(one.why)]
        for one in report.conflicts
    ]
    yield table(["table", "key", "columns", "what was found"], rows, numbers=frozenset())
    yield _more(report.execution.conflicts, len(rows), "keikaku_patches.conflict")


def _rejected(report: PatchReport) -> Iterator[str]:
    if not report.rejected:
        return
    yield "<h2>Rejected rows</h2>"
    rows = [[escape(_key(one.key)), escape(one.why)] for one in report.rejected]
    yield table(["key", "why"], rows, numbers=frozenset())
    yield _more(report.execution.rejected_records, len(rows), "keikaku_patches.rejected")


def _more(all_of_them: int, shown: int, where: str) -> str:
    if all_of_them <= shown or shown < SHOWN:
        return ""
    return f'<p class="soft">{shown:,} of {all_of_them:,}; the others are in the table {escape(where)}.</p>'


def _messages(report: PatchReport) -> Iterator[str]:
    if not report.messages:
        return
    yield "<h2>Messages</h2>"
    rows = [
        [
            f"{one.created_at:%H:%M:%S}",
            escape(one.event.replace("_", " ")),
            f"arrived {one.delivered_at:%H:%M:%S}"
            if one.delivered_at
            else '<span class="open">waiting</span>',
            escape(one.last_error),
        ]
        for one in report.messages
    ]
    yield table(["written", "event", "", "last problem"], rows, numbers=frozenset())


def _plan(report: PatchReport) -> Iterator[str]:
    plan = report.more.get("plan")
    if plan:
        lines = plan if isinstance(plan, str) else "\n".join(str(line) for line in plan)
        yield "<h2>Plan of one batch</h2>"
        yield f"<pre>{escape(lines)}</pre>"


def _run(report: PatchReport) -> str:
    execution = report.execution
    entries: dict[str, object] = {
        "execution": execution.execution_id,
        "patch": f"{execution.patch_name} version {execution.patch_version}",
        "state": f"{execution.status} / {execution.sub_state}",
        "tables": ", ".join(execution.target_tables),
        "parameters": json.dumps(execution.parameters, ensure_ascii=False, default=str),
        "source": execution.source_hash[:16],
        "mode": execution.mode,
        "asked for": f"{execution.created_at:%Y-%m-%d %H:%M:%S %Z}",
    }
    if execution.started_at:
        entries["began"] = f"{execution.started_at:%Y-%m-%d %H:%M:%S %Z}"
    if execution.completed_at:
        entries["ended"] = f"{execution.completed_at:%Y-%m-%d %H:%M:%S %Z}"
    entries |= {
        "batches": f"{execution.batch_number:,}, the next one of {execution.batch_size:,} rows",
        "estimate": _estimate(report),
        "rows": f"{execution.processed_records:,} looked at, {execution.changed_records:,} changed, "
        f"{execution.unchanged_records:,} right already, {execution.rejected_records:,} rejected",
        "approved by": execution.approved_by or "nobody",
        "rollback performed": "yes, without conflicts" if execution.rollback_performed else "no",
    }
    return facts(entries)


def _estimate(report: PatchReport) -> str:
    execution = report.execution
    rows = "unknown" if execution.estimated_records is None else f"{execution.estimated_records:,}"
    seconds = "unknown time" if execution.estimated_s is None else span_text(execution.estimated_s)
    return f"{rows} rows, {seconds}"


def _key(key: Sequence[str]) -> str:
    return ", ".join(key)


def _value(value: str | None) -> str:
    if value is None:
        return '<span class="null">NULL</span>'
    if value == "":
        return '<span class="null">empty</span>'
    return escape(value if len(value) <= _LONGEST_VALUE else value[: _LONGEST_VALUE - 1] + "…")
