r"""The plain SQL that pg_dump writes, taken apart into statements and COPY blocks.

A restore in one transaction cannot hand the file to ``psql -1``: a dump with
large objects ends the transaction itself, statements about extensions fail for
a plain owner, and only some statements may run when just the rows are put
back. So the file is split exactly where psql would split it (the rules of
psqlscan.l: quotes, dollar quotes, nested comments, parentheses, ``BEGIN
ATOMIC`` bodies) and each part is named by what it does. Anything that pg_dump
never writes, such as ``\connect``, is refused before a database is touched.

Only positions are kept, so a file of any size costs a few kilobytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from keikaku_snapshots.errors import SnapshotCorruptError

if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterator

#: How much is handed to `bytes.find` at once, bytes. Large enough that slicing costs nothing, small
#: enough that memory stays flat (A7) and other threads get their turn.
FIND_CHUNK_BYTES = 4 << 20

#: A key of ``\restrict``: pg_dump takes letters and digits only.
RESTRICT_LINE = re.compile(rb"\\(un)?restrict ([A-Za-z0-9]+)\n")

_TOKEN = re.compile(
    rb"""
      (?P<comment>--[^\n]*)
    | (?P<block>/\*)
    | (?P<escaped>[eE]')
    | (?P<word>[A-Za-z_\x80-\xff][A-Za-z0-9_$\x80-\xff]*)
    | (?P<number>[0-9]+(?:\.[0-9]*)?(?:[eE][-+]|[A-Za-z_\x80-\xff][A-Za-z0-9_$\x80-\xff]*)?|\$[0-9]+)
    | (?P<dollar>\$(?:[A-Za-z_\x80-\xff][A-Za-z0-9_\x80-\xff]*)?\$)
    | (?P<string>')
    | (?P<identifier>")
    | (?P<open>\()
    | (?P<close>\))
    | (?P<end>;)
    | (?P<backslash>\\)
    | (?P<other>[^\s])
    """,
    re.VERBOSE,
)
_STRING_REST = re.compile(rb"[^']*(?:''[^']*)*'")
_ESCAPED_REST = re.compile(rb"[^'\\]*(?:(?:\\.|'')[^'\\]*)*'", re.DOTALL)
_IDENTIFIER_REST = re.compile(rb'[^"]*(?:""[^"]*)*"')
_ATOMIC = re.compile(rb"\s+ATOMIC\b", re.IGNORECASE)
_BLOCK_EDGE = re.compile(rb"/\*|\*/")


class Kind(Enum):
    """What a part of a dump does."""

    #: ``SET …`` and the search path at the head of the file.
    SETTING = "setting"
    #: Rows of one table.
    COPY = "copy"
    #: ``setval`` of one sequence.
    SEQUENCE = "sequence"
    #: Anything about large objects.
    LARGE_OBJECT = "large object"
    #: ``REFRESH MATERIALIZED VIEW``.
    REFRESH = "refresh"
    #: ``ALTER … OWNER TO``.
    OWNER = "owner"
    #: ``GRANT``, ``REVOKE``, ``ALTER DEFAULT PRIVILEGES``.
    PRIVILEGE = "privilege"
    #: ``CREATE EXTENSION`` and ``COMMENT ON EXTENSION``.
    EXTENSION = "extension"
    #: ``BEGIN`` and ``COMMIT`` around large objects.
    TRANSACTION = "transaction"
    #: What ``--clean --if-exists`` puts in front.
    CLEAN = "clean"
    #: Every other definition.
    DEFINITION = "definition"


@dataclass(frozen=True, slots=True)
class Part:
    """One statement, or one COPY with its rows."""

    kind: Kind
    #: Where the statement begins in the file, bytes.
    start: int
    #: Where it ends, the semicolon included, bytes.
    end: int
    #: Where the rows begin, for COPY; 0 otherwise.
    data_start: int = 0
    #: Where the rows end, without the ``\.`` line.
    data_end: int = 0


_KINDS: tuple[tuple[Kind, re.Pattern[bytes]], ...] = (
    (Kind.SETTING, re.compile(rb"SET |SELECT pg_catalog\.set_config\('search_path'")),
    (Kind.CLEAN, re.compile(rb"DROP |ALTER [A-Z ]{1,40} IF EXISTS |SELECT pg_catalog\.lo_unlink\(")),
    (Kind.SEQUENCE, re.compile(rb"SELECT pg_catalog\.setval\(")),
    (
        Kind.LARGE_OBJECT,
        re.compile(
            rb"SELECT pg_catalog\.lo(?:_create|_open|write|_close)\("
            rb"|ALTER LARGE OBJECT |COMMENT ON LARGE OBJECT |SECURITY LABEL .{0,200} ON LARGE OBJECT "
            rb"|(?:GRANT|REVOKE) [A-Z, ]{1,80} ON LARGE OBJECT "
        ),
    ),
    (Kind.REFRESH, re.compile(rb"REFRESH MATERIALIZED VIEW ")),
    (Kind.PRIVILEGE, re.compile(rb"GRANT |REVOKE |ALTER DEFAULT PRIVILEGES ")),
    (Kind.EXTENSION, re.compile(rb"(?:CREATE|COMMENT ON) EXTENSION ")),
    (Kind.TRANSACTION, re.compile(rb"(?:BEGIN|COMMIT);\Z")),
)
_OWNER = re.compile(rb'ALTER [A-Z][^\x00]* OWNER TO (?:"(?:[^"]|"")+"|[a-z0-9_$\x80-\xff]+);\Z', re.DOTALL)
_NAME = rb'(?:"(?:[^"]|"")+"|[A-Za-z0-9_$\x80-\xff]+)'
#: What `checkpoint` and data patches put on tables: pg_dump leaves our schemas out, but not these.
_OUR_TRIGGER = re.compile(
    rb"CREATE TRIGGER keikaku_(?:rewind|patches)_[a-z0-9_]+ "
    rb"|ALTER TABLE [^;]{1,300} ENABLE ALWAYS TRIGGER keikaku_(?:rewind|patches)_[a-z0-9_]+;\Z"
    rb"|DROP TRIGGER (?:IF EXISTS )?keikaku_(?:rewind|patches)_[a-z0-9_]+ "
)
#: Names only: a WHERE clause could end with ``IS DISTINCT FROM stdin`` behind a program.
_COPY = re.compile(
    rb"COPY " + _NAME + rb"(?:\." + _NAME + rb")? "
    rb"(?:\(" + _NAME + rb"(?:, " + _NAME + rb")*\))? ?FROM stdin;\Z"
)
#: Statements that would end or split the one transaction; pg_dump writes none of them.
_FORBIDDEN = re.compile(
    rb"(?:BEGIN|START|COMMIT|END|ROLLBACK|ABORT|SAVEPOINT|RELEASE|PREPARE|CREATE DATABASE|DROP DATABASE"
    rb"|ALTER DATABASE|COPY|VACUUM|DO)\b"
)


def read_parts(buffer: mmap.mmap | bytes, *, name: str) -> Iterator[Part]:
    """Split a plain dump into its parts, in file order.

    Args:
        buffer: The whole file.
        name: What to call the file in an error.

    Yields:
        Every statement and COPY block.

    Raises:
        SnapshotCorruptError: The file is not what pg_dump writes.
    """
    position, size, seen_end = 0, len(buffer), False
    while True:
        found = _next_statement(buffer, position, name)
        if found is None:
            return
        start, end, is_meta = found
        if is_meta:
            line = RESTRICT_LINE.match(buffer, start)
            if line is None:
                raise _foreign(name, buffer, start, "a psql command that pg_dump never writes")
            seen_end = line.group(1) is not None
            position = line.end()
            continue
        if seen_end:
            raise _foreign(name, buffer, start, "a statement behind the end of the dump")
        part = _classify(buffer, start, end, name)
        if part.kind is Kind.COPY:
            part = _with_rows(buffer, part, name)
            position = part.data_end + len(b"\\.\n")
        else:
            position = end
        if position > size:
            raise _foreign(name, buffer, start, "the file ends in the middle of a statement")
        if part.kind not in {Kind.DEFINITION, Kind.CLEAN} or not _OUR_TRIGGER.match(buffer, start, end):
            yield part


def copies_rows(statement: bytes) -> bool:
    """Tell whether a statement is a COPY of rows as pg_dump writes it, and nothing else.

    Args:
        statement: From its first letter to its semicolon.
    """
    return _COPY.fullmatch(statement) is not None


def _classify(buffer: mmap.mmap | bytes, start: int, end: int, name: str) -> Part:
    head = bytes(buffer[start : min(end, start + 400)])
    # Only short statements are matched to their end; the long ones are writes into large objects.
    # A table can have 1,600 columns with names of 63 bytes, each of them quoted.
    text = bytes(buffer[start:end]) if end - start < (256 << 10) else head
    if _COPY.match(text):
        return Part(Kind.COPY, start, end)
    for kind, pattern in _KINDS:
        if pattern.match(text):
            return Part(kind, start, end)
    if _FORBIDDEN.match(head):
        raise _foreign(name, buffer, start, "a statement that pg_dump never writes")
    if _OWNER.match(text):
        return Part(Kind.OWNER, start, end)
    return Part(Kind.DEFINITION, start, end)


def _with_rows(buffer: mmap.mmap | bytes, part: Part, name: str) -> Part:
    if bytes(buffer[part.end : part.end + 1]) != b"\n":
        raise _foreign(name, buffer, part.start, "COPY without its rows")
    data_start = part.end + 1
    # The newline before the rows belongs to the needle, so that an empty table is found too.
    marker = _find(buffer, b"\n\\.\n", part.end)
    if marker < 0:
        raise _foreign(name, buffer, part.start, "COPY rows without their end")
    return Part(Kind.COPY, part.start, part.end, data_start, marker + 1)


def _find(buffer: mmap.mmap | bytes, needle: bytes, start: int) -> int:
    size, overlap = len(buffer), len(needle) - 1
    while start < size:
        chunk = buffer[start : start + FIND_CHUNK_BYTES]
        found = chunk.find(needle)
        if found >= 0:
            return start + found
        start += FIND_CHUNK_BYTES - overlap
    return -1


def _next_statement(  # noqa: C901, PLR0912 - one branch for each kind of token, as in psqlscan.l
    buffer: mmap.mmap | bytes, position: int, name: str
) -> tuple[int, int, bool] | None:
    """The bounds of the next statement, and whether it is a psql command instead."""
    start, parentheses, body, words = -1, 0, 0, list[bytes]()
    while (token := _TOKEN.search(buffer, position)) is not None:
        kind = token.lastgroup
        position = token.end()
        if kind == "comment":
            continue
        if kind == "block":
            position = _block_end(buffer, token, name)
            continue
        if kind == "backslash":
            if start >= 0:
                raise _foreign(name, buffer, token.start(), "a psql command inside a statement")
            return token.start(), position, True
        if start < 0:
            start = token.start()
        if kind == "word":
            word = token.group().lower()
            if len(words) < 4:
                words.append(word)
            if parentheses == 0 and _makes_routine(words):
                body += _body_step(word, body, is_atomic=_ATOMIC.match(buffer, position) is not None)
        elif kind == "open":
            parentheses += 1
        elif kind == "close":
            parentheses = max(0, parentheses - 1)
        elif kind == "end":
            if parentheses == 0 and body == 0:
                return start, position, False
        elif kind in {"string", "escaped", "identifier", "dollar"}:
            position = _quote_end(buffer, token, name)
    if start >= 0:
        raise _foreign(name, buffer, start, "the file ends in the middle of a statement")
    return None


def _makes_routine(words: list[bytes]) -> bool:
    if not words or words[0] != b"create":
        return False
    kind = words[3:4] if words[1:3] == [b"or", b"replace"] else words[1:2]
    return kind in ([b"function"], [b"procedure"])


def _body_step(word: bytes, depth: int, *, is_atomic: bool) -> int:
    """How ``BEGIN ATOMIC … END`` changes the depth; CASE counts only inside it.

    The server writes a column named ``begin`` without quotes, where psql takes
    it for another body and cannot read its own dump; CASE and END are quoted.
    """
    if (word == b"begin" and is_atomic) or (word == b"case" and depth > 0):
        return 1
    return -1 if word == b"end" and depth > 0 else 0


def _quote_end(buffer: mmap.mmap | bytes, token: re.Match[bytes], name: str) -> int:
    if token.lastgroup == "dollar":
        found = _find(buffer, token.group(), token.end())
        if found < 0:
            raise _foreign(name, buffer, token.start(), "a quote that is never closed")
        return found + len(token.group())
    pattern = {"string": _STRING_REST, "escaped": _ESCAPED_REST}.get(token.lastgroup or "", _IDENTIFIER_REST)
    rest = pattern.match(buffer, token.end())
    if rest is None:
        raise _foreign(name, buffer, token.start(), "a quote that is never closed")
    return rest.end()


def _block_end(buffer: mmap.mmap | bytes, token: re.Match[bytes], name: str) -> int:
    depth, position = 1, token.end()
    while depth:
        edge = _BLOCK_EDGE.search(buffer, position)
        if edge is None:
            raise _foreign(name, buffer, token.start(), "a comment that is never closed")
        depth += 1 if edge.group() == b"/*" else -1
        position = edge.end()
    return position


def _foreign(name: str, buffer: mmap.mmap | bytes, offset: int, problem: str) -> SnapshotCorruptError:
    return SnapshotCorruptError(
        f"{name} is not a dump that can be restored",
        found=f"byte {offset:,} of {len(buffer):,}: {problem}",
        hint="Make the snapshot again with create_snapshot; files changed by hand are not restored.",
    )
