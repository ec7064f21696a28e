"""`keikaku patch pause`, `resume`, `cancel`, `rollback`, `reap`, `worker`: what is done to a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from keikaku_snapshots.cli.patch_live import watched
from keikaku_snapshots.cli.patch_outcome import finish
from keikaku_snapshots.cli.patch_session import (
    Door,
    actor_option,
    param_option,
    patch_config_option,
    read_params,
)
from keikaku_snapshots.cli.patch_words import short, state_text
from keikaku_snapshots.cli.session import Command, Session, pass_session

if TYPE_CHECKING:
    from keikaku_snapshots.patches.execution import Execution
    from keikaku_snapshots.patches.settings import OnConflict

_execution = click.argument("execution_id", metavar="ID")


@click.command(
    "pause",
    cls=Command,
    examples=[("keikaku patch pause 0b1f3c2e", "It stops after the batch that it is in.")],
)
@_execution
@actor_option
@patch_config_option
@pass_session
def pause(session: Session, *, execution_id: str, actor: str, patch_config: str | None) -> int:
    """Ask a run to stop after its batch; `keikaku patch resume` goes on."""
    door = Door(session, patch_config, with_patches=False)
    door.require_database()
    return _ask_for(door, "pause", door.find(execution_id, runs_only=True), actor)


@click.command(
    "cancel",
    cls=Command,
    examples=[("keikaku patch cancel 0b1f3c2e", "It stops after its batch and takes everything back.")],
)
@_execution
@actor_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@patch_config_option
@pass_session
def cancel(session: Session, *, execution_id: str, actor: str, yes: bool, patch_config: str | None) -> int:
    """Ask a run to stop after its batch and to take back what it did."""
    door = Door(session, patch_config, with_patches=False)
    door.require_database()
    execution = door.find(execution_id, runs_only=True)
    if session.output.on_terminal and not yes:
        door.show_run(execution)
        session.output.confirm("Stop it and take back what it did?")
    return _ask_for(door, "cancel", execution, actor)


def _ask_for(door: Door, what: str, execution: Execution, actor: str) -> int:
    with door.executor() as executor:
        asked: Execution = getattr(executor, what)(execution.execution_id, actor=actor)
    if door.session.output.as_json:
        door.session.output.document(door.document(asked))
    door.session.output.say(
        f"asked {asked.patch_name} {short(asked)} to {what}; it is {state_text(asked)} now"
    )
    return 0


@click.command(
    "resume",
    cls=Command,
    examples=[("keikaku patch resume 0b1f3c2e", "Goes on behind the last committed batch.")],
)
@_execution
@click.option(
    "--outside-window", metavar="REASON", help="Go on although no maintenance window is open; recorded."
)
@param_option
@patch_config_option
@pass_session
def resume(
    session: Session,
    *,
    execution_id: str,
    outside_window: str | None,
    param: tuple[str, ...],
    patch_config: str | None,
) -> int:
    """Go on with a run that was paused, or whose process has died.

    Refused when the patch's source has changed meanwhile. Parameters are those
    of the run; only secret ones, which are not kept, must be given again.
    """
    door = Door(session, patch_config)
    door.require_database()
    execution = door.find(execution_id, runs_only=True)
    if dry_run_is_wanted(session):
        return _would(door, execution, "resume")
    with (
        door.executor(execution.patch_name) as executor,
        door.until_stopped(executor) as stopped,
        watched(session.output) as show,
    ):
        done = executor.resume(
            execution.execution_id,
            params=read_params(param),
            outside_window=outside_window or "",
            progress=show,
        )
    return finish(door, done, stopped)


@click.command(
    "rollback",
    cls=Command,
    examples=[
        ("keikaku patch rollback 0b1f3c2e", "Take back what the run changed; asks on a terminal."),
        ("keikaku patch rollback 0b1f3c2e --on-conflict abort", "Only when nobody has changed a row since."),
    ],
)
@_execution
@click.option(
    "--on-conflict",
    type=click.Choice(["skip_and_report", "abort", "force"]),
    help="Rows that others have changed since: leave and report them, do nothing at all, or overwrite them.",
)
@actor_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@patch_config_option
@pass_session
def rollback(
    session: Session,
    *,
    execution_id: str,
    on_conflict: OnConflict | None,
    actor: str,
    yes: bool,
    patch_config: str | None,
) -> int:
    """Take back what a run changed, whenever it ran; maintenance windows do not matter.

    It is compensation, not time travel: a row that somebody else has changed
    since keeps its newer value and is reported. It can be repeated; it goes on
    where an earlier one stopped.
    """
    door = Door(session, patch_config, with_patches=False)
    door.require_database()
    execution = door.find(execution_id, runs_only=True)
    if dry_run_is_wanted(session):
        return _would(door, execution, "take back")
    if session.output.on_terminal and not yes:
        door.show_run(execution)
        session.output.confirm("Take back what it changed?")
    with door.executor() as executor, door.until_stopped(executor, rolls_back=True) as stopped:
        done = executor.rollback(execution.execution_id, on_conflict=on_conflict, actor=actor)
    return finish(door, done, stopped)


def dry_run_is_wanted(session: Session) -> bool:
    """Whether DRY_RUN=true keeps this command from changing anything."""
    from keikaku_snapshots.cli.patch_run import dry_run_wins

    return dry_run_wins(session)


def _would(door: Door, execution: Execution, what: str) -> int:
    output = door.session.output
    if output.as_json:
        output.document(door.document(execution))
    output.say(f"would {what} {execution.patch_name} {short(execution)}, which is {state_text(execution)}")
    return 0
