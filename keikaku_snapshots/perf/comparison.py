"""Has something become slower? Two reports, compared by medians and a test that needs no bell curve.

Run times are skewed and have outliers, so neither means nor a t-test are used. The question is
not "do they differ" but "is the new one slower by more than the threshold": the old times are
multiplied by 1 + threshold, and the one-sided Mann-Whitney test asks whether the new ones are
larger still. With few runs its p-value is exact: all ways to deal the times to the two sides are
counted. Five and five runs have 252 ways, so the smallest p is 0.4 %; with four and four it is 1.4 %,
which can never be below the level of 1 %. Then there is no answer, and that is what is said.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Literal, TypeAlias

from keikaku_snapshots.errors import UsageError
from keikaku_snapshots.perf.report import STEPS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keikaku_snapshots.perf.report import Measurement, PerformanceReport

__all__ = ["LEVEL", "MeasurementComparison", "ReportComparison", "Verdict", "compare_reports"]

#: The share of false alarms that is accepted for each measurement.
LEVEL = 0.01
#: Slow-down that is not looked at, as a share: a shared machine differs by more than a tenth from day to day.
USUAL_THRESHOLD = 0.2
#: With more runs on both sides together the normal distribution stands in for counting.
_MOST_COUNTED = 60
_RESAMPLES = 2000

Verdict: TypeAlias = Literal["slower", "faster", "same", "unclear", "too few runs", "missing", "failed"]


@dataclass(frozen=True, slots=True)
class MeasurementComparison:
    """One step at one scale in both reports."""

    #: Step and scale.
    title: str
    #: ``slower`` and ``faster``: by more than the threshold, at the level of 1 %. ``unclear``: the medians
    #: say so, the test does not. ``missing``: not in both reports. ``failed``: it failed in the new one.
    verdict: Verdict
    #: Median of the old seconds; None when there are none.
    old_s: float | None = None
    #: Median of the new seconds, likewise.
    new_s: float | None = None
    #: New median through old median.
    ratio: float | None = None
    #: Where that ratio lies with 95 % confidence, by drawing the runs again (bootstrap).
    ratio_low: float | None = None
    #: The upper end of it.
    ratio_high: float | None = None
    #: Probability of times like these when nothing is slower by more than the threshold.
    p_slower: float | None = None
    #: Queries of a run in the old report, when they were counted.
    old_queries: int | None = None
    #: Queries of a run in the new report.
    new_queries: int | None = None
    #: What a reader should know, in words.
    detail: str = ""

    @property
    def is_worse(self) -> bool:
        """Whether the comparison fails because of this one."""
        return self.verdict in {"slower", "failed"} or self.more_queries

    @property
    def more_queries(self) -> bool:
        """Whether it needs more queries than before; these are exact, so one more is enough."""
        return self.old_queries is not None and (self.new_queries or 0) > self.old_queries


@dataclass(frozen=True, slots=True)
class ReportComparison:
    """What has changed between two reports."""

    #: Slow-down that is not looked at, as a share.
    threshold: float
    #: Every measurement of either report.
    measurements: tuple[MeasurementComparison, ...]
    #: Facts of the environment that differ: name, old, new.
    environment: tuple[tuple[str, str, str], ...]

    @property
    def worse(self) -> tuple[MeasurementComparison, ...]:
        """What has become worse."""
        return tuple(item for item in self.measurements if item.is_worse)

    @property
    def unclear(self) -> tuple[MeasurementComparison, ...]:
        """What looks different, without proof."""
        return tuple(item for item in self.measurements if item.verdict == "unclear")

    @property
    def not_judged(self) -> tuple[MeasurementComparison, ...]:
        """What cannot be judged: too few runs, or not in both reports."""
        return tuple(item for item in self.measurements if item.verdict in {"too few runs", "missing"})


def compare_reports(
    old: PerformanceReport, new: PerformanceReport, *, threshold: float = USUAL_THRESHOLD
) -> ReportComparison:
    """Tell what has become slower, faster, or cannot be told.

    Args:
        old: The report to compare with.
        new: The report that is judged.
        threshold: Slow-down that is not looked at, as a share: 0.2 is a fifth.

    Returns:
        A line for each measurement, and what differs in the environment.

    Raises:
        UsageError: The threshold is negative, or nothing at all can be judged: no measurement is
            in both reports with enough runs.
    """
    if not threshold >= 0 or math.isinf(threshold):
        raise UsageError(f"threshold must be 0 or more, not {threshold}")
    keys = list(dict.fromkeys((item.step, item.scale) for item in (*old.measurements, *new.measurements)))
    order = list(STEPS)
    keys.sort(key=lambda key: order.index(key[0]) if key[0] in order else len(order))
    lines = tuple(_compare(old.find(*key), new.find(*key), f"{key[0]} {key[1]}", threshold) for key in keys)
    compared = ReportComparison(threshold, lines, tuple(_environment(old, new)))
    if len(compared.not_judged) == len(lines):
        raise UsageError(
            "the reports cannot be compared: too few runs",
            found="\n".join(f"{item.title}: {item.detail}" for item in lines) or "no measurements",
            hint="Measure both with --runs 5 or more, at the same scale.",
        )
    return compared


def _compare(
    old: Measurement | None, new: Measurement | None, title: str, threshold: float
) -> MeasurementComparison:
    old_queries = max(old.queries) if old is not None and old.queries else None
    new_queries = max(new.queries) if new is not None and new.queries else None
    old_s, new_s = (None if item is None else item.median_s for item in (old, new))
    if new is not None and new.failures and old is not None and not old.failures:
        return MeasurementComparison(title, "failed", old_s, new_s, detail=new.failures[0].message)
    if old is None or new is None or old_s is None or new_s is None:
        which = "old" if old_s is None else "new"
        return MeasurementComparison(title, "missing", old_s, new_s, detail=f"not in the {which} report")
    if (old.units, old.rows) != (new.units, new.rows):
        detail = f"other data: {old.rows:,} and {new.rows:,} rows"
        return MeasurementComparison(title, "missing", old_s, new_s, detail=detail)
    ratio = new_s / old_s if old_s else math.inf
    low, high = _interval(old.seconds, new.seconds)
    verdict, p_slower, detail = _judge(old.seconds, new.seconds, ratio, threshold)
    return MeasurementComparison(
        title, verdict, old_s, new_s, ratio, low, high, p_slower, old_queries, new_queries, detail
    )


def _judge(
    old: Sequence[float], new: Sequence[float], ratio: float, threshold: float
) -> tuple[Verdict, float | None, str]:
    ways = math.comb(len(old) + len(new), len(new))
    if 1 / ways > LEVEL:
        detail = f"{len(old)} and {len(new)} runs can be dealt in {ways} ways, too few for a test at 1 %"
        return "too few runs", None, detail
    share = 1 + threshold
    p_slower = p_larger([value * share for value in old], new)
    p_faster = p_larger([value * share for value in new], old)
    if p_slower <= LEVEL:
        return "slower", p_slower, f"more than {threshold * 100:g} % slower (p = {p_slower:.2g})"
    if p_faster <= LEVEL:
        return "faster", p_slower, f"more than {threshold * 100:g} % faster (p = {p_faster:.2g})"
    if ratio > share or ratio * share < 1:
        return "unclear", p_slower, "the runs scatter too much to tell; measure again with more --runs"
    return "same", p_slower, f"within {threshold * 100:g} %"


def p_larger(first: Sequence[float], second: Sequence[float]) -> float:
    """One-sided Mann-Whitney test: how likely are values of `second` that are so much larger by chance?

    Args:
        first: Values of the one side.
        second: Values of the other side.

    Returns:
        The p-value; exact where there are few values, also with equal ones among them.
    """
    ranks = _ranks([*first, *second])
    observed = sum(ranks[len(first) :])
    if len(ranks) <= _MOST_COUNTED:
        counts = _deals(ranks, len(second))
        reached = sum(count for total, count in counts.items() if total >= observed)
        return reached / math.comb(len(ranks), len(second))
    mean = len(second) * (len(ranks) + 1) / 2
    spread = statistics.pvariance(ranks) * len(first) * len(second) / (len(ranks) - 1)
    if spread == 0:
        return 1.0
    return 0.5 * math.erfc((observed - mean - 0.5) / math.sqrt(2 * spread))


def _deals(ranks: Sequence[float], size: int) -> Counter[float]:
    """In how many ways `size` of the ranks have each sum; sums of halves are exact."""
    by_size: list[Counter[float]] = [Counter({0.0: 1}), *(Counter() for _ in range(size))]
    for rank in ranks:
        # From the largest on, so that no rank is taken twice.
        for taken in range(size, 0, -1):
            for total, count in by_size[taken - 1].items():
                by_size[taken][total + rank] += count
    return by_size[size]


def _ranks(values: Sequence[float]) -> list[float]:
    """The places of the values in their order, from 1; equal ones share theirs."""
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    place = 0
    for _, group in itertools.groupby(order, key=values.__getitem__):
        members = list(group)
        for index in members:
            ranks[index] = place + (len(members) + 1) / 2
        place += len(members)
    return ranks


def _interval(old: Sequence[float], new: Sequence[float]) -> tuple[float, float]:
    """95 % of the ratios of medians when the runs are drawn again; the same at every call."""
    random = Random(0)
    ratios = []
    for _ in range(_RESAMPLES):
        below = statistics.median(random.choices(old, k=len(old)))
        ratios.append(statistics.median(random.choices(new, k=len(new))) / below if below else math.inf)
    ratios.sort()
    return ratios[int(_RESAMPLES * 0.025)], ratios[int(_RESAMPLES * 0.975) - 1]


def _environment(old: PerformanceReport, new: PerformanceReport) -> list[tuple[str, str, str]]:
    """What differs; not what differs at every run anyway."""
    before, after = (_flat(report) for report in (old, new))
    return [
        (name, str(before.get(name, "unknown")), str(after.get(name, "unknown")))
        for name in dict.fromkeys((*before, *after))
        if before.get(name) != after.get(name)
    ]


def _flat(report: PerformanceReport) -> dict[str, object]:
    facts = {
        name: value
        for name, value in report.environment.items()
        if name not in {"load_at_begin", "round_trip_ms", "server_settings"}
    }
    settings = report.environment.get("server_settings")
    return {**facts, **(settings if isinstance(settings, dict) else {}), "seed": report.seed}
