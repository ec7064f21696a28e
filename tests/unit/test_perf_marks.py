"""PERF_TEST_SCALE and ``-m performance``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from keikaku_snapshots.errors import UnknownScaleError
from keikaku_snapshots.perf import performance_test_scale
from keikaku_snapshots.perf.scales import reason_to_skip, scales_up_to

if TYPE_CHECKING:
    from pathlib import Path

pytest_plugins = ["pytester"]

CONFTEST = """
from keikaku_snapshots.perf.pytest_marks import register_marker, skip_larger_scales

def pytest_configure(config):
    register_marker(config)

def pytest_collection_modifyitems(items):
    skip_larger_scales(items)
"""
TESTS = """
import pytest

def test_ordinary(): pass

@pytest.mark.performance
def test_any_scale(): pass

@pytest.mark.performance(scale="medium")
def test_medium(): pass

@pytest.mark.performance("large")
def test_large(): pass
"""


def test_small_is_the_default() -> None:
    """Nothing said, or an empty variable, is small: nobody waits for minutes by accident."""
    assert performance_test_scale({}) == performance_test_scale({"PERF_TEST_SCALE": " "}) == "small"
    assert performance_test_scale({"PERF_TEST_SCALE": "large"}) == "large"


def test_an_unknown_scale_is_a_value_error_that_lists_the_known_ones() -> None:
    """A typing error must not run or skip anything."""
    with pytest.raises(ValueError, match="small, medium, large"):
        performance_test_scale({"PERF_TEST_SCALE": "Medium"})
    with pytest.raises(UnknownScaleError, match="xlarge"):
        reason_to_skip("xlarge", {})


@pytest.mark.parametrize(("allowed", "run"), [("small", 1), ("medium", 2), ("large", 3)])
def test_larger_scales_are_skipped_with_the_way_to_run_them(allowed: str, run: int) -> None:
    """A scale that is allowed has no reason to be skipped; another one says how to run it."""
    reasons = [reason_to_skip(scale, {"PERF_TEST_SCALE": allowed}) for scale in ("small", "medium", "large")]

    assert reasons.count("") == run == len(scales_up_to(allowed))
    if run < 3:
        assert (
            reasons[-1] == f"needs scale large, PERF_TEST_SCALE is {allowed}: run with PERF_TEST_SCALE=large"
        )


class TestPytest:
    """A project whose conftest calls the plugin's functions."""

    @pytest.fixture(autouse=True)
    def _project(self, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
        pytester.makeconftest(CONFTEST)
        pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function")
        pytester.makepyfile(TESTS)
        monkeypatch.delenv("PERF_TEST_SCALE", raising=False)

    @staticmethod
    def _run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
        return pytester.runpytest_inprocess("-rs", "-p", "no:randomly", "--strict-markers", *arguments)

    def test_dash_m_performance_runs_them(self, pytester: pytest.Pytester) -> None:
        """``-m performance`` leaves out the other tests; larger scales are skipped with the reason."""
        result = self._run(pytester, "-m", "performance")

        result.assert_outcomes(passed=1, skipped=2, deselected=1)
        result.stdout.fnmatch_lines(["*needs scale medium, PERF_TEST_SCALE is small*PERF_TEST_SCALE=medium*"])

    def test_the_variable_allows_larger_scales(
        self, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """PERF_TEST_SCALE=large runs all."""
        monkeypatch.setenv("PERF_TEST_SCALE", "large")

        self._run(pytester, "-m", "performance").assert_outcomes(passed=3, deselected=1)

    @pytest.mark.parametrize(
        ("variable", "mark"), [("huge", '"small"'), ("small", '"huge"'), ("small", 'size="small"')]
    )
    def test_an_unknown_scale_stops_the_run(
        self,
        pytester: pytest.Pytester,
        monkeypatch: pytest.MonkeyPatch,
        variable: str,
        mark: str,
        tmp_path: Path,
    ) -> None:
        """In the variable or in a mark: one line that names it, no test is run."""
        monkeypatch.setenv("PERF_TEST_SCALE", variable)
        pytester.makepyfile(f"import pytest\n@pytest.mark.performance({mark})\ndef test_it(): pass")

        result = self._run(pytester)

        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines(["ERROR: *test_it: *scale*"])
