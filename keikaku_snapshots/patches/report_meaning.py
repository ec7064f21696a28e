"""What a report of a patch means and what to do: rules over its records, in words."""

from __future__ import annotations

import itertools
import statistics
from datetime import timedelta
from typing import TYPE_CHECKING

from keikaku_snapshots.pages.html import Finding
from keikaku_snapshots.pages.svg import seconds_text
from keikaku_snapshots.patches.report import pauses, percentile
from keikaku_snapshots.patches.report_charts import memory_text, span_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keikaku_snapshots.patches.execution import Execution
    from keikaku_snapshots.patches.report import PatchReport

#: Seconds that an application may wait for a row of a batch before users feel it.
_LONG_BATCH_S = 1.0
#: Share of the memory limit from which on it is worth a word.
_MUCH_MEMORY = 0.8
#: Times the estimate from which on it is worth a word.
_LATE = 2.0
#: Last third through first third of the seconds a row from which on a run is said to slow down.
_SLOWING = 1.5
#: Batches below which no trend is told.
_ENOUGH_BATCHES = 9


def meanings(report: PatchReport) -> list[Finding]:
    """Tell what the records of a run mean.

    Args:
        report: The run with its records.

    Returns:
        The outcome first, then what to do, then what to know.
    """
    return list(
        itertools.chain(
            _outcome(report), _rows(report), _notices(report), _speed(report), _limits(report), _later(report)
        )
    )


def verdict(report: PatchReport) -> tuple[str, str]:
    """The outcome in a line.

    Args:
        report: The run with its records.

    Returns:
        ``good``, ``note`` or ``broken``, and the line.
    """
    execution = report.execution
    kind = {"run": "Run", "dry_run": "Dry run", "rehearsal": "Rehearsal"}[execution.kind]
    if execution.status == "completed":
        if execution.kind != "run":
            return (
                "good",
                f"{kind} succeeded: nothing was changed, {execution.changed_records:,} rows would be.",
            )
        if execution.sub_state == "rolled_back":
            return "note", "Rolled back: every row is as it was before the run."
        return "good", f"Completed: {execution.changed_records:,} rows changed, and verified."
    if execution.status == "failed":
        if execution.sub_state == "cancelled":
            return "note", f"Cancelled by request. {_left(report)}"
        if execution.sub_state == "rolled_back" and was_taken_back(execution):
            return "note", "Rolled back: every row is as it was before the run."
        return "broken", f"{kind} failed. {_left(report)}"
    if execution.sub_state in {"paused", "window_closed"}:
        why = "paused" if execution.sub_state == "paused" else "waiting for the next maintenance window"
        return "note", f"Not finished: {why} after {execution.processed_records:,} rows."
    return "note", f"Not finished: {execution.sub_state.replace('_', ' ')}."


def was_taken_back(execution: Execution) -> bool:
    """True when it had not failed: somebody has rolled it back."""
    return execution.error_message.startswith("Rolled back by ")


def _left(report: PatchReport) -> str:
    execution = report.execution
    if execution.rollback_performed:
        return "All of its changes were taken back."
    if execution.conflicts:
        return (
            "Its changes were taken back, except for "
            f"{execution.conflicts:,} rows that others had changed since."
        )
    if not execution.batch_number:
        return "Nothing had been changed."
    return "Its changes are still in the tables."


