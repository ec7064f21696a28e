"""COPY into real tables: every value arrives, and every refusal says where."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from keikaku_snapshots.datasets.attempts import Attempt, Timeouts
from keikaku_snapshots.datasets.copy import copy_rows
from keikaku_snapshots.datasets.targets import run
from keikaku_snapshots.errors import (
    CheckError,
    DataError,
    ForeignKeyError,
    MemoryLimitError,
    NotNullError,
    OperationTimeoutError,
    UniqueError,
)
from tests.servers import connect

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from keikaku_snapshots.datasets.steps import Steps
    from keikaku_snapshots.postgres.url import DatabaseURL
    from tests.servers import Server

Connection = psycopg.Connection[tuple[Any, ...]]

TABLES = """
CREATE TABLE parents (id integer PRIMARY KEY, name text);
CREATE TABLE children (
  id integer, parent_id integer CONSTRAINT children_parent REFERENCES parents,
  other_id integer, code text NOT NULL, size integer CONSTRAINT size_is_small CHECK (size < 10),
  CONSTRAINT children_code UNIQUE (code, other_id)
);
INSERT INTO parents VALUES (1, 'one');
"""


@pytest.fixture
def database(shared_database: DatabaseURL) -> DatabaseURL:
    """An empty database; one for the module."""
    return shared_database


@pytest.fixture
def connection(database: DatabaseURL) -> Iterator[Connection]:
    """An autocommit connection to a database with two tables."""
    with connect(database) as connection:
        connection.execute(TABLES)
        yield connection


def copy(
    db: Any, table: str, columns: tuple[str, ...], rows: Iterable[tuple[Any, ...]], **options: Any
) -> int:
    """Copy rows as the library does."""
    kept = list(rows)

    def unit(attempt: Attempt) -> Steps[int]:
        return (yield from copy_rows(table, columns, lambda: kept, **options))

    copied: int = run(db, unit)
    return copied


#: Text that trips naive writers of COPY: its escapes, its end marker, NULL in words, wide characters.
AWKWARD = [
    "", " ", "\\", "\\.", "\\N", "NULL", "a\tb", "a\nb", "a\r\nb", "\\t", "\\\\", "\x01\x1f\x7f",
    "\b\f\v", "雪", "👩‍👩‍👧", "a\ufeffb", "'", '"', "\\x41", "\\101", ",", "{}", "\u2028",
]  # fmt: skip


def test_awkward_values_arrive_as_they_are(each_server: Server, make_database: Any) -> None:
    r"""FAULTS 19: every character arrives, among them a line `\\.`, as with psycopg's own write_row."""
    with connect(make_database(each_server)) as connection:
        connection.execute(
            "CREATE TABLE ours (n int, a text, b text); CREATE TABLE theirs (n int, a text, b text)"
        )
        rows = [(str(n), text, None if n % 3 else text * 2) for n, text in enumerate(AWKWARD)]

        assert copy(connection, "ours", ("n", "a", "b"), rows, batch_size=4) == len(rows)

        with connection.cursor() as cursor, cursor.copy("COPY theirs FROM STDIN") as theirs:
            for row in rows:
                theirs.write_row(row)
        ours = connection.execute("SELECT n::text AS number, a, b FROM ours ORDER BY n").fetchall()
        assert ours == rows
        assert ours == connection.execute("SELECT n::text AS number, a, b FROM theirs ORDER BY n").fetchall()


def test_empty_text_is_not_null(connection: Connection) -> None:
    """FAULTS 87: an empty str is an empty text, None is NULL; also alone on a line."""
    copy(connection, "parents", ("id", "name"), [("5", ""), ("6", None)])
    connection.execute("CREATE TABLE single (name text)")
    copy(connection, "single", ("name",), [("",), (None,), ("\\.",)])

    rows = connection.execute("SELECT name FROM parents WHERE id > 1 ORDER BY id").fetchall()
    assert rows == [("",), (None,)]
    assert sorted(connection.execute("SELECT name FROM single"), key=repr) == [("",), ("\\.",), (None,)]


