"""The link ``<name>_latest.<suffix>``: a convenience for people, computed from the manifests.

Restore never reads it. It is a symbolic link, a hard link or a copy. What we
made in the latter two modes is recorded beside it, so that a file that somebody
else put there is refused instead of replaced (FAULTS 64).
"""

from __future__ import annotations

import json
import os
import re
import stat
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from keikaku_snapshots.errors import KeikakuError, RefusedError, UsageError
from keikaku_snapshots.snapshots.directory import SnapshotDirectory, canonical_name, identity, lstat
from keikaku_snapshots.snapshots.files import copy, kind_of, open_regular, read_regular, temporary_path
from keikaku_snapshots.snapshots.hashing import hash_descriptor
from keikaku_snapshots.snapshots.names import SUFFIXES, latest_name, split_data_file_name
from keikaku_snapshots.snapshots.parts import DIRECTORY_SUFFIX
from keikaku_snapshots.snapshots.publish import remove_quietly

if TYPE_CHECKING:
    from pathlib import Path

    from keikaku_snapshots.snapshots.manifest import Snapshot

LatestMode: TypeAlias = Literal["symlink", "hardlink", "copy"]
LATEST_MODES: Final = ("symlink", "hardlink", "copy")

_LATEST = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]{0,99})_latest\.[a-z.]+")
_RECORD_LIMIT_BYTES: Final = 64 * 1024


