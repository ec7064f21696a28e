"""`keikaku create`, `restore`, `delete`: make a snapshot, bring it back, remove it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from keikaku_snapshots.cli.output import counted, duration, size, size_of
from keikaku_snapshots.cli.packing import packing_options, take_packing
from keikaku_snapshots.cli.session import (
    Command,
    Session,
    complete_snapshot_name,
    complete_version,
    pass_session,
)
from keikaku_snapshots.cli.words import Words

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from keikaku_snapshots.snapshots.manager import SnapshotManager
    from keikaku_snapshots.snapshots.manifest import Snapshot

#: Longest wait for counting the rows that a restore replaces, in milliseconds;
#: the question must not take longer than the restore.
_COUNT_TIMEOUT_S = 5.0

_name = click.argument("name", shell_complete=complete_snapshot_name)
_lock_wait = click.option(
    "--lock-wait",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Wait for another process.  [default: 0]",
)
_allow_protected = click.option(
    "--allow-protected", is_flag=True, help="Work on a database that looks like production."
)


@click.command(
    "create",
    cls=Command,
    examples=[
        ("keikaku create before_migration", "The whole database as it is now."),
        ("keikaku create nightly --format custom --keep 7 -q", "For cron: silent, seven versions kept."),
        ("keikaku create big --format directory --jobs 4", "Four tables at once; equal parts are shared."),
        ("keikaku create nightly --compression zstd", "SQL in a third of the space (pip extra zstd)."),
        ("keikaku create rows --scope test-data --compression gzip", "Only the test rows, as JSON."),
    ],
)
@_name
@click.option("--description", default="", help="What it is for.")
@click.option("--version", metavar="VERSION", help="A version of your own instead of the time.")
@click.option("--overwrite", is_flag=True, help="Replace this --version when the new one is complete.")
@click.option(
    "--scope",
    type=Words(["database", "test-data"]),
    help="Everything, or only the rows that are test data.  [default: database; test-data for json]",
)
@click.option(
    "--format",
    type=click.Choice(["plain", "custom", "directory", "json"]),
    help="[default: plain; json for test-data]",
)
@packing_options
@click.option("--marker", metavar="COLUMN", help="The column that marks test data.  [default: is_test_data]")
@click.option("--clean", is_flag=True, help="Add DROP statements for psql by hand (see docs).")
@click.option("--owners/--no-owners", default=True, show_default=True, help="Keep owners and grants.")
@click.option("--tag", "tags", multiple=True, help="A free word; may be repeated.")
@click.option("--pinned", is_flag=True, help="Never deleted by --keep.")
@click.option(
    "--keep", type=click.IntRange(min=1), help="Keep so many versions of this name, delete older ones."
)
@_lock_wait
@pass_session
def create(
    session: Session,
    *,
    name: str,
    scope: str | None,
    format: str | None,  # noqa: A002 - the option's name
    keep: int | None,
    lock_wait: float | None,
    **options: Any,
) -> None:
    """Make a snapshot of a database.

    It appears complete with its checksum, or not at all. With --scope
    test-data only the rows that are marked as test data go in, as JSON.
    """
    scope = scope or ("test-data" if format == "json" else "database")
    options["scope"] = scope.replace("-", "_")
    options["format"] = format or ("json" if scope == "test-data" else "plain")
    options |= take_packing(session.settings, options, options["format"])
    with session.manager(lock_wait_s=lock_wait) as manager, session.output.progress() as show:
        snapshot = manager.create_snapshot(name, progress=show, **options)
        deleted = manager.delete_old_snapshots(name, keep_count=keep) if keep else []
    if session.output.as_json:
        session.output.document({"snapshot": snapshot, "deleted": deleted})
    session.output.say(f"created {snapshot.name} {snapshot.version}: {snapshot.path} ({size_of(snapshot)})")
    for old in deleted:
        session.output.say(f"deleted {old.name} {old.version}")


@click.command(
    "restore",
    cls=Command,
    examples=[
        ("keikaku restore medium_100_offices", "The newest valid version; asks on a terminal."),
        (
            "keikaku restore medium_100_offices --version 20250131_031500 --yes",
            "An exact version, without asking.",
        ),
        (
            "keikaku restore medium_100_offices --dry-run",
            "Check the snapshot and say what would be replaced.",
        ),
        ("keikaku restore medium_100_offices --disconnect", "End other sessions to use the fast way."),
        ("keikaku restore medium_100_offices --spare 1", "Make the next restore a matter of two renames."),
        (
            "keikaku restore nightly --after-restore 'alembic upgrade head'",
            "Migrate the restored database before it goes live.",
        ),
    ],
)
@_name
@click.option(
    "--version",
    metavar="VERSION",
    shell_complete=complete_version,
    help="A version, or the beginning of it.  [default: the newest valid one]",
)
@click.option(
    "--strategy",
    type=Words(["auto", "in_place", "swap", "template"]),
    default="auto",
    show_default=True,
    help="in_place keeps sessions connected; swap builds beside and renames; template clones what an "
    "earlier restore left on the server.",
)
@click.option(
    "--spare",
    type=click.IntRange(min=0),
    metavar="N",
    help="Have the server make N copies ready for the next restores.  [default: 0]",
)
@click.option(
    "--templates/--no-templates",
    default=None,
    help="Use, or leave, a copy on the server from which restores are quick.  [default: templates]",
)
@click.option(
    "--on-schema-mismatch",
    type=click.Choice(["warn", "error", "ignore"]),
    help="When the schema differs.  [default: warn]",
)
@click.option("--disconnect", is_flag=True, help="End other sessions of the database.")
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    metavar="N",
    help="Connections that load a directory snapshot by swap.  [default: up to 4]",
)
@click.option("--from-other-database", is_flag=True, help="Restore over another application's tables.")
@click.option("--trust", is_flag=True, help="Take a file that has no manifest.")
@click.option(
    "--clean-existing/--no-clean-existing",
    default=True,
    show_default=True,
    help="Of test data: delete the test rows that are there first.",
)
@click.option(
    "--marker", metavar="COLUMN", help="Of test data: the column that marks it.  [default: as recorded]"
)
@click.option(
    "--keep-old-minutes",
    type=click.FloatRange(min=0),
    metavar="MINUTES",
    help="Keep the database that swap replaced.  [default: 0]",
)
@click.option(
    "--lock-timeout",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Wait so long for each table that another session holds.  [default: 3]",
)
@click.option(
    "--after-restore",
    multiple=True,
    metavar="CMD",
    help="Run CMD on the new database before it goes live; may be repeated.  [default: as configured]",
)
@click.option("--no-after-restore", is_flag=True, help="Do not run the configured commands.")
@click.option(
    "--hook-timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="For each --after-restore.  [default: 3600]",
)
@_allow_protected
@_lock_wait
@click.option("--dry-run", is_flag=True, help="Check and tell, change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_session
def restore(
    session: Session,
    *,
    name: str,
    version: str | None,
    dry_run: bool,
    yes: bool,
    allow_protected: bool,
    lock_wait: float | None,
    lock_timeout: float | None,
    keep_old_minutes: float | None,
    on_schema_mismatch: str | None,
    after_restore: tuple[str, ...],
    no_after_restore: bool,
    hook_timeout: float | None,
    spare: int | None,
    templates: bool | None,
    **options: Any,
) -> None:
    """Bring a database back to a snapshot, exactly.

    All or nothing: on any error the database is as it was. On a terminal it
    shows what will be replaced and asks; without one it runs, so that cron
    works.
    """
    if after_restore and no_after_restore:
        raise click.UsageError("give one of --after-restore and --no-after-restore")
    hooks = () if no_after_restore else after_restore or session.settings.after_restore
    with session.manager(
        allow_protected=allow_protected,
        lock_wait_s=lock_wait,
        lock_timeout_s=lock_timeout,
        keep_old_minutes=keep_old_minutes,
        templates=templates,
        spare=spare,
    ) as manager:
        _check_target(session, allow_protected=allow_protected)
        snapshot = _find(manager, name, version, trust=options["trust"])
        _check_hooks(session, hooks, options["strategy"], snapshot)
        if dry_run:
            _tell_restore(session, manager, snapshot, hooks, trust=options["trust"])
            return
        if session.output.on_terminal and not yes:
            _ask_restore(session, snapshot, hooks)
        with session.output.progress() as show:
            restored = manager.restore_snapshot(
                name,
                # What was shown is what is restored, even if a newer one appears meanwhile.
                snapshot.version,
                on_schema_mismatch=on_schema_mismatch or session.settings.on_schema_mismatch,
                after_restore=hooks,
                hook_timeout_s=hook_timeout or session.settings.hook_timeout_s,
                progress=show,
                **options,
            )
    for warning in restored.warnings:
        session.output.warn(warning)
    if session.output.as_json:
        session.output.document(restored)
    for hook in restored.hooks:
        session.output.say(f"ran {hook.hook} on it before it went live ({duration(hook.seconds)})")
    session.output.say(
        f"restored {restored.snapshot.name} {restored.snapshot.version} into {session.url.location} "
        f"in {duration(restored.seconds)} ({restored.strategy}: {restored.reason})"
    )


@click.command(
    "delete",
    cls=Command,
    database=False,
    examples=[
        ("keikaku delete nightly --version 20250131_031500", "One version."),
        ("keikaku delete nightly --keep 3 --dry-run", "Show what would go if three were kept."),
        ("keikaku delete nightly --all --yes", "Every version of this name, without asking."),
    ],
)
@_name
@click.option("--version", metavar="VERSION", shell_complete=complete_version, help="The version to delete.")
@click.option("--keep", type=click.IntRange(min=1), help="Delete all but the newest N.")
@click.option("--all", "everything", is_flag=True, help="Delete every version of this name.")
@_lock_wait
@click.option("--dry-run", is_flag=True, help="Show, delete nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_session
def delete(
    session: Session,
    *,
    name: str,
    version: str | None,
    keep: int | None,
    everything: bool,
    lock_wait: float | None,
    dry_run: bool,
    yes: bool,
) -> None:
    """Delete one version of a snapshot, all but the newest, or all.

    One that is being restored is refused. On a terminal it asks.
    """
    if [version is not None, keep is not None, everything].count(True) != 1:
        raise click.UsageError("give one of --version, --keep and --all")
    with session.manager(database=False, lock_wait_s=lock_wait) as manager:
        doomed = _chosen(manager, session.snapshot_dir, name, version, keep)
        if not dry_run and doomed:
            if session.output.on_terminal and not yes:
                _ask_delete(session, doomed)
            if keep is not None:
                doomed = manager.delete_old_snapshots(name, keep_count=keep)
            else:
                doomed = [snapshot for snapshot in doomed if manager.delete_snapshot(name, snapshot.version)]
    if session.output.as_json:
        session.output.document({"dry_run": dry_run, "deleted": [] if dry_run else doomed, "chosen": doomed})
    for snapshot in doomed:
        verb = "would delete" if dry_run else "deleted"
        session.output.say(f"{verb} {snapshot.name} {snapshot.version} ({size_of(snapshot)})")
    if not doomed:
        session.output.say("nothing to delete")


def _chosen(
    manager: SnapshotManager, directory: Path, name: str, version: str | None, keep: int | None
) -> list[Snapshot]:
    from keikaku_snapshots.errors import SnapshotNotFoundError

    versions = manager.list_snapshots(name)
    if version is not None:
        versions = [snapshot for snapshot in versions if snapshot.version == version]
    if not versions:
        which = f"{name!r} version {version!r}" if version else repr(name)
        raise SnapshotNotFoundError(f"there is no snapshot {which}", found=f"in {directory.absolute()}")
    if keep is None:
        return versions
    valid = [snapshot for snapshot in versions if snapshot.is_valid]
    return [snapshot for snapshot in valid[keep:] if not snapshot.pinned]


def _ask_delete(session: Session, doomed: list[Snapshot]) -> None:
    for snapshot in doomed:
        session.output.raw(f"  {snapshot.name} {snapshot.version} ({size_of(snapshot)})")
    session.output.confirm(f"Delete {'these' if len(doomed) > 1 else 'this'}?")


def _check_target(session: Session, *, allow_protected: bool) -> None:
    """Refuse what restore would refuse, before a question is asked or a dry run promises something."""
    from keikaku_snapshots.snapshots.guards import check_protected

    check_protected(
        session.url,
        allow_protected=allow_protected,
        protected_words=session.settings.protected_words,
        allowed_databases=session.settings.allowed_databases,
    )


def _check_hooks(session: Session, hooks: Sequence[str], strategy: str, snapshot: Snapshot) -> None:
    """Refuse hooks that the restore would refuse, before a question is asked."""
    if hooks:
        from keikaku_snapshots.snapshots.hooks import check_hooks_possible, read_hooks

        read = read_hooks(hooks, session.url)
        check_hooks_possible(read, strategy=strategy, format_name=snapshot.format)


def _find(manager: SnapshotManager, name: str, version: str | None, *, trust: bool) -> Snapshot:
    from keikaku_snapshots.errors import SnapshotNotFoundError

    try:
        return manager.get_snapshot(name, version)
    except SnapshotNotFoundError:
        # A file without manifest is never the newest valid one; --trust takes it all the same.
        bare = [snapshot for snapshot in manager.list_snapshots(name) if trust and snapshot.manifest is None]
        if not bare:
            raise
        return bare[0]


def _replaced(session: Session, snapshot: Snapshot) -> dict[str, int] | None:
    """Count the rows that a restore would replace; None when that takes too long or cannot be known."""
    from keikaku_snapshots.errors import OperationTimeoutError
    from keikaku_snapshots.postgres.catalog import row_counts
    from keikaku_snapshots.postgres.connect import connect

    try:
        with connect(session.url, statement_timeout_s=_COUNT_TIMEOUT_S) as connection:
            if snapshot.format == "json":
                from keikaku_snapshots.snapshots.rows_scope import replaced_rows

                return replaced_rows(connection, snapshot)
            return row_counts(connection)
    except OperationTimeoutError:
        return None


def _replaced_in_words(counts: dict[str, int] | None) -> str:
    if counts is None:
        return "an unknown number of rows (counting took too long)"
    return f"{counted(sum(counts.values()), 'row')} in {counted(len(counts), 'table')}"


def _ask_restore(session: Session, snapshot: Snapshot, hooks: Sequence[str]) -> None:
    session.output.raw(f"  snapshot  {snapshot.name} {snapshot.version} ({size(snapshot.size_bytes)})")
    session.output.raw(f"  database  {session.url.location}")
    session.output.raw(f"  replaces  {_replaced_in_words(_replaced(session, snapshot))}")
    for hook in hooks:
        session.output.raw(f"  runs      {hook}")
    session.output.confirm("Restore?")


def _tell_restore(
    session: Session, manager: SnapshotManager, snapshot: Snapshot, hooks: Sequence[str], *, trust: bool
) -> None:
    """Do everything of a restore that changes nothing, and tell."""
    manager.verify_snapshot(snapshot.name, snapshot.version, trust=trust)
    incoming = "what the file holds (it has no manifest that says how much)"
    if snapshot.manifest is not None:
        incoming = _replaced_in_words(snapshot.row_counts)
    counts = _replaced(session, snapshot)
    if session.output.as_json:
        session.output.document(
            {
                "dry_run": True,
                "snapshot": snapshot,
                "database": session.url.location,
                "row_counts_now": counts,
                "after_restore": [session.output.redact(hook) for hook in hooks],
            }
        )
    checked = "is whole" if snapshot.manifest is not None else "has the form of a whole file"
    session.output.say(f"{snapshot.name} {snapshot.version} {checked}")
    session.output.say(
        f"dry run; restoring it into {session.url.location} would replace {_replaced_in_words(counts)} "
        f"by {incoming}"
    )
    for hook in hooks:
        session.output.say(f"and run on it before it goes live: {hook}")
