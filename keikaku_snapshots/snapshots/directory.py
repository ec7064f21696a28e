"""The snapshot directory as it lies on disk: what is there, whole or damaged."""

from __future__ import annotations

import os
import re
import stat
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from keikaku_snapshots.errors import KeikakuError, SnapshotCorruptError
from keikaku_snapshots.snapshots.files import FileSystem, kind_of, read_regular
from keikaku_snapshots.snapshots.manifest import Manifest, Snapshot
from keikaku_snapshots.snapshots.names import (
    MANIFEST_SUFFIX,
    DataFileName,
    data_file_name,
    format_of_suffix,
    split_data_file_name,
    version_order,
)

if TYPE_CHECKING:
    from pathlib import Path

#: A manifest lists every schema object; 64 MB is far above the largest schema
#: seen and keeps a wrong file from filling the memory.
MANIFEST_LIMIT_BYTES: Final = 64 * 1024 * 1024

#: Files of ours that are not finished: ``.NAME.PID.RANDOM[.KIND].tmp``.
TEMPORARY: Final = re.compile(
    r"\.(?P<base>[A-Za-z0-9][A-Za-z0-9._-]*)\.(?P<pid>[0-9]+)\.[0-9a-f]{12}(?:\.(?P<kind>manifest|deleted|latest))?\.tmp"
)


class SnapshotDirectory:
    """Reads a snapshot directory; takes no locks and changes nothing.

    Args:
        path: The directory, absolute.
        files: The seam through which all changes go.
    """

    def __init__(self, path: Path, files: FileSystem) -> None:
        self.path = path
        self.files = files

    def snapshots(self, name: str | None = None) -> list[Snapshot]:
        """Return all snapshots, or those of one name, newest first, the damaged ones with their problem.

        Raises:
            OSError: The directory cannot be read; that it is missing is no error.
        """
        found = []
        for file_name, parts in self._data_files().items():
            if name is None or parts.name == name:
                snapshot = self.load(file_name)
                if snapshot is not None:
                    found.append(snapshot)
        return sorted(found, key=lambda item: item.sort_key, reverse=True)

    def load(self, file_name: str) -> Snapshot | None:
        """Return the snapshot of a data file's canonical name, ``None`` when neither file is there."""
        parts = split_data_file_name(file_name)
        if parts is None:
            return None
        try:
            manifest = self.read_manifest(file_name)
        except FileNotFoundError:
            return self._damaged(file_name, parts, "it has no manifest, so it is not known to be complete")
        except (OSError, KeikakuError) as error:
            return self._damaged(file_name, parts, f"the manifest cannot be used: {_reason(error)}")
        if (manifest.name, manifest.version, manifest.suffix) != parts:
            problem = f"the manifest is that of {manifest.name} {manifest.version}, not of this file"
            return self._damaged(file_name, parts, problem)
        return self._examined(manifest, file_name)

    def read_manifest(self, file_name: str) -> Manifest:
        """Return the manifest of a data file's canonical name.

        Raises:
            SnapshotCorruptError: It is not usable.
            OSError: It cannot be read.
        """
        return Manifest.from_json(
            read_regular(self.path / (file_name + MANIFEST_SUFFIX), MANIFEST_LIMIT_BYTES)
        )

    def _data_files(self) -> dict[str, DataFileName]:
        """Canonical names of all data files, by themselves or by their manifest."""
        found: dict[str, DataFileName] = {}
        try:
            with os.scandir(self.path) as entries:
                for entry in entries:
                    file_name = entry.name.removesuffix(MANIFEST_SUFFIX)
                    parts = split_data_file_name(file_name)
                    if parts is None or (file_name == entry.name and entry.is_symlink()):
                        continue
                    found[file_name] = parts
        except FileNotFoundError:
            return {}
        return found

    def _examined(self, manifest: Manifest, file_name: str) -> Snapshot:
        """The snapshot of a good manifest, with its data file looked at."""
        problem = ""
        path, status = self._data_of(manifest, file_name)
        size_bytes = status.st_size if status else 0
        if status is None:
            problem = "the data file is missing"
        elif not stat.S_ISREG(status.st_mode):
            problem = f"the data file is not a regular file but a {kind_of(status.st_mode)}"
        elif size_bytes != manifest.size_bytes:
            problem = f"the data file has {size_bytes} bytes, the manifest says {manifest.size_bytes}"
        elif not os.access(path, os.R_OK):
            problem = "the data file cannot be read by this account"
        return Snapshot(
            path=path,
            name=manifest.name,
            version=manifest.version,
            created_at=manifest.created_at,
            size_bytes=size_bytes,
            row_counts=manifest.row_counts,
            is_valid=not problem,
            problem=problem,
            format=manifest.format,
            manifest=manifest,
        )

    def _data_of(self, manifest: Manifest, file_name: str) -> tuple[Path, os.stat_result | None]:
        """Where the data is: while a version is being replaced, its new data still has a temporary name."""
        canonical = self.path / file_name
        if manifest.data_file != file_name and TEMPORARY.fullmatch(manifest.data_file):
            interim = self.path / manifest.data_file
            status = lstat(interim)
            if status is not None:
                return interim, status
        return canonical, lstat(canonical)

    def _damaged(self, file_name: str, parts: DataFileName, problem: str) -> Snapshot | None:
        path = self.path / file_name
        status = lstat(path)
        if status is None and lstat(self.path / (file_name + MANIFEST_SUFFIX)) is None:
            return None
        order = version_order(parts.version)
        if status is not None and not stat.S_ISREG(status.st_mode):
            problem = f"the data file is not a regular file but a {kind_of(status.st_mode)}; {problem}"
        return Snapshot(
            path=path,
            name=parts.name,
            version=parts.version,
            created_at=order.moment
            if order
            else datetime.fromtimestamp(status.st_mtime if status else 0, UTC),
            size_bytes=status.st_size if status else 0,
            is_valid=False,
            problem=problem,
            format=format_of_suffix(parts.suffix)[0],
        )


def canonical_name(snapshot: Snapshot | Manifest) -> str:
    """Return the data file's lasting name."""
    return data_file_name(snapshot.name, snapshot.version, snapshot.suffix)


def lstat(path: Path) -> os.stat_result | None:
    """Return the status of a name itself, ``None`` when there is none."""
    try:
        return path.lstat()
    except FileNotFoundError:
        return None


def identity(path: Path) -> tuple[int, int] | None:
    """Return device and inode of a name itself, ``None`` when there is none."""
    status = lstat(path)
    return (status.st_dev, status.st_ino) if status else None


def _reason(error: OSError | KeikakuError) -> str:
    if isinstance(error, SnapshotCorruptError):
        return f"{error.what} ({error.found})" if error.found else error.what
    if isinstance(error, KeikakuError):
        return error.what
    return error.strerror or str(error)
