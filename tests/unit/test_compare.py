"""Differences of rows against a naive set difference, keys out of a schema, what the command line shows."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keikaku_snapshots.cli import diff as cli
from keikaku_snapshots.postgres.catalog import TableName
from keikaku_snapshots.snapshots import compare_rows
from keikaku_snapshots.snapshots.compare import sequence_differences
from keikaku_snapshots.snapshots.compare_keys import (
    choose_key,
    parse_copy,
    parse_table,
    row_keys,
    tables_and_roots,
)
from keikaku_snapshots.snapshots.compare_rows import ChangedRow, RowComparison, blocks_of, project
from keikaku_snapshots.snapshots.compare_tables import layout, row_values
from keikaku_snapshots.snapshots.comparison import RowChange

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from keikaku_snapshots.snapshots.compare_rows import RowDifference

#: Values as COPY writes them: NULL, empty, escapes, what looks like an end of data, numbers.
VALUES = st.sampled_from(
    [b"\\N", b"", b"a", b"\\t", b"\\n", b"\\\\N", b"\\\\.", "日本".encode(), b"1", b"-1", b"10", b"9" * 60]
) | st.binary(min_size=0, max_size=3).map(lambda value: value.hex().encode())
ROWS = st.lists(st.tuples(VALUES, VALUES, VALUES), max_size=40)


def _lines(rows: Iterable[tuple[bytes, ...]]) -> list[bytes]:
    return [b"\t".join(row) + b"\n" for row in rows]


def _compare(
    before: Sequence[tuple[bytes, ...]],
    after: Sequence[tuple[bytes, ...]],
    key: tuple[int, ...],
    *,
    memory_bytes: int = 1 << 20,
    keep: int = 1000,
) -> RowDifference:
    comparison = RowComparison(key, keep=keep, memory_bytes=memory_bytes)
    return comparison.run(blocks_of(_lines(before)), blocks_of(_lines(after)))


@pytest.fixture(autouse=True, scope="module")
def _small_blocks() -> Iterable[None]:
    """Blocks of a few rows and few files, so that a few rows fill several."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"BLOCK_BYTES": 40, "_PARTS": 4, "_PART_BITS": 2, "_DEEPEST": 2}.items():
            patch.setattr(compare_rows, name, value)
        yield


@settings(max_examples=60, deadline=None)
@given(
    ROWS,
    ROWS,
    st.sampled_from([(0,), (2,), (0, 1), (2, 0)]),
    st.sampled_from([1, 700, 1 << 20]),
    st.randoms(),
)
def test_by_key_the_difference_is_that_of_dictionaries(
    one: list[tuple[bytes, ...]],
    other: list[tuple[bytes, ...]],
    key: tuple[int, ...],
    memory_bytes: int,
    shuffler: random.Random,
) -> None:
    """Whatever the order and wherever the rows are held: added, removed, changed, exactly."""
    old = {tuple(row[place] for place in key): row for row in one}
    new = {tuple(row[place] for place in key): row for row in [*one[::2], *other]}
    before, after = list(old.values()), list(new.values())
    shuffler.shuffle(after)

    found = _compare(before, after, key, memory_bytes=memory_bytes)

    added = {ChangedRow(None, b"\t".join(new[name]), 1) for name in new.keys() - old.keys()}
    removed = {ChangedRow(b"\t".join(old[name]), None, 1) for name in old.keys() - new.keys()}
    changed = {
        ChangedRow(b"\t".join(old[name]), b"\t".join(new[name]), 1)
        for name in old.keys() & new.keys()
        if old[name] != new[name]
    }
    assert set(found.rows) == added | removed | changed
    assert len(found.rows) == found.added + found.removed + found.changed
    assert (found.added, found.removed, found.changed) == (len(added), len(removed), len(changed))
    assert (found.rows_before, found.rows_after) == (len(before), len(after))
    assert found.changed_columns == Counter(
        place
        for name in old.keys() & new.keys()
        for place in range(3)
        if old[name][place] != new[name][place]
    )


@settings(max_examples=60, deadline=None)
@given(ROWS, ROWS, st.sampled_from([1, 700, 1 << 20]), st.randoms())
def test_without_a_key_the_difference_is_that_of_multisets(
    one: list[tuple[bytes, ...]], other: list[tuple[bytes, ...]], memory_bytes: int, shuffler: random.Random
) -> None:
    """Each row counts as often as it occurs."""
    before, after = [*one, *one[::3]], [*one[::2], *other]
    shuffler.shuffle(after)

    found = _compare(before, after, (), memory_bytes=memory_bytes)

    old, new = Counter(before), Counter(after)
    gone = {ChangedRow(b"\t".join(row), None, times) for row, times in (old - new).items()}
    come = {ChangedRow(None, b"\t".join(row), times) for row, times in (new - old).items()}
    assert set(found.rows) == gone | come
    assert (found.added, found.removed, found.changed) == ((new - old).total(), (old - new).total(), 0)


