"""`keikaku patch run`, `rehearse` and `approve`: try a patch, allow it, carry it out."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING, Any

import click

from keikaku_snapshots.cli.patch_live import watched
from keikaku_snapshots.cli.patch_outcome import finish
from keikaku_snapshots.cli.patch_session import (
    Door,
    Stopped,
    actor_option,
    complete_patch_name,
    param_option,
    patch_config_option,
    read_params,
)
from keikaku_snapshots.cli.session import Command, Session, pass_session

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: The variable that turns every run into a dry run, whatever is typed.
DRY_RUN = "DRY_RUN"
_YES = {"1", "true", "yes", "on"}
_NO = {"", "0", "false", "no", "off"}


def _sizes(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option(
            "--memory-limit",
            type=click.IntRange(min=1),
            metavar="MB",
            help="Fail above this resident memory.",
        ),
        click.option(
            "--batch-size", type=click.IntRange(min=1), metavar="ROWS", help="Rows of a batch at the start."
        ),
    ):
        command = option(command)
    return command


@click.command(
    "run",
    cls=Command,
    examples=[
        ("keikaku patch run fix_sector", "A dry run: nothing changes, you see what would."),
        (
            "keikaku patch run fix_sector --execute",
            "The same for real, in a maintenance window.",
        ),
        (
            "keikaku patch run fix_sector --param country=JP --execute --outside-window 'incident 4711'",
            "Now, with a parameter, and with a reason that is recorded.",
        ),
    ],
)
@click.argument("name", shell_complete=complete_patch_name)
@click.option(
    "--execute", is_flag=True, help="Really change the data. DRY_RUN=true in the environment still wins."
)
@param_option
@_sizes
@click.option(
    "--outside-window", metavar="REASON", help="Run although no maintenance window is open; recorded."
)
@click.option("--approve", is_flag=True, help="Approve it for somebody else in place of running it.")
@click.option("--again", is_flag=True, help="Run a patch that has completed already.")
@click.option(
    "--on-conflict",
    type=click.Choice(["skip_and_report", "abort", "force"]),
    help="What a rollback does with rows that others have changed since.",
)
@click.option(
    "--backup", is_flag=True, help="Also make a snapshot of the whole database before the first batch."
)
@click.option(
    "--mode",
    type=click.Choice(["batched", "single_transaction"]),
    help="Batches with commits between them, or all in one transaction.",
)
@actor_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@patch_config_option
@pass_session
def run(session: Session, *, name: str, **options: Any) -> int:
    """Run a patch: a dry run, unless --execute is said.

    The dry run shows how many rows would change, a sample of old and new values
    and the plan of a batch, and changes nothing. With --execute the rows are
    changed in batches; whatever fails, all of it is taken back. Ctrl-C or
    SIGTERM lets the batch finish and pauses the run.
    """
    door = Door(session, options["patch_config"])
    door.require_database()
    params = read_params(options["param"])
    if options["approve"]:
        return _approve(door, name, params, options["actor"])
    reason = options["outside_window"]
    if reason is not None and not reason.strip():
        raise click.UsageError("--outside-window needs a reason, which is recorded")
    execute = options["execute"] and not dry_run_wins(session)
    one = door.registry.find(name)
    if execute and session.output.on_terminal and not options["yes"]:
        _ask(door, one)
    changes = {
        "on_conflict": options["on_conflict"],
        "mode": options["mode"],
        "backup_dump": options["backup"] or None,
    }
    with (
        door.executor(name, **changes) as executor,
        door.until_stopped(executor if execute else None) as stopped,
        watched(session.output) as show,
    ):
        execution = executor.execute(
            name,
            dry_run=not execute,
            params=params,
            actor=options["actor"],
            batch_size=options["batch_size"],
            memory_limit_mb=options["memory_limit"],
            outside_window=reason or "",
            again=options["again"],
            progress=show,
        )
    return finish(door, execution, stopped, typed=typed_again(name, options))


def typed_again(name: str, options: Mapping[str, Any]) -> str:
    """The command line that does for real what a dry run has shown.

    Args:
        name: The patch.
        options: What was typed.

    Returns:
        The command; without the values of parameters that may be secrets it would not be the same, so
        they are in it as they were typed.
    """
    words = ["keikaku", "patch", "run", name]
    for text in options["param"]:
        words += ["--param", text]
    for option, value in (
        ("--batch-size", options.get("batch_size")),
        ("--memory-limit", options.get("memory_limit")),
        ("--mode", options.get("mode")),
        ("--on-conflict", options.get("on_conflict")),
    ):
        if value is not None:
            words += [option, str(value)]
    words += [flag for flag in ("--backup", "--again") if options.get(flag[2:])]
    return shlex.join([*words, "--execute"])


def dry_run_wins(session: Session) -> bool:
    """Whether the environment says that nothing may be changed.

    Args:
        session: Says so when --execute was typed.

    Raises:
        click.UsageError: The variable is neither yes nor no; then nobody can say what was meant.
    """
    text = os.environ.get(DRY_RUN, "").strip().lower()
    if text in _NO:
        return False
    if text not in _YES:
        raise click.UsageError(f"{DRY_RUN} must be true or false, got {os.environ[DRY_RUN]!r}")
    session.output.warn(f"{DRY_RUN}={os.environ[DRY_RUN]}: nothing is changed, whatever was typed")
    return True


def _ask(door: Door, one: Any) -> None:
    output = door.session.output
    output.raw(f"  database  {door.url.location}")
    output.raw(f"  patch     {one.name} version {one.version}: {door.description(one)}")
    output.raw(f"  changes   {', '.join(one.tables())}")
    output.confirm("Change these tables?")


@click.command(
    "rehearse",
    cls=Command,
    examples=[
        ("keikaku patch rehearse inventory_price_adjustment", "Three batches for real, then rolled back."),
    ],
)
@click.argument("name", shell_complete=complete_patch_name)
@click.option("--batches", type=click.IntRange(min=1), default=3, show_default=True, help="How many batches.")
@param_option
@_sizes
@actor_option
@patch_config_option
@pass_session
def rehearse(session: Session, *, name: str, **options: Any) -> int:
    """Carry out some batches for real and roll them back.

    Not free of side effects: it writes to the log of the server, bloats tables
    and moves sequences, and it holds its locks until the end.
    """
    door = Door(session, options["patch_config"])
    door.require_database()
    with door.executor(name) as executor:
        execution = executor.rehearse(
            name,
            batches=options["batches"],
            params=read_params(options["param"]),
            actor=options["actor"],
            batch_size=options["batch_size"],
            memory_limit_mb=options["memory_limit"],
        )
    return finish(door, execution, Stopped(), typed=typed_again(name, options))


@click.command(
    "approve",
    cls=Command,
    examples=[
        ("keikaku patch approve inventory_price_adjustment --param percent=8", "For a colleague to run.")
    ],
)
@click.argument("name", shell_complete=complete_patch_name)
@param_option
@actor_option
@patch_config_option
@pass_session
def approve(
    session: Session, *, name: str, param: tuple[str, ...], actor: str, patch_config: str | None
) -> int:
    """Approve a patch with these parameters, for somebody else to run.

    It holds for the source and parameters as they are now, and is recorded.
    """
    door = Door(session, patch_config)
    door.require_database()
    return _approve(door, name, read_params(param), actor)


def _approve(door: Door, name: str, params: dict[str, Any], actor: str) -> int:
    from keikaku_snapshots.patches.approval import approve as record
    from keikaku_snapshots.patches.parameters import read_parameters

    one = door.registry.find(name)
    parameters = read_parameters(one, {**door.settings_of(name).parameters, **params})
    with door.audit_log() as log, door.connection() as connection:
        record(connection, one, parameters, actor, audit=log.append)
    output = door.session.output
    if output.as_json:
        output.document({"patch": name, "approved_by": actor, "parameters": parameters.shown})
    output.say(f"{actor} approves {name}; somebody else may run it now, as it is and with these parameters")
    return 0
