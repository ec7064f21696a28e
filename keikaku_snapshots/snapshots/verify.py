"""What a whole data file looks like, beside its checksum (docs/design.md, Valid files).

psql ends with 0 on a file that was cut anywhere, so the shape is checked when
a dump is made and again before every restore, on the same open file.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from keikaku_snapshots.errors import SnapshotCorruptError
from keikaku_snapshots.snapshots.archive import ARCHIVE_MAGIC, file_names, read_contents

if TYPE_CHECKING:
    from keikaku_snapshots.snapshots.manifest import Snapshot

_HEADER = re.compile(rb"--\n-- PostgreSQL database dump\n--\n\n(?:\\restrict (?P<key>[A-Za-z0-9]+)\n\n)?")
_END = re.compile(
    rb"--\n-- PostgreSQL database dump complete\n--\n\n(?:\\unrestrict (?P<key>[A-Za-z0-9]+)\n\n)?\Z"
)
#: More than header and end can be: the key of ``\restrict`` has 63 characters.
EDGE_BYTES = 400


@dataclass(frozen=True, slots=True)
class Verification:
    """A snapshot that was read as a whole and found to be what its manifest says."""

    #: The snapshot.
    snapshot: Snapshot
    #: SHA-256 of its data file.
    sha256: str
    #: Bytes of its data file.
    size_bytes: int
    #: What was checked, in words.
    checks: tuple[str, ...]
    #: Seconds it took.
    seconds: float


def check_shape(descriptor: int, format_name: str, name: str) -> None:
    """Check header and end of a data file.

    The end carries the random key of the header, so that rows which imitate
    the end of a dump are not taken for it.

    Args:
        descriptor: The open file or directory.
        format_name: ``plain``, ``custom`` or ``directory``.
        name: What to call the file in errors.

    Raises:
        SnapshotCorruptError: It is no such file, or was cut.
    """
    if format_name == "directory":
        _check_files(descriptor, name)
        return
    size = os.fstat(descriptor).st_size
    head = os.pread(descriptor, EDGE_BYTES, 0)
    if format_name == "custom":
        if not head.startswith(ARCHIVE_MAGIC):
            raise _corrupt(name, f"it does not begin as an archive of pg_dump does ({_looks_like(head)})")
        return
    check_edges(head, os.pread(descriptor, EDGE_BYTES, max(0, size - EDGE_BYTES)), name)


def _check_files(directory: int, name: str) -> None:
    """Check that all is there that the table of contents names."""
    contents = read_contents(directory, name)
    present = set(os.listdir(directory))
    entries = contents.entries if contents is not None else ()
    missing = [one.file for one in entries if one.file and present.isdisjoint(file_names(one))]
    if missing:
        raise _corrupt(name, f"files that its table of contents names are missing: {', '.join(missing[:5])}")


def check_edges(head: bytes, tail: bytes, name: str) -> None:
    """Check the first and the last bytes of a plain dump; see `check_shape`.

    Args:
        head: The first `EDGE_BYTES`.
        tail: The last `EDGE_BYTES`.
        name: What to call the file in errors.

    Raises:
        SnapshotCorruptError: It is no such dump, or was cut.
    """
    header = _HEADER.match(head)
    if header is None:
        raise _corrupt(name, f"it does not begin as a dump of pg_dump does ({_looks_like(head)})")
    end = _END.search(tail)
    if end is None:
        raise _corrupt(name, "the end of the dump is missing; the file was cut or changed")
    if header["key"] != end["key"]:
        raise _corrupt(name, "the keys of \\restrict and \\unrestrict differ")


def _looks_like(head: bytes) -> str:
    if not head:
        return "it is empty"
    for magic, kind in (
        (b"\x1f\x8b", "gzip"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (ARCHIVE_MAGIC, "a custom archive"),
    ):
        if head.startswith(magic):
            return f"it looks like {kind}"
    return "its first bytes are something else"


def _corrupt(name: str, problem: str) -> SnapshotCorruptError:
    return SnapshotCorruptError(f"{name} is not a whole dump", found=problem)