@settings(max_examples=25, deadline=None)
@given(ROWS, ROWS, st.integers(0, 5))
def test_the_rows_given_back_are_the_first_by_key_however_they_are_held(
    one: list[tuple[bytes, ...]], other: list[tuple[bytes, ...]], keep: int
) -> None:
    """`rows=N` gives the same N rows every time; the counts do not depend on it."""
    before = list({row[0]: row for row in one}.values())
    after = list({row[0]: row for row in other}.values())

    everything = _compare(before, after, (0,))
    for memory_bytes in (1, 1 << 20):
        some = _compare(before, after, (0,), memory_bytes=memory_bytes, keep=keep)
        assert some.rows == everything.rows[:keep]
        assert (some.added, some.removed, some.changed) == (
            everything.added,
            everything.removed,
            everything.changed,
        )


def test_numbers_are_sorted_as_numbers() -> None:
    """Row 9 comes before row 10, and both before texts."""
    found = _compare([], [(b"x", b""), (b"10", b""), (b"9", b""), (b"-3", b""), (b"9" * 5000, b"")], (0,))

    keys = [(row.after or b"").partition(b"\t")[0] for row in found.rows]
    assert keys[:3] == [b"-3", b"9", b"10"]


def test_memory_is_flat_however_many_rows_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """A7: what is held at once stays near the limit, spread as often as needed."""
    held: list[int] = []
    match = RowComparison._match

    def note(self: RowComparison, old: set[bytes], new: set[bytes]) -> None:
        held.append(len(old) + len(new))
        match(self, old, new)

    monkeypatch.setattr(RowComparison, "_match", note)
    monkeypatch.setattr(compare_rows, "_DEEPEST", 4)
    before = [(b"%d" % number, b"old") for number in range(2000)]
    after = [(key, b"new") for key, _ in before]

    found = _compare(before, after, (0,), memory_bytes=20_000, keep=0)

    assert found.changed == 2000
    # 20,000 bytes are about 185 rows of each side.
    assert max(held) <= 2 * 200


def test_large_values_cross_blocks_and_files() -> None:
    """A row of megabytes is one row."""
    large = b"x" * (3 << 20)
    before = [(b"%d" % number, large) for number in range(3)]
    after = [*before[1:], (b"7", large + b"y")]

    found = _compare(before, after, (0,), memory_bytes=1000)

    assert (found.added, found.removed, found.changed) == (1, 1, 0)


def test_a_full_disk_is_said_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Design, Valid files: no room for the temporary files is the disk's error, not a traceback."""
    from keikaku_snapshots.errors import DiskFullError

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compare_rows, "_write", fail)
    rows = [(b"%d" % number, b"") for number in range(50)]
    comparison = RowComparison((0,), directory=tmp_path, memory_bytes=1)
    with pytest.raises(DiskFullError):
        comparison.run(blocks_of(_lines(rows)), blocks_of(_lines(rows[::-1])))

    assert list(tmp_path.iterdir()) == []


def test_columns_are_chosen_and_reordered() -> None:
    """A column that was added or moved does not make every row differ."""
    block = b"1\ta\t\\N\n2\t\tx\n"

    assert b"".join(project(iter([block]), (2, 0), 3)) == b"\\N\t1\nx\t2\n"
    assert b"".join(project(iter([block]), (), 3)) == b"\n\n"
    assert b"".join(project(iter([block]), (0, 1, 2), 3)) == block


def test_values_are_read_as_copy_writes_them() -> None:
    r"""NULL is not the text \N, and not empty; every escape is undone once."""
    line = b"\\N\t\t\\\\N\ta\\tb\\nc\\rd\\\\e\\bf\\fg\\vh\t\xe6\x97\xa5\t\xff"

    assert row_values(line) == [None, "", "\\N", "a\tb\nc\rd\\e\bf\fg\vh", "日", "\\xff"]


