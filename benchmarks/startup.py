"""C5: how long the command line takes to answer `--help`."""

from __future__ import annotations

import statistics
import subprocess
import sys

from benchmarks.measure import Bar, Result, alternate


def help_text(runs: int) -> Result:
    """Start `python -m keikaku_snapshots --help` beside a bare interpreter."""

    def start(*arguments: str) -> None:
        subprocess.run(
            [sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL
        )

    samples = alternate(
        {
            "keikaku --help": lambda: start("-m", "keikaku_snapshots", "--help"),
            "python -c pass": lambda: start("-c", "pass"),
        },
        runs * 3,
    )
    median = statistics.median(samples["keikaku --help"])
    return Result("keikaku --help", samples, median, Bar("C5", 0.150, "seconds"))
