"""The table of contents of an archive of pg_dump, read without a program.

``pg_restore --list`` leaves out what a parallel restore and a check need: the
section of an entry, what it depends on, its COPY statement and the file of its
rows. The layout is PostgreSQL's own (pg_backup_archiver.c, ReadToc), the same
since 1.9 but for fields that later versions put in; a version that is not
known here is not guessed at.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from keikaku_snapshots.errors import SnapshotCorruptError
from keikaku_snapshots.snapshots.files import translate_os_error
from keikaku_snapshots.snapshots.temporary import temporary_file, translated_room

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: First bytes of every archive of pg_dump.
ARCHIVE_MAGIC: Final = b"PGDMP"
#: Name of the table of contents in a directory archive.
TOC_FILE: Final = "toc.dat"
#: What the format byte of a directory archive's table of contents says: the layout is that of a tar archive.
_DIRECTORY: Final = 3
#: Layouts of PostgreSQL 12-15, 16 and 17-18.
_KNOWN: Final = ((1, 14), (1, 15), (1, 16))
_BYTE_COMPRESSION_SINCE: Final = (1, 15)
_RELKIND_SINCE: Final = (1, 16)
_SUFFIXES: Final = ("", ".gz", ".lz4", ".zst")
#: More than any table of contents has; a damaged length must not take all memory.
_LARGEST_BYTES: Final = 1 << 30
#: More than stands in front of the entries: names and versions have at most 64 characters or so.
_HEAD_BYTES: Final = 4096


class Section(IntEnum):
    """Which part of an archive an entry belongs to, as pg_dump numbers them."""

    #: Goes with the entry before it: comments, security labels, grants.
    NONE = 1
    #: Definitions that rows need.
    PRE_DATA = 2
    #: Rows, sequences, large objects.
    DATA = 3
    #: Definitions that need rows, or are faster with them.
    POST_DATA = 4


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a table of contents."""

    #: Its number, by which others depend on it and ``pg_restore -L`` names it.
    id: int
    #: Its name, without schema.
    tag: str
    #: What it is, such as ``TABLE DATA``.
    kind: str
    #: Its section; what has none got that of the entry before it.
    section: Section
    #: The statements that make it.
    definition: bytes
    #: The COPY statement of its rows; empty where they are INSERT statements.
    copy: bytes
    #: Its schema, or empty.
    schema: str
    #: Numbers of the entries that must be there first.
    needs: frozenset[int]
    #: File of its rows in a directory archive, or empty.
    file: str


@dataclass(frozen=True, slots=True)
class Contents:
    """A table of contents."""

    #: In the order in which they can be restored.
    entries: tuple[Entry, ...]


def file_names(entry: Entry) -> list[str]:
    """Return what the file of an entry's rows can be called: with the suffix of its compression."""
    return [entry.file + suffix for suffix in _SUFFIXES]


@contextlib.contextmanager
def chosen(ids: Iterable[int]) -> Iterator[int]:
    """Write entries into a file as ``pg_restore --use-list`` reads it.

    Args:
        ids: Numbers of entries.

    Yields:
        The descriptor of the file, to be read as ``/dev/fd/N``. It has no name, which a kill would leave.

    Raises:
        DiskFullError: It cannot be written.
    """
    with temporary_file() as file:
        with translated_room():
            try:
                file.write("".join(f"{number};\n" for number in ids).encode())
                file.seek(0)
            except OSError as error:
                raise translate_os_error(error, doing="writing a list for pg_restore") from error
        yield file.fileno()


def is_directory_archive(head: bytes) -> bool:
    """Tell whether these are the first bytes of the table of contents of a directory archive.

    Args:
        head: At least 11 bytes.
    """
    return head.startswith(ARCHIVE_MAGIC) and len(head) > 10 and head[10] == _DIRECTORY


def read_contents(directory: int, name: str) -> Contents | None:
    """Read the table of contents of a directory archive.

    Args:
        directory: Descriptor of the directory.
        name: What to call it in errors.

    Returns:
        The contents; None when the layout is newer than this library.

    Raises:
        SnapshotCorruptError: It is missing, cut or no table of contents.
        OSError: It cannot be read.
    """
    try:
        descriptor = os.open(TOC_FILE, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=directory)
    except FileNotFoundError as error:
        raise _corrupt(name, f"it has no {TOC_FILE}") from error
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(_LARGEST_BYTES)
    return parse_contents(data, name)


