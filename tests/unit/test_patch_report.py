"""The report of a patch: what it draws, what it says, and that nothing in it is markup."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID
from xml.etree import ElementTree as ET

import pytest

from keikaku_snapshots.patches.execution import Execution
from keikaku_snapshots.patches.report import (
    Batch,
    Check,
    Conflict,
    Difference,
    Message,
    PatchReport,
    Rejected,
    pauses,
    percentile,
)
from keikaku_snapshots.patches.report_charts import batches_chart, progress_chart, span_text
from keikaku_snapshots.patches.report_meaning import meanings, verdict
from keikaku_snapshots.patches.report_page import write_page

NUMBER = UUID("0b1f3c2e-5d6a-4b7c-8d9e-0f1a2b3c4d5e")
BEGAN = datetime(2026, 4, 1, 2, 0, tzinfo=UTC)


def execution(**changes: Any) -> Execution:
    """A completed run of 10,000 rows, changed as told."""
    facts: dict[str, Any] = {
        "execution_id": NUMBER,
        "patch_name": "round_prices",
        "patch_version": 1,
        "kind": "run",
        "status": "completed",
        "sub_state": "done",
        "dry_run": False,
        "created_at": BEGAN,
        "started_at": BEGAN,
        "completed_at": BEGAN + timedelta(seconds=4),
        "actor": "aoki",
        "parameters": {"factor": "1.05"},
        "parameters_hash": "p" * 64,
        "source_hash": "s" * 64,
        "target_tables": ("public.inventories",),
        "mode": "batched",
        "cursor": ("10000",),
        "upper_key": ("10000",),
        "batch_number": 10,
        "batch_size": 1000,
        "estimated_records": 10_000,
        "estimated_s": 5.0,
        "active_s": 3.0,
        "processed_records": 10_000,
        "changed_records": 9_900,
        "unchanged_records": 100,
        "rejected_records": 0,
        "inconsistent_records": 0,
        "peak_memory_bytes": 90 * 2**20,
        "lease_token": 1,
        "backup_reference": "",
        "outside_window_reason": "",
        "approved_by": "",
        "error_message": "",
        "error_sqlstate": "",
        "rollback_performed": False,
        "conflicts": 0,
        "findings": {},
    }
    return Execution(**(facts | changes))


def batches(
    count: int = 10, *, phase: Any = "run", began: datetime = BEGAN, **changes: Any
) -> tuple[Batch, ...]:
    """Batches of 1,000 rows that took 0.3 s each, one after the other."""
    facts: dict[str, Any] = {
        "seconds": 0.3,
        "batch_size": 1000,
        "processed": 1000,
        "changed": 990,
        "inconsistent": 0,
        "memory_bytes": 80_000_000,
    } | changes
    return tuple(
        Batch(phase=phase, number=number, started_at=began + timedelta(seconds=0.4 * number), **facts)
        for number in range(1, count + 1)
    )


def report(run: Execution | None = None, **changes: Any) -> PatchReport:
    """A report of a run."""
    facts: dict[str, Any] = {
        "execution": run or execution(),
        "made_at": BEGAN + timedelta(minutes=5),
        "location": "127.0.0.1:5432/shop",
        "batches": batches(),
        "undo_kept": True,
    }
    return PatchReport(**(facts | changes))


def texts(shown: PatchReport) -> str:
    """All that the report says in words."""
    return "\n".join(f"{one.kind}: {one.text} -> {one.advice}" for one in meanings(shown))


class TestWords:
    """What a report says of how a run ended."""

    @pytest.mark.parametrize(
        ("changes", "kind", "words", "advice"),
        [
            ({}, "good", "Completed: 9,900 rows changed", f"keikaku patch rollback {NUMBER}"),
            (
                {"kind": "dry_run", "dry_run": True},
                "good",
                "Dry run succeeded: nothing was changed, 9,900 rows would be.",
                "keikaku patch run round_prices --execute",
            ),
            (
                {"status": "running", "sub_state": "paused", "completed_at": None},
                "note",
                "Not finished: paused after 10,000 rows.",
                f"keikaku patch resume {NUMBER}",
            ),
            (
                {
                    "status": "failed",
                    "sub_state": "rolled_back",
                    "rollback_performed": True,
                    "error_message": "x",
                },
                "broken",
                "Run failed. All of its changes were taken back.",
                "begin with a dry run",
            ),
            (
                {
                    "status": "failed",
                    "sub_state": "rolled_back_with_conflicts",
                    "conflicts": 3,
                    "error_message": "x",
                },
                "broken",
                "except for 3 rows that others had changed since.",
                "--on-conflict force",
            ),
            (
                {"status": "failed", "sub_state": "failed", "error_message": "x"},
                "broken",
                "Its changes are still in the tables.",
                f"Take them back: keikaku patch rollback {NUMBER}",
            ),
            (
                {"status": "failed", "sub_state": "failed", "batch_number": 0, "error_message": "x"},
                "broken",
                "Nothing had been changed.",
                "Correct the cause",
            ),
        ],
    )
    def test_the_outcome_and_what_to_type_next(
        self, changes: dict[str, Any], kind: str, words: str, advice: str
    ) -> None:
        """Every end has a sentence of its own and the command that follows."""
        shown = report(execution(**changes))

        found = verdict(shown)

        assert found[0] == kind
        assert words in found[1]
        assert advice in texts(shown)

    def test_a_silent_process_is_said_to_be_dead(self) -> None:
        """Only a run that is not over, and only after the lease."""
        run = execution(status="running", sub_state="batching", completed_at=None)

        assert "keikaku patch reap" in texts(report(run, silent_s=31.0))
        assert "keikaku patch reap" not in texts(report(run, silent_s=29.0))
        assert "keikaku patch reap" not in texts(report(silent_s=1000.0))

    def test_slow_batches_rests_and_slowing_are_told(self) -> None:
        """What an application felt, and what grew."""
        slow = batches(5) + tuple(
            dataclasses.replace(one, number=one.number + 5, seconds=1.5)
            for one in batches(5, began=BEGAN + timedelta(hours=2))
        )

        said = texts(report(batches=slow))

        assert "at most 1.5 s" in said
        assert "rested once between batches, 1 h 59 min in all" in said
        assert "A row took 5.0 times as long at the end" in said

    def test_limits_that_came_near_are_told(self) -> None:
        """Memory from 80 % on, time from twice the estimate on."""
        run = execution(active_s=11.0)

        said = texts(report(run, memory_limit_bytes=100 * 2**20))

        assert "Memory came to 90% of its limit of 100 MB" in said
        assert "2.2 times the estimate of 5 s" in said
        assert "Memory came" not in texts(report(run, memory_limit_bytes=500_000_000))

    def test_messages_that_did_not_arrive_are_told(self) -> None:
        """A dead channel changes no result, but somebody should know."""
        lost = Message(
            event="completed", created_at=BEGAN, delivered_at=None, last_error="connection refused"
        )

        assert "1 of 1 messages have not arrived: connection refused" in texts(report(messages=(lost,)))


class TestCharts:
    """What is drawn."""

    def test_every_batch_has_a_bar_in_each_panel(self) -> None:
        """Ten batches, three panels; well-formed, with a description for who cannot see it."""
        root = ET.fromstring(batches_chart(report()))  # noqa: S314

        bars = [one for one in root.iter() if one.get("class", "").startswith("bar")]

        assert len(bars) == 30
        assert "10 batches" in (root.findtext("{http://www.w3.org/2000/svg}desc") or "")

    def test_many_batches_share_bars_and_run_and_rollback_never_do(self) -> None:
        """A picture of 5,000 batches stays readable and small."""
        many = batches(3001) + batches(1999, phase="rollback", began=BEGAN + timedelta(hours=1))

        chart = batches_chart(report(batches=many))

        assert len(chart) < 200_000
        assert chart.count('class="bar run"') == 3 * 94
        assert chart.count('class="bar back"') == 3 * 63

    def test_no_batches_draw_nothing(self) -> None:
        """A dry run and an empty table have none."""
        assert batches_chart(report(batches=())) == ""
        assert progress_chart(report(batches=batches(1))) == ""

    def test_a_rest_is_marked(self) -> None:
        """Where a run was paused, the picture says for how long."""
        rested = batches(3) + batches(3, began=BEGAN + timedelta(minutes=30))

        assert "rested 29 min" in batches_chart(report(batches=rested))
        assert [position for position, _ in pauses(rested)] == [3]

    @pytest.mark.parametrize(
        ("seconds", "words"),
        [(0.25, "0.25 s"), (12, "12 s"), (185, "3 min 5 s"), (180, "3 min"), (7800, "2 h 10 min")],
    )
    def test_spans_are_written_for_people(self, seconds: float, words: str) -> None:
        """No second is told where an hour is meant."""
        assert span_text(seconds) == words

    def test_the_percentile_is_one_of_the_values(self) -> None:
        """Nearest rank: the 99th of a hundred, the greatest of few."""
        assert percentile([float(one) for one in range(1, 101)], 0.99) == 99
        assert percentile([1.0, 2.0], 0.99) == 2
        assert percentile([1.0], 0.5) == 1


class TestPage:
    """The whole page."""

    def test_it_has_every_part_and_needs_nothing_else(self) -> None:
        """Verification, batches, sample, conflicts, rejected rows, messages; no script and no address."""
        page = write_page(
            report(
                checks=(Check(name="sum of prices grew", passed=False, detail="was 1, is 1"),),
                differences=(
                    Difference(
                        table="public.inventories",
                        key=("7",),
                        kind="update",
                        columns={"price": ("1.00", None)},
                    ),
                ),
                conflicts=(
                    Conflict(table="public.inventories", key=("9",), columns=("price",), why="newer"),
                ),
                rejected=(Rejected(key=("8",), why="no name"),),
                messages=(Message(event="completed", created_at=BEGAN, delivered_at=BEGAN),),
                more={"plan": "Index Scan"},
            )
        )

        for title in (
            "Verification",
            "Batches",
            "Sampled differences",
            "Conflicts",
            "Rejected rows",
            "Messages",
        ):
            assert f"<h2>{title}</h2>" in page
        assert '<span class="old">1.00</span>' in page
        assert '<span class="null">NULL</span>' in page
        assert "Index Scan" in page
        assert "<script" not in page
        assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")

    def test_values_are_never_markup(self) -> None:
        """What stands in a row, a name or a message is shown, not interpreted; a long value is cut."""
        evil = "<script>alert(1)</script>"
        page = write_page(
            report(
                execution(error_message=evil, actor=evil, status="failed", sub_state="failed"),
                differences=(
                    Difference(table=evil, key=(evil,), kind="update", columns={evil: (evil, "x" * 500)}),
                ),
                conflicts=(Conflict(table=evil, key=(evil,), columns=(evil,), why=evil),),
                rejected=(Rejected(key=(evil,), why=evil),),
                checks=(Check(name=evil, passed=True, detail=evil),),
            )
        )

        assert "<script" not in page
        assert "x" * 119 + "…" in page

    def test_japanese_is_added_on_request(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """KEIKAKU_LANG=ja, as at the command line."""
        monkeypatch.setenv("KEIKAKU_LANG", "ja")

        assert "取り消し可能です" in write_page(report())
