"""Limits, findings and the page of a performance report."""

from __future__ import annotations

import errno
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from keikaku_snapshots.errors import AccessDeniedError, DiskFullError, InvalidNameError
from keikaku_snapshots.pages.svg import seconds_text
from keikaku_snapshots.perf.charts import floors_chart, growth_chart, runs_chart
from keikaku_snapshots.perf.files import write_report
from keikaku_snapshots.perf.findings import findings
from keikaku_snapshots.perf.floors import floors, share_text
from keikaku_snapshots.perf.page import write_page
from keikaku_snapshots.perf.report import STEPS, Failure, PerformanceReport
from tests.unit.test_perf_comparison import BASE, ENVIRONMENT, measurement, report, times

UNITS = {"small": (10, 4_211), "medium": (100, 42_101), "large": (500, 210_501)}
TIMEOUT = Failure("OperationTimeoutError", "the server cancelled the statement", is_timeout=True)


def whole(*scales: str, factor: float = 1.0, **changes: Any) -> PerformanceReport:
    """Every step at every one of these scales, in proportion to the offices."""
    items = []
    for scale in scales:
        units, rows = UNITS[scale]
        for step in STEPS:
            queries = (3,) * 7 if step == "workload" else ()
            seconds = times(units / 100 * factor)
            items.append(measurement(seconds, step, scale=scale, units=units, rows=rows, queries=queries))
    return report(*items, **{"scale": scales[-1], **changes})


def texts(given: PerformanceReport, kind: str) -> str:
    """What is found of a kind, with the advice."""
    return "\n".join(f"{item.text} {item.advice}" for item in findings(given) if item.kind == kind)


class TestFloors:
    """C6, a line for each."""

    def test_every_promise_has_a_line(self) -> None:
        """The four times and the absence of timeouts, with what was seen."""
        lines = floors(whole("small", "medium"))

        assert [(line.title, line.status) for line in lines] == [
            ("generate medium under 300 s", "holds"),
            ("restore medium under 10 s", "holds"),
            ("workload small under 30 s", "holds"),
            ("workload medium under 300 s", "holds"),
            ("no database timeout error", "holds"),
        ]
        assert lines[1].detail == "slowest of 7: 1.05 s, 11 % of the limit"

    def test_the_slowest_run_decides(self) -> None:
        """One restore of eleven seconds breaks the promise of ten, whatever the median."""
        lines = floors(report(measurement((*BASE, 11.0))))

        assert (lines[1].status, lines[1].value_s) == ("broken", 11.0)

    def test_what_was_not_asked_for_is_not_measured(self) -> None:
        """A small run says so for medium, and how to measure it."""
        lines = floors(whole("small"))

        assert [line.status for line in lines].count("not measured") == 3
        assert lines[0].detail == "run with --scale medium"

    def test_a_failure_is_broken_and_what_needs_it_not_measured(self) -> None:
        """A step that failed breaks its promise; the next one was never begun."""
        lines = floors(report(measurement((), "generate", failures=(TIMEOUT,)), measurement((), "restore")))

        assert [line.status for line in lines[:2]] == ["broken", "not measured"]
        assert (lines[4].status, "cancelled" in lines[4].detail) == ("broken", True)

    def test_a_failure_that_is_no_timeout_breaks_no_promise_about_timeouts(self) -> None:
        """A full disk is another matter."""
        failed = measurement((), "restore", failures=(Failure("DiskFullError", "no room"),))

        assert [line.status for line in floors(report(failed))][1::3] == ["broken", "holds"]


