"""`keikaku patch audit`: look at the encrypted log of who did what, and prove that nobody changed it."""

from __future__ import annotations

import click

from keikaku_snapshots.cli.groups import HelpfulGroup
from keikaku_snapshots.cli.output import counted
from keikaku_snapshots.cli.patch_session import Door, patch_config_option
from keikaku_snapshots.cli.session import Command, Session, pass_session

#: What every line says; --json shows it.
_EVERYWHERE = frozenset({"database", "host", "role"})
#: Exit code when the log was tampered with.
TAMPERED = 1


@click.group("audit", cls=HelpfulGroup)
def audit() -> None:
    """Verify, read, rotate or purge the audit log of patches."""


@audit.command(
    "verify",
    cls=Command,
    examples=[
        ("keikaku patch audit verify", "Exit code 1 when a line was changed, removed, added or moved.")
    ],
)
@click.option(
    "--anchor",
    default="",
    metavar="ANCHOR",
    help="An end that was noted earlier; it must still be in the log.",
)
@patch_config_option
@pass_session
def verify(session: Session, *, anchor: str, patch_config: str | None) -> int:
    """Prove that nobody has changed the audit log.

    Exit code 1, and each problem named, when somebody has. Note the anchor that
    it prints where the owner of the database cannot write.
    """
    door = Door(session, patch_config, with_patches=False)
    door.require_database()
    output = session.output
    with door.audit_log() as log:
        problems = log.verify(anchor)
        end = "" if problems else log.anchor()
    if output.as_json:
        output.document({"whole": not problems, "problems": problems, "anchor": end})
    for problem in problems:
        output.data(str(problem))
    if problems:
        output.say(f"the audit log is damaged: {counted(len(problems), 'problem')}")
        return TAMPERED
    output.say(f"the audit log is whole; its anchor is {end}" if end else "the audit log is empty")
    return 0


@audit.command(
    "list",
    cls=Command,
    examples=[
        ("keikaku patch audit list", "Who did what, oldest first, decrypted."),
        ("keikaku patch audit list --json", "Every field, for a script."),
    ],
)
@click.option("--last", type=click.IntRange(min=1), metavar="COUNT", help="Only so many of the newest.")
@patch_config_option
@pass_session
def list_(session: Session, *, last: int | None, patch_config: str | None) -> int:
    """Show the audit log, decrypted."""
    door = Door(session, patch_config, with_patches=False)
    door.require_database()
    with door.audit_log() as log:
        entries = list(log.read())
    if last is not None:
        entries = entries[-last:]
    if session.output.as_json:
        session.output.document(entries)
        return 0
    for entry in entries:
        shown = {
            name: value for name, value in entry.facts.items() if name not in _EVERYWHERE and value != ""
        }
        facts = ", ".join(f"{name}={value}" for name, value in shown.items())
        session.output.data(f"{entry.number:>6}  {entry.at[:19]}  {entry.event:<24}  {facts}")
    if not entries:
        session.output.say("the audit log is empty")
    return 0


@audit.command(
    "rotate",
    cls=Command,
    examples=[
        ("keikaku patch audit rotate", "New lines are written with a new key; old ones stay readable.")
    ],
)
@patch_config_option
@pass_session
def rotate(session: Session, *, patch_config: str | None) -> int:
    """Begin to write with a new key; the old one is kept for the old lines."""
    door = Door(session, patch_config, with_patches=False)
    door.require_database()
    with door.audit_log() as log:
        key = log.rotate()
    if session.output.as_json:
        session.output.document({"key": key})
    session.output.say(f"the audit log is written with the key {key} from here on")
    return 0


@audit.command(
    "purge",
    cls=Command,
    examples=[("keikaku patch audit purge --days 90", "Drop what is older; the rest stays verifiable.")],
)
@click.option(
    "--days", type=click.IntRange(min=1), metavar="DAYS", help="Keep so many.  [default: as configured]"
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@patch_config_option
@pass_session
def purge(session: Session, *, days: int | None, yes: bool, patch_config: str | None) -> int:
    """Drop old months of the log and keep a signed checkpoint in their place."""
    door = Door(session, patch_config, with_patches=False)
    door.require_database()
    kept = days if days is not None else door.configuration.audit.audit_retention_days
    if session.output.on_terminal and not yes:
        session.output.confirm(f"Drop what is older than {counted(kept, 'day')} from the audit log?")
    with door.audit_log() as log:
        dropped = log.purge(kept)
    if session.output.as_json:
        session.output.document({"dropped": dropped})
    session.output.say(f"dropped {counted(dropped, 'line')}" if dropped else "nothing is that old")
    return 0
