"""`keikaku patch worker` and `reap`: what cron or systemd starts every few minutes, and its first step."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from keikaku_snapshots.cli.output import counted, plain
from keikaku_snapshots.cli.patch_run import dry_run_wins
from keikaku_snapshots.cli.patch_session import Door, patch_config_option
from keikaku_snapshots.cli.patch_words import short, state_text
from keikaku_snapshots.cli.session import Command, Session, pass_session

if TYPE_CHECKING:
    from keikaku_snapshots.operations.patch_worker import Worked
    from keikaku_snapshots.patches.execution import Execution


@click.command(
    "worker",
    cls=Command,
    examples=[
        (
            "*/5 * * * *  keikaku patch worker --once --patch-config /etc/keikaku/data_patches.yml",
            "A cron line: silent when all is well.",
        ),
        ("keikaku patch worker --once -v", "By hand, with everything that is done."),
        ("keikaku patch worker --plan", "When each entry of the schedule ran last, and runs next."),
    ],
)
@click.option("--once", is_flag=True, help="Make one pass and end; cron or systemd starts the next one.")
@click.option("--plan", is_flag=True, help="Change nothing; show the schedule.")
@patch_config_option
@pass_session
def worker(session: Session, *, once: bool, plan: bool, patch_config: str | None) -> int:
    """Do once what patches need from a machine that nobody watches.

    Reaps runs whose process has died; in an open maintenance window goes on
    with what the last one stopped and starts what is due; delivers messages;
    drops what is older than its retention. Two at once never do the same.
    """
    if once == plan:
        raise click.UsageError("say --once to make a pass, or --plan to look at the schedule")
    door = Door(session, patch_config)
    door.require_database()
    if plan or dry_run_wins(session):
        return _show_plan(door)
    session.output.one_line = "patch worker"
    session.output.quiet = not session.output.verbose
    from keikaku_snapshots.operations.patch_worker import PatchWorker, duties_of

    with door.executor() as executor:
        one = PatchWorker(door.url, door.configuration, executor, duties_of(door.url, door.configuration))
        with door.until_stopped(one):
            done = one.run_once()
    _tell(session, done)
    failures = list(done.failures.items())
    for what, error in failures[1:]:
        session.output.warn(f"{what}: {error.headline}")
    for what, error in failures[:1]:
        session.output.one_line = f"patch worker: {what}"
        raise error
    return done.exit_code


@click.command(
    "reap",
    cls=Command,
    examples=[("keikaku patch reap", "After a crash: resume, take back or leave, as each patch wants it.")],
)
@patch_config_option
@pass_session
def reap(session: Session, *, patch_config: str | None) -> int:
    """Look after runs whose process has died.

    Each is resumed, taken back or left, as `on_crash` of its patch says. One that
    is to be resumed waits for an open maintenance window; `keikaku patch resume`
    takes it up at once.
    """
    door = Door(session, patch_config)
    door.require_database()
    output = session.output
    if dry_run_wins(session):
        from keikaku_snapshots.patches.reap import find_dead

        with door.connection() as connection:
            found = find_dead(connection, door.engine.lease_s)
    else:
        with door.executor() as executor, door.until_stopped(executor):
            found = executor.reap()
    if output.as_json:
        output.document([door.document(execution) for execution in found])
        return 0
    for execution in found:
        output.data(_named(execution))
    if not found:
        output.say("there is no run whose process has died")
    return 0


def _tell(session: Session, done: Worked) -> None:
    output = session.output
    if output.as_json and not done.failures:
        output.document({**plain({**_fields(done), "failures": {}}), "exit_code": done.exit_code})
    if not done.is_alone:
        output.say("another worker is at work; only messages were delivered")
    for execution in done.reaped:
        output.say(f"reaped {_named(execution)}")
    for execution in done.resumed:
        output.say(f"resumed {_named(execution)}")
    for entry, execution in done.started.items():
        output.say(f"schedule {entry}: {_named(execution)}")
    for line in done.waiting:
        output.say(f"waits: {line}")
    output.say(f"{counted(done.delivered, 'message')} delivered, {done.purged} old entries dropped")


def _fields(done: Worked) -> dict[str, Any]:
    return {item.name: getattr(done, item.name) for item in dataclasses.fields(done)}


def _named(execution: Execution) -> str:
    return f"{execution.patch_name} {short(execution)}, {state_text(execution)}"


def _show_plan(door: Door) -> int:
    from datetime import UTC, datetime

    from keikaku_snapshots.patches import records, schedule

    entries, now = door.configuration.schedule, datetime.now(UTC)
    with door.connection() as connection:
        known = connection if records.has_schema(connection) else None
        lines = schedule.plan(known, entries, now)
    output = door.session.output
    if output.as_json:
        output.document(lines)
        return 0
    output.data(f"windows: {door.configuration.windows}")
    rows = [
        (
            line["entry"],
            line["patch"],
            f"{line['next'].astimezone():%Y-%m-%d %H:%M %Z}" if line["next"] else "never",
            f"{line['last_due'].astimezone():%Y-%m-%d %H:%M %Z}" if line["last_due"] else "-",
            line["outcome"] or "-",
        )
        for line in lines
    ]
    output.table(("ENTRY", "PATCH", "NEXT", "LAST", "OUTCOME"), rows)
    return 0
