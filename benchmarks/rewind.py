"""C4: what a rewind costs between two tests, what it costs to write under capture, and what a clone costs.

A test changes 33 rows in each of three tables and commits. Rewinds are
measured from the call to its end, by a superuser (foreign keys rest) and by a
plain owner in its two ways. The clone is what pytest-postgresql does for each
test: CREATE DATABASE … TEMPLATE, and DROP DATABASE after it. Writing is
compared with the same statements into a copy of the database without a
checkpoint.
"""
# ruff: noqa: E501 - SQL reads better in long lines

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from typing import TYPE_CHECKING

from psycopg import sql

from benchmarks.measure import Bar, Result, compare
from keikaku_snapshots import SnapshotManager
from keikaku_snapshots.postgres.connect import connect
from keikaku_snapshots.snapshots.rewind import Rewinder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.postgres.url import DatabaseURL

#: Most milliseconds for 99 rows in 3 tables, and on the slowest way of a plain owner.
QUICK_MS = 3.0
SLOWEST_MS = 20.0
#: A rewind costs at most so much of a clone.
CLONE_SHARE = 1 / 20
#: The last of 3,000 rewinds may cost so much more than the first.
FLAT = 1.5
#: Writing under capture costs at most so many times plain writing.
WRITE_LIMITS = {"COPY": 1.8, "single rows in a transaction": 1.6, "pipelined inserts": 2.7}
_OWNER = "bench_rewind_owner"
_CHANGES = (
    "UPDATE offices SET name = name || '!' WHERE id IN (SELECT id FROM offices LIMIT 33)",
    "DELETE FROM support_plan_cycles WHERE id IN (SELECT id FROM support_plan_cycles LIMIT 33)",
    "UPDATE staffs SET is_test_data = NOT is_test_data WHERE id IN (SELECT id FROM staffs LIMIT 33)",
)


def _test(connection: Connection) -> None:
    """What a test changes: 99 rows in 3 tables, committed one statement after the other."""
    for statement in _CHANGES:
        connection.execute(statement)


def _rewinds(url: DatabaseURL, connection: Connection, runs: int, *, quick: bool = True) -> Iterator[float]:
    """Milliseconds of each rewind."""
    rewinder = Rewinder(url)
    rewinder.quick = quick
    try:
        for _ in range(runs):
            _test(connection)
            rewound = rewinder.rewind(wait_s=5)
            if rewound.rows != 99:
                raise RuntimeError(f"{rewound.rows} rows went back in place of 99")
            yield rewound.seconds * 1000
    finally:
        rewinder.close()


def as_superuser(url: DatabaseURL, scale_name: str, runs: int = 300) -> list[Result]:
    """Rewind after a test, against a clone for the test; on `large` 3,000 times over."""
    results = []
    with SnapshotManager(url) as manager, connect(url, autocommit=True) as connection:
        manager.checkpoint()
        times = list(_rewinds(url, connection, runs))[10:]
        results.append(
            Result(
                f"rewind 99 rows in 3 tables of {scale_name}",
                {"rewind (ms)": times},
                statistics.median(times),
                Bar("C4", QUICK_MS, "ms"),
            )
        )
        if scale_name == "large":
            times = list(_rewinds(url, connection, 3_000))
            first, last = statistics.median(times[10:310]), statistics.median(times[-300:])
            samples = {"rewinds 10-310 (ms)": times[10:310], "the last 300 (ms)": times[-300:]}
            results.append(Result("3,000 rewinds", samples, last / first, Bar("C4", FLAT, "ratio")))
        rewinder = Rewinder(url)

        def test_and_rewind() -> float:
            _test(connection)
            return rewinder.rewind(wait_s=5).seconds

        samples = {"rewind": [test_and_rewind() for _ in range(50)]}
        rewinder.close()
        manager.drop_checkpoint()
    samples["CREATE DATABASE … TEMPLATE, DROP"] = _clones(url, 5)
    share = statistics.median(samples["rewind"]) / statistics.median(list(samples.values())[1])
    results.append(
        Result(f"isolate a test on {scale_name}", samples, share, Bar("C4", round(CLONE_SHARE, 3), "ratio"))
    )
    return results


