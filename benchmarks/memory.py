"""A7: resident memory while millions of rows are generated."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

from benchmarks.measure import Bar, Result

if TYPE_CHECKING:
    from keikaku_snapshots.postgres.url import DatabaseURL

_CHILD = """
import json, resource, sys
from keikaku_snapshots.datasets import generate, get_scale
dataset, scale = sys.argv[1:]
result = generate(dataset, get_scale(scale, dataset), sys.stdin.read(), seed=0, create_tables=True)
peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"peak_mb": peak_kb / 1024, "rows": sum(result.rows.values()), "seconds": result.seconds}))
"""


def five_thousand_offices(url: DatabaseURL) -> Result:
    """Generate `xlarge` of Keikaku into empty tables and read the peak of resident memory."""
    return _peak(url, "keikaku", "xlarge", "generate 5,000 offices")


def one_million_inventories(url: DatabaseURL) -> Result:
    """The same with `large` of StockRx."""
    return _peak(url, "stockrx", "large", "generate 1,000,000 inventories")


def _peak(url: DatabaseURL, dataset: str, scale: str, title: str) -> Result:
    # In a process of its own: a peak is that of everything a process ever did.
    command = [sys.executable, "-c", _CHILD, dataset, scale]
    done = subprocess.run(command, input=url.text, capture_output=True, text=True, check=True)
    seen = json.loads(done.stdout)
    return Result(
        title,
        {"peak resident memory (MB)": [seen["peak_mb"]]},
        seen["peak_mb"],
        Bar("A7", 250.0, "MB"),
        {"rows": str(seen["rows"]), "seconds": f"{seen['seconds']:.1f}"},
    )
