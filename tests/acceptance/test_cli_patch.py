"""`keikaku patch` as its user meets it: lists, states, reports; what it says and its exit codes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from keikaku_snapshots.cli.output import Declined, Output
from keikaku_snapshots.datasets import generate
from keikaku_snapshots.patches import records
from keikaku_snapshots.patches.records import BatchRecord
from keikaku_snapshots.postgres.connect import connect
from tests.integration import schemas
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

    @pytest.mark.parametrize("what", [[], [SHORT]])
    def test_a_dead_run_is_not_followed_for_ever(
        self, what: list[str], command: Command, database: DatabaseURL
    ) -> None:
        """It says that there is no sign of life, and what looks after it."""
        remember(database, status="running", sub_state="batching", completed_at=None)
        schemas.run(
            database,
            "INSERT INTO keikaku_patches.heartbeat"
            f" VALUES ('{NUMBER}', 1, now() - interval '1 hour', '1@host', 1)",
        )

        code, out, err = command("patch", "status", *what, "--follow")

        assert code == 0
        assert f"round_prices {SHORT} batching" in out
        assert "no sign of life for 360" in err
        assert "`keikaku patch reap` looks after it" in err

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


class TestDoing:
    """A dry run, a run, its report, its rollback, as they are said."""

    @pytest.fixture
    def shop(self, database: DatabaseURL, tmp_path: Path) -> DatabaseURL:
        """The inventories of a small pharmacy, and no windows."""
        generate("stockrx", "small", database.text, create_tables=True)
        (tmp_path / "data_patches.yml").write_text(
            "scheduling: {maintenance_windows: []}\n", encoding="utf-8"
        )
        return database

    def test_a_patch_from_its_dry_run_to_its_rollback(
        self, command: Command, shop: DatabaseURL, tmp_path: Path
    ) -> None:
        """What would change is shown as old and new values; the command for real is there to be copied."""
        prices = "inventory_price_adjustment"
        code, out, err = command("patch", "run", prices, "--param", "percent=8")

        assert code == 0, err
        assert "COLUMN  NOW" in out
        assert "8 of its changes" in out
        assert "Index Scan" in out
        assert f"keikaku patch run {prices} --param percent=8 --execute" in err
        number = schemas.rows_of(shop, "SELECT min(id), min(price) FROM inventories WHERE status = 'active'")[
            0
        ]

        code, out, err = command("patch", "run", prices, "--param", "percent=8", "--execute")
        assert code == 0, err
        assert "keikaku patch rollback " in err
        code, _, err = command("patch", "run", prices, "--param", "percent=8", "--execute")
        assert code == 16
        assert "--again" in err

        assert command("patch", "report", prices, "--output", "page.html")[0] == 0
        page = (tmp_path / "page.html").read_text(encoding="utf-8")
        assert "Sampled differences" in page
        assert f"<td>{number[0]}</td>" in page

        code, out, err = command("patch", "rollback", prices)
        assert code == 0, err
        assert "state " in out
        assert "rolled back" in out
        assert (
            number
            == schemas.rows_of(shop, "SELECT min(id), min(price) FROM inventories WHERE status = 'active'")[0]
        )

    @pytest.mark.usefixtures("shop")
    def test_dry_run_in_the_environment_wins(self, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        """DRY_RUN=true: whatever is typed, nothing is changed; a value that is neither is refused."""
        monkeypatch.setenv("DRY_RUN", "true")
        code, out, err = command("patch", "run", "inventory_price_adjustment", "--execute", "--json")

        assert code == 0, err
        assert json.loads(out)["kind"] == "dry_run"
        assert "DRY_RUN=true: nothing is changed, whatever was typed" in err
        monkeypatch.setenv("DRY_RUN", "maybe")
        assert command("patch", "run", "inventory_price_adjustment", "--execute")[0] == 2

    @pytest.mark.usefixtures("shop")
    def test_on_a_terminal_it_asks_before_it_changes_anything(
        self, command: Command, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Database, patch and tables are named; no is no. A dry run asks nothing."""
        asked: list[str] = []

        def confirm(_: Output, question: str) -> None:
            asked.append(question)
            raise Declined

        monkeypatch.setattr(Output, "on_terminal", property(lambda _: True))
        monkeypatch.setattr(Output, "confirm", confirm)

        assert command("patch", "run", "inventory_price_adjustment")[0] == 0
        assert asked == []
        code, _, err = command("patch", "run", "inventory_price_adjustment", "--execute")
        assert (code, asked) == (130, ["Change these tables?"])
        assert "changes   public.inventories" in err

    @pytest.mark.usefixtures("shop")
    def test_a_failed_run_says_its_number_in_json_too(self, command: Command) -> None:
        """A script that gets an error still knows which run it was."""
        code, out, _ = command(
            "patch", "run", "inventory_price_adjustment", "--execute", "--memory-limit", "1", "--json"
        )

        document = json.loads(out)
        assert (code, document["error"]["exit_code"]) in {(27, 27), (16, 16)}
        assert len(document["execution_id"]) == 36

    @pytest.mark.usefixtures("shop")
    def test_somebody_else_must_approve_where_that_is_asked(self, command: Command, tmp_path: Path) -> None:
        """Not the one who runs it; for the source and the parameters as they are."""
        prices = "inventory_price_adjustment"
        (tmp_path / "data_patches.yml").write_text(
            f"patches: {{{prices}: {{require_approval: true}}}}\nscheduling: {{maintenance_windows: []}}\n",
            encoding="utf-8",
        )
        assert command("patch", "run", prices)[0] == 0
        run = ("patch", "run", prices, "--execute", "--actor", "aoki")

        assert command(*run)[0] == 16
        assert command("patch", "approve", prices, "--actor", "aoki")[0] == 0
        assert command(*run)[0] == 16
        assert command("patch", "approve", prices, "--actor", "baba", "--param", "percent=9")[0] == 0
        assert command(*run)[0] == 16
        assert command("patch", "run", prices, "--approve", "--actor", "baba")[0] == 0
        code, out, err = command(*run, "--json")

        assert code == 0, err
        assert json.loads(out)["approved_by"] == "baba"
        assert "approved" in command("patch", "audit", "list")[1]
        assert command("patch", "audit", "verify")[0] == 0

    @pytest.mark.usefixtures("shop")
    def test_a_dump_is_made_and_read_back_before_the_first_batch(
        self, command: Command, tmp_path: Path
    ) -> None:
        """A pinned snapshot of before, named in the records; where it cannot be made nothing is changed."""
        prices = "inventory_price_adjustment"
        assert command("patch", "run", prices)[0] == 0
        (tmp_path / "snapshots").write_text("no directory", encoding="utf-8")
        code, _, err = command("patch", "run", prices, "--execute", "--backup")
        assert code == 20, err
        assert json.loads(command("patch", "status", prices, "--json")[1])["changed_records"] == 0

        (tmp_path / "snapshots").unlink()
        code, out, err = command("patch", "run", prices, "--execute", "--backup", "--json")

        assert code == 0, err
        (snapshot,) = json.loads(command("list", "--json")[1])
        assert json.loads(out)["backup_reference"] == str(snapshot["path"])
        assert snapshot["name"] == f"before_{prices}"
        code, out, _ = command("diff", f"before_{prices}", "live", "--json")
        assert code == 1
        assert "inventories" in out