def _clones(url: DatabaseURL, runs: int) -> list[float]:
    """Seconds of a clone and its drop; nobody may be in the template."""
    name, clone = sql.Identifier(url.database), sql.Identifier(f"{url.database}_clone")
    times = []
    with connect(url, database="postgres", autocommit=True) as connection:
        for _ in range(runs):
            started = time.perf_counter()
            connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(clone, name))
            connection.execute(sql.SQL("DROP DATABASE {}").format(clone))
            times.append(time.perf_counter() - started)
    return times


def as_owner(url: DatabaseURL, scale_name: str, runs: int = 100) -> list[Result]:
    """The same without superuser rights: the quick way, and the thorough one that circles and triggers need."""
    owner = dataclasses.replace(url, user=_OWNER, password=_OWNER)
    with connect(url, autocommit=True) as connection:
        connection.execute(
            f"DO $$ BEGIN CREATE ROLE {_OWNER} LOGIN PASSWORD '{_OWNER}'; EXCEPTION WHEN duplicate_object THEN END $$;"
            f"DO $$ DECLARE t regclass; BEGIN FOR t IN SELECT oid FROM pg_class WHERE relkind = 'r'"
            f" AND relnamespace = 'public'::regnamespace LOOP"
            f" EXECUTE format('ALTER TABLE %s OWNER TO {_OWNER}', t); END LOOP; END $$"
        )
        connection.execute(
            sql.SQL("ALTER DATABASE {} OWNER TO {}").format(
                sql.Identifier(url.database), sql.Identifier(_OWNER)
            )
        )
    results = []
    with SnapshotManager(owner) as manager, connect(owner, autocommit=True) as connection:
        manager.checkpoint()
        for quick, limit in ((True, SLOWEST_MS), (False, SLOWEST_MS)):
            times = list(_rewinds(owner, connection, runs, quick=quick))[10:]
            way = "quick" if quick else "thorough"
            results.append(
                Result(
                    f"rewind as a plain owner, {way} way, {scale_name}",
                    {"rewind (ms)": times},
                    statistics.median(times),
                    Bar("C4", limit, "ms"),
                )
            )
        manager.drop_checkpoint()
    return results


_WRITE_TABLE = """
DROP TABLE IF EXISTS written;
CREATE TABLE written (id bigint PRIMARY KEY, name text, kana text, note text, at timestamptz, amount numeric(12, 2));
"""


def _timed(work: Callable[[Connection], None], connection: Connection, after: Callable[[], object]) -> float:
    """Seconds of the work alone; what makes room for the next run is not counted."""
    started = time.perf_counter()
    work(connection)
    seconds = time.perf_counter() - started
    after()
    return seconds


def writing(plain: DatabaseURL, armed: DatabaseURL, runs: int) -> Iterator[Result]:
    """Write the same into a database with and one without a checkpoint."""
    for url in (plain, armed):
        with connect(url, autocommit=True) as connection:
            connection.execute(_WRITE_TABLE)
    row = ("山田 太郎", "やまだ たろう", "x" * 60, "2025-01-31 03:15:00+09", "1234.50")
    insert = "INSERT INTO written VALUES (%s, %s, %s, %s, %s, %s)"

    def copy(connection: Connection) -> None:
        with connection.transaction(), connection.cursor().copy("COPY written FROM STDIN") as copying:
            for number in range(50_000):
                copying.write_row((number, *row))

    def single(connection: Connection) -> None:
        with connection.transaction():
            for number in range(3_000):
                connection.execute(insert, (number, *row))

    def pipelined(connection: Connection) -> None:
        with connection.transaction():
            connection.cursor().executemany(insert, [(number, *row) for number in range(10_000)])

    works = {"COPY": copy, "single rows in a transaction": single, "pipelined inserts": pipelined}
    with SnapshotManager(armed) as manager:
        manager.checkpoint()
        with connect(plain, autocommit=True) as without, connect(armed, autocommit=True) as under:
            for name, work in works.items():
                contestants = {
                    "armed": functools.partial(_timed, work, under, manager.rewind),
                    "plain": functools.partial(
                        _timed, work, without, functools.partial(without.execute, "TRUNCATE written")
                    ),
                }
                yield compare(
                    f"write under capture: {name}",
                    contestants,
                    Bar("C4", WRITE_LIMITS[name], "ratio"),
                    runs=runs,
                )
        manager.drop_checkpoint()
