"""Run the benchmarks on a server of their own: `make bench`, or `python -m benchmarks --quick`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import (
    comparison,
    compression,
    directory,
    generation,
    incremental,
    memory,
    patches,
    pytest_suite,
    rewind,
    snapshots,
    startup,
    templates,
)
from benchmarks.measure import Result, compile_package, table, write_report
from keikaku_snapshots.postgres.embedded import EmbeddedServer
from keikaku_snapshots.postgres.tools import find_tools

if TYPE_CHECKING:
    from collections.abc import Iterator

RESULTS = Path(__file__).parent / "results" / "latest.json"


def _measure(server: EmbeddedServer, folder: Path, runs: int, *, quick: bool) -> Iterator[Result]:
    """Run every benchmark on a server."""
    tools = find_tools(server.major)
    yield startup.help_text(runs)
    for name in ("medium", "large"):
        url = server.url(f"bench_{name}", create=True)
        yield generation.against_copy(url, tools, folder, name, runs)
    url = server.url("bench_stockrx", create=True)
    yield generation.stockrx_against_copy(url, tools, folder, "medium", runs)
    if not quick:
        url = server.url("bench_stockrx_large", create=True)
        yield memory.one_million_inventories(url)
        yield generation.stockrx_against_copy(url, tools, folder, "large", 1)
    yield generation.against_orm(server.url("bench_orm", create=True), runs)
    url = server.url("bench_compare", create=True)
    yield comparison.two_hundred_thousand_rows(url, folder, runs)
    for name in ["large"] if quick else ["large", "xlarge"]:
        url = server.url(f"bench_{name}", create=True)
        if name == "xlarge":
            # First, into empty tables: over rows of an earlier run it would measure DELETE.
            yield memory.five_thousand_offices(url)
            yield generation.against_copy(url, tools, folder, name, max(1, runs // 2))
        yield incremental.one_changed_table(url, folder, name)
        yield snapshots.create(url, tools, folder, name, runs)
        yield snapshots.cold_swap(url, tools, folder, name, runs)
        yield from templates.warm_and_spare(url, folder, name, runs)
        yield from directory.parts(url, tools, folder, name, runs)
        yield from compression.default_levels(url, folder, name, runs)
        yield from [*rewind.as_superuser(url, name), *rewind.as_owner(url, name)]
    if not quick:
        url = server.url("bench_gigabyte", create=True)
        yield from templates.gigabyte(url, folder, runs)
    url, other = server.url("bench_plain", create=True), server.url("bench_armed", create=True)
    yield from rewind.writing(url, other, runs)
    url = server.url("bench_patches", create=True)
    patches.fill(url)
    for name in (patches.SET_BASED, patches.ROW_WISE):
        yield from patches.throughput(url, name, 1 if quick else runs)
        yield patches.waits_of_an_application(url, name)
    yield pytest_suite.two_hundred_tests(server.url("bench_pytest", create=True), folder, runs)


def main() -> int:
    """Measure, print the table, write the JSON; exit 1 when a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="alternating runs of each (default 5)")
    parser.add_argument("--quick", action="store_true", help="leave out the 2,000,000-row cases")
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON file to write")
    options = parser.parse_args()
    results: list[Result] = []
    compile_package()

    with tempfile.TemporaryDirectory(prefix="keikaku-bench-") as folder_name:
        folder = Path(folder_name)
        folder.chmod(0o711)
        server = EmbeddedServer(folder / "server")
        server.start()
        try:
            for result in _measure(server, folder, options.runs, quick=options.quick):
                results.append(result)
                print(table([result]), end="\n\n", flush=True)
        finally:
            server.stop()
    write_report(results, options.output, {"postgresql": str(server.major)})
    print(table(results))
    print(f"\nwritten to {options.output}")
    return 0 if all(result.holds for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
