"""What a snapshot of the directory format consists of: its parts, one file each.

Pure values; what is done with the files is in `part_files`.
"""

from __future__ import annotations

import hashlib
import re
import stat
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from keikaku_snapshots.errors import UsageError
from keikaku_snapshots.snapshots.files import kind_of
from keikaku_snapshots.snapshots.hashing import FileHash

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

#: Suffix of a snapshot whose data is a directory.
DIRECTORY_SUFFIX: Final = "dir"
#: Checksum and size of each part, by its file name.
Listing: TypeAlias = "dict[str, FileHash]"

#: What pg_dump calls its files (``toc.dat``, ``3456.dat.gz``, ``blob_16390.dat``, ``blobs_3401.toc``)
#: and nothing that a shell, a path or ``sha256sum`` reads in another way. Never hidden.
_PART_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
#: Names told in one message; the rest is counted.
_TOLD: Final = 5


def is_part_name(name: str) -> bool:
    """Tell whether a file of this name can be a part."""
    return _PART_NAME.fullmatch(name) is not None


def digest_of(parts: Mapping[str, FileHash]) -> FileHash:
    """Return what stands for a whole directory: one checksum, and the sum of the sizes.

    The checksum is that of what ``LC_ALL=C sha256sum *`` prints in the directory, so that a person
    can compute it without this program: ``LC_ALL=C sha256sum * | sha256sum``.

    Args:
        parts: Checksum and size of each part.
    """
    lines = "".join(f"{parts[name].sha256}  {name}\n" for name in sorted(parts))
    return FileHash(
        hashlib.sha256(lines.encode()).hexdigest(), sum(part.size_bytes for part in parts.values())
    )


def to_manifest(parts: Mapping[str, FileHash]) -> dict[str, dict[str, Any]]:
    """Return a listing as the manifest's field ``parts`` has it."""
    return {
        name: {"sha256": parts[name].sha256, "size_bytes": parts[name].size_bytes} for name in sorted(parts)
    }


def from_manifest(parts: Mapping[str, Mapping[str, Any]]) -> Listing:
    """Return the field ``parts`` of a manifest, which has checked it, as a listing."""
    return {name: FileHash(part["sha256"], part["size_bytes"]) for name, part in parts.items()}


def check_parts(parts: Mapping[str, Mapping[str, Any]], whole: FileHash) -> None:
    """Make sure that a manifest's parts are possible, and say the same as its checksum and size.

    Raises:
        UsageError: They differ, or a name, a size or a checksum is not possible.
    """
    if not parts:
        raise UsageError("a directory needs parts")
    for name, part in parts.items():
        if not is_part_name(name):
            raise UsageError(f"parts has {name[:120]!r}, which is not the name of a part")
        sha256, size_bytes = part.get("sha256"), part.get("size_bytes")
        if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
            raise UsageError(f"sha256 of part {name!r} must be 64 hexadecimal digits")
        if not isinstance(size_bytes, int) or isinstance(size_bytes, bool) or size_bytes < 0:
            raise UsageError(f"size_bytes of part {name!r} must be a whole number, 0 or more")
    if digest_of(from_manifest(parts)) != whole:
        raise UsageError("sha256 and size_bytes are not those of the parts")


def problem_of(present: Mapping[str, os.stat_result], parts: Mapping[str, FileHash]) -> str:
    """Return in words what differs between a directory and its manifest; empty when nothing does.

    Names, kinds and sizes are looked at, not the content.

    Args:
        present: Status of each entry of the directory, links not followed.
        parts: What the manifest says.
    """
    if missing := sorted(set(parts) - set(present)):
        return f"{_some(missing)} {_is(missing)} missing from the data directory"
    if foreign := sorted(set(present) - set(parts)):
        return f"the data directory holds {_some(foreign)}, which {_is(foreign)} not part of the snapshot"
    for name in sorted(parts):
        status, wanted = present[name], parts[name].size_bytes
        if not stat.S_ISREG(status.st_mode):
            return f"part {name} is not a regular file but a {kind_of(status.st_mode)}"
        if status.st_size != wanted:
            return f"part {name} has {status.st_size} bytes, the manifest says {wanted}"
    return ""


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _TOLD} more" if len(names) > _TOLD else ""
    return ", ".join(names[:_TOLD]) + more


def _is(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"
