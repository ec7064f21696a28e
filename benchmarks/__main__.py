"""Run the benchmarks on a server of their own: `make bench`, or `python -m benchmarks --quick`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks import (
    comparison,
    compression,
    directory,
    generation,
    incremental,
    memory,
    rewind,
    snapshots,
    startup,
    templates,
)
from benchmarks.measure import Result, table, write_report
from keikaku_snapshots.postgres.embedded import EmbeddedServer
from keikaku_snapshots.postgres.tools import find_tools

RESULTS = Path(__file__).parent / "results" / "latest.json"


def main() -> int:
    """Measure, print the table, write the JSON; exit 1 when a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="alternating runs of each (default 5)")
    parser.add_argument("--quick", action="store_true", help="leave out the 2,000,000-row cases")
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON file to write")
    options = parser.parse_args()
    results: list[Result] = []

    def report(result: Result) -> None:
        results.append(result)
        print(table([result]), end="\n\n", flush=True)

    with tempfile.TemporaryDirectory(prefix="keikaku-bench-") as folder_name:
        folder = Path(folder_name)
        folder.chmod(0o711)
        server = EmbeddedServer(folder / "server")
        server.start()
        try:
            tools = find_tools(server.major)
            report(startup.help_text(options.runs))
            for name in ("medium", "large"):
                url = server.url(f"bench_{name}", create=True)
                report(generation.against_copy(url, tools, folder, name, options.runs))
            url = server.url("bench_stockrx", create=True)
            report(generation.stockrx_against_copy(url, tools, folder, "medium", options.runs))
            if not options.quick:
                url = server.url("bench_stockrx_large", create=True)
                report(memory.one_million_inventories(url))
                report(generation.stockrx_against_copy(url, tools, folder, "large", 1))
            report(generation.against_orm(server.url("bench_orm", create=True), options.runs))
            url = server.url("bench_compare", create=True)
            report(comparison.two_hundred_thousand_rows(url, folder, options.runs))
            for name in ["large"] if options.quick else ["large", "xlarge"]:
                url = server.url(f"bench_{name}", create=True)
                if name == "xlarge":
                    # First, into empty tables: over rows of an earlier run it would measure DELETE.
                    report(memory.five_thousand_offices(url))
                    runs = max(1, options.runs // 2)
                    report(generation.against_copy(url, tools, folder, name, runs))
                report(incremental.one_changed_table(url, folder, name))
                report(snapshots.create(url, tools, folder, name, options.runs))
                report(snapshots.cold_swap(url, tools, folder, name, options.runs))
                for result in templates.warm_and_spare(url, folder, name, options.runs):
                    report(result)
                for result in directory.parts(url, tools, folder, name, options.runs):
                    report(result)
                for result in compression.default_levels(url, folder, name, options.runs):
                    report(result)
                for result in (*rewind.as_superuser(url, name), *rewind.as_owner(url, name)):
                    report(result)
            if not options.quick:
                url = server.url("bench_gigabyte", create=True)
                templates.gigabyte(url)
                for result in templates.warm_and_spare(url, folder, "gigabyte", options.runs):
                    report(result)
            url, other = server.url("bench_plain", create=True), server.url("bench_armed", create=True)
            for result in rewind.writing(url, other, options.runs):
                report(result)
        finally:
            server.stop()
    write_report(results, options.output, {"postgresql": str(server.major)})
    print(table(results))
    print(f"\nwritten to {options.output}")
    return 0 if all(result.holds for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
