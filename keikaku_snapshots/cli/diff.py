"""`keikaku diff`: how two snapshots, or a snapshot and the database, differ."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import click

from keikaku_snapshots.cli.output import duration
from keikaku_snapshots.cli.session import Command, Session, complete_snapshot_name, pass_session

if TYPE_CHECKING:
    from keikaku_snapshots.cli.output import Output
    from keikaku_snapshots.snapshots.comparison import (
        ComparedSide,
        Comparison,
        RowChange,
        SequenceDifference,
        TableDifference,
    )

#: Exit code when the two differ, as of diff(1).
DIFFERENT = 1
#: Longest value on a terminal, in characters; --json has all of it.
_SHOWN = 60
#: Characters before the first difference of two long values.
_CONTEXT = 12
#: Texts that need no quotes to be read as what they are: words, or a JSON document.
_BARE = re.compile(r"""[^\s"'=→,](?:[^"=→,]*[^\s"=→,])?|\{.*\}|\[.*\]""")
_SIGNS = {"added": ("+", "green"), "removed": ("-", "red"), "changed": ("~", "yellow")}


@click.command(
    "diff",
    cls=Command,
    examples=[
        ("keikaku diff before_migration", "What has changed in the database since."),
        ("keikaku diff before_migration live --rows 20", "And which rows, with their values."),
        ("keikaku diff app@20250131_031500 app --json", "An exact version and the newest one, for a script."),
    ],
)
@click.argument("a", shell_complete=complete_snapshot_name)
@click.argument("b", default="live", shell_complete=complete_snapshot_name)
@click.option(
    "--rows",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Show so many differing rows of each table with their values, which may be personal data.",
)
@pass_session
def diff(session: Session, a: str, b: str, rows: int) -> int:
    """Say how two snapshots, or a snapshot and the database, differ.

    A and B are a snapshot's name (its newest valid version), NAME@VERSION, or
    "live" for the database; B is the database when left out. Compares schema,
    rows, sequences and large objects, and changes nothing. Exit code 0 when
    they are the same, 1 when they differ.
    """
    from keikaku_snapshots.snapshots.compare import LIVE

    with session.manager(database=LIVE in (a, b)) as manager, session.output.progress() as show:
        comparison = manager.compare_snapshots(a, b, rows=rows, progress=show)
    if session.output.as_json:
        session.output.document(comparison)
    else:
        _tell(session.output, comparison, rows)
    verdict = "no difference" if comparison.same else "they differ"
    session.output.say(f"{verdict} ({len(comparison.tables)} tables in {duration(comparison.seconds)})")
    return 0 if comparison.same else DIFFERENT


def _tell(output: Output, comparison: Comparison, rows: int) -> None:
    if comparison.same:
        return
    output.data(click.style(f"--- {_side(comparison.before)}", bold=True))
    output.data(click.style(f"+++ {_side(comparison.after)}", bold=True))
    if comparison.schema:
        _section(output, "schema")
        for line in comparison.schema:
            output.data(f"  {printable(line)}")
    different = [table for table in comparison.tables if table.status != "same"]
    if different:
        output.data("")
        _tell_tables(output, different)
    if comparison.sequences:
        _section(output, "sequences")
        for sequence in comparison.sequences:
            output.data(f"  {printable(sequence.name)}: {_sequence(sequence)}")
    large = comparison.large_objects
    if large.added or large.removed or large.changed:
        _section(output, "large objects")
        output.data(f"  {large.added} added, {large.removed} removed, {large.changed} changed")
    for table in different:
        if rows and table.rows:
            _tell_rows(output, table)


def _section(output: Output, title: str) -> None:
    output.data("")
    output.data(click.style(printable(title), bold=True))


def _side(side: ComparedSide) -> str:
    if side.kind == "live":
        return f"{side.location} (live)"
    return f"{side.name} {side.version} ({side.at:%Y-%m-%d %H:%M:%S} UTC)"


def _tell_tables(output: Output, tables: list[TableDifference]) -> None:
    cells = [
        (
            printable(table.name),
            _number(table.rows_before),
            _number(table.rows_after),
            f"{table.added:,}",
            f"{table.removed:,}",
            f"{table.changed:,}",
            _remark(table),
        )
        for table in tables
    ]
    headers = ("TABLE", "ROWS BEFORE", "AFTER", "ADDED", "REMOVED", "CHANGED", "")
    output.table(headers, cells, right=frozenset({1, 2, 3, 4, 5}))


def _number(count: int | None) -> str:
    return "-" if count is None else f"{count:,}"


def _remark(table: TableDifference) -> str:
    parts = [] if table.status == "changed" else [f"table {table.status}"]
    parts += [f"{name}: {count:,}" for name, count in table.changed_columns.items()]
    parts += [f"+ column {name}" for name in table.columns_added]
    parts += [f"- column {name}" for name in table.columns_removed]
    if not table.key and table.status == "changed" and (table.added or table.removed):
        parts.append("no key: whole rows compared")
    return printable(", ".join(parts))


def _sequence(sequence: SequenceDifference) -> str:
    def state(value: int | None, called: bool | None) -> str:
        if value is None:
            return "(none)"
        return f"{value}" if called else f"{value} (not given out yet)"

    before, after = (
        state(sequence.before, sequence.called_before),
        state(sequence.after, sequence.called_after),
    )
    return f"{before} → {after}"


def _tell_rows(output: Output, table: TableDifference) -> None:
    _section(output, table.name)
    for row in table.rows:
        sign, colour = _SIGNS[row.change]
        times = f" ({row.times} times)" if row.times != 1 else ""
        output.data("  " + click.style(f"{sign} {_row(row)}{times}", fg=colour))
    hidden = table.added + table.removed + table.changed - sum(row.times for row in table.rows)
    if hidden > 0:
        output.data(f"  and {hidden:,} more")


def _row(row: RowChange) -> str:
    if row.old is not None and row.new is not None:
        changes = []
        for column, old in row.old.items():
            before, after = _pair(old, row.new[column])
            changes.append(f"{printable(column)} {before} → {after}")
        return f"{_cells(row.key)}: {', '.join(changes)}"
    return _cells(row.new if row.new is not None else row.old or {})


def _cells(values: dict[str, str | None]) -> str:
    return ", ".join(f"{printable(column)}={_value(value)}" for column, value in values.items())


def _pair(old: str | None, new: str | None) -> tuple[str, str]:
    """Both values; of long ones the part where they begin to differ."""
    start = 0
    if old is not None and new is not None and max(len(old), len(new)) > _SHOWN:
        same = next((place for place, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), None)
        start = max(0, (min(len(old), len(new)) if same is None else same) - _CONTEXT)
    return _value(old, start), _value(new, start)


def _value(value: str | None, start: int = 0) -> str:
    if value is None:
        return "NULL"
    part = value[start : start + _SHOWN]
    before = "…" if start else ""
    after = f"… ({len(value):,} characters)" if start + _SHOWN < len(value) else ""
    bare = _BARE.fullmatch(part) and part.isprintable() and value != "NULL" and not before and not after
    return part if bare else f"{before}{_quoted(part)}{after}"


def _quoted(text: str) -> str:
    return printable(json.dumps(text, ensure_ascii=False))


def printable(text: str) -> str:
    r"""Write what a terminal would obey instead of showing it as an escape.

    Args:
        text: Any text, such as a value or name out of a database.

    Returns:
        The same with control and invisible characters as ``\uXXXX``.
    """
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text
    )
