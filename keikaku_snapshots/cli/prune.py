"""`keikaku prune`: delete what the retention policy does not keep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from keikaku_snapshots.cli.output import plain, size
from keikaku_snapshots.cli.session import Command, Session, complete_snapshot_name, pass_session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from keikaku_snapshots.snapshots.retention import Decision, PrunePlan, RetentionPolicy


def retention_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that make a retention policy; `given_policy` reads them."""
    meanings = {
        "--keep-last": "Keep the newest N versions.",
        "--keep-daily": "Keep the newest version of each of the newest N days.",
        "--keep-weekly": "The same for weeks.",
        "--keep-monthly": "The same for months.",
    }
    older = click.option(
        "--older-than",
        type=click.FloatRange(min=0),
        metavar="DAYS",
        help="Delete only what is older than so many days.",
    )
    least = click.option(
        "--min-keep", type=click.IntRange(min=1), metavar="N", help="Never keep fewer.  [default: 1]"
    )
    function = older(least(function))
    for name, meaning in reversed(meanings.items()):
        function = click.option(name, type=click.IntRange(min=1), metavar="N", help=meaning)(function)
    return function


def given_policy(options: dict[str, Any]) -> RetentionPolicy | None:
    """Take the retention options out of a command's options.

    Args:
        options: What the command was given; the retention options are removed.

    Returns:
        The policy, or None when no rule was given, so that the configured one counts.
    """
    from keikaku_snapshots.errors import UsageError
    from keikaku_snapshots.snapshots.retention import RetentionPolicy

    names = ("keep_last", "keep_daily", "keep_weekly", "keep_monthly")
    given = {name: value for name in names if (value := options.pop(name, None)) is not None}
    if (days := options.pop("older_than", None)) is not None:
        given["older_than_days"] = days
    least = options.pop("min_keep", None)
    if not given:
        if least is not None:
            raise UsageError("--min-keep alone is no policy", hint="Give --keep-last or another rule too.")
        return None
    return RetentionPolicy(**given, min_keep=least or 1)


@click.command(
    "prune",
    cls=Command,
    database=False,
    examples=[
        ("keikaku prune --dry-run", "What the configured policy (retention:) would delete, and why."),
        ("keikaku prune nightly --keep-last 3 --keep-daily 7 --keep-monthly 6 --yes", "One name, own rules."),
        ("keikaku prune --older-than 30 -q", "For cron: silent; only what is older than 30 days."),
    ],
)
@click.argument("name", required=False, shell_complete=complete_snapshot_name)
@retention_options
@click.option("--dry-run", is_flag=True, help="Show, delete nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_session
def prune(session: Session, *, name: str | None, dry_run: bool, yes: bool, **options: Any) -> None:
    """Delete the versions that no retention rule keeps.

    Without a rule the configured policy counts. A version stays when any rule
    keeps it; the newest valid one of each name, pinned and damaged ones stay
    always. Files that interrupted runs left are removed too.
    """
    from keikaku_snapshots.snapshots.sharing import DiskUse

    policy = given_policy(options)
    with session.manager(database=False) as manager:
        plan = manager.prune(policy, dry_run=True, name=name)
        use = DiskUse(decision.snapshot for decision in plan.delete)
        shown = session.output.on_terminal or not session.output.quiet
        if dry_run:
            _show(session, plan)
        elif plan.delete and session.output.on_terminal and not yes:
            _show(session, plan)
            session.output.confirm(f"Delete {_versions(len(plan.delete))}?")
            shown = False
        if not dry_run:
            plan = manager.prune(policy, name=name)
            if shown:
                _show(session, plan)
    if session.output.as_json:
        session.output.document(plan_document(plan))
    verb = "would delete" if dry_run else "deleted"
    freed = use.freed_bytes(decision.snapshot for decision in plan.delete)
    session.output.say(f"{verb} {_versions(len(plan.delete))} ({size(freed)}), kept {len(plan.keep)}")
    if plan.swept:
        session.output.say(f"{'would remove' if dry_run else 'removed'} {len(plan.swept)} leftover files")


def plan_document(plan: PrunePlan) -> dict[str, Any]:
    """Return a plan as JSON has it.

    Args:
        plan: The plan.
    """
    return {
        "dry_run": plan.dry_run,
        "keep": list(_documents(plan.keep)),
        "delete": list(_documents(plan.delete)),
        "swept": [str(path) for path in plan.swept],
    }


def _documents(decisions: Iterable[Decision]) -> Iterator[dict[str, Any]]:
    shown = ("name", "version", "path", "created_at", "size_bytes", "is_valid", "problem", "pinned")
    for decision in decisions:
        document = {field: plain(getattr(decision.snapshot, field)) for field in shown}
        yield {**document, "reasons": list(decision.reasons)}


def _show(session: Session, plan: PrunePlan) -> None:
    rows = [
        (verb, one.snapshot.name, one.snapshot.version, size(one.snapshot.size_bytes), "; ".join(one.reasons))
        for verb, decisions in (("keep", plan.keep), ("delete", plan.delete))
        for one in decisions
    ]
    if rows:
        session.output.table(("", "NAME", "VERSION", "SIZE", "WHY"), rows, right=frozenset({3}))


def _versions(count: int) -> str:
    return f"{count} version" + ("" if count == 1 else "s")