def _outcome(report: PatchReport) -> Iterator[Finding]:
    execution = report.execution
    name, number = execution.patch_name, execution.execution_id
    if was_taken_back(execution):
        yield Finding(
            "note", execution.error_message, text_ja=f"手動で取り消されました: {execution.error_message}"
        )
    elif execution.error_message:
        state = f" (SQLSTATE {execution.error_sqlstate})" if execution.error_sqlstate else ""
        yield Finding(
            "act",
            f"What went wrong{state}: {execution.error_message}",
            "Correct the cause, then begin with a dry run again.",
            f"失敗の原因{state}: {execution.error_message}",
            "原因を修正し、ドライランからやり直してください。",
        )
    if execution.sub_state in {"paused", "window_closed"} and not execution.is_over:
        yield Finding(
            "act",
            "The run rests between two batches: what it did is committed and visible, the rest is untouched.",
            f"Go on: keikaku patch resume {number}. Or take it back: keikaku patch rollback {number}.",
            "バッチの間で停止中です。処理済みの行はコミット済みで、残りは未処理です。",
            f"再開: keikaku patch resume {number}。取り消し: keikaku patch rollback {number}。",
        )
    elif not execution.is_over and report.silent_s is not None and report.silent_s > report.lease_s:
        yield Finding(
            "act",
            f"Its process gave no sign of life for {span_text(report.silent_s)}; it is probably dead.",
            "keikaku patch reap makes sure, then resumes it or takes it back, as on_crash says.",
            f"プロセスから {span_text(report.silent_s)} 応答がありません。停止したと思われます。",
            "keikaku patch reap が確認し、on_crash の設定に従って再開または取り消します。",
        )
    if execution.conflicts:
        yield Finding(
            "act",
            f"{execution.conflicts:,} rows kept the newer values that others wrote after the patch.",
            "Look at each of them below and decide by hand; "
            f"keikaku patch rollback {number} --on-conflict force puts the old values back, "
            "whatever is there now.",
            f"{execution.conflicts:,} 行は、パッチの後に他者が書き込んだ値を維持しています。",
            "下の一覧を確認して個別に判断してください。"
            f"keikaku patch rollback {number} --on-conflict force は現在の値に関わらず元の値に戻します。",
        )
    if execution.status == "failed" and execution.batch_number and not execution.rollback_performed:
        if not execution.conflicts:
            yield Finding(
                "act",
                "Changes of this run are still in the tables.",
                f"Take them back: keikaku patch rollback {number}. It goes on where an earlier one stopped.",
                "この実行による変更がテーブルに残っています。",
                f"keikaku patch rollback {number} で取り消してください(前回の続きから処理します)。",
            )
    elif execution.kind != "run" and execution.status == "completed":
        yield Finding(
            "good",
            f"{execution.processed_records:,} rows match, {execution.changed_records:,} would change, "
            f"{execution.unchanged_records:,} are right already.",
            f"When the sample below is what you want: keikaku patch run {name} --execute.",
            f"対象 {execution.processed_records:,} 行のうち {execution.changed_records:,} 行が変更されます。",
            f"下のサンプルが意図どおりであれば keikaku patch run {name} --execute を実行してください。",
        )


def _rows(report: PatchReport) -> Iterator[Finding]:
    execution = report.execution
    if execution.inconsistent_records:
        share = execution.inconsistent_records / max(execution.processed_records, 1)
        yield Finding(
            "note" if execution.status == "completed" else "act",
            f"{execution.inconsistent_records:,} rows ({_share_text(share)}) are not as they should be; "
            f"{execution.rejected_records:,} of them the patch rejected.",
            "Correct those rows, or the patch; ten of a hundred make a run fail.",
            f"{execution.inconsistent_records:,} 行({_share_text(share)})が期待どおりではありません。",
            "データかパッチを修正してください。10 % に達すると失敗します。",
        )
    elif execution.kind == "run" and execution.status == "completed":
        yield Finding(
            "good",
            "No row was rejected, and no check found a wrong one.",
            text_ja="拒否された行も、検証で見つかった不整合もありません。",
        )
    if report.deferred:
        yield Finding(
            "act",
            f"{len(report.deferred):,} rows were locked by others all the time and are not done.",
            "End the sessions that lock them, then resume.",
            f"他者のロックにより {len(report.deferred):,} 行が未処理です。",
            "ロックしているセッションを終了して再開してください。",
        )


