"""Compare with what users can pick today: `make bench-peers`, or `python -m benchmarks.peers --only small`.

    python -m benchmarks.peers --peers .venv-peers/bin    measure, write JSON and page
    python -m benchmarks.peers --write                    only the page, from the JSON

Everything runs in turn on one server of its own, fsync on. Without `--peers` the
other tools are left out and nothing is written.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import peers_isolation, peers_page, peers_restore, peers_sets
from benchmarks.measure import compile_package, environment, file_system
from keikaku_snapshots.postgres.connect import connect
from keikaku_snapshots.postgres.embedded import EmbeddedServer
from keikaku_snapshots.postgres.tools import find_tools

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "performance.json"
PARTS = ("small", "gigabyte", "isolation")
_VERSIONS = """
import importlib.metadata as m, json
print(json.dumps({n: m.version(n) for n in ("DSLR", "django-dbbackup", "pytest-postgresql")}))
"""


def main() -> int:
    """Measure, say what held, write JSON and page; exit 1 when a bar is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--peers", type=Path, help="programs of the virtual environment with the other tools")
    parser.add_argument("--runs", type=int, default=5, help="alternating runs of each (default 5)")
    parser.add_argument("--only", choices=PARTS, action="append", help="a part; the others stay as recorded")
    parser.add_argument(
        "--promised", action="store_true", help="only the ways that something was promised about"
    )
    parser.add_argument(
        "--output", type=Path, default=RESULTS, help="JSON file (default docs/performance.json)"
    )
    parser.add_argument("--write", action="store_true", help="measure nothing, write the page from the JSON")
    options = parser.parse_args()
    if options.write:
        peers_page.write(json.loads(options.output.read_text(encoding="utf-8")), options.output.parent)
        return 0
    peers = None if options.peers is None else options.peers.absolute()
    parts = options.only or list(PARTS)
    measured = _measure(parts, peers, options.runs, promised=options.promised)
    document = measured
    if peers is not None:
        document = _merged(options.output, measured)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
        options.output.write_text(text, encoding="utf-8")
        peers_page.write(document, options.output.parent)
        print(f"written to {options.output} and {options.output.with_suffix('.md')}")
    bars = [bar for bar in peers_page.bars(document) if bar.part in measured["parts"]]
    for bar in bars:
        print(bar)
    return 0 if all(bar.holds for bar in bars) else 1


def _measure(
    parts: list[str], peers: Path | None, runs: int, *, promised: bool
) -> dict[str, dict[str, object]]:
    found: dict[str, object] = {}
    compile_package()
    with tempfile.TemporaryDirectory(prefix="keikaku-peers-") as folder_name:
        folder = Path(folder_name)
        folder.chmod(0o711)
        server = EmbeddedServer(folder / "server")
        server.start()
        try:
            with connect(server.url(), autocommit=True) as connection:
                row = connection.execute("SHOW fsync").fetchone()
            facts = {
                **environment(),
                "postgresql": str(server.major),
                "fsync": str(row[0] if row else "?"),
                "file_system": file_system(folder),
                **_versions(peers),
            }
            for part in parts:
                (folder / part / "dbbackup").mkdir(parents=True)
                place = peers_restore.Place(
                    server.url(f"peers_{part}", create=True), find_tools(server.major), folder / part, peers
                )
                before = os.getloadavg()[0]
                samples = _part(part, place, runs, promised=promised)
                found[part] = {
                    "facts": {
                        **facts,
                        "runs": str(runs),
                        "load_average": f"{before:.1f} to {os.getloadavg()[0]:.1f}",
                    },
                    "samples": samples,
                }
        finally:
            server.stop()
    return {"parts": found}


def _part(part: str, place: peers_restore.Place, runs: int, *, promised: bool) -> dict[str, list[float]]:
    with connect(place.url, statement_timeout_s=0) as connection:
        (peers_sets.gigabyte if part == "gigabyte" else peers_sets.small)(connection)
    with connect(place.url, autocommit=True, statement_timeout_s=0) as connection:
        connection.execute("VACUUM ANALYZE")
    print(f"{part}:", flush=True)
    if part == "isolation":
        with connect(place.url, database="postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {place.url.database}_full TEMPLATE {place.url.database}")
        return _in_turn(peers_isolation.contestants(place), runs)
    wanted = peers_page.promised(part) if promised else None
    peers_restore.prepare(place, wanted)
    try:
        ways = {**peers_restore.contestants(place), **peers_restore.without_command_line(place)}
        ways = {way: run for way, run in ways.items() if wanted is None or way in wanted}
        return _in_turn(ways, runs, warm_up=part == "small")
    finally:
        peers_restore.clear(place)


def _in_turn(
    contestants: Mapping[str, Callable[[], float]], runs: int, *, warm_up: bool = True
) -> dict[str, list[float]]:
    """Run each `runs` times, every time in another order, after one run that is not counted."""
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    order = list(contestants.items())
    # What ran before counts (files that were deleted, above all), so nobody has always the same before it.
    shuffled = random.Random(runs)
    for number in range(0 if warm_up else 1, runs + 1):
        shuffled.shuffle(order)
        for name, contestant in order:
            seconds = contestant()
            print(f"  {number} {name}: {seconds:.4f} s", flush=True)
            if number:
                samples[name].append(round(seconds, 6))
    return samples


def _versions(peers: Path | None) -> dict[str, str]:
    if peers is None:
        return {}
    asked = [str(peers / "python"), "-c", _VERSIONS]
    answer = subprocess.run(asked, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return dict(json.loads(answer.stdout))


def _merged(output: Path, measured: dict[str, dict[str, object]]) -> dict[str, dict[str, object]]:
    """What was measured now, beside parts that an earlier run recorded."""
    earlier = json.loads(output.read_text(encoding="utf-8")) if output.exists() else {"parts": {}}
    parts = {**earlier["parts"], **measured["parts"]}
    return {"parts": {part: parts[part] for part in PARTS if part in parts}}


if __name__ == "__main__":
    sys.exit(main())
