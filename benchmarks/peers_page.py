"""docs/performance.md and its chart, written from the JSON that `benchmarks.peers` leaves.

Nothing on the page is typed by hand: medians, ratios and whether a bar held come
from the samples, and a test writes the page again.
"""
# ruff: noqa: E501 - the page is text

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.peers_isolation import CLONE, NONE, RAW_CLONE, REWIND, TRUNCATE
from benchmarks.peers_restore import (
    COLD,
    DBBACKUP,
    DSLR,
    LIBRARY,
    LIBRARY_RAW,
    PG_RESTORE,
    PSQL,
    RAW,
    RAW_FILES,
    SPARE,
    WARM,
)

if TYPE_CHECKING:
    from pathlib import Path

    Document = dict[str, dict[str, Any]]

#: Part, ours, theirs, the largest accepted ratio and whether equal is accepted: the bars of issue 4.
_BARS = (
    ("gigabyte", WARM, DSLR, 1.0),
    ("gigabyte", SPARE, DSLR, 0.25),
    ("small", WARM, DSLR, 1.0),
    ("small", WARM, DBBACKUP, 1.0),
    ("small", LIBRARY, LIBRARY_RAW, 1.3),
    ("gigabyte", LIBRARY, LIBRARY_RAW, 1.3),
    ("isolation", REWIND, CLONE, 1 / 20),
)


def promised(part: str) -> frozenset[str]:
    """The ways of a part that something was promised about.

    Args:
        part: Of the comparison.
    """
    return frozenset(way for name, ours, theirs, _ in _BARS if name == part for way in (ours, theirs))


_TITLES = {
    "small": "Restore of 100 tables (20,000 rows, 20 MB)",
    "gigabyte": "Restore of 1 GB (20 million rows)",
    "isolation": "Isolation of one test",
}
#: Runs that a median needs to be a claim.
_FAIR_RUNS = 5
_NOTES = {
    "small": "100 tables with a key and an index each. Through the command lines, but for the two rows of the library.",
    "gigabyte": "One table of three numbers, as in DSLR's own benchmark. No run to warm up: seconds hide it.",
    "isolation": "Set-up and teardown as pytest measures them, a connection for the test included, on the set with 100 tables."
    " Each test changes 100 rows in 3 tables and commits.",
}
_COMMANDS = {
    WARM: "`keikaku restore`, second and later times",
    SPARE: "`keikaku restore --spare 1`, a spare ready",
    COLD: "`keikaku restore --strategy swap --no-templates`",
    DSLR: "`dslr restore`",
    DBBACKUP: "`django-admin dbrestore`",
    RAW: "`psql`: `CREATE DATABASE … TEMPLATE`, two renames, drop",
    RAW_FILES: "the same with `STRATEGY file_copy`",
    PSQL: "`psql`: drop, create, `psql -1 -f`",
    PG_RESTORE: "`psql`: drop, create, `pg_restore -j2`",
    LIBRARY: "library, template ready",
    LIBRARY_RAW: "library (psycopg): `DROP`, `CREATE DATABASE … TEMPLATE`",
    REWIND: "`manager.rewind()`",
    CLONE: "pytest-postgresql, a clone for each test",
    RAW_CLONE: "`CREATE DATABASE … TEMPLATE`, `DROP DATABASE`",
    TRUNCATE: "`TRUNCATE` of all tables (leaves them empty)",
    NONE: "no isolation, only the connection",
}
_HEAD = """<!-- Written by `python -m benchmarks.peers --write` from performance.json; change benchmarks/peers_page.py. -->

# Performance beside other tools

All on one machine and one server (fsync on) in one run, in changing order, each from the same state; what a
restore leaves to the server is waited for outside the clock, and a checkpoint comes before each. The start of
each program counts. Seconds depend on the machine and on what else runs on it: read the ratios.
"""
_TAIL = """
## What the numbers mean

- A restore **from the file** loads, checks and swaps; it is what the first restore of a snapshot on a server costs,
  and what there is when the server has no room for a template.
- With a **template ready** the server copies a database. Nobody who copies can be quicker than the copy; what differs
  is the strategy (a small database through the log, a big one as files) and what else is done.
- With a **spare ready** the copy was made before, in the background, and a restore is two renames. It costs the disk space
  of one more copy, and the server the work of making the next one after the restore.
- A **rewind** undoes what the test changed: it costs by the change, a clone by the size of the database.

## What each tool does

| | what it does well, and what this comparison does not show |
|---|---|
| [DSLR](https://github.com/mixxorz/DSLR) | The simplest of all: two commands, no files to look after, `export` and `import` of archives. Its snapshots are databases of the server and are gone with it. It ends the sessions of the database, drops it, then copies: a copy that fails leaves no database, and settings and grants of the database go with it. |
| [django-dbbackup](https://github.com/Archmonger/django-dbbackup) | Backups of databases and of media files, several database engines, remote storage, encryption: none of which we do. It restores into the live database in one transaction, which keeps its sessions, and leaves tables that are not in the backup. |
| [pytest-postgresql](https://github.com/dbfixtures/pytest-postgresql) | Starts and stops a server for the tests, needs nothing in the database, and each test may do what it likes to its own one: DDL, `VACUUM`, roles. A rewind does not undo everything (see [what goes back](how-to/rewind.md#what-goes-back)). |
| `psql`, `pg_restore`, `CREATE DATABASE … TEMPLATE` | Part of PostgreSQL, nothing to install. The raw ways here check nothing, drop before they load (all but the renames) and need that nobody is connected. |
| keikaku | Verifies the file (once for as long as nobody writes to it), builds beside the live database, keeps its owner, settings, grants and comment, refuses what a copy would lose, swaps in one transaction, never drops before that. All of it is in the times above. |

A plain dump and a checksum are read at disk speed, so with a big file and a slow disk the first restore is nearer to `psql`.
`TRUNCATE` is in the table because many suites use it; it isolates only tests that begin with empty tables.

## Measure again

<!-- not run: it installs other tools and measures for minutes -->
```console
$ make bench-peers
```

takes about 10 minutes and 8 GB of disk, installs the other tools into `.venv-peers` (versions in `benchmarks/peers.txt`) and
writes this page, [its chart](performance.svg) and [every sample](performance.json). `make bench-peers PEERS_ARGS='--only small'`
takes a minute.
"""


