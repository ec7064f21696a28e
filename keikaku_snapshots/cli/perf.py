"""`keikaku perf run`, `perf compare`: measure, and tell whether something has become slower."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from keikaku_snapshots.cli.groups import HelpfulGroup
from keikaku_snapshots.cli.session import Command, Session, pass_session

if TYPE_CHECKING:
    from datetime import datetime

    from keikaku_snapshots.cli.output import Output
    from keikaku_snapshots.perf.comparison import MeasurementComparison, ReportComparison
    from keikaku_snapshots.perf.report import PerformanceReport
    from keikaku_snapshots.postgres.url import DatabaseURL

#: Exit code when a limit is broken, or something has become slower.
TOO_SLOW = 1
_COLOURS = {
    "slower": "red",
    "failed": "red",
    "faster": "green",
    "unclear": "yellow",
    "too few runs": "yellow",
}


@click.group("perf", cls=HelpfulGroup)
def perf() -> None:
    """Measure generation, restore and a workload; compare two reports."""


@perf.command(
    "run",
    cls=Command,
    examples=[
        ("keikaku perf run --scale medium", "Small and medium; a report as HTML and JSON in perf-reports/."),
        ("PERF_TEST_SCALE=large keikaku perf run --name before", "before.html and before.json."),
        ("keikaku perf run --runs 15 --name after", "More runs, for a comparison on a busy machine."),
    ],
)
@click.option(
    "--scale",
    type=click.Choice(["small", "medium", "large"]),
    help="The largest scale; smaller ones are measured too.  [env: PERF_TEST_SCALE; default: small]",
)
@click.option("--runs", type=click.IntRange(min=1), default=7, show_default=True, help="Runs of each step.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("perf-reports"),
    show_default=True,
    help="Directory of the reports.",
)
@click.option("--name", metavar="NAME", help="Name of the two files.  [default: the time]")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same data.")
@click.option(
    "--reference-date",
    type=click.DateTime(["%Y-%m-%d"]),
    metavar="YYYY-MM-DD",
    help="The day that dates hang on.  [default: today]",
)
@click.option("--allow-protected", is_flag=True, help="Work on a database that looks like production.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_session
def run(
    session: Session,
    *,
    scale: str | None,
    runs: int,
    output: Path,
    name: str | None,
    seed: int,
    reference_date: datetime | None,
    allow_protected: bool,
    yes: bool,
) -> int:
    """Measure generation, snapshot, restore and the deadline notification.

    Works in the database itself: its test rows (is_test_data) are replaced by
    generated ones, all other rows stay; what others write meanwhile is lost by
    the restores. PERFORMANCE_TEST_DATABASE_URL and TEST_DATABASE_URL come
    before KEIKAKU_DB_URL here. Writes a page for people and JSON for
    `keikaku perf compare`. Exit code 1 when a limit is broken.
    """
    from keikaku_snapshots.perf.files import check_report_name, write_report
    from keikaku_snapshots.perf.runs import run_performance_tests

    if name is not None:
        check_report_name(name)
    options = _manager_options(session)
    url = _database(session)
    if session.output.on_terminal and not yes:
        _ask(session.output, url, options, allow_protected=allow_protected)
    with session.output.progress() as show:
        report = run_performance_tests(
            url,
            scale=scale,
            runs=runs,
            seed=seed,
            reference_date=reference_date.date() if reference_date else None,
            directory=output,
            allow_protected=allow_protected,
            manager_options=options,
            progress=show,
        )
    written = write_report(report, output, name)
    if session.output.as_json:
        session.output.document(
            {**report.to_document(), "files": {"json": written.json, "html": written.html}}
        )
    return _tell_report(session.output, report, written.html)


@perf.command(
    "compare",
    cls=Command,
    database=False,
    examples=[
        ("keikaku perf compare perf-reports/before.json perf-reports/after.json", "Exit 1 when slower."),
        (
            "keikaku perf compare before.json after.json --threshold 50 --json",
            "For a script; only half as slow counts.",
        ),
    ],
)
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option(
    "--threshold",
    type=click.FloatRange(min=0),
    default=20,
    show_default=True,
    metavar="PERCENT",
    help="A slow-down of so many percent is not looked at.",
)
@pass_session
def compare(session: Session, old: Path, new: Path, threshold: float) -> int:
    """Tell whether something has become slower from one report to the next.

    Exit code 1 when a median is slower by more than the threshold and the runs
    prove it (one-sided Mann-Whitney test at 1 %), when a step needs more
    queries or fails. Fewer than five runs a side prove nothing: that is said,
    and when it holds for all steps it is an error (exit code 2).
    """
    from keikaku_snapshots.perf.comparison import compare_reports
    from keikaku_snapshots.perf.report import read_report

    compared = compare_reports(read_report(old), read_report(new), threshold=threshold / 100)
    if session.output.as_json:
        worse = [item.title for item in compared.worse]
        session.output.document(
            {
                "worse": worse,
                "threshold": compared.threshold,
                "measurements": compared.measurements,
                "environment": [
                    {"name": fact, "old": before, "new": after}
                    for fact, before, after in compared.environment
                ],
            }
        )
    return _tell_comparison(session.output, compared)


def _database(session: Session) -> str | DatabaseURL:
    """The database: option, then the variables of performance tests, then what every command asks.

    As text where it was given so, because the text may name the driver of the workload.
    """
    import os

    from keikaku_snapshots.perf.database import VARIABLES, get_performance_test_db_url
    from keikaku_snapshots.postgres.url import DatabaseURL

    named = session.option("db_url") is not None or session.option("embedded")
    if not named and any(variable in os.environ for variable in VARIABLES):
        text = get_performance_test_db_url()
        session.output.hide_by(DatabaseURL.parse(text).redact)
        return text
    session.require_database()
    parsed = session.url  # always, so that its secrets are known before anything is said
    return session.option("db_url") or parsed


def _ask(output: Output, given: str | DatabaseURL, options: dict[str, Any], *, allow_protected: bool) -> None:
    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.snapshots.guards import check_protected

    url = DatabaseURL.parse(given)
    check_protected(
        url,
        allow_protected=allow_protected,
        protected_words=options["protected_words"],
        allowed_databases=options["allowed_databases"],
    )
    output.raw(f"  database  {url.location}")
    output.raw(
        "  replaces  its test rows, and restores it several times: what others write meanwhile is lost"
    )
    output.confirm("Measure there?")


def _manager_options(session: Session) -> dict[str, Any]:
    settings = session.settings
    return {
        "lock_wait_s": settings.lock_wait_s,
        "lock_timeout_s": settings.lock_timeout_s,
        "minimum_free_mb": settings.minimum_free_mb,
        "protected_words": settings.protected_words,
        "allowed_databases": settings.allowed_databases,
        "pg_bin": settings.pg_bin,
    }


def _tell_report(output: Output, report: PerformanceReport, page: Path) -> int:
    from keikaku_snapshots.pages.svg import seconds_text
    from keikaku_snapshots.perf.floors import floors

    rows = [
        [
            item.step,
            item.scale,
            "–" if item.median_s is None else seconds_text(item.median_s),
            f"{seconds_text(min(item.seconds))} - {seconds_text(max(item.seconds))}" if item.seconds else "–",
            "; ".join(failure.message for failure in item.failures) or item.note,
        ]
        for item in report.measurements
    ]
    output.table(["step", "scale", "median", "fastest - slowest", ""], rows, right=frozenset({2}))
    output.data("")
    lines = floors(report)
    colours = {"holds": "green", "broken": "red"}
    for floor in lines:
        mark = click.style(f"{floor.status:<12}", fg=colours.get(floor.status))
        output.data(f"{mark}  {floor.title}: {floor.detail}")
    output.say(f"report: {page}")
    broken = any(floor.status == "broken" for floor in lines)
    failed = any(item.failures for item in report.measurements)
    return TOO_SLOW if broken or failed else 0


def _tell_comparison(output: Output, compared: ReportComparison) -> int:
    rows = [_comparison_row(item) for item in compared.measurements]
    output.table(["", "old", "new", "change", "95 % of it", "", ""], rows, right=frozenset({1, 2, 3, 4}))
    for name, before, after in compared.environment:
        output.warn(f"not the same environment: {name} was {before}, is {after}")
    for meaning, items in (("cannot be judged", compared.not_judged), ("unclear", compared.unclear)):
        if items:
            output.warn(f"{meaning}: {', '.join(item.title for item in items)}")
    worse = compared.worse
    output.say(f"worse: {', '.join(item.title for item in worse)}" if worse else "nothing is proven slower")
    return TOO_SLOW if worse else 0


def _comparison_row(item: MeasurementComparison) -> list[str]:
    from keikaku_snapshots.pages.svg import seconds_text

    def percent(ratio: float | None) -> str:
        return "–" if ratio is None else f"{(ratio - 1) * 100:+.0f} %"

    interval = "–" if item.ratio_low is None else f"{percent(item.ratio_low)} to {percent(item.ratio_high)}"
    detail = item.detail
    if item.more_queries:
        detail = f"{item.new_queries} queries, were {item.old_queries}; {detail}"
    return [
        item.title,
        "–" if item.old_s is None else seconds_text(item.old_s),
        "–" if item.new_s is None else seconds_text(item.new_s),
        percent(item.ratio),
        interval,
        click.style(item.verdict, fg=_COLOURS.get(item.verdict)),
        detail,
    ]
