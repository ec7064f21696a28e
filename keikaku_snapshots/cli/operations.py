"""`keikaku refresh`, `check`: what cron and monitoring call."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from keikaku_snapshots.cli.output import duration, size_of
from keikaku_snapshots.cli.packing import packing_options, take_packing
from keikaku_snapshots.cli.prune import given_policy, plan_document, retention_options
from keikaku_snapshots.cli.session import Command, Session, complete_snapshot_name, pass_session

if TYPE_CHECKING:
    from datetime import datetime

    from keikaku_snapshots.operations.refresh import Refreshed


@click.command(
    "refresh",
    cls=Command,
    examples=[
        (
            "15 3 * * *  keikaku refresh --scale medium --config /etc/keikaku.yml",
            "A cron line: silent, one line on stderr when it fails.",
        ),
        ("keikaku refresh nightly --dump-only --keep-last 7", "The database as it is; seven versions stay."),
        ("keikaku refresh nightly --dump-only -v", "By hand, with everything that happens."),
    ],
)
@click.argument("name", required=False, shell_complete=complete_snapshot_name)
@click.option("--dump-only", is_flag=True, help="Dump the database as it is, generate nothing; needs NAME.")
@click.option("--scale", default="medium", show_default=True, help="How much is generated.")
@click.option(
    "--dataset",
    default="keikaku",
    show_default=True,
    help="keikaku, stockrx, or your own as package.module:attribute.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same data.")
@click.option(
    "--reference-date",
    type=click.DateTime(["%Y-%m-%d"]),
    metavar="YYYY-MM-DD",
    help="The day that dates hang on.  [default: today]",
)
@click.option(
    "--memory-limit", type=click.IntRange(min=1), metavar="MB", help="Stop at this resident memory."
)
@click.option(
    "--format", type=click.Choice(["plain", "custom", "directory"]), default="plain", show_default=True
)
@packing_options
@click.option(
    "--latest",
    type=click.Choice(["symlink", "hardlink", "copy"]),
    help="What NAME_latest is.  [default: symlink]",
)
@retention_options
@click.option("--no-prune", is_flag=True, help="Keep all old versions.")
@click.option("--allow-empty", is_flag=True, help="Dump a database without a single row.")
@click.option("--allow-protected", is_flag=True, help="Work on a database that looks like production.")
@click.option(
    "--lock-wait",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Wait for another refresh.  [default: 0]",
)
@pass_session
def refresh(session: Session, **options: Any) -> None:
    """Make a snapshot anew without anybody watching.

    Generates a dataset (or dumps as it is), publishes, reads the snapshot
    back, prunes: in this order, under one lock. Silent when all is well; one
    line and the exit code when not, and what was there before is untouched.
    The database must always be named.
    """
    name = options["name"]
    source = click.get_current_context().get_parameter_source("scale")
    if name and not options["dump_only"] and source is ParameterSource.DEFAULT:
        # A name alone could mean either, and one of the two replaces rows.
        raise click.UsageError(f"say --dump-only or --scale SCALE for the snapshot {name!r}")
    session.output.one_line = f"refresh {name}" if name else "refresh"
    # After the library's log was set up: its warnings are shown, words and progress only with -v.
    session.output.quiet = not session.output.verbose
    session.require_database()
    from keikaku_snapshots.operations.refresh import RefreshOptions
    from keikaku_snapshots.operations.refresh import refresh as run

    policy = given_policy(options)
    options |= take_packing(session.settings, options, options["format"])
    day: datetime | None = options.pop("reference_date")
    wait_s = options.pop("lock_wait")
    latest, memory_limit_mb = options.pop("latest"), options.pop("memory_limit")
    wanted = RefreshOptions(
        reference_date=day.date() if day else None,
        lock_wait_s=session.settings.lock_wait_s if wait_s is None else wait_s,
        policy=policy,
        prune=not options.pop("no_prune"),
        generate={"memory_limit_mb": memory_limit_mb},
        **options,
    )
    with (
        session.manager(allow_protected=wanted.allow_protected, latest=latest, lock_wait_s=wait_s) as manager,
        session.output.progress() as show,
    ):
        done = run(manager, session.settings, wanted, show)
    _report(session, done)


def _report(session: Session, done: Refreshed) -> None:
    if session.output.as_json:
        generated = dataclasses.asdict(done.generated) if done.generated else None
        session.output.document(
            {
                "snapshot": done.snapshot,
                "generated": generated,
                "pruned": plan_document(done.pruned) if done.pruned else None,
                "seconds": done.seconds,
            }
        )
    snapshot = done.snapshot
    deleted = len(done.pruned.delete) if done.pruned else 0
    session.output.say(
        f"refreshed {snapshot.name} {snapshot.version}: {snapshot.path} ({size_of(snapshot)}), "
        f"{deleted} old deleted, in {duration(done.seconds)}"
    )


@click.command(
    "check",
    cls=Command,
    database=False,
    examples=[
        ("keikaku check nightly --max-age 26h --min-size 1MB", "Exit code 23 when it is older or smaller."),
        (
            "keikaku check nightly --max-age 26h --verify -q",
            "Reads the whole file too; silent when all is well.",
        ),
    ],
)
@click.argument("name", shell_complete=complete_snapshot_name)
@click.option("--max-age", metavar="SPAN", help="Oldest that it may be, such as 90m, 26h or 2d.")
@click.option("--min-size", metavar="SIZE", help="Smallest that it may be, such as 500kB or 1MB.")
@click.option("--verify", is_flag=True, help="Read the whole file and compare its checksum.")
@pass_session
def check(session: Session, *, name: str, max_age: str | None, min_size: str | None, verify: bool) -> None:
    """Look whether the newest snapshot is fresh and large enough, for monitoring.

    One line and exit code 0 when it is; 23 when it is older or smaller, 10
    when there is none, 13 when it is damaged. Needs no database.
    """
    session.output.one_line = f"check {name}"
    from keikaku_snapshots.operations.amounts import parse_duration, parse_size, span
    from keikaku_snapshots.operations.check import check_snapshot

    max_age_s = None if max_age is None else parse_duration(max_age)
    min_size_bytes = None if min_size is None else parse_size(min_size)
    with session.manager(database=False) as manager:
        checked = check_snapshot(
            manager, name, max_age_s=max_age_s, min_size_bytes=min_size_bytes, verify=verify
        )
    for text in checked.damaged:
        session.output.warn(f"{name} {text}")
    if session.output.as_json:
        session.output.document(checked)
    snapshot = checked.snapshot
    session.output.say(f"ok: {snapshot} is {span(checked.age_s)} old, {size_of(snapshot)}")