@dataclass(frozen=True, slots=True)
class Held:
    """A bar and what was measured."""

    #: Part of the comparison.
    part: str
    #: Ours and what it is compared with.
    ours: str
    theirs: str
    #: Median of the ratios of neighbouring runs.
    ratio: float
    #: The bar: below it, for 1; at most it, otherwise.
    limit: float

    @property
    def holds(self) -> bool:
        """Whether the bar is met."""
        return self.ratio < self.limit if self.limit == 1 else self.ratio <= self.limit

    def __str__(self) -> str:
        word = "HELD" if self.holds else "MISSED"
        return f"{word}  {self.part}: {self.ours} / {self.theirs} = {self.ratio:.3f} (bar {self.limit:g})"


def bars(document: Document) -> list[Held]:
    """Judge the samples; what was not measured is left out.

    Args:
        document: The JSON document.
    """
    found = []
    for part, ours, theirs, limit in _BARS:
        samples = document["parts"].get(part, {}).get("samples", {})
        if ours in samples and theirs in samples:
            ratio = statistics.median(
                one / other for one, other in zip(samples[ours], samples[theirs], strict=True)
            )
            found.append(Held(part, ours, theirs, ratio, limit))
    return found


def write(document: Document, folder: Path) -> None:
    """Write performance.md and performance.svg.

    Args:
        document: The JSON document.
        folder: Where they go.
    """
    (folder / "performance.md").write_text(page(document), encoding="utf-8")
    (folder / "performance.svg").write_text(chart(document), encoding="utf-8")


