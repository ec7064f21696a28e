"""The JSON of test-data rows: read whatever its layout, refused wherever it is broken."""

from __future__ import annotations

import gzip
import io
import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keikaku_snapshots.errors import JSONCorruptError, SnapshotCorruptError
from keikaku_snapshots.snapshots import rows_json
from keikaku_snapshots.snapshots.rows_file import RowsFile, check_rows_file, rows_bytes
from keikaku_snapshots.snapshots.rows_json import RowsReader
from keikaku_snapshots.snapshots.rows_values import Kind, Raw, decode, encoder, kind_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def read(text: str | bytes, step: int = 1 << 20) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]:
    """All rows of a document, read ``step`` bytes at a time, and its other members."""
    source = io.BytesIO(text if isinstance(text, bytes) else text.encode())
    reader = RowsReader(lambda count: source.read(min(count, step)), "file.json")
    tables = {
        name: [dict(zip(row.columns, row.values, strict=True)) for row in rows]
        for name, rows in reader.tables()
    }
    return tables, reader.header


def broken(text: str | bytes, step: int = 1 << 20) -> str:
    """The message for a document that must be refused."""
    with pytest.raises(JSONCorruptError) as caught:
        read(text, step)
    assert "JSONファイルが破損" in str(caught.value)
    assert isinstance(caught.value, SnapshotCorruptError)
    assert "To fix this:" in str(caught.value)
    return caught.value.found


TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=10)
ROWS = st.lists(st.dictionaries(TEXT, JSON, max_size=5), max_size=5)


@given(
    tables=st.dictionaries(TEXT, ROWS, max_size=3),
    indent=st.sampled_from([None, 0, 2, "\t"]),
    ascii_only=st.booleans(),
    step=st.integers(1, 40),
)
def test_any_layout_of_lines_is_read_whatever_the_pieces(
    tables: dict[str, Any], indent: int | str | None, ascii_only: bool, step: int
) -> None:
    """B12: hand-made formatting is accepted, and a piece may end anywhere, in a character even."""
    document = {"name": "x", "stats": {"a": 1}, "tables": tables, "more": [1, {"b": None}]}
    text = json.dumps(document, indent=indent, ensure_ascii=ascii_only)
    found, header = read(text, step)
    assert header == {"name": "x", "stats": '{"a": 1}', "more": header["more"]} | {"stats": {"a": 1}}
    assert json.loads(json.dumps(header["more"])) == [1, {"b": None}]

    def plain(value: Any) -> Any:
        return json.loads(value) if isinstance(value, Raw) else value

    assert {
        name: [{key: plain(one) for key, one in row.items()} for row in rows] for name, rows in found.items()
    } == tables


#: What breaks a row, or makes it one that must be read with care.
PIECES = st.sampled_from(
    [
        '"a": ', '"b": ', "1", "-0", "1e5", "01", "NaN", "null", "true", "{}", "[1]", ", ", "}", "{",
        '"あ"', '{"a": 1}', '"a": 1, "a": 2', '"\\n"', '"\\u0000"', '"\\ud800"', '"\\u3042"', '"\n"',
        "\\u0000",
    ]
)  # fmt: skip


@given(st.lists(st.lists(PIECES, max_size=6).map("".join), max_size=4))
def test_rows_read_at_once_are_those_read_member_by_member(rows: list[str]) -> None:
    """B13: the quick way takes nothing that the careful one refuses, and changes no value."""
    text = '{"tables": {"t": [' + ", ".join(f"{{{row}}}" for row in rows) + "]}}"

    def outcome(*, flat: bool) -> object:
        source = io.BytesIO(text.encode())
        reader = RowsReader(source.read, "file.json")
        if not flat:
            reader._flat_row = lambda columns: None  # type: ignore[method-assign]
        try:
            return [
                [(row.columns, [(type(value), value) for value in row.values]) for row in found]
                for _, found in reader.tables()
            ]
        except JSONCorruptError as error:
            return error.found

    assert outcome(flat=True) == outcome(flat=False)


