"""How the end of a run is said, and which exit code it has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keikaku_snapshots.cli.output import duration, size
from keikaku_snapshots.cli.patch_words import is_resting, next_steps, short, state_text, tell_one

#: Rows of the sample that are printed, half as many of each kind of change; the report shows all.
SAMPLE = 8
#: Letters of a value that are printed.
LONGEST = 40

if TYPE_CHECKING:
    from keikaku_snapshots.cli.output import Output
    from keikaku_snapshots.cli.patch_session import Door, Stopped
    from keikaku_snapshots.patches.execution import Execution


def finish(door: Door, execution: Execution, stopped: Stopped, *, typed: str = "") -> int:
    """Say how a run ended.

    Args:
        door: The command.
        execution: The run as it is now.
        stopped: Whether a signal asked it to stop.
        typed: After a dry run, the command that does it for real.

    Returns:
        The exit code: 0, or that of the signal.
    """
    output = door.session.output
    if output.as_json:
        output.document(door.document(execution))
    else:
        tell_one(output, execution)
        tell_findings(output, execution)
    if is_resting(execution):
        why = f"stopped by {stopped.name}" if stopped.name else state_text(execution)
        output.warn(
            f"{why} after {execution.processed_records:,} rows; they are committed, the rest is untouched. "
            f"Go on: keikaku patch resume {short(execution)}"
        )
    elif execution.kind != "run":
        output.say("nothing was changed. If this is what you want, for real:")
        output.say(f"  {typed}")
    else:
        for line in next_steps(execution):
            output.say(line)
    return stopped.exit_code if stopped.exit_code and is_resting(execution) else 0


def tell_findings(output: Output, execution: Execution) -> None:
    """Print what a dry run or a rehearsal found: sample, rejected rows, plan, estimates.

    Args:
        output: Where to.
        execution: The dry run or rehearsal; of a run there is nothing here.
    """
    if execution.kind == "run":
        return
    findings = execution.findings
    for line in estimates(execution):
        output.data(line)
    _tell_sample(output, findings.get("sample", []))
    reasons = findings.get("reasons", {})
    if reasons:
        output.data("")
        output.data(f"rejected rows: {execution.rejected_records:,}")
        for why, count in reasons.items():
            output.data(f"  {count:>9,}  {why}")
    if findings.get("plan"):
        output.data("")
        output.data("plan of a batch")
        for line in str(findings["plan"]).splitlines():
            output.data(f"  {line}")
        if "Seq Scan" in str(findings["plan"]):
            output.warn("each batch reads the whole table: look for Seq Scan in the plan")
    if findings.get("note"):
        output.warn(str(findings["note"]))


def estimates(execution: Execution) -> list[str]:
    """How long a run would take, and how much its undo.

    Args:
        execution: A dry run or rehearsal.

    Returns:
        Lines; none when nothing is known.
    """
    parts = []
    if execution.estimated_s is not None:
        parts.append(f"takes about {duration(execution.estimated_s)}")
    undo_bytes = execution.findings.get("undo_bytes")
    if undo_bytes:
        parts.append(f"undo takes about {size(undo_bytes)}")
    return [f"a run{'':<2}  {', '.join(parts)}"] if parts else []


def _tell_sample(output: Output, sample: list[dict[str, Any]]) -> None:
    if not sample:
        return
    kinds: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for one in sample:
        kinds.setdefault((one["table"], one["kind"]), []).append(one)
    chosen = [one for group in kinds.values() for one in group[: SAMPLE if len(kinds) == 1 else SAMPLE // 2]]
    rows = []
    for one in chosen:
        where = one["table"], ", ".join(map(str, one["key"])), one["kind"]
        # A row that goes is named by its key alone.
        columns = one["columns"] or {"": ("", "")}
        for number, (column, (old, new)) in enumerate(columns.items()):
            now = "" if one["kind"] == "insert" else _shown(old)
            rows.append((*(where if not number else ("", "", "")), column, now, "→", _shown(new)))
    output.data("")
    output.data(f"{len(chosen)} of its changes" if len(chosen) > 1 else "the change")
    output.table(("TABLE", "KEY", "", "COLUMN", "NOW", "", "THEN"), rows)


def _shown(value: Any) -> str:
    if value is None:
        return "NULL"
    text = str(value).replace("\n", "⏎")
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