def page(document: Document) -> str:
    """Give the text of the page.

    Args:
        document: The JSON document.
    """
    lines = [_HEAD, "![Medians of each tool](performance.svg)", ""]
    for part, content in document["parts"].items():
        lines += [
            f"## {_TITLES[part]}",
            "",
            _NOTES[part],
            "",
            *_table(content["samples"]),
            "",
            _facts(content["facts"]),
            "",
        ]
    lines += ["## What was promised", "", "| | ratio | at most | |", "|---|---|---|---|"]
    for bar in bars(document):
        below = "below 1" if bar.limit == 1 else f"{bar.limit:g}"
        words = f"{_TITLES[bar.part]}: {bar.ours} to {bar.theirs}"
        lines.append(f"| {words} | {bar.ratio:.3f} | {below} | {'HELD' if bar.holds else 'MISSED'} |")
    return "\n".join(lines) + "\n" + _TAIL


def _table(samples: dict[str, list[float]]) -> list[str]:
    """Rows in order of their medians."""
    lines = ["| | median | smallest to largest | to the first row |", "|---|---|---|---|"]
    ordered = sorted(samples.items(), key=lambda one: statistics.median(one[1]))
    first = statistics.median(ordered[0][1])
    for name, times in ordered:
        median = statistics.median(times)
        spread = f"{_seconds(min(times))} to {_seconds(max(times))}"
        lines.append(f"| {_COMMANDS[name]} | {_seconds(median)} | {spread} | {median / first:.1f} |")
    return lines


def _seconds(value: float) -> str:
    if value >= 10:
        return f"{value:.1f} s"
    return f"{value:.2f} s" if value >= 0.1 else f"{value * 1000:.1f} ms"


def _facts(facts: dict[str, str]) -> str:
    few = "" if int(facts["runs"]) >= _FAIR_RUNS else f" **Fewer than {_FAIR_RUNS} runs: do not rely on it.**"
    tools = ", ".join(f"{name} {facts[name]}" for name in ("DSLR", "django-dbbackup", "pytest-postgresql"))
    return (
        f"PostgreSQL {facts['postgresql']}, fsync {facts['fsync']}, {facts['file_system']}, {facts['cores']} cores,"
        f" {facts['system']}, Python {facts['python']}, {tools};"
        f" {facts['measured_at']}, load average {facts['load_average']}, {facts['runs']} runs.{few}"
    )


_WIDTH, _LEFT, _BAR, _GAP = 860, 400, 18, 6


def chart(document: Document) -> str:
    """Draw the medians, one group of bars for each part, each on its own scale.

    Args:
        document: The JSON document.
    """
    shapes, y = [], 8
    for part, content in document["parts"].items():
        shapes.append(f'<text x="8" y="{y + 14}" font-weight="bold">{_TITLES[part]}</text>')
        y += _BAR + _GAP
        medians = {name: statistics.median(times) for name, times in content["samples"].items()}
        longest = max(medians.values())
        for name, median in sorted(medians.items(), key=lambda one: one[1]):
            length = max(1.0, (_WIDTH - _LEFT - 80) * median / longest)
            colour = "#0b7285" if name in {WARM, SPARE, COLD, LIBRARY, REWIND} else "#adb5bd"
            words = _COMMANDS[name].replace("`", "")
            shapes += [
                f'<text x="{_LEFT - 8}" y="{y + 13}" text-anchor="end">{words}</text>',
                f'<rect x="{_LEFT}" y="{y}" width="{length:.1f}" height="{_BAR}" fill="{colour}"/>',
                f'<text x="{_LEFT + length + 6:.1f}" y="{y + 13}">{_seconds(median)}</text>',
            ]
            y += _BAR + _GAP
        y += _BAR
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y}" width="{_WIDTH}" height="{y}"'
        ' role="img" font-family="sans-serif" font-size="12" fill="#212529">\n'
        "<title>Medians of each tool; shorter is quicker; each group has its own scale</title>\n"
        f'<rect width="{_WIDTH}" height="{y}" fill="#ffffff"/>\n' + "\n".join(shapes) + "\n</svg>\n"
    )
