"""Tables that are not easy to clean and fill: circles, triggers, rules, types and schemas of their own."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import sqlalchemy
from sqlalchemy import Boolean, Column, Integer, MetaData, Text

from keikaku_snapshots.datasets import Dataset, Scale, Shard, Table, generate
from keikaku_snapshots.errors import DataError, ForeignKeyError, RefusedError, TestDataReferencedError
from tests.servers import as_role, connect
from tests.waiting import until_somebody_waits

if TYPE_CHECKING:
    from keikaku_snapshots.datasets import Generated
    from keikaku_snapshots.postgres.url import DatabaseURL

ROWS = 5


@pytest.fixture
def database(shared_database: DatabaseURL) -> DatabaseURL:
    """An empty database; one for the module."""
    return shared_database


def _table(name: str, **options: Any) -> sqlalchemy.Table:
    return sqlalchemy.Table(
        name,
        MetaData(**options),
        Column("id", Integer, primary_key=True, autoincrement=False),
        Column("other", Integer),
        Column("name", Text),
        Column("is_test_data", Boolean, nullable=False),
    )


def _rows(shard: Shard) -> list[tuple[Any, ...]]:
    return [(n, n, f"n{n}", "t") for n in range(1, shard.units + 1)]


def _dataset(*names: str, schema: str | None = None) -> Dataset:
    tables = tuple(Table(_table(name, schema=schema), _rows) for name in names)
    return Dataset("things", tables, (Scale("s", ROWS),))


def _make(url: DatabaseURL, dataset: Dataset, **options: Any) -> Generated:
    generated: Generated = generate(dataset, "s", url, **options)
    return generated


def _run(url: DatabaseURL, *statements: str) -> list[tuple[Any, ...]]:
    """Run statements past the code under test; the rows of the last one."""
    with connect(url) as connection:
        for statement in statements:
            cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


CIRCLE = _dataset("a", "b")


def _circle(url: DatabaseURL, kind: str) -> None:
    generate(CIRCLE, Scale("none", 1), url, create_tables=True)
    _run(
        url,
        "TRUNCATE a, b",
        f"ALTER TABLE a ADD CONSTRAINT to_b FOREIGN KEY (other) REFERENCES b {kind}",
        f"ALTER TABLE b ADD CONSTRAINT to_a FOREIGN KEY (other) REFERENCES a {kind}",
    )


@pytest.mark.parametrize("kind", ["DEFERRABLE", "DEFERRABLE INITIALLY DEFERRED"])
@pytest.mark.parametrize("drop", [False, True])
def test_tables_that_refer_to_each_other_are_filled_every_night(
    database: DatabaseURL, kind: str, drop: bool
) -> None:
    """A12: keys that can wait do wait, in either mode; the second run deletes what the first one wrote."""
    _circle(database, kind)

    first = _make(database, CIRCLE, drop_and_readd_constraints=drop)
    second = _make(database, CIRCLE, drop_and_readd_constraints=drop)

    assert first.rows == second.rows == {"a": ROWS, "b": ROWS}
    assert second.deleted == 2 * ROWS


def test_a_deferred_circle_inside_a_callers_transaction_is_checked(database: DatabaseURL) -> None:
    """The keys are immediate again afterwards, for the caller's own statements."""
    _circle(database, "DEFERRABLE")

    with psycopg.connect(database.text) as connection:
        generate(CIRCLE, "s", connection)
        with pytest.raises(psycopg.errors.ForeignKeyViolation):
            connection.execute("INSERT INTO a VALUES (99, 99, '', false)")
        connection.rollback()


def test_a_circle_that_cannot_wait_is_explained(database: DatabaseURL) -> None:
    """The error says what can be done; drop_and_readd_constraints does it, every night."""
    _circle(database, "")

    with pytest.raises(ForeignKeyError, match="in a circle"):
        _make(database, CIRCLE)
    _make(database, CIRCLE, drop_and_readd_constraints=True)
    again = _make(database, CIRCLE, drop_and_readd_constraints=True)

    assert again.deleted == 2 * ROWS
    names = "SELECT conname FROM pg_constraint WHERE contype = 'f' AND convalidated ORDER BY 1"
    assert _run(database, names) == [("to_a",), ("to_b",)]


