"""Rows as COPY text, PostgreSQL's own line format, as bytes.

One encoder serves psycopg and asyncpg. It works column by column on a batch:
almost every column is plain text without a special character, and for those
nothing is done per value. Measured against psycopg's ``write_row`` in
``benchmarks/generation.py``.
"""

from __future__ import annotations

import json
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from uuid import UUID

from keikaku_snapshots.errors import DataError, ParameterTypeError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: How a column turns Python containers into text: as JSON, as an array, or not at all.
Kind: TypeAlias = Literal["json", "array", "plain"]

_NULL = "\\N"
# The four characters with a meaning in COPY text; all others go as they are.
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
_BYTE_ORDER_MARK = "\ufeff"


def encode_rows(rows: Sequence[Sequence[Any]], columns: Sequence[str], kinds: Sequence[Kind] = ()) -> bytes:
    """The rows as COPY text.

    Args:
        rows: One batch, at least one row, each as long as `columns`.
        columns: The names, for errors.
        kinds: How each column turns containers into text; all ``plain`` when empty.

    Returns:
        UTF-8, a line for each row, the last one ended too.

    Raises:
        DataError: A row has another length, or a value cannot be stored: NUL,
            a lone surrogate, a byte order mark at the beginning.
        ParameterTypeError: A value has a type that is not converted.
    """
    if not columns:
        raise DataError("there is no column to fill", hint="Name at least one column in columns=.")
    try:
        values = list(zip(*rows, strict=True))
    except ValueError as error:
        raise _length_error(rows, columns) from error
    if len(values) != len(columns):
        raise _length_error(rows, columns)
    encoded = [
        _encode_column(column, name, kinds[at] if kinds else "plain")
        for at, (column, name) in enumerate(zip(values, columns, strict=True))
    ]
    text = "\n".join(map("\t".join, zip(*encoded, strict=True)))
    try:
        return (text + "\n").encode()
    except UnicodeEncodeError as error:
        raise _encoding_error(values, columns) from error


def _encode_column(values: Sequence[Any], name: str, kind: Kind) -> Sequence[str]:
    try:
        joined = "".join(values)
    except TypeError:
        if not any(value is not None for value in values):
            return (_NULL,) * len(values)
        return [_NULL if value is None else _encode_value(value, name, kind) for value in values]
    if "\0" in joined or _BYTE_ORDER_MARK in joined:
        for value in values:
            _check_value(value, name)
    if "\\" in joined or "\t" in joined or "\n" in joined or "\r" in joined:
        return [value.translate(_ESCAPES) for value in values]
    return values


def _encode_value(value: Any, name: str, kind: Kind) -> str:
    if not isinstance(value, str) or isinstance(value, Enum):
        try:
            value = text_of(value, kind)
        except TypeError as error:
            what = f"column {name!r} got a {type(value).__name__}, which is not converted to text"
            raise ParameterTypeError(
                what, hint="Give the value as PostgreSQL writes it, as a str."
            ) from error
    _check_value(value, name)
    text: str = value.translate(_ESCAPES)
    return text


def _check_value(value: str, name: str) -> None:
    if "\0" in value:
        what = f"a value of column {name!r} has a NUL character, which PostgreSQL cannot store"
        raise DataError(what, hint="Take it out of the value.", column=name, value=value)
    if value.startswith(_BYTE_ORDER_MARK):
        what = f"a value of column {name!r} begins with a byte order mark"
        hint = "Read the file that it comes from with encoding='utf-8-sig'."
        raise DataError(what, hint=hint, column=name, value=value)


def text_of(value: object, kind: Kind = "plain") -> str:
    """A Python value as PostgreSQL reads it.

    Args:
        value: A str (as it is), bool, int, float, Decimal, UUID, date, time,
            datetime, Enum (its name, as SQLAlchemy stores it), bytes; dict and
            list by `kind`.
        kind: ``json`` writes dict and list as JSON, ``array`` writes a list as an array.

    Raises:
        TypeError: The type is none of these.
    """
    if kind == "json" and not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if isinstance(value, list | tuple) and kind == "array":
        return "{" + ",".join(_array_item(item) for item in value) + "}"
    for types, convert in _CONVERTERS:
        if isinstance(value, types):
            return convert(value)
    raise TypeError(type(value).__name__)


_CONVERTERS: tuple[tuple[type | tuple[type, ...], Callable[[Any], str]], ...] = (
    (Enum, lambda value: str(value.name)),
    (str, str),
    (bool, lambda value: "t" if value else "f"),
    ((int, Decimal, UUID), str),
    (float, repr),
    (datetime, lambda value: value.isoformat(sep=" ")),
    ((date, time), lambda value: value.isoformat()),
    ((bytes, bytearray, memoryview), lambda value: "\\x" + bytes(value).hex()),
)


def _array_item(item: object) -> str:
    if item is None:
        return "NULL"
    if isinstance(item, list | tuple):
        return text_of(item, "array")
    text = json.dumps(item, ensure_ascii=False) if isinstance(item, dict) else text_of(item)
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _length_error(rows: Sequence[Sequence[Any]], columns: Sequence[str]) -> DataError:
    lengths = sorted({len(row) for row in rows})
    found = f"Rows have {' or '.join(map(str, lengths))} values, columns are {', '.join(columns)}"
    return DataError(f"rows must have {len(columns)} values", found=found)


def _encoding_error(values: Sequence[Sequence[Any]], columns: Sequence[str]) -> DataError:
    for column, name in zip(values, columns, strict=True):
        for value in column:
            try:
                str(value).encode()
            except UnicodeEncodeError:
                what = f"a value of column {name!r} is no valid text: it has half of a surrogate pair"
                return DataError(what, hint="Correct the value.", column=name, value=value)
    return DataError("a value is no valid text")
