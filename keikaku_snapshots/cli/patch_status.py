"""`keikaku patch status` and `keikaku patch report`: how a run goes, and how it went."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from keikaku_snapshots.cli.patch_live import follow
from keikaku_snapshots.cli.patch_session import Door, complete_patch_name, patch_config_option
from keikaku_snapshots.cli.patch_words import (
    is_resting,
    next_steps,
    progress_line,
    short,
    tell_list,
    tell_one,
)
from keikaku_snapshots.cli.session import Command, Session, pass_session

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keikaku_snapshots.patches.execution import Execution


@click.command(
    "status",
    cls=Command,
    examples=[
        ("keikaku patch status", "What runs now, live; with nothing running, the last runs."),
        ("keikaku patch status 0b1f3c2e", "One run: live while it goes, then everything known of it."),
        ("keikaku patch status fix_sector", "The newest run of a patch."),
        ("keikaku patch status --json", "The last runs, for a script."),
    ],
)
@click.argument("execution_id", metavar="[ID]", required=False)
@click.option(
    "--patch", "name", metavar="NAME", shell_complete=complete_patch_name, help="Only runs of this patch."
)
@click.option("--last", type=click.IntRange(min=1), default=20, show_default=True, help="How many runs.")
@click.option("--once", is_flag=True, help="Look once; do not follow what runs.")
@click.option("--follow", "wanted", is_flag=True, help="Follow what runs without a terminal too, in lines.")
@patch_config_option
@pass_session
def status(
    session: Session,
    *,
    execution_id: str | None,
    name: str | None,
    last: int,
    once: bool,
    wanted: bool,
    patch_config: str | None,
) -> int:
    """Show the runs, or one of them; on a terminal a bar that lives while it goes.

    Rows, rate, time left, memory, batch size and inconsistent rows. ID is the
    number of a run, its first characters, or a patch's name, which means its
    newest run. Ctrl-C ends the looking, not the run.
    """
    door = Door(session, patch_config)
    door.require_database()
    output = session.output
    seen = [door.find(execution_id)] if execution_id else door.recent(name, last)
    working = [one for one in seen if not one.is_over and not is_resting(one)]
    if working and not once and not output.as_json and (output.draws or wanted):
        numbers = [one.execution_id for one in working]
        follow(output, lambda: door.look(numbers))
        seen = [door.find(execution_id)] if execution_id else door.recent(name, last)
    if output.as_json:
        documents = [door.document(one) for one in seen]
        output.document(documents[0] if execution_id else documents)
        return 0
    _tell(door, seen, one_only=bool(execution_id))
    return 0


def _tell(door: Door, seen: Sequence[Execution], *, one_only: bool) -> None:
    output = door.session.output
    if not seen:
        output.say("no patch has run here; `keikaku patch list` shows which there are")
        return
    if not one_only:
        tell_list(output, seen)
        _warn_of_dead(door, seen)
        return
    (execution,) = seen
    tell_one(output, execution)
    if not execution.is_over:
        seen_now = door.look([execution.execution_id])[0]
        output.data(progress_line(execution, seen_now.memory_bytes))
        _warn_of_dead(door, seen)
    for line in next_steps(execution):
        output.say(line)


def _warn_of_dead(door: Door, seen: Sequence[Execution]) -> None:
    for execution in seen:
        if execution.is_over or is_resting(execution):
            continue
        silent_s = door.silent_s(execution.execution_id)
        if silent_s is not None and silent_s > door.engine.lease_s:
            door.session.output.warn(
                f"{execution.patch_name} {short(execution)}: no sign of life for {silent_s:.0f} s;"
                " `keikaku patch reap` looks after it"
            )


@click.command(
    "report",
    cls=Command,
    examples=[
        ("keikaku patch report 0b1f3c2e", "Writes patch-reports/NAME_0b1f3c2e.html."),
        ("keikaku patch report 0b1f3c2e --output /tmp/x.html", "Elsewhere."),
    ],
)
@click.argument("execution_id", metavar="ID")
@click.option(
    "--output",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The page.  [default: patch-reports/NAME_ID.html]",
)
@patch_config_option
@pass_session
def report(session: Session, *, execution_id: str, path: Path | None, patch_config: str | None) -> int:
    """Write a page about a run: its batches, what was verified, a sample, conflicts.

    One HTML file with charts that needs nothing else. It shows values of
    sampled rows, so keep it as you would keep the data.
    """
    from keikaku_snapshots.patches.report_file import write_report

    door = Door(session, patch_config)
    door.require_database()
    read = door.read_report(str(door.find(execution_id).execution_id))
    file = write_report(read, path)
    if session.output.as_json:
        session.output.document({"execution_id": str(read.execution.execution_id), "file": file})
    session.output.say(f"report: {file}")
    return 0
