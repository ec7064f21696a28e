"""`keikaku perf` as a user meets it: a run, its files, a comparison, exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from keikaku_snapshots.cli import keikaku
from keikaku_snapshots.cli.output import Declined, Output
from keikaku_snapshots.cli.run import run
from keikaku_snapshots.perf.report import STEPS

if TYPE_CHECKING:
    from pathlib import Path

    from keikaku_snapshots.postgres.url import DatabaseURL

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def type_(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command line in this process, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setenv("KEIKAKU_MINIMUM_FREE_MB", "1")

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run(keikaku, list(arguments), "keikaku")
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def changed(path: Path, factor: float, **changes: Any) -> str:
    """A copy of a report whose every run took so many times as long, with enough runs to compare."""
    document = json.loads(path.read_text(encoding="utf-8"))
    for item in document["measurements"]:
        item["seconds"] = [factor * (1 + number / 100) for number in range(7)]
        item.update(changes)
    copy = path.with_name(f"x{factor}.json")
    copy.write_text(json.dumps(document), encoding="utf-8")
    return str(copy)


def test_a_run_and_its_comparison(
    type_: Run, database: DatabaseURL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table and a line for each limit, a page and JSON in perf-reports/; compare ends with 0 or 1."""
    monkeypatch.setenv("PERFORMANCE_TEST_DATABASE_URL", database.text)
    monkeypatch.setenv("KEIKAKU_DB_URL", "postgresql://nobody@127.0.0.1:1/of_development")

    code, out, err = type_("perf", "run", "--runs", "1", "--name", "before", "--reference-date", "2026-04-01")

    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()[1:6]] == [[step, "small"] for step in STEPS]
    assert "holds         workload small under 30 s: slowest of 1: " in out
    assert "not measured  restore medium under 10 s: run with --scale medium" in out
    assert "holds         no database timeout error: none in 5 runs" in out
    assert "report: perf-reports/before.html" in err
    reports = tmp_path / "perf-reports"
    assert "Performance report" in (reports / "before.html").read_text(encoding="utf-8")

    before = changed(reports / "before.json", 1)
    assert type_("perf", "compare", before, changed(reports / "before.json", 1.1))[0] == 0
    code, out, err = type_("perf", "compare", before, changed(reports / "before.json", 2))
    assert code == 1
    assert "worse: generate small, create small, restore small, restore_warm small, workload small" in err
    assert out.count("slower") == 10
    assert out.count("+100 %") >= 5
    assert type_("perf", "compare", before, changed(reports / "before.json", 2), "--threshold", "150")[0] == 0

    code, out, _ = type_("perf", "compare", before, changed(reports / "before.json", 2), "--json")
    document = json.loads(out)
    assert (code, document["worse"][0]) == (1, "generate small")
    assert document["measurements"][0]["ratio"] == pytest.approx(2)

    # One run is no proof.
    code, out, err = type_("perf", "compare", str(reports / "before.json"), before)
    assert (code, out) == (2, "")
    assert "the reports cannot be compared: too few runs" in err
    assert "generate small: 1 and 7 runs can be dealt in 8 ways" in err


def test_a_slow_step_among_others_is_said_when_it_cannot_be_judged(
    type_: Run, tmp_path: Path, database: DatabaseURL
) -> None:
    """Two runs of one step: the others are judged, this one is named, even with -q."""
    assert type_("perf", "run", "--runs", "1", "--name", "x", "--db-url", database.text, "-q")[0] == 0
    before = changed(tmp_path / "perf-reports" / "x.json", 1)
    document = json.loads((tmp_path / "perf-reports" / "x.json").read_text(encoding="utf-8"))
    for item in document["measurements"]:
        item["seconds"] = [1.0] * (2 if item["step"] == "restore" else 7)
    document["environment"]["postgresql"] = "9.6"
    (tmp_path / "few.json").write_text(json.dumps(document), encoding="utf-8")

    code, _, err = type_("perf", "compare", before, "few.json", "-q")

    assert code == 0
    assert "cannot be judged: restore small" in err
    assert "not the same environment: postgresql was " in err


def test_a_broken_limit_or_a_failed_step_is_1(
    type_: Run, database: DatabaseURL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report is written all the same, and --json holds it."""
    from keikaku_snapshots import SnapshotManager
    from keikaku_snapshots.errors import OperationTimeoutError

    def fail(*_: Any, **__: Any) -> None:
        raise OperationTimeoutError("the server cancelled the statement")

    monkeypatch.setattr(SnapshotManager, "restore_snapshot", fail)

    code, out, _ = type_("perf", "run", "--runs", "1", "--json", "--db-url", database.text)

    document = json.loads(out)
    assert code == 1
    assert document["measurements"][2]["failures"][0]["is_timeout"]
    assert document["floors"][-1]["status"] == "broken"
    assert document["files"]["html"].endswith(".html")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["perf", "run"], "no database is named"),
        (["perf", "run", "--name", "../x", "--db-url", "postgresql://u@h/d"], "no report can be called"),
        (["perf", "run", "--scale", "huge", "--db-url", "postgresql://u@h/d"], "huge"),
        (["perf", "compare", "a.json", "b.json"], "cannot be read"),
    ],
)
def test_wrong_calls_are_2_and_say_what_to_do(type_: Run, arguments: list[str], words: str) -> None:
    """Before anything is measured."""
    code, out, err = type_(*arguments)

    assert (code, out) == (2, "")
    assert words in err


def test_the_variable_of_the_scale_is_checked(
    type_: Run, monkeypatch: pytest.MonkeyPatch, database: DatabaseURL
) -> None:
    """PERF_TEST_SCALE with a typing error measures nothing."""
    monkeypatch.setenv("PERF_TEST_SCALE", "midium")

    code, _, err = type_("perf", "run", "--db-url", database.text)

    assert code == 2
    assert "known scales: small, medium, large" in err


def test_on_a_terminal_it_asks_first(
    type_: Run, database: DatabaseURL, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The database is named and what is lost is said; no is no, and --yes skips the question."""
    asked: list[str] = []

    def confirm(_: Output, question: str) -> None:
        asked.append(question)
        raise Declined

    monkeypatch.setattr(Output, "on_terminal", property(lambda _: True))
    monkeypatch.setattr(Output, "confirm", confirm)

    code, _, err = type_("perf", "run", "--runs", "1", "--db-url", database.text)

    assert code == 130
    assert asked == ["Measure there?"]
    assert database.location in err
    assert "what others write meanwhile is lost" in err
    assert list(tmp_path.iterdir()) == []
    assert type_("perf", "run", "--runs", "1", "--yes", "--db-url", database.text)[0] == 0