@given(st.dictionaries(TEXT, ROWS, max_size=2), st.integers(0, 10_000), st.integers(1, 40))
def test_a_file_cut_anywhere_is_broken(tables: dict[str, Any], cut: int, step: int) -> None:
    """B13: half a file is never taken for a whole one."""
    text = json.dumps({"name": "x", "tables": tables}).encode()
    message = broken(text[: cut % len(text)], step)
    assert message.startswith("file.json: line ")


@given(values=st.lists(TEXT, min_size=1, max_size=4))
def test_text_is_encoded_so_that_json_reads_it_back(values: list[str]) -> None:
    """Every kind of text, control characters and quotes among it."""
    encode = encoder("text")
    row = ", ".join(f'"{number}": {encode(value)}' for number, value in enumerate(values))
    found, _ = read(f'{{"tables": {{"t": [{{{row}}}]}}}}')
    assert list(found["t"][0].values()) == values


@pytest.mark.parametrize(
    ("kind", "text", "written"),
    [
        ("boolean", "t", "true"),
        ("boolean", "f", "false"),
        ("integer", "-1", "-1"),
        ("integer", "9007199254740991", "9007199254740991"),
        ("integer", "9007199254740992", '"9007199254740992"'),
        ("float", "1e+300", "1e+300"),
        ("float", "-0", "-0"),
        ("float", "NaN", '"NaN"'),
        ("float", "-Infinity", '"-Infinity"'),
        ("json", '{"a":1, "a" : 2}', '{"a":1, "a" : 2}'),
        ("json", " [1] ", '" [1] "'),
        ("json", "null", '"null"'),
        ("json", '"x"', '"\\"x\\""'),
        ("array", "{1,NULL}", '"{1,NULL}"'),
        ("text", "null", '"null"'),
    ],
)
def test_json_has_its_own_forms_only_where_they_are_exact(kind: Kind, text: str, written: str) -> None:
    """The table of docs/how-to: what stands in the file, and that it comes back as the same text."""
    assert encoder(kind)(text) == written
    found, _ = read(f'{{"tables": {{"t": [{{"c": {written}}}]}}}}')
    back = decode(found["t"][0]["c"], kind)
    assert back == (written if kind == "boolean" else text)


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (
            Raw('["a", null, "NULL", "q\\"\\\\", 1.50, true, [1]]'),
            "array",
            '{"a",NULL,"NULL","q\\"\\\\",1.50,true,{1}}',
        ),
        (Raw("12.50"), "text", "12.50"),
        ("{1}", "array", "{1}"),
        (None, "json", None),
    ],
)
def test_values_written_by_hand_are_understood(value: str | None, kind: Kind, expected: str | None) -> None:
    """A JSON array is taken for an array column, a number for a numeric one."""
    assert decode(value, kind) == expected


@pytest.mark.parametrize(
    ("value", "kind"),
    [('{"a": 1}', "text"), ("[1]", "integer"), ('{"a": 1}', "array"), ('[{"a": 1}]', "array")],
)
def test_an_object_where_a_single_value_belongs_is_refused(value: str, kind: Kind) -> None:
    """It would become text that nobody meant."""
    with pytest.raises(ValueError, match=r"an object|an array"):
        decode(Raw(value), kind)


def test_kinds_go_by_the_type_below_a_domain() -> None:
    """The catalogue gives the base type's name."""
    assert [kind_of(name, is_array=False) for name in ("bool", "int8", "numeric", "jsonb", "")] == [
        "boolean", "integer", "text", "json", "text",
    ]  # fmt: skip
    assert kind_of("", is_array=True) == "array"


