"""The errors of data patches, each brought about by its commonest cause; the texts stand in the reference."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import pytest

from keikaku_snapshots import errors
from keikaku_snapshots.datasets import generate
from keikaku_snapshots.patches import records
from keikaku_snapshots.postgres.connect import connect
from tests.acceptance.test_cli_patch import remember
from tests.integration import schemas
from tests.unit.test_patch_report import NUMBER

if TYPE_CHECKING:
    from pathlib import Path

    from keikaku_snapshots.postgres.url import DatabaseURL
    from tests.acceptance.conftest import Command
    from tests.messages import Said

PRICES = "inventory_price_adjustment"
#: What differs from run to run in these texts.
HIDE = {
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}": str(NUMBER),
    r"patch (report|rollback|resume) [0-9a-f]{8}\b": rf"patch \1 {str(NUMBER)[:8]}",
    r"Used: \d+ MB": "Used: 54 MB",
}
OPEN = "scheduling: {maintenance_windows: []}\n"
NO_DRY_RUN = f"patches: {{{PRICES}: {{require_dry_run: false}}}}\n" + OPEN
LOSING = '''
from keikaku_snapshots.patches import SqlPatch, data_patch
from keikaku_snapshots.errors import PatchFailedError


@data_patch("halve_prices")
class HalvePrices(SqlPatch):
    """Halve all prices."""

    table = "public.inventories"
    set = {"price": "round(price / 2, 2)"}

    def validate(self, ctx):
        ctx.remember("sum", ctx.value("SELECT sum(price) FROM public.inventories"))

    def verify(self, ctx):
        now = ctx.value("SELECT sum(price) FROM public.inventories")
        if now < ctx.recall("sum"):
            raise PatchFailedError("the sum of all prices has fallen")
'''


@pytest.fixture
def shop(database: DatabaseURL) -> DatabaseURL:
    """The inventories of a small pharmacy."""
    generate("stockrx", "small", database.text, create_tables=True)
    return database


def configure(directory: Path, text: str) -> None:
    """Write config/data_patches.yml."""
    (directory / "config").mkdir()
    (directory / "config" / "data_patches.yml").write_text(text, encoding="utf-8")


def test_a_patch_is_not_known(command: Command, said: Said) -> None:
    """The known ones are listed, and a near one is suggested."""
    said("patch_unknown", command("patch", "run", "inventory_price_adjustmnt"), errors.UnknownPatchError)


def test_a_patch_does_not_fit_the_database(command: Command, said: Said, tmp_path: Path) -> None:
    """Its table is missing; nothing was run."""
    configure(tmp_path, OPEN)
    said("patch_definition", command("patch", "run", PRICES), errors.PatchDefinitionError)


@pytest.mark.usefixtures("shop")
def test_a_patch_was_not_tried_first(command: Command, said: Said, tmp_path: Path) -> None:
    """A dry run comes before a run."""
    configure(tmp_path, OPEN)
    said("patch_refused", command("patch", "run", PRICES, "--execute"), errors.PatchRefusedError)


@pytest.mark.usefixtures("shop")
def test_no_window_is_open(command: Command, said: Said, tmp_path: Path) -> None:
    """The next one is named."""
    day = datetime.now(ZoneInfo("Asia/Tokyo")).weekday()
    days = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
    window = f"{{days: [{days[(day + 3) % 7]}], start: '02:00', end: '04:00'}}"
    configure(tmp_path, NO_DRY_RUN.replace("[]", f"[{window}]"))

    told = command("patch", "run", PRICES, "--execute")

    names = "|".join(name.capitalize() for name in days)
    hide = {
        r"\d{4}-\d\d-\d\d \d\d:\d\d": "2026-04-01 02:00",
        rf"\b({names})\b": "Sunday",
        r"\b(Mon|Tue|Wed|Thu|Fri|Sat|Sun)\b": "Wed",
    }
    said("patch_window", told, errors.WindowClosedError, hide=hide)


@pytest.mark.usefixtures("shop")
def test_a_patch_needs_more_memory_than_it_may(command: Command, said: Said, tmp_path: Path) -> None:
    """Used and limit are named."""
    configure(tmp_path, NO_DRY_RUN)
    told = command("patch", "run", PRICES, "--execute", "--memory-limit", "1")
    said("patch_memory", told, errors.MemoryLimitExceededError, hide=HIDE)


@pytest.mark.usefixtures("shop")
def test_a_patch_fails(command: Command, said: Said, tmp_path: Path) -> None:
    """What it had changed was taken back."""
    (tmp_path / "halve.py").write_text(LOSING, encoding="utf-8")
    patches = "patch_modules: [halve.py]\npatches: {halve_prices: {require_dry_run: false}}\n"
    configure(tmp_path, patches + OPEN)
    said(
        "patch_failed",
        command("patch", "run", "halve_prices", "--execute"),
        errors.PatchFailedError,
        hide=HIDE,
    )


def test_a_patch_cannot_be_taken_back_completely(
    command: Command, said: Said, tmp_path: Path, shop: DatabaseURL
) -> None:
    """Somebody else has changed a row since; it keeps its value."""
    configure(tmp_path, NO_DRY_RUN)
    assert command("patch", "run", PRICES, "--execute")[0] == 0
    first = "(SELECT min(id) FROM inventories WHERE status = 'active')"
    schemas.run(shop, f"UPDATE inventories SET price = 1 WHERE id = {first}")
    told = command("patch", "rollback", PRICES, "--actor", "aoki")
    said("patch_rollback", told, errors.PatchRollbackError, hide=HIDE)


def test_another_worker_has_taken_a_run_over(said: Said, database: DatabaseURL) -> None:
    """A stopped process that comes back may not write any more."""
    remember(database, status="running", sub_state="batching", lease_token=2)
    with (
        connect(database, autocommit=True) as connection,
        pytest.raises(errors.LeaseLostError) as caught,
    ):
        records.update(connection, NUMBER, lease_token=1, sub_state="verifying")
    said("patch_lease", caught.value)