def test_a_connection_of_another_encoding_stores_the_same_text(connection: Connection) -> None:
    """FAULTS 74: the client encoding of the caller's connection does not matter."""
    connection.execute("SET client_encoding = 'LATIN1'")
    copy(connection, "parents", ("id", "name"), [("5", "é"), ("6", "雪")])
    connection.execute("SET client_encoding = 'UTF8'")

    assert connection.execute("SELECT name FROM parents WHERE id > 1 ORDER BY id").fetchall() == [
        ("é",),
        ("雪",),
    ]


def test_a_database_that_cannot_hold_the_text_says_so(server: Server) -> None:
    """FAULTS 73: Japanese text into a LATIN1 database is an error, not a question mark."""
    with server.admin() as admin:
        admin.execute("DROP DATABASE IF EXISTS keikaku_latin1_copy")
        admin.execute("CREATE DATABASE keikaku_latin1_copy TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
        try:
            with connect(server.url.with_database("keikaku_latin1_copy")) as connection:
                connection.execute("CREATE TABLE t (a text)")
                with pytest.raises(DataError, match="refused a value"):
                    copy(connection, "t", ("a",), [("雪",)])
        finally:
            admin.execute("DROP DATABASE keikaku_latin1_copy WITH (FORCE)")


def test_a_missing_parent_names_table_batch_constraint_and_column(connection: Connection) -> None:
    """A9: a foreign-key violation says where and what to do; the key is only in the details."""
    rows = [(str(n), "1" if n != 7 else "4242", "0", f"c{n}", "1") for n in range(1, 11)]

    with pytest.raises(ForeignKeyError) as raised:
        copy(connection, "children", ("id", "parent_id", "other_id", "code", "size"), rows, batch_size=3)

    text = str(raised.value)
    for part in (
        "外部キー制約違反",
        "public.children",
        "children_parent",
        "Column: parent_id",
        "Batch: 3",
        "To fix",
    ):
        assert part in text
    assert "4242" not in text
    assert raised.value.details["key"] == "4242"
    assert isinstance(raised.value.__cause__, psycopg.errors.ForeignKeyViolation)
    assert connection.execute("SELECT count(*) FROM children").fetchone() == (0,)


def test_a_double_names_the_batch(connection: Connection) -> None:
    """A9: a unique violation names constraint, columns and batch; the key is only in the details."""
    rows = [(str(n), "1", "0", "secret" if n in {2, 9} else f"c{n}", "1") for n in range(1, 11)]

    with pytest.raises(UniqueError) as raised:
        copy(connection, "children", ("id", "parent_id", "other_id", "code", "size"), rows, batch_size=4)

    text = str(raised.value)
    for part in ("一意制約違反", "children_code", "code, other_id", "Batch: 3"):
        assert part in text
    assert "secret" not in text
    assert raised.value.details["key"] == "secret, 0"


@pytest.mark.parametrize(
    ("row", "kind", "part"),
    [
        (("1", "1", "0", None, "1"), NotNullError, "Column: code"),
        (("1", "1", "0", "c", "11"), CheckError, "size_is_small"),
        (("1", "1", "0", "c", "many"), DataError, "Column: size"),
        (("1", "1", "0", "c", "99999999999"), DataError, "Column: size"),
    ],
)
def test_other_refusals_name_their_place(
    connection: Connection, row: tuple[str, ...], kind: type[DataError], part: str
) -> None:
    """A9: not-null, check, and values of a wrong form are told in the same way."""
    good = ("1", "1", "0", "good", "1")

    rows = [good, (*good[:3], "x", "1"), row]

    with pytest.raises(kind) as raised:
        copy(connection, "children", ("id", "parent_id", "other_id", "code", "size"), rows, batch_size=2)

    assert part in str(raised.value)
    assert "Batch: 2" in str(raised.value)
    assert "many" not in str(raised.value)


def test_batches_are_counted_over_all_copy_statements(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A load of several COPY statements counts its batches from the first row of all."""
    monkeypatch.setattr("keikaku_snapshots.datasets.copy.ROWS_PER_COPY", 4)
    rows = [(str(n), "1", "0", f"c{n}", "1" if n != 19 else "99") for n in range(1, 21)]

    with pytest.raises(CheckError, match="Batch: 10"):
        copy(connection, "children", ("id", "parent_id", "other_id", "code", "size"), rows, batch_size=2)


def test_an_error_of_the_generator_is_its_own_and_undoes_all(connection: Connection) -> None:
    """What a row generator raises passes unchanged, and nothing is left of the load."""

    def unit(attempt: Attempt) -> Steps[int]:
        yield from copy_rows("parents", ("id",), lambda: [("5",)])
        return (yield from copy_rows("parents", ("id",), broken))

    def broken() -> Iterator[tuple[str]]:
        yield ("6",)
        raise LookupError("my own fault")

    with pytest.raises(LookupError, match="my own fault"):
        run(connection, unit)

    assert connection.execute("SELECT count(*) FROM parents").fetchone() == (1,)


def test_a_trigger_that_drops_rows_is_found(connection: Connection) -> None:
    """Rows that a trigger swallows are an error, not a smaller dataset."""
    connection.execute(
        "CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
        "CREATE TRIGGER swallow BEFORE INSERT ON parents FOR EACH ROW WHEN (NEW.id = 6) EXECUTE "
        "FUNCTION swallow()"
    )

    with pytest.raises(DataError, match="stored 1 of 2 rows"):
        copy(connection, "parents", ("id",), [("5",), ("6",)])


def test_a_copy_that_waits_for_a_lock_is_stopped(connection: Connection, database: DatabaseURL) -> None:
    """A10: a COPY without progress is cancelled after the limit; the connection goes on living."""

    def unit(attempt: Attempt) -> Steps[int]:
        return (yield from copy_rows("parents", ("id",), lambda: [("5",)], stall_timeout_s=0.3))

    with connect(database) as other, other.transaction():
        other.execute("LOCK TABLE parents IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(OperationTimeoutError, match=r"'parents' made no progress for 0\.3 s"):
            run(connection, unit, timeouts=Timeouts(lock_s=None))

    assert copy(connection, "parents", ("id",), [("5",)]) == 1


def test_a_memory_limit_stops_the_work(connection: Connection) -> None:
    """A7: above the limit the work stops with both numbers, and nothing is written."""
    from keikaku_snapshots.datasets.copy import memory_check

    with pytest.raises(MemoryLimitError, match="the limit is 1 MB"):
        copy(connection, "parents", ("id",), [("5",)], check_memory=memory_check(1))

    assert connection.execute("SELECT count(*) FROM parents").fetchone() == (1,)


def test_progress_counts_the_rows_that_were_sent(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A11: the callback hears of rows on the way, and of the end with all of them."""
    from keikaku_snapshots.datasets.copy import StepProgress

    monkeypatch.setattr(StepProgress, "_INTERVAL_S", 0.0)
    heard: list[Any] = []

    copy(connection, "parents", ("id",), [(str(n),) for n in range(5, 15)], batch_size=4, total=10,
         progress=heard.append)  # fmt: skip

    assert [(value.done, value.total, value.finished) for value in heard] == [
        (4, 10, False), (8, 10, False), (10, 10, False), (10, 10, True),
    ]  # fmt: skip
    assert {value.step for value in heard} == {"copy parents"}


def test_names_are_quoted(connection: Connection) -> None:
    """Tables and columns of any name, in any schema."""
    connection.execute(
        """CREATE SCHEMA "My ""schema"; CREATE TABLE "My ""schema"."Ta ble" ("Col""umn" text)"""
    )

    copy(connection, "Ta ble", ('Col"umn',), [("x",)], schema='My "schema')

    assert connection.execute("""SELECT "Col""umn" FROM "My ""schema"."Ta ble" """).fetchall() == [("x",)]
