"""What messages say: one line of what happened, then facts, then what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keikaku_snapshots.patches.execution import Execution

#: Texts longer than this are cut: a message is read on a telephone.
_CAUSE_LIMIT: Final = 500
_MB: Final = 1024 * 1024
#: What happened, by event, with the Japanese term.
_WHAT: Final = {
    "completed": "completed (データパッチ完了)",
    "failed": "failed (データパッチに失敗)",
    "rolled_back": "failed and was rolled back (データパッチに失敗・ロールバック済み)",
    "rollback_incomplete": "failed and could NOT be rolled back completely (ロールバックに失敗)",
    "memory": "is near its memory limit (メモリ使用量警告)",
    "overtime": "runs longer than estimated (実行時間超過)",
    "integrity": "failed its integrity check (整合性検証に失敗)",
}
_URGENT: Final = frozenset({"failed", "rolled_back", "rollback_incomplete", "integrity"})
#: Times the estimate from which a slow run is urgent: there it is cancelled.
_URGENT_TIMES: Final = 3


@dataclass(frozen=True, slots=True)
class Message:
    """A message as it is put into the outbox."""

    #: What it is about.
    event: str
    #: Whether somebody must look at once.
    urgent: bool
    #: One line.
    title: str
    #: Facts and commands.
    body: str


def compose(execution: Execution, event: str, facts: Mapping[str, Any], database: str) -> Message:
    """Write the message of an event.

    Args:
        execution: The run as it is now.
        event: One of `settings.EVENTS`.
        facts: What the event itself knows: ``used_bytes`` and ``limit_bytes``, ``active_s``,
            ``estimated_s`` and ``times``, ``reason``.
        database: Name of the database.

    Returns:
        The message; it has no parameter and no value of a row.
    """
    urgent = event in _URGENT or (event == "overtime" and _number(facts.get("times")) >= _URGENT_TIMES)
    what = _WHAT.get(event, event.replace("_", " "))
    mark = "URGENT (緊急) " if urgent else ""
    lines = [
        f"Run (実行ID): {execution.execution_id}",
        f"Database (データベース): {database}, by (実行者): {execution.actor}",
        _progress(execution),
        *_facts(event, facts, execution),
    ]
    cause = str(facts.get("reason") or "") or (execution.error_message if urgent else "")
    if cause:
        short = cause if len(cause) <= _CAUSE_LIMIT else cause[: _CAUSE_LIMIT - 1] + "…"
        lines.append(f"Cause (原因): {short}")
    lines += ["", *_remedy(event, execution)]
    dry = " (dry run, ドライラン)" if execution.dry_run else ""
    title = f"{mark}Data patch {execution.patch_name}{dry} {what}"
    return Message(event, urgent, title, "\n".join(lines))


def _progress(execution: Execution) -> str:
    total = execution.estimated_records
    of = f" of about {total:,}" if total else ""
    return (
        f"Rows (処理件数): {execution.processed_records:,}{of}, changed {execution.changed_records:,}, "
        f"inconsistent {execution.inconsistent_records:,}"
    )


def _facts(event: str, facts: Mapping[str, Any], execution: Execution) -> list[str]:
    if event == "memory" and "used_bytes" in facts:
        used, limit = _number(facts["used_bytes"]) / _MB, _number(facts.get("limit_bytes")) / _MB
        return [f"Memory (メモリ): {used:,.0f} MB of {limit:,.0f} MB"]
    if event == "overtime":
        active_s = _number(facts.get("active_s", execution.active_s))
        estimated_s = _number(facts.get("estimated_s", execution.estimated_s))
        return [f"Time (実行時間): {active_s:,.0f} s, estimated {estimated_s:,.0f} s"]
    if execution.conflicts:
        return [f"Conflicts (競合): {execution.conflicts:,} rows changed by others were left as they are"]
    return []


def _remedy(event: str, execution: Execution) -> list[str]:
    report = f"Report (レポート): keikaku patch report {execution.execution_id}"
    rollback = f"Roll back (ロールバック): keikaku patch rollback {execution.execution_id}"
    status = f"Watch (状況): keikaku patch status {execution.execution_id}"
    if event in {"memory", "overtime"}:
        return [status, f"Stop and take back (中止): keikaku patch cancel {execution.execution_id}"]
    if event == "rolled_back":
        return ["The data is as before (データは元の状態です).", report]
    if event == "failed" and not execution.batch_number:
        return ["Nothing was changed (データは変更されていません).", report]
    return [report, rollback]


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
