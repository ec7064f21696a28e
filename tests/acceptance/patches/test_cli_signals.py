"""A signal while a patch runs: the batch is finished, the run rests, the exit code and the text say so."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from keikaku_snapshots.datasets import generate
from tests.integration import schemas

if TYPE_CHECKING:
    from keikaku_snapshots.postgres.url import DatabaseURL
    from tests.acceptance.conftest import Command

ROOT = Path(__file__).parents[3]
PRICES = "inventory_price_adjustment"
#: Small batches with a rest between them, so that there is time for a signal.
SLOW = (
    f"patches: {{{PRICES}: {{require_dry_run: false, batch_size: 50, adaptive: false, pause_s: 0.2}}}}\n"
    "scheduling: {maintenance_windows: []}\n"
)
_DONE = "SELECT coalesce(max(batch_number), 0) FROM keikaku_patches.execution"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_20_a_signal_pauses_the_run_and_says_how_to_go_on(
    number: signal.Signals, code: int, command: Command, database: DatabaseURL, tmp_path: Path
) -> None:
    """Acceptance 20 at the command line; the next command goes on behind the last batch."""
    generate("stockrx", "small", database.text, create_tables=True)
    (tmp_path / "data_patches.yml").write_text(SLOW, encoding="utf-8")
    active = schemas.rows_of(database, "SELECT count(*) FROM inventories WHERE status = 'active'")[0][0]
    assert json.loads(command("patch", "status", "--json")[1]) == []
    assert command("patch", "run", PRICES)[0] == 0  # makes the schema of the records
    process = subprocess.Popen(
        [sys.executable, "-m", "keikaku_snapshots", "patch", "run", PRICES, "--execute"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 30
        while int(str(schemas.rows_of(database, _DONE)[0][0])) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()

    assert process.returncode == code, err
    assert f"{number.name}: the batch is finished first; once more stops at once" in err
    assert "Go on: keikaku patch resume " in err
    paused = json.loads(command("patch", "status", PRICES, "--json")[1])
    assert (paused["status"], paused["sub_state"]) == ("running", "paused")
    assert 0 < paused["processed_records"] < int(str(active))

    (tmp_path / "data_patches.yml").write_text(SLOW.replace("0.2", "0"), encoding="utf-8")
    ended, out, err = command("patch", "resume", PRICES, "--json")

    assert ended == 0, err
    done = json.loads(out)
    assert (done["status"], done["processed_records"]) == ("completed", active)
