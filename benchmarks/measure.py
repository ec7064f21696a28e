"""Run contestants in turn, compare medians, and write what was seen as JSON and as a table.

The machine is noisy and its speed drifts: contestants alternate, and what is
compared with a bar is the median of the ratios of neighbouring runs.
"""

from __future__ import annotations

import compileall
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import keikaku_snapshots

Contestant = Callable[[], float | None]


@dataclass(frozen=True, slots=True)
class Bar:
    """What a benchmark promises."""

    #: Requirement the bar comes from, such as "C1".
    requirement: str
    #: The largest accepted value.
    limit: float
    #: What the value is: "ratio", "seconds" or "MB".
    unit: str


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the report."""

    #: What was measured.
    title: str
    #: Seconds (or MB) of every run by contestant; the first contestant is ours.
    samples: dict[str, list[float]]
    #: The compared value: median ratio to the neighbouring run of the baseline, or our median.
    value: float
    bar: Bar
    #: Facts that a reader needs to judge the number.
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether the value is within the bar."""
        return self.value <= self.bar.limit


def alternate(contestants: Mapping[str, Contestant], runs: int) -> dict[str, list[float]]:
    """Run every contestant `runs` times in turn, after one warm-up round.

    A contestant may return its own seconds when only a part of it counts.
    """
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    order = list(contestants.items())
    for round_number in range(runs + 1):
        for name, contestant in order if round_number % 2 else reversed(order):
            started = time.perf_counter()
            own = contestant()
            seconds = time.perf_counter() - started if own is None else own
            if round_number:
                samples[name].append(seconds)
    return samples


def compare(
    title: str,
    contestants: Mapping[str, Contestant],
    bar: Bar,
    *,
    runs: int,
    notes: Mapping[str, str] | None = None,
) -> Result:
    """Measure ours (the first contestant) against the baseline (the second)."""
    samples = alternate(contestants, runs)
    ours, baseline = list(samples.values())[:2]
    ratio = statistics.median(one / other for one, other in zip(ours, baseline, strict=True))
    return Result(title, samples, ratio, bar, dict(notes or {}))


def compile_package() -> None:
    """Write the byte code of the package, which an installed one has.

    A work tree gets it from the first import, but not where PYTHONDONTWRITEBYTECODE is set: every start of
    the command line would compile a hundred modules then.
    """
    compileall.compile_dir(Path(keikaku_snapshots.__file__).parent, quiet=1)


def environment() -> dict[str, str]:
    """The facts of this machine that numbers depend on."""
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": str(os.cpu_count()),
    }


def file_system(path: Path) -> str:
    """Say what kind of file system a path is on, and for ext4 whether it has a journal.

    ext4 without one gives no inode again within minutes of a deletion and looks past each of them for every
    new file, so that a database is copied the more slowly the more were dropped before.
    """
    best = ("", "unknown", "")
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        before, _, after = line.partition(" - ")
        place, (kind, device) = before.split()[4], after.split()[:2]
        if path.resolve().is_relative_to(place) and len(place) >= len(best[0]):
            best = (place, kind, Path(device).name)
    _, kind, device = best
    if kind != "ext4":
        return kind
    has_journal = any(Path("/proc/fs/jbd2").glob(f"{device}-*"))
    return f"ext4 {'with' if has_journal else 'without'} a journal"


def table(results: list[Result]) -> str:
    """The results as an aligned text table, medians with their spread."""
    rows = [("benchmark", "contestant", "median", "min - max", "value", "bar", "")]
    for result in results:
        head = (result.title, f"{result.value:.2f}", f"<= {result.bar.limit:g} {result.bar.unit}")
        for position, (name, samples) in enumerate(result.samples.items()):
            first = position == 0
            rows.append(
                (
                    head[0] if first else "",
                    name,
                    f"{statistics.median(samples):.3f}",
                    f"{min(samples):.3f} - {max(samples):.3f}",
                    head[1] if first else "",
                    f"{result.bar.requirement} {head[2]}" if first else "",
                    ("holds" if result.holds else "MISSED") if first else "",
                )
            )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def write_report(results: list[Result], path: Path, facts: Mapping[str, str]) -> None:
    """Write the results as one JSON document."""
    document = {
        "environment": {**environment(), **facts},
        "results": [{**asdict(result), "holds": result.holds} for result in results],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