class TestFindings:
    """What it means and what to do."""

    def test_a_good_run_asks_for_nothing(self) -> None:
        """All is well: said with numbers, nothing to act on."""
        given = whole("small", "medium")

        assert texts(given, "act") == ""
        assert "5 of 5 limits" in texts(given, "good")
        assert "3 for 10 offices, 3 for 100 offices" in texts(given, "good")

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            (whole("small", "medium", factor=20), "Broken: restore medium under 10 s"),
            (report(measurement((), failures=(TIMEOUT,))), "pg_stat_activity"),
            (
                report(measurement((), "create", failures=(Failure("DiskFullError", "no room"),))),
                "DiskFullError: no",
            ),
            (report(measurement(step="workload", queries=(11_003,))), "many queries: 11003 for 100"),
            (
                report(measurement(times(0.1), scale="small", units=10), measurement(times(3))),
                "restore grows faster than the data: an office costs 3.0 times",
            ),
        ],
    )
    def test_what_is_bad_comes_with_what_to_do(self, given: PerformanceReport, words: str) -> None:
        """First in the list, with advice."""
        assert words in texts(given, "act")
        assert findings(given)[0].kind == "act"
        assert all(item.advice for item in findings(given) if item.kind == "act")

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"environment": {**ENVIRONMENT, "server_settings": {"fsync": "off"}}}, "fsync is off"),
            (
                {"environment": {**ENVIRONMENT, "server_settings": {"shared_buffers": "128MB"}}},
                "small default",
            ),
            ({"environment": {**ENVIRONMENT, "round_trip_ms": 12.3}}, "takes 12.3 ms"),
            ({"environment": {}}, ""),
            ({"runs": 3}, "too few to compare"),
        ],
    )
    def test_circumstances_are_named(self, changes: dict[str, Any], words: str) -> None:
        """Settings, distance and the number of runs decide what the numbers are good for."""
        assert words in texts(whole("medium", **changes), "note")

    def test_restores_are_set_against_generating(self) -> None:
        """Which of the two a test suite should use at this size."""
        quick = report(measurement(times(2), "generate"), measurement(times(1)))
        slow = report(measurement(times(0.3), "generate"), measurement(times(1)))

        assert "2.0 times faster than generating" in texts(quick, "note")
        assert "3.3 times as long as generating" in texts(slow, "note")

    def test_scattered_runs_and_restores_in_place_are_named(self) -> None:
        """The load of the machine, and why a restore took the slow way."""
        given = report(measurement((*BASE[:-1], 5.0), note="in_place: another session is connected"))

        assert "slowest 5.0 times the median" in texts(given, "note")
        assert "0.1 on 2 cores" in texts(given, "note")
        assert "another session is connected" in texts(given, "note")


EVERYTHING = (
    whole("small", "medium", factor=20, runs=3),
    whole("small"),
    report(measurement((), failures=(TIMEOUT,))),
    report(measurement((), "create", failures=(Failure("DiskFullError", "no room"),))),
    report(measurement(step="workload", queries=(11_003,))),
    report(measurement(times(0.1), scale="small", units=10), measurement(times(3))),
    report(measurement(times(2), "generate"), measurement((*BASE[:-1], 5.0), note="in_place: a session")),
    report(measurement(times(0.3), "generate"), measurement(times(1))),
    whole(
        "medium",
        environment={"round_trip_ms": 9.0, "server_settings": {"fsync": "off", "shared_buffers": "128MB"}},
    ),
)


class TestJapanese:
    """KEIKAKU_LANG=ja."""

    def test_every_finding_and_advice_has_a_japanese_one(self) -> None:
        """What is said in English is said in Japanese, with the same numbers."""
        found = [finding for given in EVERYTHING for finding in findings(given)]

        assert len({finding.advice for finding in found}) >= 14
        for finding in found:
            assert re.search(r"[ぁ-ん]|: ", finding.text_ja), finding
            assert bool(finding.advice_ja) == bool(finding.advice), finding
            assert finding.advice == "" or re.search(r"[ぁ-ん]", finding.advice_ja), finding
            for number in re.findall(r"\d+\.\d", finding.text):
                assert number in finding.text_ja, finding

    def test_the_page_has_them_when_they_are_wanted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Both languages, so that a colleague without Japanese can read it too."""
        given = whole("small", "medium")
        assert "ja" not in re.findall(r'lang="(\w+)"', write_page(given, "x.json"))
        monkeypatch.setenv("KEIKAKU_LANG", "ja")
        page = write_page(given, "x.json")

        assert page.count('lang="ja"') == len(findings(given))
        assert "5 個の基準のうち 5 個を計測し、満たしています。" in page
        assert "5 of 5 limits" in page


class _Tags(HTMLParser):
    """Notes tags that are not closed, addresses and scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in {"meta", "br"}:
            self.open.append(tag)
        self.addresses += [str(value) for name, value in attrs if name in {"src", "href"}]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


