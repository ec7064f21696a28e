"""`keikaku templates`: the copies of snapshots on the server from which restores are quick."""

from __future__ import annotations

import click

from keikaku_snapshots.cli.groups import HelpfulGroup
from keikaku_snapshots.cli.output import counted, size
from keikaku_snapshots.cli.session import Command, Session, complete_snapshot_name, pass_session


@click.group("templates", cls=HelpfulGroup)
def templates() -> None:
    """List or drop the copies from which restores are quick.

    The first restore of a snapshot leaves one on the server; it can be dropped at
    any time, since the snapshot's file is what counts.
    """


@templates.command(
    "list",
    cls=Command,
    examples=[
        ("keikaku templates list", "Last used first, with the disk that they take."),
        ("keikaku templates list --json", "For a script."),
    ],
)
@pass_session
def list_(session: Session) -> None:
    """List the templates of the server, whoever made them."""
    with session.manager() as manager:
        found = manager.list_templates()
    if session.output.as_json:
        session.output.document(found)
        return
    if not found:
        session.output.say("no templates; `keikaku restore NAME` leaves one")
        return
    rows = [
        (
            one.database,
            one.snapshot,
            one.target,
            size(one.size_bytes),
            str(len(one.spares)),
            one.used_at[:19].replace("T", " "),
        )
        for one in found
    ]
    headers = ("DATABASE", "SNAPSHOT", "MADE FOR", "SIZE", "SPARES", "LAST USED (UTC)")
    session.output.table(headers, rows, right=frozenset({3, 4}))


@templates.command(
    "clear",
    cls=Command,
    examples=[
        ("keikaku templates clear", "Free their disk; the next restores load the files again."),
        ("keikaku templates clear nightly", "Only those of one snapshot, also when it is deleted."),
    ],
)
@click.argument("name", required=False, shell_complete=complete_snapshot_name)
@click.option("--version", metavar="VERSION", help="Only those of this version.")
@click.option("--allow-protected", is_flag=True, help="Work on a server that looks like production.")
@pass_session
def clear(session: Session, *, name: str | None, version: str | None, allow_protected: bool) -> None:
    """Drop the templates and spares of the server; snapshots stay as they are.

    With NAME only those that were made from the snapshot of this name.
    """
    if version and not name:
        raise click.UsageError("--version needs the NAME of the snapshot")
    with session.manager(allow_protected=allow_protected) as manager:
        dropped = manager.clear_templates(name, version)
    if session.output.as_json:
        session.output.document({"dropped": dropped})
    session.output.say(f"dropped {counted(len(dropped), 'database')}" if dropped else "nothing to drop")
