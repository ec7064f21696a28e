"""Issue 5 on a bare checkout: generate, dry run, execute, roll back, and every table is as it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
PRICES = "inventory_price_adjustment"


def test_the_tables_are_the_same_after_the_rollback(tmp_path: Path) -> None:
    """Nothing but --embedded: no server, no configuration; by `python -m keikaku_snapshots`."""

    def keikaku(*arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "keikaku_snapshots", *arguments],
            cwd=tmp_path,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(tmp_path),
                "PYTHONPATH": str(ROOT),
                "LANG": "C.UTF-8",
            },
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=120,
            check=False,
        )
        assert done.returncode == code, done.stderr
        return done.stdout

    try:
        keikaku("generate", "--embedded", "--dataset", "stockrx", "--scale", "small")
        keikaku("create", "before", "--embedded")
        trial = json.loads(keikaku("patch", "run", PRICES, "--embedded", "--json"))
        keikaku("diff", "before", "live", "--embedded")

        run = json.loads(
            keikaku("patch", "run", PRICES, "--embedded", "--execute", "--outside-window", "demo", "--json")
        )
        keikaku("diff", "before", "live", "--embedded", code=1)
        keikaku("patch", "rollback", run["execution_id"], "--embedded")

        keikaku("diff", "before", "live", "--embedded")
        assert trial["kind"] == "dry_run"
        assert run["changed_records"] == trial["changed_records"] > 0
        assert run["outside_window_reason"] == "demo"
    finally:
        keikaku("server", "stop")
