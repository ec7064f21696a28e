"""`BatchProcessor` alone: one batch is one transaction, whatever the types of the columns are."""

from __future__ import annotations

import enum
import gc
import ipaddress
import math
from contextlib import nullcontext
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.types.json import Jsonb
from psycopg.types.range import Range

from keikaku_snapshots.errors import PatchDefinitionError
from keikaku_snapshots.patches.batch import BatchProcessor, BatchResult
from keikaku_snapshots.patches.changes import Delete, Insert, Skip, Update
from keikaku_snapshots.patches.context import PatchContext
from keikaku_snapshots.patches.definition import RowPatch, SqlPatch, data_patch
from keikaku_snapshots.patches.parameters import read_parameters
from keikaku_snapshots.patches.plan import make_plan
from keikaku_snapshots.patches.settings import PatchSettings
from tests.patch_lab import Lab
from tests.patch_samples import AddOne
from tests.servers import connect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from keikaku_snapshots.patches.changes import Change, Row
    from keikaku_snapshots.patches.definition import Patch
    from keikaku_snapshots.postgres.url import DatabaseURL


@pytest.fixture
def lab(shared_database: DatabaseURL) -> Iterator[Lab]:
    """An empty database."""
    with connect(shared_database) as connection:
        yield Lab(shared_database, connection)


def processor(
    lab: Lab, patch: type[Patch], advance: Callable[[Any, BatchResult], None] | None = None
) -> BatchProcessor:
    """One for this patch."""
    plan = make_plan(lab.connection, patch(), read_parameters(patch(), {}))
    context = PatchContext(
        execution_id=uuid4(),
        params=None,
        actor="test",
        now=datetime.now(UTC),
        dry_run=False,
        reader=lambda: nullcontext(lab.connection),
    )
    return BatchProcessor(plan, context, PatchSettings(lock_timeout_s=0.2), advance=advance)


def by_row(
    function: Callable[[Row], Iterable[Change]], reads: tuple[str, ...], writes: tuple[str, ...]
) -> type[RowPatch]:
    """A patch on ``public.item`` that asks a function about each row."""

    def transform(self: object, rows: Iterable[Row], ctx: PatchContext) -> Iterable[Change]:
        del self, ctx
        for row in rows:
            yield from function(row)

    members = {"table": "public.item", "reads": reads, "writes": writes, "transform": transform}
    return data_patch("by_row")(type("ByRow", (RowPatch,), members))


class Colour(enum.Enum):
    """As the server's type has it."""

    red = "red"
    blue = "blue"


