"""`make demo`: 100 offices into an embedded PostgreSQL, frozen, damaged, brought back, compared.

Everything happens below .keikaku/demo, which is made anew each time.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import psycopg
from psycopg import sql

from keikaku_snapshots import DatabaseURL, EmbeddedServer, KeikakuError, SnapshotManager
from keikaku_snapshots.datasets import generate, get_scale

if TYPE_CHECKING:
    from collections.abc import Callable

DIRECTORY = Path(".keikaku") / "demo"

T = TypeVar("T")


def step(words: str, work: Callable[[], T]) -> T:
    """Do one step and print what it took."""
    started = time.perf_counter()
    result = work()
    print(f"  {words:<58} {time.perf_counter() - started:7.2f} s", flush=True)
    return result


def contents(url: DatabaseURL) -> dict[str, tuple[int, str]]:
    """Rows and a digest of every table and sequence, read without the library."""
    found: dict[str, tuple[int, str]] = {}
    with psycopg.connect(**url.connect_arguments()) as connection:
        names = connection.execute(
            "SELECT relname::text, relkind::text FROM pg_class"
            " WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'S') ORDER BY 1"
        ).fetchall()
        for name, kind in names:
            what = "t" if kind == "r" else "(last_value, is_called)"
            query = sql.SQL(
                "SELECT count(*), coalesce(md5(string_agg({what}::text, E'\\n' ORDER BY {what}::text)), '')"
                " FROM {table} t"
            ).format(what=sql.SQL(what), table=sql.Identifier("public", name))
            row = connection.execute(query).fetchone()
            assert row is not None
            found[name] = (row[0], row[1])
    return found


def damage(url: DatabaseURL) -> None:
    """What a bad night does: rows lost, changed and added, a table gone."""
    with psycopg.connect(**url.connect_arguments()) as connection:
        connection.execute("TRUNCATE support_plan_cycles")
        connection.execute("UPDATE welfare_recipients SET full_name = 'damaged' WHERE gender = 'male'")
        connection.execute("DROP TABLE office_welfare_recipients")
        connection.execute("CREATE TABLE left_over (id integer)")


def run(server: EmbeddedServer) -> bool:
    """Run the demo; True when the database came back identical."""
    url = server.url("demo", create=True)
    with SnapshotManager(url, snapshot_dir=DIRECTORY / "snapshots") as manager:
        data = step(
            "generate 100 offices", lambda: generate("keikaku", get_scale("medium"), url, create_tables=True)
        )
        before = contents(url)
        snapshot = step("create a snapshot", lambda: manager.create_snapshot("medium_100_offices"))
        step("damage the database", lambda: damage(url))
        damaged = contents(url)
        restored = step("restore the snapshot", lambda: manager.restore_snapshot("medium_100_offices"))
        after = step("compare every table and sequence", lambda: contents(url))
    print()
    megabytes = snapshot.size_bytes / 1e6
    print(f"{sum(data.rows.values()):,} rows; {snapshot.path.name}, {megabytes:.1f} MB")
    print(f"restored by {restored.strategy}")
    changed = [name for name in before.keys() | damaged.keys() if before.get(name) != damaged.get(name)]
    same = before == after
    print(f"damaged: {', '.join(sorted(changed))}")
    print("after the restore: identical" if same else "after the restore: DIFFERENT")
    return same and bool(changed)


def main() -> int:
    """Start the server, run, stop it."""
    shutil.rmtree(DIRECTORY / "snapshots", ignore_errors=True)
    try:
        server = EmbeddedServer(DIRECTORY)
        if server.stop():
            print("stopped the server of an earlier demo")
        shutil.rmtree(server.home, ignore_errors=True)
        status = step("start an embedded PostgreSQL", server.start)
        print(f"  PostgreSQL {status.major} on port {status.port}, process {status.pid}", flush=True)
        try:
            return 0 if run(server) else 1
        finally:
            server.stop()
    except KeikakuError as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
