"""`make demo` keeps its promise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]


def test_the_demo_proves_the_restore_and_leaves_nothing(open_directory: Path) -> None:
    """100 offices are generated, frozen, damaged, restored and found identical; no file or server stays."""
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "demo.py"],
        cwd=open_directory,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "TMPDIR": str(open_directory)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "The database is identical after the restore." in done.stdout
    assert "DIFFERENT" not in done.stdout
    assert done.stdout.count("was damaged") >= 4
    assert list(open_directory.iterdir()) == []
    running = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    assert not [argv for argv in running if str(open_directory) in " ".join(argv)]
