"""`keikaku generate`: a dataset into a database, then a snapshot of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from keikaku_snapshots.cli.output import duration, size
from keikaku_snapshots.cli.packing import packing_options, take_packing
from keikaku_snapshots.cli.session import Command, Session, pass_session

if TYPE_CHECKING:
    from datetime import date, datetime

    from keikaku_snapshots.generate import GeneratedSnapshot


def _complete_scale(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    return [scale for scale in ("small", "medium", "large", "xlarge") if scale.startswith(incomplete)]


@click.command(
    "generate",
    cls=Command,
    examples=[
        (
            "keikaku generate --scale medium",
            "100 offices into the database, snapshotted as medium_100_offices.",
        ),
        (
            "keikaku generate --scale small --seed 7 --name nightly --keep 3",
            "Other data, own name, three versions.",
        ),
        (
            "keikaku generate --dataset stockrx --scale medium",
            "100,000 inventories with their batches, as medium_100000_inventories.",
        ),
        ("keikaku generate --dataset shop.data:dataset --scale small", "A dataset of your own."),
        (
            "0 3 * * *  keikaku generate --scale medium --keep 7 -q",
            "A cron line; silent unless something fails.",
        ),
    ],
)
@click.option(
    "--scale",
    default="medium",
    show_default=True,
    shell_complete=_complete_scale,
    help="How much: small, medium, large, xlarge, or your own.",
)
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
@click.option("--name", metavar="NAME", help="Name of the snapshot.  [default: such as medium_100_offices]")
@click.option(
    "--keep", type=click.IntRange(min=1), help="Keep so many versions of this name, delete older ones."
)
@click.option("--batch-size", type=click.IntRange(min=1), help="Rows handed over at a time.  [default: 500]")
@click.option(
    "--memory-limit", type=click.IntRange(min=1), metavar="MB", help="Stop at this resident memory."
)
@click.option(
    "--create-tables/--no-create-tables", default=True, show_default=True, help="Create missing tables."
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["plain", "custom", "directory"]),
    default="plain",
    show_default=True,
)
@packing_options
@click.option("--allow-protected", is_flag=True, help="Work on a database that looks like production.")
@click.option(
    "--lock-wait",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Wait for another process that works on the database.  [default: 0]",
)
@pass_session
def generate(
    session: Session,
    *,
    scale: str,
    dataset: str,
    reference_date: datetime | None,
    lock_wait: float | None,
    **options: Any,
) -> None:
    """Generate a dataset and snapshot it.

    Existing test rows (is_test_data) of its tables are replaced, all other
    rows stay; all or nothing, so it is safe to run every night.
    """
    from keikaku_snapshots.datasets import find_dataset
    from keikaku_snapshots.generate import find_scale, generate_snapshot

    chosen = find_dataset(dataset)
    chosen_scale = find_scale(chosen, scale, session.settings)
    packing = take_packing(session.settings, options, options["format_"])
    day: date | None = reference_date.date() if reference_date else None
    with (
        session.manager(allow_protected=options["allow_protected"], lock_wait_s=lock_wait) as manager,
        session.output.progress() as show,
    ):
        result = generate_snapshot(
            manager,
            session.url,
            chosen,
            chosen_scale,
            settings=session.settings,
            reference_date=day,
            memory_limit_mb=options.pop("memory_limit"),
            format=options.pop("format_"),
            lock_wait_s=session.settings.lock_wait_s if lock_wait is None else lock_wait,
            progress=show,
            **packing,
            **options,
        )
    _report(session, result)


def _report(session: Session, result: GeneratedSnapshot) -> None:
    generated, snapshot = result.generated, result.snapshot
    if session.output.as_json:
        session.output.document(
            {
                "dataset": generated.dataset,
                "scale": generated.scale,
                "seed": generated.seed,
                "reference_date": generated.reference_date,
                "rows": generated.rows,
                "replaced": generated.deleted,
                "checksum": generated.checksum,
                "seconds": generated.seconds,
                "snapshot": snapshot,
                "deleted": result.deleted,
            }
        )
    total = sum(generated.rows.values())
    rate = total / generated.seconds if generated.seconds else 0.0
    session.output.say(
        f"generated {total:,} rows in {len(generated.rows)} tables in {duration(generated.seconds)} "
        f"({rate:,.0f} rows/s)"
    )
    session.output.say(
        f"snapshot {snapshot.name} {snapshot.version}: {snapshot.path} ({size(snapshot.size_bytes)})"
    )
    for old in result.deleted:
        session.output.say(f"deleted {old.name} {old.version}")
