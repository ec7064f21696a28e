"""`keikaku rename`, `pin`, `tag`, `describe`: what snapshots are called and marked with."""

from __future__ import annotations

import click

from keikaku_snapshots.cli.session import Command, Session, complete_snapshot_name, pass_session

_version = click.option(
    "--version",
    metavar="VERSION",
    help="A version, or the beginning of it.  [default: the newest valid one]",
)
_lock_wait = click.option(
    "--lock-wait",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Wait for another process.  [default: 0]",
)


@click.command(
    "rename",
    cls=Command,
    database=False,
    examples=[("keikaku rename before_migration v41", "All versions, with their pins, tags and times.")],
)
@click.argument("old", shell_complete=complete_snapshot_name)
@click.argument("new")
@_lock_wait
@pass_session
def rename(session: Session, *, old: str, new: str, lock_wait: float | None) -> None:
    """Give all versions of a snapshot another name.

    The new name must be free. A rename that was interrupted is ended by
    typing it again.
    """
    with session.manager(database=False, lock_wait_s=lock_wait) as manager:
        newest = manager.rename_snapshot(old, new)
        versions = manager.list_snapshots(new)
    if session.output.as_json:
        session.output.document({"old_name": old, "renamed": versions})
    count = f"{len(versions)} version" + ("" if len(versions) == 1 else "s")
    session.output.say(f"renamed {old} to {new}: {count}, newest {newest.version}")


@click.command(
    "pin",
    cls=Command,
    database=False,
    examples=[
        (
            "keikaku pin nightly --version 20250131",
            "Never deleted by a rule; so much of the version as fits one.",
        ),
        ("keikaku pin nightly --version 20250131 --off", "Let it go again."),
    ],
)
@click.argument("name", shell_complete=complete_snapshot_name)
@_version
@click.option("--off", is_flag=True, help="Take the pin away.")
@pass_session
def pin(session: Session, *, name: str, version: str | None, off: bool) -> None:
    """Keep a version from retention, or let it go again (--off).

    `keikaku delete --version` still deletes it: a pin guards against rules,
    not against people.
    """
    with session.manager(database=False) as manager:
        snapshot = manager.pin_snapshot(name, version, pinned=not off)
    if session.output.as_json:
        session.output.document(snapshot)
    session.output.say(f"{'unpinned' if off else 'pinned'} {snapshot.name} {snapshot.version}")


@click.command(
    "tag",
    cls=Command,
    database=False,
    examples=[
        ("keikaku tag nightly release-1.4 reviewed", "Add two tags to the newest version."),
        ("keikaku tag nightly reviewed --remove", "Remove one."),
    ],
)
@click.argument("name", shell_complete=complete_snapshot_name)
@click.argument("words", nargs=-1, required=True)
@_version
@click.option("--remove", is_flag=True, help="Remove these words instead.")
@pass_session
def tag(session: Session, *, name: str, words: tuple[str, ...], version: str | None, remove: bool) -> None:
    """Add free words to a version, or remove them.

    `keikaku show` lists them.
    """
    with session.manager(database=False) as manager:
        if remove:
            snapshot = manager.tag_snapshot(name, version, remove=words)
        else:
            snapshot = manager.tag_snapshot(name, version, add=words)
    if session.output.as_json:
        session.output.document(snapshot)
    session.output.say(f"{snapshot.name} {snapshot.version}: {', '.join(snapshot.tags) or 'no tags'}")


@click.command(
    "describe",
    cls=Command,
    database=False,
    examples=[
        ('keikaku describe nightly "before migration 0042"', "The newest version."),
        ('keikaku describe nightly "" --version 20250131', "Take the description of a version away."),
    ],
)
@click.argument("name", shell_complete=complete_snapshot_name)
@click.argument("text")
@_version
@pass_session
def describe(session: Session, *, name: str, text: str, version: str | None) -> None:
    """Say what a version is for.

    It replaces what was said before; `keikaku show` shows it.
    """
    with session.manager(database=False) as manager:
        snapshot = manager.describe_snapshot(name, text, version)
    if session.output.as_json:
        session.output.document(snapshot)
    session.output.say(f"{snapshot.name} {snapshot.version}: {snapshot.description or 'no description'}")
