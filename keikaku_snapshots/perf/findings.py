"""What a report means and what to do: rules over its numbers, in words."""

from __future__ import annotations

import itertools
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from keikaku_snapshots.perf.floors import floors, share_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keikaku_snapshots.perf.report import Measurement, PerformanceReport

#: Slowest through median from which on the runs are called uneven.
_UNEVEN = 1.5
#: Time for an office at one scale through that at the next smaller one that is worth a word.
_GROWTH = 1.5
#: Runs from which on two reports can be compared (see `comparison`).
_COMPARABLE_RUNS = 5
#: Milliseconds of a round trip that a local server never needs.
_FAR_MS = 1.0
#: What helps where a floor is broken.
_REMEDIES = {
    "generate": (
        "Look at the server first: disk, checkpoints (max_wal_size), other load. For a load into many "
        "indexes generate(…, drop_and_readd_constraints=True) halves the time."
    ),
    "restore": (
        "Let the role create databases: a swap loads without waiting for the disk. Close other sessions, "
        "which force a restore in place."
    ),
    "workload": (
        "Look for queries in a loop (the number of queries must not grow with offices) and for a missing "
        "index; the server logs statements above log_min_duration_statement."
    ),
}
_TIMEOUT_REMEDY = (
    "Find what was waited for: pg_stat_activity while it runs, the server's log after it. Statements are "
    "stopped after 600 s, a free connection is waited for 60 s (50 at most, max_connections must allow them)."
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that the numbers say."""

    #: ``good``, ``note`` for what to know, ``act`` for what to do something about.
    kind: Literal["good", "note", "act"]
    #: What it is.
    text: str
    #: What to do; empty when there is nothing.
    advice: str = ""


def findings(report: PerformanceReport) -> list[Finding]:
    """Say what a report means and what to do.

    Args:
        report: The report.

    Returns:
        What to act on first, then what to know.
    """
    found = [
        *_floors(report),
        *_speed(report),
        *_growth(report),
        *_queries(report),
        *_uneven(report),
        *_environment(report),
    ]
    order = ("act", "good", "note")
    return sorted(found, key=lambda finding: order.index(finding.kind))


def _floors(report: PerformanceReport) -> Iterator[Finding]:
    lines = floors(report)
    for floor in lines:
        if floor.status == "broken":
            remedy = _REMEDIES.get(floor.title.split()[0], _TIMEOUT_REMEDY)
            yield Finding("act", f"Broken: {floor.title} ({floor.detail}).", remedy)
    told = " ".join(floor.detail for floor in lines)
    for item in report.measurements:
        for failure in item.failures:
            if failure.message in told:
                continue
            text = f"{item.title} failed with {failure.kind}: {failure.message}."
            yield Finding("act", text, "Run it again with -v; docs/troubleshooting.md knows the errors.")
    holding = [floor for floor in lines if floor.status == "holds"]
    if holding:
        shares = [floor.value_s / floor.limit_s for floor in holding if floor.value_s and floor.limit_s]
        closest = f"; the closest one uses {share_text(max(shares))} of it" if shares else ""
        yield Finding("good", f"{len(holding)} of {len(lines)} limits are measured and hold{closest}.")
    missing = [floor.title for floor in lines if floor.status == "not measured"]
    if missing:
        yield Finding("note", f"Not measured: {', '.join(missing)}.", "Measure with --scale medium.")


def _speed(report: PerformanceReport) -> Iterator[Finding]:
    for scale in report.scales[-1:]:
        parts = []
        for item in report.measurements:
            if item.scale == scale and item.median_s:
                rate = f" ({item.rows / item.median_s:,.0f} rows/s)" if item.step == "generate" else ""
                parts.append(f"{item.step} {item.median_s:.3g} s{rate}")
        if parts:
            units = next(item.units for item in report.measurements if item.scale == scale)
            text = f"At {scale} ({units:,} offices) the median run takes: {', '.join(parts)}."
            yield Finding("good", text)
    restores = [item for item in report.measurements if item.step.startswith("restore") and item.seconds]
    # The quickest way at the largest scale.
    largest = [item for item in restores if item.scale == report.scales[-1]]
    restore = min(largest, key=lambda item: item.median_s or 0.0, default=None)
    generate = report.find("generate", restore.scale) if restore is not None else None
    if restore and generate and restore.median_s and generate.median_s:
        factor = generate.median_s / restore.median_s
        if factor >= 1.2:
            way = "from the template" if restore.step == "restore_warm" else "from the file"
            text = f"Restoring {restore.scale} {way} is {factor:.1f} times faster than generating it again."
            yield Finding("note", text, "Let tests restore the snapshot instead of generating.")
        elif factor < 0.8:
            text = f"Restoring {restore.scale} takes {1 / factor:.1f} times as long as generating it."
            advice = "At this size generating is quick; a snapshot pays for rows that are not generated."
            yield Finding("note", text, advice)


def _growth(report: PerformanceReport) -> Iterator[Finding]:
    for smaller, larger in itertools.pairwise(report.scales):
        for item in report.measurements:
            before = report.find(item.step, smaller)
            if item.scale != larger or before is None or not item.median_s or not before.median_s:
                continue
            growth = (item.median_s / item.units) / (before.median_s / before.units)
            if growth > _GROWTH:
                yield Finding(
                    "act",
                    f"{item.step} grows faster than the data: an office costs {growth:.1f} times as much at "
                    f"{larger} as at {smaller}.",
                    "Look for a query that reads a whole table for each office, and for memory that spills "
                    "to disk (work_mem, shared_buffers).",
                )


def _queries(report: PerformanceReport) -> Iterator[Finding]:
    counted = [item for item in report.measurements if item.queries]
    if not counted:
        return
    listed = ", ".join(f"{max(item.queries)} for {item.units:,} offices" for item in counted)
    if any(max(item.queries) > item.units for item in counted):
        yield Finding("act", f"The workload runs many queries: {listed}.", _REMEDIES["workload"])
    else:
        yield Finding("good", f"The workload asks in sets: {listed} (queries of a run).")


def _uneven(report: PerformanceReport) -> Iterator[Finding]:
    uneven = [item for item in report.measurements if _spread(item) > _UNEVEN]
    if uneven:
        listed = ", ".join(f"{item.title} (slowest {_spread(item):.1f} times the median)" for item in uneven)
        load, cores = report.environment.get("load_at_begin"), report.environment.get("cores")
        busy = f" The load was {load} on {cores} cores at the beginning." if load and cores else ""
        advice = "Measure on a machine that does nothing else, or with more --runs, before comparing."
        yield Finding("note", f"Runs scatter: {listed}.{busy}", advice)
    if 0 < report.runs < _COMPARABLE_RUNS:
        text = f"{report.runs} runs of each step are too few to compare with another report."
        yield Finding("note", text, f"Measure with --runs {_COMPARABLE_RUNS} or more.")


def _spread(item: Measurement) -> float:
    return max(item.seconds) / statistics.median(item.seconds) if len(item.seconds) > 1 else 1.0


def _environment(report: PerformanceReport) -> Iterator[Finding]:
    settings = report.environment.get("server_settings", {})
    off = [
        name for name in ("fsync", "synchronous_commit", "full_page_writes") if settings.get(name) == "off"
    ]
    if off:
        text = f"The server does not wait for its disk ({', '.join(f'{name} is off' for name in off)})."
        advice = "Right for tests, faster than production; compare only with reports of the same settings."
        yield Finding("note", text, advice)
    if settings.get("shared_buffers") == "128MB" and "medium" in report.scales:
        text = "shared_buffers has its small default, 128MB."
        yield Finding("note", text, "docker-compose.test.yml has settings for a server of performance tests.")
    trip = report.environment.get("round_trip_ms")
    if isinstance(trip, int | float) and trip > _FAR_MS:
        text = f"A round trip to the server takes {trip:.1f} ms; each query of a workload pays it."
        yield Finding("note", text, "Measure next to the server when the network is not what is tested.")
    slow = [
        item for item in report.measurements if item.step == "restore" and item.note.startswith("in_place")
    ]
    if slow:
        text = f"Restores were done in place ({slow[-1].note.partition(': ')[2]})."
        yield Finding("note", text, "A swap is usually faster; it needs a role that may create databases.")