OBJECTS = {
    "table public.t": 'columns id, code, "odd, name"',
    'table "od.d"."T""x"': "columns a",
    "table public.p": "partitioned by LIST (r); columns r, id",
    "table public.p_a": "FOR VALUES IN ('; inherits x.y'); inherits public.p; columns r, id",
    "table public.p_b": "partitioned by RANGE (id); DEFAULT; inherits public.p; columns r, id",
    "table public.p_b_1": "FOR VALUES FROM (1) TO (2); inherits public.p_b; columns r, id",
    "table public.child": "inherits public.t; columns id",
    "column public.t.code": "text NOT NULL",
    "column public.t.id": "integer DEFAULT 'x NOT NULL'",
    'column public.t."odd, name"': "text NOT NULL DEFAULT ''",
    "constraint t_id on public.t": "UNIQUE (id)",
    'constraint "t on x" on public.t': 'UNIQUE (code, "odd, name") INCLUDE (id)',
    "constraint t_check on public.t": "CHECK ((id > 0))",
    "constraint p_pkey on public.p": "PRIMARY KEY (r, id)",
    "constraint p_u on public.p": "UNIQUE NULLS NOT DISTINCT (id)",
    'constraint x on "od.d"."T""x"': "PRIMARY KEY (a, during WITHOUT OVERLAPS)",
}


def test_keys_are_read_out_of_the_schema() -> None:
    """The primary key first, then unique constraints over NOT NULL columns; others identify no row."""
    assert row_keys(OBJECTS) == {
        TableName("public", "t"): [("code", "odd, name")],
        TableName("public", "p"): [("r", "id")],
        TableName("od.d", 'T"x'): [("a", "during")],
    }


def test_partitions_count_for_their_topmost_table() -> None:
    """Ordinary inheritance does not: the child's rows are its own."""
    roots = {str(name): str(root) for name, root in tables_and_roots(OBJECTS).items()}

    assert roots == {
        "public.t": "public.t",
        '"od.d"."T""x"': '"od.d"."T""x"',
        "public.p": "public.p",
        "public.p_a": "public.p",
        "public.p_b": "public.p",
        "public.p_b_1": "public.p",
        "public.child": "public.child",
    }


def test_both_sides_must_have_the_key() -> None:
    """The order of its columns does not matter; a key that only one side has is none."""
    assert choose_key([("a", "b")], [("c",), ("b", "a")]) == ("b", "a")
    assert choose_key([("a",)], [("b",)]) == ()
    assert layout(("id", "a"), ("b", "id"), [("id",)], [("id",)]) == (("id",), ("b",), ("a",), ("id",))
    assert layout(None, ("b", "id"), [], [("id",)]) == (("b", "id"), (), (), ("id",))


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("COPY public.t (id, name) FROM stdin;", (TableName("public", "t"), ("id", "name"))),
        ("COPY public.none  FROM stdin;", (TableName("public", "none"), ())),
        ('COPY "a.b"."c""d\n" ("x, y", z) FROM stdin;', (TableName("a.b", 'c"d\n'), ("x, y", "z"))),
        ("COPY 表.行 (列) FROM stdin;", (TableName("表", "行"), ("列",))),
        ("COPY t (id) FROM stdin;", None),
    ],
)
def test_copy_statements_are_read(statement: str, expected: object) -> None:
    """Names as pg_dump quotes them."""
    assert parse_copy(statement) == expected
    assert parse_table("no_schema") is None


def test_sequences_differ_by_value_and_by_whether_it_was_given_out() -> None:
    """A sequence that is new or gone differs too."""
    found = sequence_differences(
        {"s.a": (1, False), "s.b": (5, True), "s.c": (7, True)},
        {"s.a": (1, True), "s.b": (5, True), "s.d": (1, False)},
    )

    assert [(one.name, one.before, one.called_before, one.after, one.called_after) for one in found] == [
        ("s.a", 1, False, 1, True),
        ("s.c", 7, True, None, None),
        ("s.d", None, None, 1, False),
    ]


def test_a_terminal_is_not_obeying_what_a_row_says() -> None:
    """Control characters are shown, long values cut where they differ, NULL and '' told apart."""
    row = RowChange(
        "changed",
        {"id": "1"},
        {"a": None, "b": "\x1b[31m", "c": "x" * 200 + "old", "d": "two words", "e": '{"k": [1, 2]}'},
        {"a": "", "b": "NULL", "c": "x" * 200 + "new", "d": " padded", "e": "\u202eabc"},
    )

    text = cli._row(row)

    assert text == (
        'id=1: a NULL → "", b "\\u001b[31m" → "NULL", c …"xxxxxxxxxxxxold" → …"xxxxxxxxxxxxnew", '
        'd two words → " padded", e {"k": [1, 2]} → "\\u202eabc"'
    )
    assert cli.printable("table\x07") == "table\\x07"
