"""Rows as COPY text."""

from __future__ import annotations

import uuid
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keikaku_snapshots.datasets.encoding import encode_rows, text_of
from keikaku_snapshots.errors import DataError, ParameterTypeError

_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")).filter(
    lambda text: not text.startswith("\ufeff")
)
_UNESCAPED = {"\\\\": "\\", "\\t": "\t", "\\n": "\n", "\\r": "\r"}


def _decode(text: str) -> str | None:
    if text == "\\N":
        return None
    parts, at = [], 0
    while at < len(text):
        pair = text[at : at + 2]
        parts.append(_UNESCAPED.get(pair, text[at]))
        at += 2 if pair in _UNESCAPED else 1
    return "".join(parts)


@given(st.lists(st.tuples(*[st.none() | _TEXT] * 3), min_size=1, max_size=20))
def test_every_text_and_null_comes_back(rows: list[tuple[str | None, ...]]) -> None:
    """What is encoded and read by the rules of COPY is what went in, line by line."""
    lines = encode_rows(rows, ("a", "b", "c")).decode().split("\n")

    assert lines.pop() == ""
    assert [tuple(map(_decode, line.split("\t"))) for line in lines] == rows


def test_the_four_special_characters_are_escaped() -> None:
    r"""Backslash, tab, newline and carriage return are escaped; the text \\N stays a text."""
    assert (
        encode_rows([("\\N", None, "a\tb\nc\rd\\.")], ("a", "b", "c")) == b"\\\\N\t\\N\ta\\tb\\nc\\rd\\\\.\n"
    )


class Tier(Enum):
    """An enum as applications have them: the name is what SQLAlchemy stores."""

    GOLD = "the golden one"


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (True, "plain", "t"),
        (12, "plain", "12"),
        (1.5, "plain", "1.5"),
        (Decimal("1.50"), "plain", "1.50"),
        (uuid.UUID(int=5), "plain", "00000000-0000-0000-0000-000000000005"),
        (date(2026, 1, 2), "plain", "2026-01-02"),
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "plain", "2026-01-02 03:04:05+00:00"),
        (Tier.GOLD, "plain", "GOLD"),
        (b"\x00\xff", "plain", "\\x00ff"),
        ({"a": "雪"}, "json", '{"a":"雪"}'),
        ([1, None], "json", "[1,null]"),
        (["a", 'b"\\', None, "NULL"], "array", '{"a","b\\"\\\\",NULL,"NULL"}'),
        ([[1, 2], [3, 4]], "array", '{{"1","2"},{"3","4"}}'),
        ([], "array", "{}"),
    ],
)
def test_python_values_become_what_postgresql_reads(value: Any, kind: Any, text: str) -> None:
    """Values of the usual types are converted; dict and list by the type of their column."""
    assert text_of(value, kind) == text


def test_a_type_that_is_not_converted_names_the_column() -> None:
    """Any other type is a TypeError that names column and type."""
    with pytest.raises(ParameterTypeError, match="column 'b' got a object"):
        encode_rows([("x", object())], ("a", "b"))
    with pytest.raises(TypeError, match="column 'a' got a dict"):
        encode_rows([({}, "x")], ("a", "b"))


@pytest.mark.parametrize(
    ("value", "message"),
    [("a\0b", "NUL character"), ("\ufeffa", "byte order mark"), ("\ud800", "surrogate")],
)
@pytest.mark.parametrize("other", ["text", None])
def test_values_that_cannot_be_stored_are_refused(value: str, message: str, other: str | None) -> None:
    """FAULTS 87: NUL, a byte order mark at the beginning and lone surrogates are errors that
    name the column; the value is in the details only.
    """
    with pytest.raises(DataError, match=f"column 'b'.*{message}") as raised:
        encode_rows([("x", "ok"), ("x", other), ("x", value)], ("a", "b"))

    assert raised.value.details == {"column": "b", "value": value}


def test_a_byte_order_mark_inside_a_value_stays() -> None:
    """Only the first character of a value can be a byte order mark."""
    assert encode_rows([("a\ufeffb",)], ("a",)) == "a\ufeffb\n".encode()


@pytest.mark.parametrize("rows", [[("a",)], [("a", "b"), ("a",)], [("a", "b", "c")]])
def test_rows_of_another_length_are_refused(rows: list[tuple[str, ...]]) -> None:
    """A row with too few or too many values says how many and for which columns."""
    with pytest.raises(DataError, match="rows must have 2 values"):
        encode_rows(rows, ("a", "b"))
