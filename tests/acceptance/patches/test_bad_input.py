"""Issue 5's last line: what is typed or configured wrongly is said with its path, and changes nothing."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import pytest

from keikaku_snapshots.datasets import generate
from tests.integration import schemas

if TYPE_CHECKING:
    from keikaku_snapshots.postgres.url import DatabaseURL
    from tests.acceptance.conftest import Command

PRICES = "inventory_price_adjustment"
#: Everything that a patch could leave behind or change.
_STATE = """
SELECT (SELECT md5(string_agg(i::text, '' ORDER BY id)) FROM inventories i),
  (SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal),
  (SELECT count(*) FROM pg_class WHERE relkind = 'r' AND relname LIKE 'undo\\_%')
"""
_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


@pytest.fixture
def shop(database: DatabaseURL) -> DatabaseURL:
    """The inventories of a small pharmacy."""
    generate("stockrx", "small", database.text, create_tables=True)
    return database


@pytest.fixture
def configured(tmp_path: Path) -> None:
    """A configuration without windows and dry runs first, for what is about something else."""
    write("scheduling: {maintenance_windows: []}\n", tmp_path)


def write(text: str, directory: Path) -> None:
    """Write config/data_patches.yml."""
    (directory / "config").mkdir(exist_ok=True)
    (directory / "config" / "data_patches.yml").write_text(text, encoding="utf-8")


def refused(command: Command, database: DatabaseURL, code: int, words: list[str], *arguments: str) -> None:
    """Run what must be refused: exit code, words of the message, and nothing changed."""
    before = schemas.rows_of(database, _STATE)

    ended, out, err = command("patch", *arguments)

    assert ended == code, err
    assert [word for word in words if word not in err] == [], err
    assert "Traceback" not in err
    assert "To fix this: " in err
    assert out == ""
    assert schemas.rows_of(database, _STATE) == before
    assert not _open_runs(command)


def _open_runs(command: Command) -> list[str]:
    code, out, _ = command("patch", "status", "--json", "--patch-config", str(_empty_file()))
    assert code == 0
    return [one["execution_id"] for one in json.loads(out) if not one["is_over"]]


def _empty_file() -> Path:
    """A configuration with nothing in it, so that asking is possible whatever is wrong with the other."""
    file = Path("empty.yml")
    file.write_text("", encoding="utf-8")
    return file


def test_an_unknown_patch(command: Command, shop: DatabaseURL) -> None:
    """The known ones are listed, and a near one is suggested."""
    words = ["there is no data patch 'inventory_price_adjustmnt'", "Did you mean inventory_price_adjustment?"]
    refused(command, shop, 2, words, "run", "inventory_price_adjustmnt")
    refused(command, shop, 2, words, "run", "inventory_price_adjustmnt", "--execute")


def test_an_unknown_key_of_the_configuration(command: Command, shop: DatabaseURL, tmp_path: Path) -> None:
    """Every problem at once, each with its path."""
    write(
        f"patches:\n  {PRICES}: {{batch_sise: 100}}\n  fix_prices: {{}}\nscheduling: {{windows: []}}\n",
        tmp_path,
    )

    words = [f"patches.{PRICES}.batch_sise", "scheduling.windows", "data_patches.yml"]
    refused(command, shop, 2, words, "run", PRICES)


def test_a_parameter_of_the_wrong_type(command: Command, shop: DatabaseURL) -> None:
    """Its path is named, its value is not: it may be a secret."""
    refused(command, shop, 2, ["parameters.percent: "], "run", PRICES, "--param", "percent=S3cretCanary")
    refused(command, shop, 2, ["parameters.percentage: unknown"], "run", PRICES, "--param", "percentage=5")
    _, _, err = command("patch", "run", PRICES, "--param", "percent=S3cretCanary")
    assert "S3cretCanary" not in err


def test_a_parameter_without_its_name(command: Command, shop: DatabaseURL) -> None:
    """The form is shown; what was typed is not repeated."""
    refused(command, shop, 2, ["--param takes NAME=VALUE"], "run", PRICES, "--param", "8")
    refused(
        command, shop, 2, ["--param percent was given twice"],
        "run", PRICES, "--param", "percent=8", "--param", "percent=9",
    )  # fmt: skip


@pytest.mark.usefixtures("configured")
def test_a_missing_table(command: Command, database: DatabaseURL) -> None:
    """A database of something else."""
    code, out, err = command("patch", "run", PRICES)

    assert code == 2, err
    assert out == ""
    assert "public.inventories" in err
    assert not _open_runs(command)


@pytest.mark.usefixtures("configured")
def test_a_missing_key(command: Command, shop: DatabaseURL) -> None:
    """Without one no row could be followed."""
    (name,) = schemas.rows_of(
        shop, "SELECT conname FROM pg_constraint WHERE conrelid = 'inventories'::regclass AND contype = 'p'"
    )[0]
    schemas.run(shop, f"ALTER TABLE inventories DROP CONSTRAINT {name} CASCADE")

    before = schemas.rows_of(shop, _STATE)
    code, out, err = command("patch", "run", PRICES)

    assert code in {2, 16}, err
    assert out == ""
    assert "key" in err
    assert schemas.rows_of(shop, _STATE) == before


def test_a_closed_window(command: Command, shop: DatabaseURL, tmp_path: Path) -> None:
    """The next one is named; a reason must not be empty."""
    far = _DAYS[(datetime.now(ZoneInfo("Asia/Tokyo")).weekday() + 3) % 7]
    window = f"{{days: [{far}], start: '02:00', end: '03:00'}}"
    write(f"scheduling: {{maintenance_windows: [{window}]}}\n", tmp_path)
    assert command("patch", "run", PRICES)[0] == 0

    refused(command, shop, 29, ["メンテナンス時間外", "02:00", "Asia/Tokyo"], "run", PRICES, "--execute")
    refused(
        command, shop, 2, ["--outside-window needs a reason"],
        "run", PRICES, "--execute", "--outside-window", " ",
    )  # fmt: skip


def test_a_missing_secret(command: Command, shop: DatabaseURL, tmp_path: Path) -> None:
    """A channel that must be there and whose variable is not set: nothing runs."""
    channel = "{url_variable: KEIKAKU_SLACK_URL, required: true}"
    write(f"security: {{notification_channels: {{slack: {channel}}}}}\n", tmp_path)

    words = ["security.notification_channels.slack.url_variable: KEIKAKU_SLACK_URL is not set, but required"]
    refused(command, shop, 2, words, "run", PRICES)


@pytest.mark.usefixtures("configured")
def test_an_unreachable_channel(command: Command, shop: DatabaseURL, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is reported and never a reason not to run; the message waits, and no secret is shown."""
    monkeypatch.setenv("KEIKAKU_SLACK_URL", "json://user:S3cretCanary@127.0.0.1:1/hook")
    assert command("patch", "run", PRICES)[0] == 0

    code, _, err = command("patch", "run", PRICES, "--execute")

    assert code == 0, err
    assert "S3cretCanary" not in err
    waiting = "SELECT count(*) FROM keikaku_patches.outbox WHERE closed_at IS NULL"
    assert schemas.rows_of(shop, waiting) == [(1,)]
    code, _, err = command("patch", "report", PRICES)
    page = next(Path("patch-reports").iterdir()).read_text(encoding="utf-8")
    assert "messages have not arrived" in page
    assert "S3cretCanary" not in page
