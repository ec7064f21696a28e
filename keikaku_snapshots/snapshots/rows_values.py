"""How a value of PostgreSQL is written in JSON, and the way back.

The text is always the server's own output under fixed settings. JSON's own
forms are used only where they are exactly that text: booleans, whole numbers
that every JSON reader keeps (up to 2^53), finite floating-point numbers, and
objects and arrays of ``json`` and ``jsonb``. Everything else is a string,
``numeric`` too, whose trailing zeros other programs would drop. SQL NULL is
``null``; the scalars of ``json`` and ``jsonb`` are strings that hold JSON, so
that the JSON value null (``"null"``) stays another one than SQL NULL.
"""

from __future__ import annotations

import json
from json.encoder import encode_basestring
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

#: How a column's values are written.
Kind = Literal["boolean", "integer", "float", "json", "array", "text"]

_KINDS: Final[dict[str, Kind]] = {
    "bool": "boolean",
    "int2": "integer",
    "int4": "integer",
    "int8": "integer",
    "float4": "float",
    "float8": "float",
    "json": "json",
    "jsonb": "json",
}
#: Whole numbers beyond this are rounded by readers that know only doubles (JavaScript, jq).
_SAFE_INTEGER: Final = 2**53 - 1
#: Digits that are always below it.
_SAFE_DIGITS: Final = 15


class Raw(str):
    """A JSON value other than a string, as it stands in the file: a number, true, an object, an array."""

    __slots__ = ()


def kind_of(type_name: str, *, is_array: bool) -> Kind:
    """Tell how values of a type are written.

    Args:
        type_name: Name in pg_type, that of the base type for a domain.
        is_array: True for an array.

    Returns:
        The kind.
    """
    return "array" if is_array else _KINDS.get(type_name, "text")


def encoder(kind: Kind) -> Callable[[str], str]:
    """Return what turns the server's text of a value into JSON.

    Args:
        kind: Kind of the column.

    Returns:
        A function of one text; SQL NULL is the caller's.
    """
    return _ENCODERS.get(kind, encode_basestring)


def _encode_boolean(text: str) -> str:
    return "true" if text == "t" else "false"


def _encode_integer(text: str) -> str:
    if len(text) <= _SAFE_DIGITS or abs(int(text)) <= _SAFE_INTEGER:
        return text
    return f'"{text}"'


def _encode_float(text: str) -> str:
    return text if text[-1].isdigit() else f'"{text}"'  # NaN, Infinity, -Infinity


def _encode_json(text: str) -> str:
    # Blanks around it, which type json keeps, would be lost.
    return text if text[0] in "{[" and text[-1] in "}]" else encode_basestring(text)


_ENCODERS: Final[dict[Kind, Callable[[str], str]]] = {
    "boolean": _encode_boolean,
    "integer": _encode_integer,
    "float": _encode_float,
    "json": _encode_json,
}


def decode(value: str | None, kind: Kind) -> str | None:
    """Return the text for the server of a value that was read from JSON.

    Args:
        value: None, a string's content, or `Raw`.
        kind: Kind of the column.

    Returns:
        Text as COPY takes it, not yet escaped; None for SQL NULL.

    Raises:
        ValueError: A column of this kind cannot hold it; the text says why, without the value.
    """
    if not isinstance(value, Raw):
        return value
    if kind == "json":
        return str(value)
    if value[0] == "[" and kind == "array":
        try:
            return _array(json.loads(value, parse_int=Raw, parse_float=Raw))
        except RecursionError as error:
            raise ValueError("the array is nested too deeply") from error
    if value[0] in "[{":
        what = "an array" if value[0] == "[" else "an object"
        raise ValueError(f"{what} stands where a single value belongs")
    return str(value)


def _array(value: object) -> str:
    """Write a JSON array as an array literal, for files made by hand; our own hold literals."""
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, list):
        return "{" + ",".join(_array(item) for item in value) + "}"
    if not isinstance(value, str):
        raise ValueError("an object stands inside an array; write it as a string that holds JSON")  # noqa: TRY004
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