VALUES: dict[str, tuple[str, list[Any]]] = {
    "numeric": ("numeric(12, 4)", [Decimal("1.5000"), Decimal("-0.0001"), Decimal("NaN")]),
    "wide numeric": ("numeric", [Decimal("1E+40"), Decimal("1.10"), Decimal("Infinity")]),
    "float": ("double precision", [0.1, -0.0, math.inf, 1e-300]),
    "real": ("real", [0.5, -2.25]),
    "text": ("text", ["", "NULL", "\\N", 'a "quoted" {list}', "改行\n", "a'b\\c", "100 %"]),
    "char": ("char(5)", ["ab   "]),
    "bytea": ("bytea", [b"\x00\xff\\", b""]),
    "boolean": ("boolean", [True, False]),
    "date": ("date", [date(2024, 2, 29), date(1, 1, 1)]),
    "timestamptz": ("timestamptz", [datetime(2024, 1, 1, 12, 30, 0, 1, tzinfo=UTC)]),
    "interval": ("interval", [timedelta(days=3, seconds=5)]),
    "uuid": ("uuid", [UUID(int=7)]),
    "inet": ("inet", [ipaddress.ip_address("10.0.0.1")]),
    "array": ("text[]", [["a", None, "b,c", '"'], [], [["x", "y"], ["z", "w"]]]),
    "integers": ("integer[]", [[1, None, 3]]),
    "enum": ("colour", ["red", Colour.blue]),
    "enums": ("colour[]", ["{red,blue}"]),
    "domain": ("percentage", [Decimal("99.50")]),
    "range": ("int4range", [Range(1, 5), Range(empty=True)]),
    "jsonb": ("jsonb", [{"b": [1, None, "ü"], "a": {}}, [1], "text", 7, Jsonb({"k": "v"})]),
    "json": ("json", [{"z": 1, "a": 2}, "NULL"]),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_of_every_type_arrive_as_they_were_given(lab: Lab, name: str) -> None:
    """By updates and by insertions, NULL among them; what is equal already is not written."""
    kind, values = VALUES[name]
    values = [*values, None]
    lab.run(
        "CREATE TYPE colour AS ENUM ('red', 'blue');"
        "CREATE DOMAIN percentage AS numeric(5, 2) CHECK (value <= 100);"
        f"CREATE TABLE item (id integer PRIMARY KEY, given {kind});"
        f"INSERT INTO item SELECT i FROM generate_series(1, {len(values)}) i"
    )

    def change(row: Row) -> Iterable[Change]:
        yield Update(row, given=values[row.id - 1])
        yield Insert("public.item", id=row.id + 100, given=values[row.id - 1])

    result = processor(lab, by_row(change, (), ("given",))).process(lab.connection, None, ("100",), 50)

    assert result is not None
    # All but the NULL differ from what is there.
    assert (result.counts.processed, result.counts.changed) == (len(values), 2 * len(values) - 1)
    assert result.counts.unchanged == 1
    found = lab.rows("SELECT given::text, id FROM item ORDER BY id % 100, id")
    for place, value in enumerate(values):
        row = lab.rows("SELECT given FROM item WHERE id = %s", place + 1)[0]
        plain: Any = (
            value.obj if isinstance(value, Jsonb) else value.value if isinstance(value, Colour) else value
        )
        assert row[0] == plain or repr(row[0]) == repr(plain) or plain != plain  # noqa: PLR0124 - NaN
    assert [text for text, _ in found[0::2]] == [text for text, _ in found[1::2]]


@pytest.mark.parametrize(
    ("kind", "value", "error"),
    [
        ("varchar(3)", "abcd", psycopg.errors.StringDataRightTruncation),
        ("char(3)", "abcd", psycopg.errors.StringDataRightTruncation),
        ("short", "abcd", psycopg.errors.StringDataRightTruncation),
        ("numeric(4, 2)", Decimal(1000), psycopg.errors.NumericValueOutOfRange),
        ("bit(3)", "10101", psycopg.errors.StringDataLengthMismatch),
        ("integer", "many", psycopg.errors.InvalidTextRepresentation),
        ("text", "a\0b", psycopg.DataError),
    ],
)
def test_what_does_not_fit_is_refused_and_never_cut(lab: Lab, kind: str, value: Any, error: Any) -> None:
    """An explicit cast to the column's type would cut it silently."""
    lab.run(
        f"CREATE DOMAIN short AS varchar(3); CREATE TABLE item (id integer PRIMARY KEY, given {kind});"
        "INSERT INTO item VALUES (1)"
    )
    patch = by_row(lambda row: [Update(row, given=value)], (), ("given",))

    with pytest.raises(error):
        processor(lab, patch).process(lab.connection, None, ("1",), 10)
    assert lab.rows("SELECT given FROM item") == [(None,)]


def test_a_set_based_value_that_is_too_long_is_refused_although_its_beginning_is_there(lab: Lab) -> None:
    """The comparison of old and new must not cut it either."""
    lab.run(
        "CREATE TABLE item (id integer PRIMARY KEY, given varchar(3)); INSERT INTO item VALUES (1, 'abc')"
    )

    @data_patch("longer")
    class Longer(SqlPatch):
        table = "public.item"
        set = {"given": "given || 'd'"}  # noqa: RUF012

    with pytest.raises(psycopg.errors.StringDataRightTruncation):
        processor(lab, Longer).process(lab.connection, None, ("1",), 10)


def test_changes_are_written_in_the_order_in_which_they_come_first(lab: Lab) -> None:
    """So a unique value can be freed before it is taken; the later of two updates of a row counts."""
    lab.run(
        "CREATE TABLE item (id integer PRIMARY KEY, name text UNIQUE, qty integer);"
        "INSERT INTO item VALUES (1, 'a', 0), (2, 'b', 0), (3, 'c', 0)"
    )

    def change(row: Row) -> Iterable[Change]:
        if row.id == 1:
            yield Delete(row)
            yield Insert("public.item", id=11, name="a", qty=row.qty)
        elif row.id == 2:
            yield Update(row, qty=1)
            yield Update(row, qty=2)
        else:
            yield Skip(row)

    result = processor(lab, by_row(change, ("qty",), ("qty",))).process(lab.connection, None, ("3",), 10)

    assert result is not None
    assert (result.counts.processed, result.counts.changed, result.counts.unchanged) == (3, 3, 1)
    assert lab.rows("SELECT * FROM item ORDER BY id") == [(2, "b", 2), (3, "c", 0), (11, "a", 0)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (lambda row: [Update(row, name="x")], "column name, which is not in its writes"),
        (lambda row: [Insert("public.other", id=1)], "public.other, which is not in its target_tables"),
        (lambda row: [Insert("public.item", colour="red")], "column colour, which is not in public.item"),
        (lambda row: [Delete(type(row)({"id": 1}))], "belongs to no row of the batch"),
        (lambda row: ["delete"], "'delete', which belongs to no row"),
    ],
)
def test_what_a_patch_has_not_declared_is_refused(lab: Lab, changes: Any, message: str) -> None:
    """Nothing of the batch is written."""
    lab.items(3)
    before = lab.checksum()

    with pytest.raises(PatchDefinitionError) as caught:
        processor(lab, by_row(changes, ("qty",), ("qty",))).process(lab.connection, None, ("3",), 10)

    assert message in caught.value.found
    assert lab.checksum() == before


