"""`make demo`: 100 offices into an embedded PostgreSQL, frozen, damaged, brought back, compared.

Everything happens in a temporary directory; nothing is left, no server runs on.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import psycopg
from psycopg import sql

from keikaku_snapshots import DatabaseURL, EmbeddedServer, KeikakuError, SnapshotManager
from keikaku_snapshots.datasets import generate, get_scale
from keikaku_snapshots.postgres.tools import find_tools, run_pg_dump

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

#: Rows and a digest of every table and sequence.
Contents = dict[str, tuple[int, str]]


def step(words: str, work: Callable[[], T]) -> T:
    """Do one step and print what it took."""
    print(f"  {words:<52}", end="", flush=True)
    started = time.perf_counter()
    result = work()
    print(f"{time.perf_counter() - started:6.2f} s", flush=True)
    return result


def contents(url: DatabaseURL) -> Contents:
    """Read rows and a digest of every table and sequence, without the library."""
    found: Contents = {}
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


def dump(url: DatabaseURL, major: int, path: Path) -> str:
    """Dump schema and data with pg_dump and return the digest of the text."""
    result = run_pg_dump(find_tools(major), url, path)
    if result.returncode != 0:
        raise RuntimeError(result.stderr)
    # pg_dump writes a random key into each dump; it means nothing.
    lines = (line for line in path.read_bytes().splitlines() if b"restrict " not in line)
    return hashlib.sha256(b"\n".join(lines)).hexdigest()


def damage(url: DatabaseURL) -> None:
    """Do what a bad night does: rows lost and changed, a table gone, one too many."""
    with psycopg.connect(**url.connect_arguments()) as connection:
        connection.execute("DELETE FROM support_plan_cycles WHERE id % 3 = 0")
        connection.execute("UPDATE welfare_recipients SET full_name = '壊れた名前' WHERE gender = 'male'")
        connection.execute("DROP TABLE office_welfare_recipients")
        connection.execute("CREATE TABLE left_over (id integer)")
        connection.execute("SELECT setval('support_plan_cycles_id_seq', 1)")


def compare(before: Contents, damaged: Contents, after: Contents) -> bool:
    """Print what happened to each table; True when all are as they were."""
    print(f"\n  {'':<30}{'rows':>8}{'damaged':>10}{'restored':>10}   checksum")
    for name in sorted(before | damaged):
        counts = [f"{state[name][0]:,}" if name in state else "gone" for state in (before, damaged, after)]
        if name not in before:
            counts[0], counts[2] = "-", "-" if name not in after else "STILL THERE"
        same = before.get(name) == after.get(name)
        digest = before[name][1][:12] if name in before else ""
        hurt = "  was damaged" if before.get(name) != damaged.get(name) else ""
        verdict = f"{digest} {'equal' if same else 'DIFFERENT'}{hurt}"
        print(f"  {name:<30}{counts[0]:>8}{counts[1]:>10}{counts[2]:>10}   {verdict.strip()}")
    return before == after != damaged


def run(server: EmbeddedServer, directory: Path) -> bool:
    """Run the demo; True when the database came back identical."""
    url = server.url("demo", create=True)
    with SnapshotManager(url, snapshot_dir=directory / "snapshots") as manager:
        data = step(
            "generate 100 offices", lambda: generate("keikaku", get_scale("medium"), url, create_tables=True)
        )
        before, dump_before = contents(url), dump(url, server.major, directory / "before.sql")
        snapshot = step("create a snapshot", lambda: manager.create_snapshot("medium_100_offices"))
        step("damage the database: delete, update, drop", lambda: damage(url))
        damaged, dump_damaged = contents(url), dump(url, server.major, directory / "damaged.sql")
        restored = step("restore the snapshot", lambda: manager.restore_snapshot("medium_100_offices"))
        after = step("checksum every table and sequence", lambda: contents(url))
        dump_after = step(
            "dump it again with pg_dump", lambda: dump(url, server.major, directory / "after.sql")
        )
    same = compare(before, damaged, after)
    same_dump = dump_before == dump_after != dump_damaged
    print(f"\n  pg_dump before and after: {'equal' if same_dump else 'DIFFERENT'} ({dump_after[:12]})")
    print(f"  {sum(data.rows.values()):,} rows in a snapshot of {snapshot.size_bytes / 1e6:.1f} MB,", end=" ")
    print(f"restored by {restored.strategy} in {restored.seconds:.2f} s")
    print(f"\n  The database is {'identical' if same and same_dump else 'DIFFERENT'} after the restore.")
    return same and same_dump


def main() -> int:
    """Start the server, run, stop it, remove everything."""
    # Lets `finally` run when a job is cancelled.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    directory = Path(tempfile.mkdtemp(prefix="keikaku_demo_"))
    if os.geteuid() == 0:
        # The server cannot run as root; the account that it runs under must get through.
        directory.chmod(0o755)
    server = None
    try:
        server = EmbeddedServer(directory / "postgres")
        status = step("start an empty PostgreSQL", server.start)
        print(f"    PostgreSQL {status.major} on port {status.port}, process {status.pid}", flush=True)
        return 0 if run(server, directory) else 1
    except KeikakuError as error:
        print(f"\n{error}", file=sys.stderr)
        return error.exit_code
    finally:
        if server is not None:
            server.stop()
            shutil.rmtree(server.home, ignore_errors=True)
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
