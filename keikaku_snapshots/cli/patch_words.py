"""How a run of a data patch is said: its state, its progress, its lines in a list."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from keikaku_snapshots.cli.output import counted, duration

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from keikaku_snapshots.cli.output import Output
    from keikaku_snapshots.patches.execution import Execution

#: Characters of a run's number in a list; they are enough for every command.
SHORT = 8
KINDS = {"run": "run", "dry_run": "dry run", "rehearsal": "rehearsal"}
_COLOURS = {"completed": "green", "failed": "red", "running": "cyan", "pending": "cyan"}
#: What the second half of a state says to people, where the first half does not say it already.
_SUB_STATES = {
    "paused": "paused",
    "window_closed": "waits for its window",
    "validating": "validating",
    "batching": "batching",
    "verifying": "verifying",
    "rolling_back": "rolling back",
    "rolled_back": "rolled back",
    "rolled_back_with_conflicts": "rolled back with conflicts",
    "cancelled": "cancelled",
}


def short(execution: Execution) -> str:
    """The first characters of its number."""
    return str(execution.execution_id)[:SHORT]


def state_text(execution: Execution) -> str:
    """Write its state in a few words.

    Args:
        execution: The run.

    Returns:
        Such as ``completed``, ``failed, rolled back`` or ``paused``.
    """
    words = _SUB_STATES.get(execution.sub_state, "")
    if words and (not execution.is_over or was_taken_back(execution)):
        return words
    return f"{execution.status}, {words}" if words else execution.status


def was_taken_back(execution: Execution) -> bool:
    """True when it had not failed: somebody has rolled it back."""
    return execution.error_message.startswith("Rolled back by ")


def is_resting(execution: Execution) -> bool:
    """True when it is not over but no process works on it: it was paused, or its window has closed."""
    return not execution.is_over and execution.sub_state in {"paused", "window_closed"}


def rate_a_second(execution: Execution) -> float | None:
    """Rows of a second of work; None before the first batch."""
    if execution.active_s <= 0 or not execution.processed_records:
        return None
    return execution.processed_records / execution.active_s


def left_s(execution: Execution) -> float | None:
    """Seconds until the last row at the present rate; None when nobody knows."""
    rate, total = rate_a_second(execution), execution.estimated_records
    if rate is None or total is None or execution.sub_state != "batching":
        return None
    return max(0.0, (total - execution.processed_records) / rate)


def share_done(execution: Execution) -> float | None:
    """How much is done, from 0 to 1; None when the number of rows is not known."""
    if execution.status == "completed":
        return 1.0
    if not execution.estimated_records:
        return None
    return min(1.0, execution.processed_records / execution.estimated_records)


def progress_parts(execution: Execution, memory_bytes: int) -> list[str]:
    """What is said beside the bar.

    Args:
        execution: The run.
        memory_bytes: Resident memory of its process now; 0 when not known.

    Returns:
        Rows, rate, memory, batch size and inconsistent rows; what is not known is left out.
    """
    rows = f"{execution.processed_records:,}"
    if execution.estimated_records is not None:
        rows += f" of {execution.estimated_records:,}"
    parts = [rows + " rows"]
    rate = rate_a_second(execution)
    if rate is not None:
        parts.append(f"{rate:,.0f} rows/s")
    memory = memory_bytes or execution.peak_memory_bytes
    if memory:
        parts.append(f"{memory / 2**20:,.0f} MB")
    parts.append(f"batch {execution.batch_number:,} of {execution.batch_size:,} rows")
    parts.append(f"{execution.inconsistent_records:,} inconsistent")
    return parts


def progress_line(execution: Execution, memory_bytes: int = 0) -> str:
    """Write its progress as a line, for where there is no terminal.

    Args:
        execution: The run.
        memory_bytes: Resident memory of its process now; 0 when not known.

    Returns:
        Such as ``fix_sector 0b1f3c2e batching: 45 %, 450 of 1,000 rows, …``.
    """
    share, left = share_done(execution), left_s(execution)
    parts = [] if share is None else [f"{share:.0%}"]
    parts += progress_parts(execution, memory_bytes)
    if left is not None:
        parts.append(f"{duration(left)} left")
    return f"{execution.patch_name} {short(execution)} {state_text(execution)}: {', '.join(parts)}"


def tell_list(output: Output, executions: Sequence[Execution]) -> None:
    """Print runs as a table, as they were given.

    Args:
        output: Where to.
        executions: Runs.
    """
    rows = [
        (
            short(one),
            one.patch_name,
            KINDS[one.kind],
            click.style(state_text(one), fg=_COLOURS.get(one.status)),
            f"{one.processed_records:,}",
            f"{one.changed_records:,}",
            f"{one.inconsistent_records:,}",
            duration(one.active_s),
            one.actor,
            _time(one.started_at or one.created_at),
        )
        for one in executions
    ]
    headers = ("ID", "PATCH", "", "STATE", "ROWS", "CHANGED", "BAD", "WORKED", "BY", "BEGAN (UTC)")
    output.table(headers, rows, right=frozenset({4, 5, 6, 7}))


def _time(moment: datetime) -> str:
    from datetime import UTC

    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def tell_one(output: Output, execution: Execution) -> None:
    """Print everything that is known of one run.

    Args:
        output: Where to.
        execution: The run.
    """
    entries = [
        ("execution", str(execution.execution_id)),
        ("patch", f"{execution.patch_name} version {execution.patch_version} ({KINDS[execution.kind]})"),
        ("state", state_text(execution)),
        ("by", execution.actor),
        ("began", _time(execution.started_at or execution.created_at) + " UTC"),
        ("tables", ", ".join(execution.target_tables)),
        ("rows", _rows_text(execution)),
        ("worked", _worked_text(execution)),
        ("memory", f"at most {execution.peak_memory_bytes / 2**20:,.0f} MB"),
    ]
    if execution.parameters:
        entries.append(("with", ", ".join(f"{name}={value}" for name, value in execution.parameters.items())))
    if execution.completed_at:
        entries.append(("ended", _time(execution.completed_at) + " UTC"))
    if execution.outside_window_reason:
        entries.append(("outside of its window", execution.outside_window_reason))
    if execution.approved_by:
        entries.append(("approved by", execution.approved_by))
    if execution.backup_reference:
        entries.append(("dump", execution.backup_reference))
    if was_taken_back(execution):
        entries.append(("taken back", execution.error_message))
    elif execution.error_message:
        state = f" (SQLSTATE {execution.error_sqlstate})" if execution.error_sqlstate else ""
        entries.append(("failed with", execution.error_message + state))
    if execution.conflicts:
        entries.append(("conflicts", f"{counted(execution.conflicts, 'row')} kept what others wrote"))
    width = max(len(name) for name, _ in entries)
    for name, text in entries:
        first, *more = text.splitlines() or [""]
        output.data(f"{name:<{width}}  {first}")
        for line in more:
            output.data(f"{'':<{width}}  {line}")


def _rows_text(execution: Execution) -> str:
    rows = f"{execution.processed_records:,}"
    if execution.estimated_records is not None and not execution.is_over:
        rows += f" of {execution.estimated_records:,}"
    changed = "changed" if execution.kind == "run" else "would change"
    return (
        f"{rows} looked at, {execution.changed_records:,} {changed}, {execution.unchanged_records:,} right "
        f"already, {execution.rejected_records:,} rejected, {execution.inconsistent_records:,} inconsistent"
    )


def _worked_text(execution: Execution) -> str:
    if execution.kind == "dry_run":
        return duration(execution.active_s)
    rate = rate_a_second(execution)
    batches = "1 batch" if execution.batch_number == 1 else f"{execution.batch_number:,} batches"
    text = f"{duration(execution.active_s)}, {batches}"
    return text if rate is None else f"{text}, {rate * 60:,.0f} rows a minute"


def next_steps(execution: Execution, *, undo_kept: bool = True) -> list[str]:
    """What one may type next.

    Args:
        execution: The run.
        undo_kept: False when its undo log is gone.

    Returns:
        Lines, the likeliest first; none when there is nothing to do.
    """
    number = short(execution)
    if is_resting(execution):
        return [f"keikaku patch resume {number}     go on", f"keikaku patch rollback {number}   take it back"]
    if execution.kind != "run" or not execution.is_over:
        return []
    steps = []
    if execution.status == "completed" and undo_kept and execution.sub_state == "done":
        steps.append(f"keikaku patch rollback {number}   take it back")
    if execution.conflicts or (
        execution.status == "failed" and execution.batch_number and not execution.rollback_performed
    ):
        steps.append(f"keikaku patch rollback {number}   take back what is left")
    steps.append(f"keikaku patch report {number}     see its batches")
    return steps