def test_a_batch_whose_cursor_does_not_move_is_rolled_back(lab: Lab) -> None:
    """Work and cursor are one transaction."""
    lab.items(20)
    before = lab.checksum()

    def refuse(connection: Any, result: BatchResult) -> None:
        assert result.cursor == ("10",)
        assert connection.execute("SELECT count(*) FROM item WHERE qty = id + 1").fetchone() == (10,)
        raise PermissionError

    with pytest.raises(PermissionError):
        processor(lab, AddOne, refuse).process(lab.connection, None, ("20",), 10)

    assert lab.checksum() == before
    assert lab.connection.info.transaction_status is psycopg.pq.TransactionStatus.IDLE


def test_the_batches_of_a_table_follow_each_other_until_there_is_none(lab: Lab) -> None:
    """The cursor of one is the beginning of the next."""
    lab.items(25, every=3)
    batches = processor(lab, AddOne)

    cursors, after = [], None
    while (result := batches.process(lab.connection, after, ("1000",), 10)) is not None:
        after = result.cursor
        cursors.append((result.cursor, result.counts.processed))

    assert cursors == [(("28",), 10), (("58",), 10), (("73",), 5)]


@pytest.mark.parametrize("fails", [False, True])
def test_the_garbage_collector_rests_during_a_batch_and_no_longer(lab: Lab, fails: bool) -> None:
    """Thousands of living rows need not be searched for cycles; also after an error it works again."""
    lab.items(3)
    rested = []

    def change(row: Row) -> Iterable[Change]:
        rested.append(not gc.isenabled())
        if fails:
            raise ZeroDivisionError
        yield Update(row, qty=row.qty + 1)

    with pytest.raises(ZeroDivisionError) if fails else nullcontext():
        processor(lab, by_row(change, ("qty",), ("qty",))).process(lab.connection, None, ("3",), 3)

    assert all(rested)
    assert len(rested) == (1 if fails else 3)
    assert gc.isenabled()