def _share_text(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 else "less than 0.1%"


def _notices(report: PatchReport) -> Iterator[Finding]:
    actor, reason = report.execution.actor, report.execution.outside_window_reason
    if reason:
        yield Finding(
            "note",
            f"{actor} ran it outside of a maintenance window: {reason}",
            text_ja=f"メンテナンス時間外に {actor} が実行しました: {reason}",
        )
    lost = [message for message in report.messages if message.delivered_at is None]
    if lost:
        last = next((message.last_error for message in reversed(lost) if message.last_error), "")
        yield Finding(
            "act" if last else "note",
            f"{len(lost)} of {len(report.messages)} messages have not arrived"
            + (f": {last}" if last else "."),
            "keikaku patch worker --once sends them; check the channel's variable and address.",
            f"通知 {len(report.messages)} 件のうち {len(lost)} 件が未達です。",
            "keikaku patch worker --once で送信されます。チャネルの変数と宛先を確認してください。",
        )


def _speed(report: PatchReport) -> Iterator[Finding]:
    batches = report.run_batches
    rate = report.rows_a_minute
    if not batches or rate is None:
        return
    seconds = [batch.seconds for batch in batches]
    slowest = percentile(seconds, 0.99)
    text = (
        f"{rate:,.0f} rows a minute; 99 of 100 batches took at most {seconds_text(slowest)}, "
        f"which is the longest that anybody waited for one of its rows."
    )
    text_ja = (
        f"毎分 {rate:,.0f} 行。バッチの 99 % は {seconds_text(slowest)} 以内です(他者の最大の待ち時間)。"
    )
    if slowest > _LONG_BATCH_S:
        yield Finding(
            "note",
            text,
            "Applications wait for a whole batch: use a smaller batch_size or target_batch_s.",
            text_ja,
            "batch_size か target_batch_s を小さくすると、他者の待ち時間が短くなります。",
        )
    else:
        yield Finding("good", text, text_ja=text_ja)
    third = len(batches) // 3
    if len(batches) >= _ENOUGH_BATCHES:
        first, last = (
            statistics.fmean(batch.seconds / max(batch.processed, 1) for batch in part)
            for part in (batches[:third], batches[-third:])
        )
        if first > 0 and last / first > _SLOWING:
            yield Finding(
                "note",
                f"A row took {last / first:.1f} times as long at the end as at the beginning.",
                "Look for an index that the patch's condition lacks, and whether autovacuum keeps up.",
                f"終盤の 1 行あたりの時間は、序盤の {last / first:.1f} 倍です。",
                "条件に対応するインデックスの有無と、autovacuum の状況を確認してください。",
            )
    rests = pauses(batches)
    if rests:
        total = sum(silent for _, silent in rests)
        times = "once" if len(rests) == 1 else f"{len(rests)} times"
        yield Finding(
            "note",
            f"It rested {times} between batches, {span_text(total)} in all.",
            text_ja=f"バッチの間に {len(rests)} 回、合計 {span_text(total)} 停止していました。",
        )


def _limits(report: PatchReport) -> Iterator[Finding]:
    execution = report.execution
    limit = report.memory_limit_bytes
    if limit and execution.peak_memory_bytes >= _MUCH_MEMORY * limit:
        share = execution.peak_memory_bytes / limit
        yield Finding(
            "note",
            f"Memory came to {share:.0%} of its limit of {memory_text(limit)}.",
            "Raise memory_limit, or use a smaller batch_size.",
            f"メモリーは上限 {memory_text(limit)} の {share:.0%} に達しました。",
            "memory_limit を上げるか、batch_size を小さくしてください。",
        )
    if execution.estimated_s and execution.active_s > _LATE * execution.estimated_s:
        times = execution.active_s / execution.estimated_s
        yield Finding(
            "note",
            f"It worked {span_text(execution.active_s)}, {times:.1f} times the estimate of "
            f"{span_text(execution.estimated_s)}; three times is where it fails.",
            "Correct estimated_duration of the patch, or make a dry run on data of the same size.",
            f"処理時間 {span_text(execution.active_s)} は見積もりの {times:.1f} 倍です(3 倍で失敗します)。",
            "estimated_duration を修正するか、同じ規模のデータでドライランを行ってください。",
        )


def _later(report: PatchReport) -> Iterator[Finding]:
    execution = report.execution
    if execution.kind == "run" and execution.status == "completed" and report.undo_kept:
        until = (execution.completed_at or report.made_at) + timedelta(days=report.undo_retention_days)
        size = f" ({report.undo_bytes / 1e6:,.0f} MB)" if report.undo_bytes else ""
        yield Finding(
            "good",
            f"It can be taken back until {until:%Y-%m-%d}: its undo log{size} is kept so long. "
            "A rollback is compensation: rows that others changed since keep their newer values.",
            f"keikaku patch rollback {execution.execution_id}",
            f"{until:%Y-%m-%d} までは取り消し可能です(アンドゥログ{size}を保持)。",
            f"keikaku patch rollback {execution.execution_id}",
        )
    if execution.backup_reference:
        yield Finding(
            "note",
            f"A dump of the target tables from before the first batch lies at {execution.backup_reference}.",
            text_ja=f"最初のバッチ前の対象テーブルのダンプ: {execution.backup_reference}",
        )
