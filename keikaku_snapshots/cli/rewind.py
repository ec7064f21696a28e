"""`keikaku checkpoint` and `keikaku rewind`: undo what was committed, in milliseconds."""

from __future__ import annotations

import click

from keikaku_snapshots.cli.output import counted, duration
from keikaku_snapshots.cli.session import (
    Command,
    Session,
    complete_snapshot_name,
    complete_version,
    pass_session,
)

_wait = click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(min=0),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="Wait for open transactions.",
)
_allow_protected = click.option(
    "--allow-protected", is_flag=True, help="Work on a database that looks like production."
)


@click.command(
    "checkpoint",
    cls=Command,
    examples=[
        ("keikaku checkpoint", "From here on, `keikaku rewind` comes back to this state."),
        (
            "keikaku checkpoint --snapshot medium_100_offices",
            "The same, and what to restore after a change of the schema.",
        ),
        ("keikaku checkpoint --drop", "Remove everything that it put into the database."),
    ],
)
@click.option(
    "--snapshot",
    metavar="NAME",
    shell_complete=complete_snapshot_name,
    help="The snapshot that the database was restored from and still equals.",
)
@click.option("--version", metavar="VERSION", shell_complete=complete_version, help="Its version.")
@click.option("--drop", is_flag=True, help="Remove the checkpoint, triggers and all.")
@_wait
@_allow_protected
@pass_session
def checkpoint(
    session: Session,
    *,
    snapshot: str | None,
    version: str | None,
    drop: bool,
    wait_s: float,
    allow_protected: bool,
) -> None:
    """Make the present state the one that `keikaku rewind` goes back to.

    Changes of every session are kept from here on, in the schema
    keikaku_rewind, by triggers on every table, until --drop.
    """
    if drop and (snapshot or version):
        raise click.UsageError("--drop takes neither --snapshot nor --version")
    if version and not snapshot:
        raise click.UsageError("--version needs --snapshot")
    with session.manager(allow_protected=allow_protected) as manager:
        if drop:
            dropped = manager.drop_checkpoint(wait_s=wait_s)
            if session.output.as_json:
                session.output.document({"dropped": dropped})
            session.output.say("removed the checkpoint" if dropped else "there is no checkpoint")
            return
        made = manager.checkpoint(snapshot=snapshot, version=version, wait_s=wait_s)
    for warning in made.warnings:
        session.output.warn(warning)
    if session.output.as_json:
        session.output.document(made)
    session.output.say(
        f"checkpoint of {session.url.location}: {counted(made.tables, 'table')},"
        f" {counted(made.sequences, 'sequence')} in {duration(made.seconds)}"
    )


@click.command(
    "rewind",
    cls=Command,
    examples=[
        ("keikaku rewind", "Undo what was committed since the checkpoint; asks on a terminal."),
        ("keikaku rewind --yes --json", "For scripts."),
    ],
)
@_wait
@click.option("--yes", is_flag=True, help="Do not ask.")
@_allow_protected
@pass_session
def rewind(session: Session, *, wait_s: float, yes: bool, allow_protected: bool) -> None:
    """Undo every change that was committed since the checkpoint, whoever made it.

    Nobody is disconnected; open transactions that have written are waited for.
    """
    with session.manager(allow_protected=allow_protected) as manager:
        if session.output.on_terminal and not yes:
            session.output.confirm(f"Undo every change to {session.url.location} since the checkpoint?")
        rewound = manager.rewind(wait_s=wait_s)
    for warning in rewound.warnings:
        session.output.warn(warning)
    if session.output.as_json:
        session.output.document(rewound)
    session.output.say(
        f"rewound {session.url.location}: {counted(rewound.rows, 'row')} in"
        f" {counted(rewound.tables, 'table')} in {duration(rewound.seconds)} ({rewound.path})"
    )
