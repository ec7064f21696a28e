"""Checks of parameters, before anything is connected to: the error names parameter and value."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from keikaku_snapshots.errors import ParameterTypeError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

#: The longest time that a setting of the server takes: 2,147,483,647 ms, about 24 days.
_LONGEST_S = 2_147_483.0


def check_seed(seed: object) -> int | str:
    """The seed, when it is an integer or text.

    Raises:
        ParameterTypeError: It is neither.
        UsageError: It is text with half of a surrogate pair, which no hash takes.
    """
    if not isinstance(seed, int | str) or isinstance(seed, bool):
        raise ParameterTypeError(f"seed must be an integer or a str, not {type(seed).__name__}: {seed!r}")
    try:
        str(seed).encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"seed is no valid text: {seed!r}") from error
    return seed


def check_flag(name: str, value: object) -> bool:
    """The value, when it is True or False: the text ``"no"`` would count as yes.

    Raises:
        ParameterTypeError: It is neither.
    """
    if not isinstance(value, bool):
        raise ParameterTypeError(f"{name} must be True or False, not {type(value).__name__}: {value!r}")
    return value


def check_words(name: str, value: object) -> Sequence[str]:
    """The value, when it is a collection of words: of one str, every letter would be a word.

    Raises:
        ParameterTypeError: It is one str, or something else than text is in it.
    """
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise ParameterTypeError(
            f"{name} must be a list of words, not {type(value).__name__}: {value!r}",
            hint=f"Put it in brackets: {name}=[{value!r}].",
        )
    words = list(value)
    for word in words:
        if not isinstance(word, str):
            raise ParameterTypeError(f"{name} must hold words, not {type(word).__name__}: {word!r}")
    return words


def check_schema(schema: object) -> str | None:
    """The name of a schema, or None.

    Raises:
        ParameterTypeError: It is no text.
        UsageError: It is empty or has a NUL character.
    """
    if schema is None:
        return None
    if not isinstance(schema, str):
        raise ParameterTypeError(f"schema must be a name, not {type(schema).__name__}: {schema!r}")
    if not schema or "\0" in schema:
        raise UsageError(f"schema must be the name of a schema, not {schema!r}")
    return schema


def check_seconds(name: str, value: object) -> None:
    """Refuse what no time limit can be.

    Raises:
        ParameterTypeError: It is no number.
        UsageError: It is not above 0, or more than the server takes.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ParameterTypeError(f"{name} must be a number of seconds, not {type(value).__name__}: {value!r}")
    if not 0 < value <= _LONGEST_S:
        what = f"{name} must be more than 0 and at most {_LONGEST_S:,.0f} seconds, not {value!r}"
        raise UsageError(what, hint="None waits for ever.")