@pytest.mark.parametrize(
    ("text", "where", "problem"),
    [
        ("", "line 1, column 1", "one JSON object"),
        ("[]", "line 1, column 1", "one JSON object"),
        ('{"name": "x"}', "line 1, column 14", "'tables' is missing"),
        ('{"tables": []}', "line 1, column 12", "must be an object"),
        ('{"tables": {"t": {}}}', "line 1, column 18", "must be an array"),
        ('{"tables": {"t": [1]}}', "line 1, column 19", "must be an object"),
        ('{"tables": {"t": [{"a": 1,}]}}', "line 1, column 27", "double quotes"),
        ('{"tables": {"t": [{"a": 1},]}}', "line 1, column 28", "must be an object"),
        ('{"tables": {\n "t": [\n  {"a": 01}]}}', "line 3, column 9", "no JSON value"),
        ('{"tables": {"t": [{"a": NaN}]}}', "line 1, column 25", "no JSON value"),
        ('{"tables": {"t": [{"a": \'x\'}]}}', "line 1, column 25", "a value is missing"),
        ('{"tables": {"t": [{"a" 1}]}}', "line 1, column 24", "colon"),
        ('{"tables": {"t": [{"a": 1 "b": 2}]}}', "line 1, column 27", "comma or }"),
        ('{"tables": {"t": [{"a": 1} {"a": 2}]}}', "line 1, column 28", "comma or ]"),
        ('{"tables": {"t": [{"a": "x\ny"}]}}', "line 1, column 25", "control character"),
        ('{"tables": {"t": [{"a": "\\x"}]}}', "line 1, column 25", "escape"),
        ('{"tables": {"t": [{"a": "\\u0000"}]}}', "line 1, column 25", "u0000"),
        ('{"tables": {"t": [{"a": "\\ud800"}]}}', "line 1, column 25", "surrogate"),
        ('{"tables": {"t": [{"a": 1, "a": 2}]}}', "", "occurs twice"),
        ('{"tables": {"t": [], "t": []}}', "", "occurs twice"),
        ('{"name": 1, "name": 2, "tables": {}}', "", "occurs twice"),
        ('{"tables": {}, "tables": {}}', "", "occurs twice"),
        ('{"tables": {}} x', "line 1, column 16", "behind the end"),
        ('{"tables": {"t": [{"a": {"b": }}]}}', "line 1, column 31", "is broken"),
        ('{"tables": {"t": [{"a": {"b": 1]}]}}', "", "is broken"),
        ('{"tables": {"t": [{"a": [NaN]}]}}', "", "is broken"),
        ('{"tables": {"t": [{"a": ["x\n"]}]}}', "", "control character"),
        (b'{"tables": {"t": [{"a": "\xff"}]}}', "", "UTF-8"),
        ('{"tables": {"t": [{"a": "open', "line 1, column 25", "ends too early"),
        ('{"tables": {"t": [{"a": [1, "open', "", "ends too early"),
    ],
)
@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_what_is_broken_is_told_with_its_place(
    text: str | bytes, where: str, problem: str, step: int
) -> None:
    """Item 5: line and column in the file, and what is wrong there, whatever the pieces."""
    message = broken(text, step)
    assert where in message
    assert problem in message


def test_a_mark_of_byte_order_is_no_obstacle() -> None:
    """Windows editors put it in front."""
    assert read(b"\xef\xbb\xbf" + b'{"tables": {"t": [{}]}}')[0] == {"t": [{}]}


def test_a_nested_value_keeps_its_very_text() -> None:
    """Type json keeps blanks, the order of keys and keys that occur twice."""
    inner = '{"b":1,  "a" : 2, "a": [ 3,{"x":"]}\\"" } ]}'
    found, _ = read(f'{{"tables": {{"t": [{{"c": {inner}}}]}}}}', step=3)
    assert found["t"][0]["c"] == inner


def test_a_value_deeper_than_python_goes_is_left_to_the_server() -> None:
    """The depth that PostgreSQL takes is larger."""
    inner = "[" * 20_000 + "]" * 20_000
    found, _ = read(f'{{"tables": {{"t": [{{"c": {inner}}}]}}}}')
    assert found["t"][0]["c"] == inner


def test_rows_that_nobody_reads_are_passed_over() -> None:
    """A table that is missing in the database is still read to its end."""
    source = io.BytesIO(b'{"tables": {"a": [{"x": 1}, {"x": 2}], "b": [{"y": 3}]}}')
    assert [name for name, _ in RowsReader(source.read, "f").tables()] == ["a", "b"]