def test_rows_outside_a_circle_are_counted_before_keys_are_dropped(database: DatabaseURL) -> None:
    """A12: with drop_and_readd_constraints too: the row that stays is told, the keys are there."""
    _circle(database, "")
    _make(database, CIRCLE, drop_and_readd_constraints=True)
    _run(database, "INSERT INTO a VALUES (77, 1, 'mine', false)")

    with pytest.raises(TestDataReferencedError, match="1 rows refer to test rows"):
        _make(database, CIRCLE, drop_and_readd_constraints=True)

    assert _run(database, "SELECT count(*) FROM a") == [(ROWS + 1,)]


A = _dataset("a")
TRIGGER = "CREATE TRIGGER t BEFORE {event} ON a FOR EACH ROW {when} EXECUTE FUNCTION f()"


def _trigger(url: DatabaseURL, event: str, body: str, when: str = "") -> None:
    _run(
        url,
        f"CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN {body}; END$$",
        TRIGGER.format(event=event, when=when),
    )


@pytest.mark.parametrize("event", ["INSERT", "DELETE"])
def test_a_trigger_that_raises_is_no_fault_of_the_library(database: DatabaseURL, event: str) -> None:
    """A9: the error says that the database's own function refused the row, with its words."""
    _make(database, A, create_tables=True)
    _trigger(database, event, "RAISE EXCEPTION 'not on a Sunday'")

    with pytest.raises(DataError, match="a trigger or function of the database") as caught:
        _make(database, A)

    assert "not on a Sunday" in str(caught.value)
    assert _run(database, "SELECT count(*) FROM a") == [(ROWS,)]


@pytest.mark.parametrize("when", ["", "WHEN (OLD.id = 2)"])
def test_test_rows_that_a_trigger_keeps_are_no_success(database: DatabaseURL, when: str) -> None:
    """A12: all test rows go, or nothing is changed; not a part of them, and no other error later."""
    _make(database, A, create_tables=True)
    _trigger(database, "DELETE", "RETURN NULL", when)

    with pytest.raises(RefusedError, match=f"{1 if when else ROWS} of the {ROWS} test rows of 'a'"):
        _make(database, A)

    assert _run(database, "SELECT count(*) FROM a") == [(ROWS,)]


def test_test_rows_that_a_trigger_deletes_itself_are_gone_all_the_same(database: DatabaseURL) -> None:
    """A trigger that is faster than the DELETE is no obstacle."""
    _make(database, CIRCLE, create_tables=True)
    _run(
        database,
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS "
        "$$BEGIN DELETE FROM a WHERE id = OLD.id AND id > 2; RETURN OLD; END$$",
        "CREATE TRIGGER t BEFORE DELETE ON b FOR EACH ROW EXECUTE FUNCTION f()",
    )

    assert _make(database, CIRCLE).rows == {"a": ROWS, "b": ROWS}


def test_references_are_compared_as_the_constraint_does(database: DatabaseURL) -> None:
    """A12: by the constraint's own operators: also those of a schema off the search path."""
    _make(database, A, create_tables=True)
    _run(
        database,
        "CREATE SCHEMA own",
        "CREATE FUNCTION own.same(text, text) RETURNS boolean IMMUTABLE LANGUAGE sql "
        "AS 'SELECT lower($1) = lower($2)'",
        "CREATE FUNCTION own.compared(text, text) RETURNS integer IMMUTABLE LANGUAGE sql "
        "AS 'SELECT bttextcmp(lower($1), lower($2))'",
        "CREATE FUNCTION own.less(text, text) RETURNS boolean IMMUTABLE LANGUAGE sql "
        "AS 'SELECT lower($1) < lower($2)'",
        "CREATE OPERATOR own.= (LEFTARG = text, RIGHTARG = text, FUNCTION = own.same, MERGES)",
        "CREATE OPERATOR own.< (LEFTARG = text, RIGHTARG = text, FUNCTION = own.less)",
        "CREATE OPERATOR CLASS own.folded FOR TYPE text USING btree AS "
        "OPERATOR 1 own.<, OPERATOR 3 own.=, FUNCTION 1 own.compared(text, text)",
        "CREATE UNIQUE INDEX folded ON a (name own.folded)",
        "CREATE TABLE outside (name text REFERENCES a (name) ON DELETE CASCADE)",
        "INSERT INTO outside VALUES ('N1')",
    )

    with pytest.raises(TestDataReferencedError, match="1 rows refer to test rows"):
        _make(database, A)

    assert _run(database, "SELECT name FROM outside") == [("N1",)]


