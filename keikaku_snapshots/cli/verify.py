"""`keikaku verify`: read snapshots as a whole; no database is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from keikaku_snapshots.cli.session import Command, Session, complete_snapshot_name, pass_session
from keikaku_snapshots.errors import SnapshotCorruptError, SnapshotNotFoundError, UsageError

if TYPE_CHECKING:
    from keikaku_snapshots.snapshots.manager import SnapshotManager
    from keikaku_snapshots.snapshots.manifest import Snapshot
    from keikaku_snapshots.snapshots.verify import Verification


@click.command(
    "verify",
    cls=Command,
    database=False,
    examples=[
        ("keikaku verify medium_100_offices", "The newest version; exit code 13 when it is damaged."),
        ("keikaku verify medium_100_offices --version 20250131_031500", "An exact version."),
        ("keikaku verify --all", "Every version of every name, for a weekly look at the disk."),
    ],
)
@click.argument("name", required=False, shell_complete=complete_snapshot_name)
@click.option("--version", metavar="VERSION", help="An exact version.  [default: the newest one]")
@click.option("--all", "everything", is_flag=True, help="Every version: of NAME, or of all names.")
@pass_session
def verify(session: Session, name: str | None, version: str | None, *, everything: bool) -> None:
    """Check snapshots' files: size, checksum, completeness."""
    if name is None and not everything:
        raise UsageError("verify was not told what to check", hint="Give the NAME of a snapshot, or --all.")
    if everything and version is not None:
        raise UsageError("--all and --version exclude each other")
    with session.manager(database=False) as manager:
        if name is None or everything:
            _verify_all(session, manager, name)
            return
        verification = manager.verify_snapshot(name, version)
    if session.output.as_json:
        session.output.document(verification)
    session.output.say(f"{verification.snapshot.name} {verification.snapshot.version} is whole")


def _verify_all(session: Session, manager: SnapshotManager, name: str | None) -> None:
    """Check one after the other; a damaged one keeps nobody from looking at the rest."""
    results = [(snapshot, *_look(manager, snapshot)) for snapshot in manager.list_snapshots(name)]
    results = [one for one in results if one[1] or one[2]]
    if not results and name is not None:
        manager.get_snapshot(name)
    damaged = [f"{snapshot}: {problem}" for snapshot, _, problem in results if problem]
    if session.output.as_json:
        session.output.document(
            [
                {"snapshot": snapshot, "is_whole": not problem, "problem": problem, "verification": found}
                for snapshot, found, problem in results
            ]
        )
    for snapshot, found, _ in results:
        if found:
            session.output.say(f"{snapshot.name} {snapshot.version} is whole")
    if damaged:
        raise SnapshotCorruptError(
            f"{len(damaged)} of {len(results)} snapshots {'is' if len(damaged) == 1 else 'are'} damaged",
            found="\n".join(damaged),
        )


def _look(manager: SnapshotManager, snapshot: Snapshot) -> tuple[Verification | None, str]:
    """Return what was checked, or what is wrong; neither for one that was deleted meanwhile."""
    try:
        return manager.verify_snapshot(snapshot), ""
    except SnapshotNotFoundError:
        return None, ""
    except SnapshotCorruptError as error:
        return None, " ".join(f"{error.what}: {error.found}".split())