class TestPage:
    """One HTML file."""

    @pytest.mark.parametrize(
        "given",
        [
            whole("small"),
            whole("small", "medium", "large"),
            report(),
            report(measurement((), failures=(TIMEOUT,))),
            report(measurement((0.5,)), runs=1),
        ],
        ids=["small", "all", "empty", "failed", "one run"],
    )
    def test_the_page_is_whole_and_needs_nothing_else(self, given: PerformanceReport) -> None:
        """Every tag is closed; no script, no address of another file; each chart has a title and is XML."""
        page = write_page(given, "before.json")
        tags = _Tags()
        tags.feed(page)

        assert tags.open == []
        assert tags.addresses == []
        assert "script" not in tags.tags
        assert re.search(r"@import|url\(|http(?!://www\.w3\.org/2000/svg)", page) is None
        for chart in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
            names = [child.tag.rpartition("}")[2] for child in ET.fromstring(chart)]  # noqa: S314 - our own
            assert names[:2] == ["title", "desc"]

    def test_texts_of_others_are_shown_and_not_obeyed(self) -> None:
        """An error message or a setting with markup in it stays text."""
        bad = "<script>alert(1)</script>&"
        environment = {**ENVIRONMENT, bad: bad, "server_settings": {bad: bad}}
        failed = measurement((), failures=(Failure(bad, bad),), note=bad)
        page = write_page(report(failed, measurement(note=bad, step="create"), environment=environment), bad)

        assert "<script" not in page
        assert page.count("&lt;script&gt;") >= 6

    def test_the_verdict_stands_first(self) -> None:
        """Broken limits are named before anything else."""
        assert "Good: all 5 limits" in write_page(whole("small", "medium"), "x.json")
        assert "Too slow or failed: restore medium under 10 s" in write_page(
            whole("medium", factor=20), "x.json"
        )

    def test_charts_keep_their_marks_inside(self) -> None:
        """Every place is within the drawing, for very short, very long and equal times."""
        for seconds in ((1e-6, 1e4), (0.2, 0.2), (5.0,)):
            items = [
                measurement(seconds, step, scale=scale, units=UNITS[scale][0])
                for step in STEPS
                for scale in UNITS
            ]
            given = report(*items)
            for chart in (runs_chart(items), floors_chart(floors(given)), growth_chart(given)):
                height = float(re.findall(r'viewBox="0 0 760 ([\d.]+)"', chart)[0])
                for name, limit in (
                    ("x", 760),
                    ("x1", 760),
                    ("cx", 760),
                    ("y", height),
                    ("y2", height),
                    ("cy", height),
                ):
                    places = [float(place) for place in re.findall(rf' {name}="(-?[\d.]+)"', chart)]
                    assert all(0 <= place <= limit for place in places), (name, places)

    def test_without_measurements_there_is_no_chart(self) -> None:
        """Nothing to draw is nothing drawn."""
        assert runs_chart([measurement(())]) == floors_chart(floors(report())) == growth_chart(report()) == ""

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [(0.00123, "1.23 ms"), (0.5, "500 ms"), (1.234, "1.23 s"), (59.96, "60 s"), (12_345, "12,345 s")],
    )
    def test_seconds_are_readable(self, seconds: float, text: str) -> None:
        """Three digits, no exponents."""
        assert seconds_text(seconds) == text

    def test_shares_are_readable(self) -> None:
        """Two digits that count."""
        assert [share_text(share) for share in (0.00021, 0.0073, 0.0996, 1.5)] == [
            "0.021 %",
            "0.73 %",
            "10 %",
            "150 %",
        ]


class TestFiles:
    """Where the report is written."""

    def test_an_earlier_report_is_replaced_as_a_whole(self, tmp_path: Path) -> None:
        """A name that is used again; without a name the time is the name."""
        for runs in (5, 7):
            write_report(report(measurement(), runs=runs), tmp_path, "before")
        unnamed = write_report(report(), tmp_path)

        assert '"runs": 7' in (tmp_path / "before.json").read_text(encoding="utf-8")
        assert unnamed.json.name == "performance_20260401_030000.json"

    @pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "a b", "x\n", "-x", "x" * 101])
    def test_names_stay_in_the_directory(self, tmp_path: Path, name: str) -> None:
        """A name is a name and no path."""
        with pytest.raises(InvalidNameError):
            write_report(report(), tmp_path, name)
        assert list(tmp_path.iterdir()) == []

    def test_a_place_that_cannot_be_written_is_an_error_of_ours(self, tmp_path: Path) -> None:
        """A file in the way of the directory: what and where, nothing half-written."""
        (tmp_path / "file").write_text("")

        with pytest.raises(AccessDeniedError, match="performance report"):
            write_report(report(), tmp_path / "file" / "reports", "x")

    @pytest.mark.parametrize("full_at", [1, 2])
    def test_a_full_disk_leaves_no_half_report(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_at: int
    ) -> None:
        """No room for the first or the second file: an error of ours, the earlier report stays readable."""
        files = write_report(report(measurement(), runs=5), tmp_path, "before")
        before = files.json.read_bytes()
        original, calls = Path.write_text, 0

        def write(self: Path, text: str, **options: Any) -> int:
            nonlocal calls
            calls += 1
            if calls == full_at:
                original(self, text[:100], **options)
                raise OSError(errno.ENOSPC, "No space left on device", str(self))
            return original(self, text, **options)

        monkeypatch.setattr(Path, "write_text", write)
        with pytest.raises(DiskFullError, match="no room for the performance report"):
            write_report(report(measurement(), runs=7), tmp_path, "before")

        assert files.json.read_bytes() == before
        assert files.html.read_text(encoding="utf-8").endswith("</html>\n")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["before.html", "before.json"]
