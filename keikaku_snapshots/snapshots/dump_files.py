"""What pg_dump writes by itself: one file, or a directory of parts."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import TYPE_CHECKING, Self

from keikaku_snapshots.errors import SnapshotCorruptError
from keikaku_snapshots.postgres.tools import pg_restore_script, translate_tool_failure
from keikaku_snapshots.snapshots.hashing import GrowingFileHash, hash_descriptor
from keikaku_snapshots.snapshots.packed_file import PackedHash
from keikaku_snapshots.snapshots.part_files import hash_parts
from keikaku_snapshots.snapshots.parts import digest_of
from keikaku_snapshots.snapshots.verify import check_shape

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from keikaku_snapshots.postgres.tools import Tools
    from keikaku_snapshots.snapshots.hashing import FileHash
    from keikaku_snapshots.snapshots.stage import Stage


class WholeFile:
    """One file; a plain one is hashed beside. Used as `compressed_dump.PackingPipe` is."""

    def __init__(self, stage: Stage, format_name: str, tools: Tools) -> None:
        self._stage = stage
        self._format = format_name
        self._tools = tools
        self._follower: GrowingFileHash | None = None
        #: What pg_dump writes to.
        self.target: Path | int = stage.path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._follower is not None:
            self._follower.abandon()

    def started(self) -> None:
        """Begin to read along; pg_dump goes back in an archive, which is read at the end."""
        if self._format == "plain":
            self._follower = GrowingFileHash(self._stage.path)

    def problem(self) -> str | None:
        """Nothing of ours can fail while pg_dump writes."""
        return None

    def check(self) -> None:
        """As `problem`."""

    @property
    def written_bytes(self) -> int:
        """Bytes of the dump so far."""
        return self._stage.path.stat().st_size

    def finish(self, name: str) -> PackedHash:
        """Check that it is whole and return the checksum."""
        check_shape(self._stage.fileno(), self._format, name)
        if self._follower is not None:
            return PackedHash(self._follower.finish(), None)
        descriptor = self._stage.fileno()
        with ThreadPoolExecutor(1, "keikaku-hash") as beside:
            hashed = beside.submit(hash_descriptor, descriptor)
            check_archive(self._tools, descriptor, name)
            return PackedHash(hashed.result(), None)


class PartFiles(WholeFile):
    """A directory of parts; they are hashed when pg_dump has ended, beside the reading of the archive."""

    #: Checksum and size of each part, when it is finished.
    parts: Mapping[str, FileHash] = MappingProxyType({})

    @property
    def written_bytes(self) -> int:
        """Bytes of all parts so far."""
        with os.scandir(self._stage.fileno()) as parts:
            return sum(part.stat(follow_symlinks=False).st_size for part in parts)

    def finish(self, name: str) -> PackedHash:
        """Check that it is whole and return what stands for all parts."""
        descriptor = self._stage.fileno()
        check_shape(descriptor, self._format, name)
        with ThreadPoolExecutor(1, "keikaku-hash") as beside:
            hashed = beside.submit(hash_parts, descriptor)
            check_archive(self._tools, descriptor, name)
            self.parts = hashed.result()
        return PackedHash(digest_of(self.parts), None)


def check_archive(tools: Tools, descriptor: int, name: str) -> None:
    """Read an archive as a whole; listing it would not find a late cut (FAULTS 7).

    Args:
        tools: Programs that can read it.
        descriptor: The open file or directory.
        name: What to call it in errors.

    Raises:
        SnapshotCorruptError: It cannot be read.
        ToolVersionError: It was made by newer programs.
    """
    result = pg_restore_script(tools, f"/dev/fd/{descriptor}", "/dev/null", pass_fds=(descriptor,))
    if not result.ok:
        raise translate_tool_failure(result, None, doing=f"reading {name}", kind=SnapshotCorruptError)
