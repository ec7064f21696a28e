"""How a run is said: states, progress, the bar that lives on a terminal, what to type next."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from keikaku_snapshots.cli import patch_live
from keikaku_snapshots.cli.patch_words import left_s, next_steps, progress_line, state_text
from tests.unit.test_patch_report import execution

WORKING = {
    "status": "running",
    "sub_state": "batching",
    "completed_at": None,
    "processed_records": 2500,
    "active_s": 2.5,
    "batch_number": 3,
}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "completed"),
        ({"sub_state": "rolled_back"}, "completed, rolled back"),
        ({"status": "failed", "sub_state": "rolled_back"}, "failed, rolled back"),
        (
            {"status": "failed", "sub_state": "rolled_back_with_conflicts"},
            "failed, rolled back with conflicts",
        ),
        ({"status": "failed", "sub_state": "failed"}, "failed"),
        ({"status": "running", "sub_state": "paused"}, "paused"),
        ({"status": "running", "sub_state": "window_closed"}, "waits for its window"),
        ({"status": "running", "sub_state": "rolling_back"}, "rolling back"),
        ({"status": "pending", "sub_state": "pending"}, "pending"),
    ],
)
def test_a_state_is_a_few_words(changes: dict[str, Any], words: str) -> None:
    """What the two halves of a state mean together."""
    assert state_text(execution(**changes)) == words


def test_progress_is_a_line_with_rate_time_left_memory_batch_and_inconsistencies() -> None:
    """Everything that a person at night asks of a run."""
    said = progress_line(execution(**WORKING, inconsistent_records=7), 91 * 2**20)

    assert said == (
        "round_prices 0b1f3c2e batching: 25%, 2,500 of 10,000 rows, 1,000 rows/s, 91 MB,"
        " batch 3 of 1,000 rows, 7 inconsistent, 7.50 s left"
    )


def test_what_nobody_knows_is_left_out() -> None:
    """Before the first batch there is no rate, and without an estimate no share."""
    new = execution(**{**WORKING, "processed_records": 0, "active_s": 0.0, "estimated_records": None})

    assert left_s(new) is None
    assert progress_line(new) == (
        "round_prices 0b1f3c2e batching: 0 rows, 90 MB, batch 3 of 1,000 rows, 0 inconsistent"
    )


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_bar_shows_the_same_on_every_width(width: int) -> None:
    """A bar, its share and the time left in one line, the numbers below."""
    console = Console(file=io.StringIO(), width=width, force_terminal=False)

    console.print(patch_live.picture([patch_live.Seen(execution(**WORKING), 91 * 2**20)]))
    shown = console.file.getvalue()  # type: ignore[attr-defined] # what was given above

    assert "round_prices 0b1f3c2e" in shown
    assert "25%" in shown
    assert "0:08 left" in shown
    assert "1,000 rows/s" in shown
    assert "0 inconsistent" in shown


@pytest.mark.parametrize(
    ("changes", "first"),
    [
        ({}, "keikaku patch rollback 0b1f3c2e   take it back"),
        ({"status": "running", "sub_state": "paused"}, "keikaku patch resume 0b1f3c2e     go on"),
        (
            {"status": "failed", "sub_state": "rolled_back_with_conflicts", "conflicts": 1},
            "keikaku patch rollback 0b1f3c2e   take back what is left",
        ),
        (
            {"status": "failed", "sub_state": "rolled_back", "rollback_performed": True},
            "keikaku patch report 0b1f3c2e     see its batches",
        ),
    ],
)
def test_what_to_type_next(changes: dict[str, Any], first: str) -> None:
    """The likeliest command stands first."""
    assert next_steps(execution(**changes))[0] == first


def test_nothing_is_to_be_done_about_a_dry_run_or_a_run_that_works() -> None:
    """No advice where there is none."""
    assert next_steps(execution(kind="dry_run")) == []
    assert next_steps(execution(**WORKING)) == []
