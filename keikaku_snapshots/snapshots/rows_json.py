"""The JSON of a test-data snapshot, read piece by piece: never more than one value in the memory.

The reader takes any JSON of the right layout, however it is laid out in lines
and whatever order the members have, so that a file can be written or mended by
hand. Numbers and nested values are handed on as the text that stands in the
file: nothing is rounded, no key of a nested object gets lost.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from keikaku_snapshots.errors import JSONCorruptError
from keikaku_snapshots.snapshots.rows_values import Raw

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Bytes read at once; a value that is longer makes the next reads longer.
CHUNK_BYTES: Final = 256 * 1024
#: The member that holds the rows.
TABLES: Final = "tables"

_BLANK: Final = " \t\n\r"
_SKIP = re.compile(r"[ \t\n\r]*")
_STRING = re.compile(r'"(?P<text>[^"\\\x00-\x1f]*(?:\\.[^"\\\x00-\x1f]*)*)"')
# An escape may be cut by the end of what was read so far.
_STRING_BEGUN = re.compile(r'"[^"\\\x00-\x1f]*(?:\\.[^"\\\x00-\x1f]*)*\\?\Z')
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_WORD = re.compile(r"[-+.0-9A-Za-z]+")
_INSIDE = re.compile(r'["\[\]{}]')
# One member of a row as it nearly always looks: a plain key, a plain or simple value, what follows.
_MEMBER = re.compile(
    r'"([^"\\\x00-\x1f]*)"[ \t\n\r]*:[ \t\n\r]*'
    r'(?:"([^"\\\x00-\x1f]*)"|(-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|true|false)|(null))'
    r"[ \t\n\r]*([,}])[ \t\n\r]*"
)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


# What stands between two rows.
_NEXT_ROW = re.compile(r"[ \t\n\r]*,[ \t\n\r]*(?=\{)")
_STRICT = json.JSONDecoder(parse_constant=_no_constant, parse_int=str, parse_float=str)


# A whole row at once, its members as they come; a nested value is a list, whose text is lost.
_ROW = json.JSONDecoder(
    parse_constant=_no_constant, parse_int=Raw, parse_float=Raw, object_pairs_hook=lambda pairs: pairs
)
_PLAIN: Final = frozenset({str, Raw, type(None)})
_BOOLEANS: Final = {True: Raw("true"), False: Raw("false")}


class Row(NamedTuple):
    """One row of a table."""

    #: Columns in the order of the file.
    columns: tuple[str, ...]
    #: A value for each: None, the content of a string, or `Raw`.
    values: list[str | None]


class RowsReader:
    """Reads one file from its beginning to its end.

    Args:
        read: Gives the next bytes, at most as many as asked for; none at the end.
        place: What to call the file in errors: its path.
    """

    def __init__(self, read: Callable[[int], bytes], place: str) -> None:
        self._read = read
        self._place = place
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text = ""
        self._position = 0
        self._at_end = False
        self._is_flat = True
        self._line = 1
        self._column = 1
        #: The members beside the rows, as far as they were read; all of them when `tables` has ended.
        self.header: dict[str, Any] = {}

    def tables(self) -> Iterator[tuple[str, Iterator[Row]]]:
        """Read the file.

        Yields:
            The name of each table and its rows; the rows must be read before the next table.

        Raises:
            JSONCorruptError: It is no JSON, or not of this layout; place and reason are in the text.
        """
        self._expect("{", "the file must hold one JSON object")
        seen_tables = False
        for key in self._members():
            if key in self.header or (key == TABLES and seen_tables):
                self._fail(f"the member {key!r} occurs twice")
            if key == TABLES:
                seen_tables = True
                yield from self._tables()
            else:
                self.header[key] = self._small_value()
        if not seen_tables:
            self._fail(f"the member {TABLES!r} is missing")
        if self._peek():
            self._fail("there is something behind the end of the JSON object")

    def _tables(self) -> Iterator[tuple[str, Iterator[Row]]]:
        self._expect("{", f"{TABLES!r} must be an object of tables")
        seen: set[str] = set()
        for name in self._members():
            if name in seen:
                self._fail(f"the table {name!r} occurs twice")
            seen.add(name)
            self._expect("[", f"the table {name!r} must be an array of rows")
            rows = self._rows(name)
            yield name, rows
            for _ in rows:  # what the caller left
                pass

    def _rows(self, table: str) -> Iterator[Row]:
        if self._peek() == "]":
            self._advance(1)
            return
        columns: tuple[str, ...] = ()
        self._is_flat = True
        while True:
            if self._peek() != "{":
                self._fail(f"a row of {table!r} must be an object")
            row = self._flat_row(columns) if self._is_flat else None
            if row is None:
                self._advance(1)
                row = self._row()
            columns = row.columns
            yield row
            if match := _NEXT_ROW.match(self._text, self._position):
                self._position = match.end()
                continue
            following = self._peek()
            if following not in (",", "]"):
                self._fail("a comma or ] is missing behind a row")
            self._advance(1)
            if following == "]":
                return

    def _flat_row(self, columns: tuple[str, ...]) -> Row | None:
        """A row without nested values that was read as a whole, its brace not yet taken.

        Args:
            columns: Those of the row before.

        Returns:
            The row; None where it must be read member by member, be it to say what is wrong with it.
        """
        try:
            pairs, end = _ROW.raw_decode(self._text, self._position)
        except (ValueError, RecursionError):
            return None  # broken, or cut by the end of the buffer
        # An escaped character may be one that no text of PostgreSQL can hold.
        if not pairs or self._text.find(r"\u", self._position, end) >= 0:
            return None
        keys, found = zip(*pairs, strict=True)
        values = list(found)
        kinds = set(map(type, values))
        if not kinds <= _PLAIN:
            if list in kinds:
                self._is_flat = False  # so will be the rows that follow
                return None
            values = [_BOOLEANS[value] if isinstance(value, bool) else value for value in values]
        self._position = end
        return Row(keys, values) if keys == columns else self._checked(list(keys), values)

    def _row(self) -> Row:
        """The members of a row whose brace was read; the fast way as long as it goes."""
        columns: list[str] = []
        values: list[str | None] = []
        if self._peek() == "}":
            self._advance(1)
            return Row((), values)
        while True:
            # At the very end of the buffer the blanks, or a number, might go on.
            while (match := _MEMBER.match(self._text, self._position)) and match.end() < len(self._text):
                key, text, simple, null, following = match.groups()
                columns.append(key)
                values.append(text if text is not None else None if null else Raw(simple))
                self._position = match.end()
                if following == "}":
                    return self._checked(columns, values)
            columns.append(self._key())
            values.append(self._value())
            following = self._peek()
            if following not in (",", "}"):
                self._fail("a comma or } is missing behind a value")
            self._advance(1)
            if following == "}":
                return self._checked(columns, values)
            self._peek()

    def _checked(self, columns: list[str], values: list[str | None]) -> Row:
        if len(set(columns)) != len(columns):
            twice = next(name for name in columns if columns.count(name) > 1)
            self._fail(f"the column {twice!r} occurs twice in a row")
        return Row(tuple(columns), values)

    # -- members and values ----------------------------------------------------------

    def _members(self) -> Iterator[str]:
        """Keys of the object whose brace was read; the caller reads each value."""
        if self._peek() == "}":
            self._advance(1)
            return
        while True:
            yield self._key()
            following = self._peek()
            if following not in (",", "}"):
                self._fail("a comma or } is missing")
            self._advance(1)
            if following == "}":
                return

    def _key(self) -> str:
        if self._peek() != '"':
            self._fail("a name in double quotes is missing")
        key = self._string()
        self._expect(":", "a colon is missing behind a name")
        return key

    def _small_value(self) -> Any:
        value = self._value()
        if not isinstance(value, Raw):
            return value
        try:
            return json.loads(value)
        except (RecursionError, ValueError):
            self._fail("a value is nested too deeply, or a number is too long")

    def _value(self) -> str | None:
        first = self._peek()
        if first == '"':
            return self._string()
        if first and first in "[{":
            return self._nested()
        match = self._token(_WORD)
        if match is None:
            self._fail("a value is missing")
        text = match.group()
        if text not in {"null", "true", "false"} and not _NUMBER.fullmatch(text):
            self._fail("this is no JSON value; text needs double quotes")
        self._advance(len(text))
        return None if text == "null" else Raw(text)

    def _string(self) -> str:
        while (match := _STRING.match(self._text, self._position)) is None:
            self._go_on_with_string(0)
        text = match["text"]
        if "\\" in text:
            try:
                text = _STRICT.decode(match.group())
            except ValueError:
                self._fail("a string has an escape that JSON does not know")
            self._check_characters(text)
        self._position = match.end()
        return text

    def _check_characters(self, text: str) -> None:
        if "\0" in text:
            self._fail(r"a string holds \u0000, which PostgreSQL cannot store")
        try:
            text.encode()
        except UnicodeEncodeError:
            self._fail("a string holds half of a surrogate pair")

    def _nested(self) -> Raw:
        """An object or array as it stands in the file."""
        with contextlib.suppress(ValueError, RecursionError):  # broken, cut or too deep: looked at below
            end = _STRICT.raw_decode(self._text, self._position)[1]
            text = self._text[self._position : end]
            self._position = end
            return Raw(text)
        depth = offset = 0
        while True:
            match = _INSIDE.search(self._text, self._position + offset)
            if match is None:
                offset = len(self._text) - self._position
                if not self._fill():
                    self._fail("an object or array has no end", at_end=True)
                continue
            offset = match.start() - self._position
            if match.group() == '"':
                offset = self._behind_string(offset)
                continue
            offset += 1
            depth += 1 if match.group() in "[{" else -1
            if depth == 0:
                break
        text = self._text[self._position : self._position + offset]
        try:
            _STRICT.decode(text)
        except ValueError as error:
            self._advance(getattr(error, "pos", 0))
            self._fail(f"an object or array is broken: {getattr(error, 'msg', error)}")
        except RecursionError:
            pass  # deeper than Python goes; the server judges
        self._position += offset
        return Raw(text)

    def _behind_string(self, offset: int) -> int:
        while (match := _STRING.match(self._text, self._position + offset)) is None:
            self._go_on_with_string(offset)
        return match.end() - self._position

    def _go_on_with_string(self, offset: int) -> None:
        """Read on when a string is only cut; else it is broken."""
        if not _STRING_BEGUN.match(self._text, self._position + offset):
            self._advance(offset)
            self._fail("a string has a control character or a line end, which must be escaped, or no end")
        if not self._fill():
            self._advance(offset)
            self._fail("a string has no end", at_end=True)

    # -- characters ------------------------------------------------------------------

    def _expect(self, character: str, problem: str) -> None:
        if self._peek() != character:
            self._fail(problem)
        self._advance(1)

    def _peek(self) -> str:
        """The next character that is no blank, not yet taken; empty at the end of the file."""
        while True:
            match = _SKIP.match(self._text, self._position)
            self._position = match.end() if match else self._position
            if self._position < len(self._text):
                return self._text[self._position]
            if not self._fill():
                return ""

    def _token(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """A match that the end of the buffer has not cut."""
        while True:
            match = pattern.match(self._text, self._position)
            if match is None or match.end() < len(self._text) or not self._fill():
                return match

    def _advance(self, count: int) -> None:
        self._position += count

    def _fill(self) -> bool:
        """Read on, dropping what was taken; False at the end of the file."""
        if self._at_end:
            return False
        dropped = self._text[: self._position]
        self._count(dropped)
        rest = self._text[self._position :]
        # A long value is read in steps that grow with it, or joining them would take for ever.
        block = self._read(max(CHUNK_BYTES, len(rest)))
        try:
            more = self._decoder.decode(block, final=not block)
        except UnicodeDecodeError:
            self._text, self._position, self._at_end = rest, 0, True
            self._fail("the text is not UTF-8, somewhere behind this place")
        self._text, self._position = rest + more, 0
        self._at_end = not block
        return bool(block)

    def _count(self, dropped: str) -> None:
        lines = dropped.count("\n")
        self._line += lines
        self._column = len(dropped) - dropped.rfind("\n") if lines else self._column + len(dropped)

    def _fail(self, problem: str, *, at_end: bool = False) -> NoReturn:
        at_end = at_end or (self._position >= len(self._text) and not self._fill())
        self._count(self._text[: self._position])
        where = f"{self._place}: line {self._line}, column {self._column}"
        if at_end:
            problem = f"the file ends too early ({problem})"
        raise JSONCorruptError(
            "the JSON file of the snapshot cannot be read",
            found=f"{where}: {problem}",
            line=self._line,
            column=self._column,
        )
