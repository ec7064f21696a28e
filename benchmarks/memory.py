"""A7: resident memory while 5,000 offices (2 million rows) are generated."""

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
result = generate("keikaku", get_scale("xlarge"), sys.stdin.read(), seed=0, create_tables=True)
peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"peak_mb": peak_kb / 1024, "rows": sum(result.rows.values()), "seconds": result.seconds}))
"""


def five_thousand_offices(url: DatabaseURL) -> Result:
    """Generate `xlarge` into empty tables in its own process and read the peak of resident memory."""
    done = subprocess.run(
        [sys.executable, "-c", _CHILD], input=url.text, capture_output=True, text=True, check=True
    )
    seen = json.loads(done.stdout)
    return Result(
        "generate 5,000 offices",
        {"peak resident memory (MB)": [seen["peak_mb"]]},
        seen["peak_mb"],
        Bar("A7", 250.0, "MB"),
        {"rows": str(seen["rows"]), "seconds": f"{seen['seconds']:.1f}"},
    )
