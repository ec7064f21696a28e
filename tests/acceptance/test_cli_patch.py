"""`keikaku patch` as its user meets it: lists, states, reports; what it says and its exit codes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from keikaku_snapshots.patches import records
from keikaku_snapshots.patches.records import BatchRecord
from keikaku_snapshots.postgres.connect import connect
from tests.unit.test_patch_report import BEGAN, NUMBER, execution

if TYPE_CHECKING:
    from pathlib import Path

    from keikaku_snapshots.postgres.url import DatabaseURL
    from tests.acceptance.conftest import Command

SHORT = str(NUMBER)[:8]


@pytest.fixture
def remembered(database: DatabaseURL) -> None:
    """A database that remembers a completed run of two batches."""
    remember(database)


def remember(database: DatabaseURL, **changes: Any) -> None:
    """Write a run into the records."""
    import dataclasses

    with connect(database, autocommit=True) as connection:
        records.ensure_schema(connection)
        run = execution(**changes)
        values = {field.name: getattr(run, field.name) for field in dataclasses.fields(run)}
        records.insert(connection, values)
        for number in (1, 2):
            batch = BatchRecord("run", number, BEGAN, 0.25, 1000, 1000, 990, 0, 80_000_000)
            records.log_batch(connection, run.execution_id, batch)


class TestLooking:
    """What shows patches and runs, and changes nothing."""

    def test_the_patches_are_listed_with_what_they_are_for(self, command: Command) -> None:
        """Name, version, tables, a line; --json has every field."""
        code, out, _ = command("patch", "list")
        document = json.loads(command("patch", "list", "--json")[1])

        assert code == 0
        assert "inventory_price_adjustment" in out
        assert "public.batches, public.inventory_logs" in out
        assert [one["name"] for one in document] == ["batch_expiry_update", "inventory_price_adjustment"]

    def test_a_patch_shows_its_parameters_with_limits_and_defaults(self, command: Command) -> None:
        """What may be typed behind --param."""
        code, out, _ = command("patch", "show", "inventory_price_adjustment")

        assert code == 0
        assert "percent  Decimal, > -100, <= 1000, default 5" in out
        assert "where   status = 'active'" in out
        assert "require_dry_run      yes" in out

    def test_where_nothing_ever_ran_that_is_said(self, command: Command) -> None:
        """And looking does not make the schema of records."""
        code, out, err = command("patch", "status")

        assert (code, out) == (0, "")
        assert "no patch has run here" in err
        assert json.loads(command("patch", "status", "--json")[1]) == []

    @pytest.mark.usefixtures("remembered")
    def test_the_runs_are_listed_and_one_is_shown_by_its_first_characters(self, command: Command) -> None:
        """A table of runs; everything of one of them, and what to type next."""
        _, out, _ = command("patch", "status")
        assert [
            word for word in (SHORT, "round_prices", "completed", "9,900", "aoki") if word not in out
        ] == []

        code, out, err = command("patch", "status", SHORT)

        assert code == 0
        assert f"execution  {NUMBER}" in out
        assert "10,000 looked at, 9,900 changed, 100 right already" in out
        assert f"keikaku patch rollback {SHORT}   take it back" in err
        assert json.loads(command("patch", "status", SHORT, "--json")[1])["execution_id"] == str(NUMBER)

    def test_a_run_that_works_is_followed_in_lines_where_there_is_no_terminal(
        self, command: Command, database: DatabaseURL, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Only when asked to; it ends when the run does."""
        remember(database, status="running", sub_state="batching", completed_at=None, processed_records=2500)

        def end(_seconds: float) -> None:
            with connect(database, autocommit=True) as connection:
                records.update(
                    connection, NUMBER, status="completed", sub_state="done", processed_records=10_000
                )

        monkeypatch.setattr("keikaku_snapshots.cli.patch_live.time.sleep", end)

        code, out, _ = command("patch", "status", SHORT, "--follow")

        assert code == 0
        assert out.startswith(f"round_prices {SHORT} batching: 25%, 2,500 of 10,000 rows, 833 rows/s, 90 MB")
        assert f"round_prices {SHORT} completed: 100%" in out

    @pytest.mark.usefixtures("remembered")
    def test_a_report_is_a_page_that_only_its_owner_reads(self, command: Command, tmp_path: Path) -> None:
        """It shows values of rows."""
        code, _, err = command("patch", "report", SHORT)

        page = tmp_path / "patch-reports" / f"round_prices_{SHORT}.html"
        assert code == 0
        assert f"report: patch-reports/round_prices_{SHORT}.html" in err
        assert page.stat().st_mode & 0o777 == 0o600
        assert "Completed: 9,900 rows changed" in page.read_text(encoding="utf-8")
        assert [file.name for file in page.parent.iterdir()] == [page.name]

    @pytest.mark.usefixtures("remembered")
    def test_a_report_that_cannot_be_written_says_so(self, command: Command, tmp_path: Path) -> None:
        """Its directory is a file."""
        (tmp_path / "x").write_text("", encoding="utf-8")

        code, _, err = command("patch", "report", SHORT, "--output", "x/y.html")

        assert code == 18
        assert "the report of the patch cannot be written" in err

    @pytest.mark.parametrize("what", ["status", "report"])
    def test_an_unknown_run_is_2(self, what: str, command: Command) -> None:
        """Also where nothing ever ran."""
        code, _, err = command("patch", what, "0b1f3c2e")

        assert code == 2
        assert "there is no execution 0b1f3c2e" in err
