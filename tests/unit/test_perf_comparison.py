"""`keikaku perf compare`: what two reports prove, and what they cannot."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from datetime import UTC, date, datetime
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keikaku_snapshots.errors import UsageError
from keikaku_snapshots.perf import compare_reports, read_report
from keikaku_snapshots.perf.comparison import p_larger
from keikaku_snapshots.perf.files import write_report
from keikaku_snapshots.perf.report import Failure, Measurement, PerformanceReport

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

ENVIRONMENT = {
    "postgresql": "18.4",
    "python": "3.11.7",
    "keikaku_snapshots": "0.1.0",
    "cores": 2,
    "load_at_begin": 0.1,
    "round_trip_ms": 0.03,
    "server_settings": {"fsync": "on", "shared_buffers": "2GB"},
}
BASE = (1.00, 1.02, 0.98, 1.05, 0.97, 1.01, 1.03)


def measurement(seconds: Sequence[float] = BASE, step: str = "restore", **changes: Any) -> Measurement:
    """Some runs of a step at medium."""
    fields: dict[str, Any] = {"scale": "medium", "units": 100, "rows": 42_101, "memory_peak_mb": (80.0,)}
    return Measurement(step=step, seconds=tuple(seconds), **{**fields, **changes})


def report(*measurements: Measurement, **changes: Any) -> PerformanceReport:
    """A report of these measurements."""
    fields: dict[str, Any] = {
        "created_at": datetime(2026, 4, 1, 3, tzinfo=UTC),
        "environment": ENVIRONMENT,
        "scale": "medium",
        "runs": 7,
        "seed": 0,
        "reference_date": date(2026, 4, 1),
        "total_s": 12.0,
    }
    return PerformanceReport(measurements=measurements, **{**fields, **changes})


def times(factor: float, seconds: Sequence[float] = BASE) -> list[float]:
    """The runs, so many times as long."""
    return [value * factor for value in seconds]


class TestVerdicts:
    """What is said of one step."""

    @pytest.mark.parametrize(
        ("factor", "verdict"),
        [(1.0, "same"), (1.1, "same"), (1.5, "slower"), (3.0, "slower"), (0.9, "same"), (0.5, "faster")],
    )
    def test_medians_beyond_the_threshold_are_told(self, factor: float, verdict: str) -> None:
        """A fifth is not looked at; half as much again is slower, half is faster."""
        compared = compare_reports(report(measurement()), report(measurement(times(factor))))

        assert [item.verdict for item in compared.measurements] == [verdict]
        assert bool(compared.worse) == (verdict == "slower")
        assert compared.measurements[0].ratio == pytest.approx(factor)

    def test_the_threshold_can_be_chosen(self) -> None:
        """What is slower at a fifth is within a half."""
        old, new = report(measurement()), report(measurement(times(1.4)))

        assert compare_reports(old, new).worse
        assert not compare_reports(old, new, threshold=0.5).worse
        assert compare_reports(old, report(measurement(times(1.09))), threshold=0).worse

    def test_one_outlier_proves_nothing(self) -> None:
        """A run that a backup disturbed makes the mean twice as large, and nothing slower."""
        compared = compare_reports(report(measurement()), report(measurement((*BASE[:-1], 9.0))))

        assert compared.measurements[0].verdict == "same"

    def test_scattered_runs_are_unclear(self) -> None:
        """The median says slower, the runs overlap: said, but no failure."""
        compared = compare_reports(
            report(measurement((0.5, 0.9, 1.0, 1.9, 2.4))), report(measurement((0.6, 1.1, 1.6, 1.7, 2.0)))
        )

        assert compared.measurements[0].verdict == "unclear"
        assert compared.unclear
        assert not compared.worse

    @pytest.mark.parametrize(
        ("old", "new", "enough"), [(4, 4, False), (5, 5, True), (3, 7, True), (1, 50, False)]
    )
    def test_too_few_runs_are_said(self, old: int, new: int, enough: bool) -> None:
        """Where no outcome could be below 1 %, there is no verdict: never a silent pass."""
        both = (measurement(step="create"), measurement(step="create"))
        compared = compare_reports(
            report(measurement(times(1, range(1, old + 1))), both[0]),
            report(measurement(times(100, range(1, new + 1))), both[1]),
        )
        verdict = {item.title: item.verdict for item in compared.measurements}["restore medium"]

        assert verdict == ("slower" if enough else "too few runs")
        assert [item.title for item in compared.not_judged] == ([] if enough else ["restore medium"])

    def test_when_nothing_can_be_judged_it_is_an_error(self) -> None:
        """A gate that cannot close must not look like one that is open."""
        few = report(measurement(BASE[:3]))

        with pytest.raises(UsageError, match=r"(?s)too few runs.*restore medium.*--runs 5"):
            compare_reports(few, few)
        with pytest.raises(UsageError, match="cannot be compared"):
            compare_reports(report(measurement()), report(measurement(step="create")))
        with pytest.raises(UsageError, match="cannot be compared"):
            compare_reports(report(), report())

    def test_one_query_more_fails(self) -> None:
        """Queries are exact: a query in a loop is found although it is still quick."""
        compared = compare_reports(
            report(measurement(step="workload", queries=(3, 3))),
            report(measurement(step="workload", queries=(3, 4))),
        )

        assert compared.measurements[0].verdict == "same"
        assert compared.worse[0].more_queries

    def test_a_step_that_fails_now_fails_the_comparison(self) -> None:
        """No seconds are no speed."""
        failed = measurement((), failures=(Failure("OperationTimeoutError", "too slow", is_timeout=True),))
        compared = compare_reports(report(measurement()), report(failed))

        assert [item.verdict for item in compared.worse] == ["failed"]

    def test_other_data_are_not_compared(self) -> None:
        """Half as many rows are no faster restore."""
        other = measurement(times(0.5), rows=21_000)
        compared = compare_reports(
            report(measurement(), measurement(step="create")), report(other, measurement(step="create"))
        )

        assert "other data" in compared.not_judged[0].detail

    @pytest.mark.parametrize("threshold", [-0.1, math.inf, math.nan])
    def test_a_threshold_without_sense_is_refused(self, threshold: float) -> None:
        """A negative or endless threshold would decide everything beforehand."""
        with pytest.raises(UsageError, match="threshold"):
            compare_reports(report(measurement()), report(measurement()), threshold=threshold)


class TestStatistics:
    """The test behind the verdicts."""

    def test_the_probability_is_that_of_all_ways_to_deal(self) -> None:
        """Counted one by one: the share of all choices of places whose sum is at least as large."""
        first, second = [1.0, 4.0, 4.0, 7.0], [2.0, 4.0, 8.0, 9.0]
        values = sorted(first + second)
        ranks = {v: sum(i + 1 for i, w in enumerate(values) if w == v) / values.count(v) for v in values}
        everything = [ranks[value] for value in first + second]
        observed = sum(ranks[value] for value in second)
        ways = list(itertools.combinations(everything, 4))
        expected = sum(sum(way) >= observed for way in ways) / len(ways)

        assert p_larger(first, second) == expected

    def test_known_values(self) -> None:
        """Five and five that do not overlap are 1 of 252; equal values prove nothing."""
        assert p_larger([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]) == 1 / 252
        assert p_larger([6, 7, 8, 9, 10], [1, 2, 3, 4, 5]) == 1
        assert p_larger([3] * 5, [3] * 5) == 1
        assert p_larger([3] * 40, [3] * 40) == 1

    def test_many_runs_are_judged_by_the_normal_distribution(self) -> None:
        """Where counting ends, the approximation goes on from nearly the same value."""
        random = Random(1)
        first = [random.gauss(10, 1) for _ in range(30)]
        second = [random.gauss(10.6, 1) for _ in range(30)]
        exact = p_larger(first, second)
        approximate = p_larger(first, [*second, 10.5])

        assert exact == pytest.approx(approximate, rel=0.35)

    @given(
        st.lists(st.floats(0.001, 1000), min_size=1, max_size=9),
        st.lists(st.floats(0.001, 1000), min_size=1, max_size=9),
    )
    def test_it_is_a_probability_and_asks_for_order_only(
        self, first: list[float], second: list[float]
    ) -> None:
        """Between 0 and 1, and the same for seconds as for milliseconds."""
        p = p_larger(first, second)

        assert 0 < p <= 1
        assert p_larger([value * 1024 for value in first], [value * 1024 for value in second]) == p

    def test_false_alarms_are_rare(self) -> None:
        """Of 400 pairs of runs that are alike, with long tails, at most a few are called slower."""
        random = Random(7)
        alarms = 0
        for _ in range(400):
            old, new = ([random.lognormvariate(0, 0.3) for _ in range(7)] for _ in range(2))
            compared = compare_reports(report(measurement(old)), report(measurement(new)))
            alarms += bool(compared.worse)

        assert alarms <= 4


class TestEnvironment:
    """What else has changed."""

    def test_what_differs_is_named(self) -> None:
        """Another server, another setting: the reader decides whether the numbers mean anything."""
        settings = {"fsync": "off", "shared_buffers": "2GB"}
        other = {**ENVIRONMENT, "postgresql": "16.4", "server_settings": settings, "load_at_begin": 3.0}
        compared = compare_reports(report(measurement()), report(measurement(), environment=other))

        assert set(compared.environment) == {("postgresql", "18.4", "16.4"), ("fsync", "on", "off")}


class TestFiles:
    """JSON written and read back."""

    def test_a_report_is_read_back_as_it_was(self, tmp_path: Path) -> None:
        """Nothing is lost on the way; floors and findings are there for readers without the library."""
        failed = measurement((), step="create", failures=(Failure("DiskFullError", "no room"),))
        original = report(measurement(queries=(3,) * 7, note="1,000 mails"), failed)
        files = write_report(original, tmp_path / "new", "before")

        assert read_report(files.json) == original
        document = json.loads(files.json.read_text(encoding="utf-8"))
        assert {"floors", "findings", "measurements", "environment"} <= set(document)
        assert document["measurements"][0]["office_s"] == pytest.approx(0.0101)
        assert sorted(path.name for path in files.json.parent.iterdir()) == ["before.html", "before.json"]

    @pytest.mark.parametrize(
        "text",
        ["", "{", "[]", "{}", "null", '{"format_version": 2}', '{"format_version": 1, "created_at": 5}'],
    )
    def test_what_is_no_report_is_refused_with_its_path(self, tmp_path: Path, text: str) -> None:
        """Cut, foreign or newer files: what was found and where, no traceback."""
        file = tmp_path / "x.json"
        file.write_text(text, encoding="utf-8")

        with pytest.raises(UsageError, match=r"no performance report(?s:.*)x\.json"):
            read_report(file)
        with pytest.raises(UsageError, match="cannot be read"):
            read_report(tmp_path / "missing.json")

    def test_every_missing_or_wrong_field_is_refused(self, tmp_path: Path) -> None:
        """Each field in turn taken out or made a text: an error of ours, never a traceback."""
        file = tmp_path / "x.json"
        document = report(measurement()).to_document()
        for place in (document, document["measurements"][0]):
            for name in set(place) - {"floors", "findings", "median_s", "office_s"}:
                for change in ("remove", "wrong"):
                    kept = place.pop(name)
                    if change == "wrong" and name not in {"step", "scale", "note"}:
                        place[name] = "x"
                    elif change == "wrong":
                        place[name] = kept
                        continue
                    file.write_text(json.dumps(document), encoding="utf-8")
                    with pytest.raises(UsageError):
                        read_report(file)
                    place[name] = kept

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("seconds", [0.0]),
            ("seconds", [-1]),
            ("seconds", [math.nan]),
            ("seconds", [math.inf]),
            ("units", 0),
        ],
    )
    def test_numbers_that_nobody_measured_are_refused(
        self, tmp_path: Path, field: str, value: object
    ) -> None:
        """A report edited by hand must not divide by nothing."""
        document = report(measurement()).to_document()
        document["measurements"][0][field] = value
        (tmp_path / "x.json").write_text(json.dumps(document), encoding="utf-8")

        with pytest.raises(UsageError, match="no performance report"):
            read_report(tmp_path / "x.json")

    def test_values_are_frozen(self) -> None:
        """A report cannot be changed by mistake."""
        with pytest.raises(dataclasses.FrozenInstanceError):
            report().runs = 3  # type: ignore[misc]