class LatestLink:
    """Keeps the links of a directory; all methods that change one need the directory lock.

    Args:
        directory: Where.
        mode: What kind of link to make.
    """

    def __init__(self, directory: SnapshotDirectory, mode: LatestMode = "symlink") -> None:
        self.directory = directory
        self.mode = mode

    def names(self) -> set[str]:
        """Return the snapshot names for which something lies at a link's place."""
        with os.scandir(self.directory.path) as entries:
            matches = [_LATEST.fullmatch(entry.name) for entry in entries]
        return {match["name"] for match in matches if match}

    def suffixes(self, name: str) -> set[str]:
        """Return the suffixes for which something lies at a link's place."""
        return {suffix for suffix in SUFFIXES if lstat(self._path(name, suffix))}

    def check_mode(self, suffix: str) -> None:
        """Refuse to begin what could have no link.

        A directory has no hard links, and none can be put in another's place in one step, so a copy
        would be missing for an instant. What was made with ``symlink`` keeps its symbolic link.

        Raises:
            UsageError: Hard links or copies are asked for, and the data is a directory.
        """
        if suffix == DIRECTORY_SUFFIX and self.mode != "symlink":
            raise UsageError(
                f"the link to the latest of a directory snapshot cannot be a {self.mode}",
                found="Only a symbolic link can name a directory and be replaced in one step.",
                hint="Use latest='symlink' (the default), or format='custom', which is one file.",
            )

    def check(self, name: str, suffix: str) -> None:
        """Refuse what somebody else put at the link's place.

        Raises:
            RefusedError: There is a directory, or a file or link that is not ours.
        """
        path = self._path(name, suffix)
        status = lstat(path)
        if status is None or self._is_ours(path, status, name, suffix):
            return
        raise RefusedError(
            f"{path.name} was not made by this program and is not replaced",
            found=f"{path} is a {kind_of(status.st_mode)}.",
            hint=f"Move {path.name} away, or choose another snapshot name.",
        )

    def refresh(self, name: str, suffix: str, newest: Snapshot | None) -> None:
        """Let the link name ``newest``, or remove ours when there is none; does nothing when it is right.

        Raises:
            RefusedError: What is there is not ours.
            OSError: A file operation failed; the link is as before, or the new one.
        """
        path = self._path(name, suffix)
        if newest is None:
            status = lstat(path)
            if status and self._is_ours(path, status, name, suffix):
                self.directory.files.unlink(path)
                self.directory.files.fsync_directory(self.directory.path)
            if lstat(self._record_path(path)):
                self.directory.files.unlink(self._record_path(path))
            return
        mode: LatestMode = "symlink" if suffix == DIRECTORY_SUFFIX else self.mode
        if self._is_right(path, newest, mode):
            return
        self.check(name, suffix)
        make = {"symlink": self._make_symlink, "hardlink": self._make_hard_link, "copy": self._make_copy}
        temporary = temporary_path(self.directory.path, path.name, "latest")
        try:
            make[mode](temporary, newest)
            if mode != "symlink":
                self._record(path, temporary, newest)
            self.directory.files.replace(temporary, path)
        except BaseException:
            remove_quietly(self.directory, temporary)
            raise
        # Renaming one hard link over another of the same file does nothing and leaves both.
        if lstat(temporary):
            remove_quietly(self.directory, temporary)
        self.directory.files.fsync_directory(self.directory.path)

    def _path(self, name: str, suffix: str) -> Path:
        return self.directory.path / latest_name(name, suffix)

    def _is_right(self, path: Path, newest: Snapshot, mode: LatestMode) -> bool:
        status = lstat(path)
        if status is None:
            return False
        if mode == "symlink":
            return stat.S_ISLNK(status.st_mode) and str(path.readlink()) == canonical_name(newest)
        if mode == "hardlink":
            return identity(path) == identity(newest.path)
        # An entry of the record that names this very file and this version.
        return any(
            _matches(entry, status) and newest.manifest and entry.get("sha256") == newest.manifest.sha256
            for entry in self._recorded(path)
        )

    def _is_ours(self, path: Path, status: os.stat_result, name: str, suffix: str) -> bool:
        if stat.S_ISLNK(status.st_mode):
            parts = split_data_file_name(str(path.readlink()))
            return parts is not None and (parts.name, parts.suffix) == (name, suffix)
        if not stat.S_ISREG(status.st_mode):
            return False
        if any(_matches(entry, status) for entry in self._recorded(path)):
            return True
        # The record is lost, or the whole directory was copied: the content decides.
        same_size = [
            item.manifest.sha256
            for item in self.directory.snapshots(name)
            if item.manifest and item.suffix == suffix and item.manifest.size_bytes == status.st_size
        ]
        if not same_size:
            return False
        descriptor = open_regular(path)
        try:
            return hash_descriptor(descriptor).sha256 in same_size
        finally:
            os.close(descriptor)

    def _make_symlink(self, temporary: Path, newest: Snapshot) -> None:
        # The lasting name, also while the data still has a temporary one: that will go.
        self.directory.files.symlink(canonical_name(newest), temporary)

    def _make_hard_link(self, temporary: Path, newest: Snapshot) -> None:
        self.directory.files.link(newest.path, temporary)

    def _make_copy(self, temporary: Path, newest: Snapshot) -> None:
        copy(self.directory.files, newest.path, temporary)

    def _record_path(self, path: Path) -> Path:
        return path.with_name(f".{path.name}.json")

    def _recorded(self, path: Path) -> list[dict[str, Any]]:
        """What we made at ``path`` lately; a damaged record counts as none."""
        try:
            entries = json.loads(read_regular(self._record_path(path), _RECORD_LIMIT_BYTES))
        except (OSError, ValueError, KeikakuError):
            return []
        return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []

    def _record(self, path: Path, temporary: Path, newest: Snapshot) -> None:
        """Record what will lie at ``path``, ahead of it; what lies there now stays recorded as well."""
        status, present = temporary.lstat(), lstat(path)
        entry = {
            "inode": status.st_ino,
            "size_bytes": status.st_size,
            "mtime_ns": status.st_mtime_ns,
            "version": newest.version,
            "sha256": newest.manifest.sha256 if newest.manifest else "",
        }
        kept = [old for old in self._recorded(path) if present and _matches(old, present)]
        note = temporary_path(self.directory.path, path.name, "latest")
        files = self.directory.files
        descriptor = files.create(note)
        try:
            files.write(descriptor, json.dumps([*kept, entry], indent=1).encode(), note)
            files.fsync(descriptor, note)
        finally:
            os.close(descriptor)
        files.replace(note, self._record_path(path))


def _matches(entry: dict[str, Any], status: os.stat_result) -> bool:
    return (entry.get("inode"), entry.get("size_bytes"), entry.get("mtime_ns")) == (
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
    )