@pytest.mark.parametrize(
    ("sequence", "following"),
    [("MINVALUE 1000", 1000), ("INCREMENT -1 MINVALUE -100 MAXVALUE 3", 3), ("MAXVALUE 3", 1)],
)
def test_a_sequence_of_another_range_is_no_obstacle(
    database: DatabaseURL, sequence: str, following: int
) -> None:
    """FAULTS 82: where the next free number is out of its range, a sequence begins or stays in its range."""
    _run(
        database,
        f"CREATE TABLE a (id integer GENERATED BY DEFAULT AS IDENTITY ({sequence}), other integer, "
        "name text, is_test_data boolean)",
    )

    _make(database, A)

    assert _run(database, "SELECT nextval(pg_get_serial_sequence('a', 'id'))") == [(following,)]


def test_a_model_with_a_schema_of_its_own_creates_it(database: DatabaseURL) -> None:
    """A12: create_tables creates the schema that the tables are in, too."""
    dataset = _dataset("a", schema="Own Shop")

    _make(database, dataset, create_tables=True)

    assert _run(database, 'SELECT count(*) FROM "Own Shop".a') == [(ROWS,)]


def test_a_schema_that_is_there_needs_no_right_to_create_one(database: DatabaseURL) -> None:
    """A12: a role that may create tables in a schema, and nothing else in the database, is enough."""
    _run(database, "CREATE SCHEMA own AUTHORIZATION keikaku_owner")

    _make(as_role(database, "keikaku_owner"), A, create_tables=True, schema="own")

    assert _run(database, "SELECT count(*) FROM own.a") == [(ROWS,)]
    _run(database, "DROP SCHEMA own CASCADE")


def test_processes_that_begin_together_create_the_tables_once(database: DatabaseURL) -> None:
    """A12: who comes second waits, finds the tables and replaces the rows; nobody gets an error."""
    results: list[Any] = []

    def work() -> None:
        try:
            results.append(_make(database, CIRCLE, create_tables=True))
        except Exception as error:  # noqa: BLE001 - told by the assertion
            results.append(error)

    with connect(database) as holder, holder.transaction():
        # All of them have looked for the tables before one may create them.
        holder.execute("LOCK TABLE pg_catalog.pg_class IN SHARE ROW EXCLUSIVE MODE")
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        until_somebody_waits(database, sessions=len(threads))
    for thread in threads:
        thread.join()

    assert [getattr(result, "rows", result) for result in results] == [{"a": ROWS, "b": ROWS}] * 3
    assert sorted(result.deleted for result in results) == [0, 2 * ROWS, 2 * ROWS]


def test_the_planner_knows_the_rows_at_once(database: DatabaseURL) -> None:
    """The first query after a load is planned for the rows that are there, without waiting for autovacuum."""
    known = "SELECT reltuples::int FROM pg_class WHERE relname = 'a'"

    _make(database, A, create_tables=True, analyze=False)
    assert _run(database, known) != [(ROWS,)]
    _make(database, A)

    assert _run(database, known) == [(ROWS,)]
    assert _run(database, "SELECT count(*) > 0 FROM pg_stats WHERE tablename = 'a'") == [(True,)]