def major_of(descriptor: int, name: str) -> int:
    """Return the major version of the pg_dump that made an archive.

    Args:
        descriptor: The open archive file, or directory.
        name: What to call it in errors.

    Raises:
        SnapshotCorruptError: Its beginning does not say so.
        OSError: It cannot be read.
    """
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        descriptor = os.open(TOC_FILE, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=descriptor)
        try:
            head = os.pread(descriptor, _HEAD_BYTES, 0)
        finally:
            os.close(descriptor)
    else:
        head = os.pread(descriptor, _HEAD_BYTES, 0)
    try:
        # Such as 18.6, 18.6 (Debian ...), 19devel.
        found = re.match(rb"[0-9]+", _Reader(head, (head[5], head[6])).maker())
    except IndexError:
        found = None
    if found is None or not head.startswith(ARCHIVE_MAGIC):
        raise _corrupt(name, "its beginning does not say which pg_dump made it")
    return int(found[0])


def parse_contents(data: bytes, name: str) -> Contents | None:
    """Read the bytes of ``toc.dat``; see `read_contents`."""
    if not is_directory_archive(data):
        raise _corrupt(name, f"its {TOC_FILE} does not begin as pg_dump writes it")
    version = (data[5], data[6])
    if version not in _KNOWN:
        return None
    try:
        return _Reader(data, version).contents()
    except (struct.error, IndexError, ValueError) as error:
        raise _corrupt(name, f"its {TOC_FILE} ends early or was changed") from error


class _Reader:
    """Reads numbers and texts one after the other."""

    def __init__(self, data: bytes, version: tuple[int, int]) -> None:
        self._data = data
        self._version = version
        self._int_bytes = data[8]
        self._position = 11

    def maker(self) -> bytes:
        """Read the head of the archive; returns the version of the pg_dump that made it."""
        if self._version >= _BYTE_COMPRESSION_SINCE:
            self._position += 1
        else:
            self._number()
        for _ in range(7):  # when it was made: seconds to daylight saving
            self._number()
        self._bytes(), self._bytes()  # database, version of the server
        return self._bytes()

    def contents(self) -> Contents:
        self.maker()
        entries: list[Entry] = []
        section = Section.PRE_DATA
        for _ in range(self._number()):
            entry = self._entry(section)
            section = entry.section
            entries.append(entry)
        if self._position != len(self._data):
            raise ValueError("bytes behind the end")
        return Contents(tuple(entries))

    def _entry(self, before: Section) -> Entry:
        identifier = self._number()
        self._number()  # whether it has rows
        self._bytes(), self._bytes()  # its object in the catalog
        tag, kind = self._text(), self._text()
        section = Section(self._number())
        definition = self._bytes()
        self._bytes()  # how to drop it
        copy, schema = self._bytes(), self._text()
        self._bytes(), self._bytes()  # table space and access method
        if self._version >= _RELKIND_SINCE:
            self._number()
        self._bytes(), self._bytes()  # its owner, and whether rows have object ids
        needs = set()
        while need := self._bytes():
            needs.add(int(need))
        file = self._text()
        section = before if section is Section.NONE else section
        return Entry(identifier, tag, kind, section, definition, copy, schema, frozenset(needs), file)

    def _number(self) -> int:
        end = self._position + 1 + self._int_bytes
        if end > len(self._data):
            raise IndexError(end)
        value = int.from_bytes(self._data[self._position + 1 : end], "little")
        sign = self._data[self._position]
        self._position = end
        return -value if sign else value

    def _bytes(self) -> bytes:
        size = self._number()
        if size <= 0:  # a missing text has the length -1
            return b""
        end = self._position + size
        if end > len(self._data):
            raise IndexError(end)
        value = self._data[self._position : end]
        self._position = end
        return value

    def _text(self) -> str:
        # A dump of an SQL_ASCII database is in no encoding.
        return self._bytes().decode("utf-8", "surrogateescape")


def _corrupt(name: str, problem: str) -> SnapshotCorruptError:
    return SnapshotCorruptError(f"{name} is not a whole dump", found=problem)