def test_no_more_than_a_few_rows_are_in_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """B12: streaming; what was read is dropped."""
    monkeypatch.setattr(rows_json, "CHUNK_BYTES", 1000)
    row = b'{"a": "' + b"x" * 80 + b'"}'
    source = io.BytesIO(b'{"tables": {"t": [' + b",".join([row] * 2000) + b"]}}")
    reader = RowsReader(source.read, "f")
    longest = 0
    for _, rows in reader.tables():
        for _ in rows:
            longest = max(longest, len(reader._text))
    assert longest < 2500


def _written(path: Path, blocks: list[str], compression: str | None) -> bytes:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        with RowsFile(descriptor, path, compression=compression, level=None, minimum_free_mb=0) as file:
            for block in blocks:
                file.write(block)
            result = file.finish()
        assert result.file.size_bytes == path.stat().st_size
        return path.read_bytes()
    finally:
        os.close(descriptor)


def _bytes(path: Path, step: int) -> bytes:
    with path.open("rb") as file:
        source = rows_bytes(file.fileno(), "file.json.gz")
        parts = []
        while block := source.read(step):
            parts.append(block)
        assert source.read(step) == b""
        return b"".join(parts)


@pytest.mark.parametrize("compression", [None, "gzip", "zstd"])
def test_what_is_written_is_read(tmp_path: Path, compression: str | None) -> None:
    """Through the thread, the checksum and gzip."""
    blocks = [f"block {number} 日本語\n" * 5000 for number in range(10)]
    content = _written(tmp_path / "f", blocks, compression)
    assert (gzip.decompress(content) if compression == "gzip" else _bytes(tmp_path / "f", 1 << 20)) == (
        "".join(blocks).encode()
    )
    for step in (1000, 1 << 20):
        assert _bytes(tmp_path / "f", step) == "".join(blocks).encode()


def test_equal_rows_make_equal_gzip_files(tmp_path: Path) -> None:
    """No time of day in the header, so that checksums can be compared."""
    assert _written(tmp_path / "a", ["x"], "gzip") == _written(tmp_path / "b", ["x"], "gzip")


def test_a_gzip_file_of_several_members_is_one(tmp_path: Path) -> None:
    """As `cat a.gz b.gz` makes it."""
    (tmp_path / "f").write_bytes(gzip.compress(b"a" * 1000) + gzip.compress(b"b" * 1000))
    assert _bytes(tmp_path / "f", 300) == b"a" * 1000 + b"b" * 1000


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data[:100] + b"\0\0\0\0" + data[104:],
        lambda data: data + b"garbage",
    ],
)
def test_a_damaged_gzip_file_is_told_as_broken_json(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    """B13: cut, changed, or with something behind its end."""
    content = gzip.compress(json.dumps([os.urandom(20).hex() for _ in range(1000)]).encode())
    (tmp_path / "f").write_bytes(damage(content))
    with pytest.raises(JSONCorruptError, match="JSONファイルが破損") as caught:
        _bytes(tmp_path / "f", 1000)
    assert "file.json.gz" in caught.value.found


def test_a_writer_that_fails_ends_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """B6: an error of the thread is the caller's."""
    monkeypatch.setattr("keikaku_snapshots.snapshots.packed_file.os.write", _full)
    with pytest.raises(OSError, match="ディスク容量不足"):
        _written(tmp_path / "f", ["x" * 1000] * 20, None)


def _full(*_arguments: object) -> int:
    raise OSError(28, "No space left on device")


def test_the_rows_of_a_file_are_counted_against_its_manifest(tmp_path: Path) -> None:
    """`verify` reads the whole file."""
    path = tmp_path / "f"
    path.write_text('{"tables": {"public.t": [{"a": 1}, {"a": 2}]}}')
    with path.open("rb") as file:
        check_rows_file(file.fileno(), "f", {"public.t": 2})
        with pytest.raises(JSONCorruptError, match="manifest"):
            check_rows_file(file.fileno(), "f", {"public.t": 3})
