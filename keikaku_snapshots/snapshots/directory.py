"""The snapshot directory as it lies on disk: what is there, whole or damaged."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from keikaku_snapshots.errors import (
    JSONCorruptError,
    KeikakuError,
    SnapshotCorruptError,
    SnapshotNotFoundError,
)
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
from keikaku_snapshots.snapshots.part_files import Look, look
from keikaku_snapshots.snapshots.parts import from_manifest

#: A manifest lists every schema object; 64 MB is far above the largest schema
#: seen and keeps a wrong file from filling the memory.
MANIFEST_LIMIT_BYTES: Final = 64 * 1024 * 1024

#: Looks at a damaged file while it changes between two of them.
_LOOKS: Final = 5

#: Files and directories of ours that are not finished: ``.NAME.PID.RANDOM[.KIND].tmp``.
TEMPORARY: Final = re.compile(
    r"\.(?P<base>[A-Za-z0-9][A-Za-z0-9._-]*)\.(?P<pid>[0-9]+)\.[0-9a-f]{12}"
    r"(?:\.(?P<kind>manifest|deleted|latest|parts|doomed))?\.tmp"
)
#: Kinds of temporary names that are directories: data being written, and data being removed.
DIRECTORY_KINDS: Final = frozenset({"parts", "doomed"})


@dataclass(frozen=True, slots=True)
class Leftover:
    """A temporary file of ours, of a living process or a dead one."""

    #: Where it lies.
    path: Path
    #: Its status when it was found.
    status: os.stat_result
    #: ``""`` for a data file, ``parts`` for a data directory, ``doomed`` for one that is being
    #: removed, ``manifest``, ``deleted`` or ``latest``.
    kind: str

    @property
    def is_directory(self) -> bool:
        """It is a data directory."""
        return self.kind in DIRECTORY_KINDS

    def manifest(self) -> Manifest | None:
        """Return the manifest in it, when it is one that was to be or was in place."""
        if self.kind not in {"manifest", "deleted"}:
            return None
        try:
            return Manifest.from_json(read_regular(self.path, MANIFEST_LIMIT_BYTES))
        except (OSError, KeikakuError):
            return None


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

    def newest_valid(self, name: str) -> Snapshot | None:
        """Return the newest valid snapshot of a name; reads few manifests where versions are stamps."""
        stamped = []
        for file_name, parts in self._data_files().items():
            if parts.name == name:
                stamped.append((version_order(parts.version), file_name))
        orders = [order for order, _ in stamped if order is not None]
        if len(set(orders)) < len(stamped):
            # A label's place is known from its manifest only, and so is that of a version in two formats.
            return next((item for item in self.snapshots(name) if item.is_valid), None)
        for _, file_name in sorted(stamped, reverse=True):
            snapshot = self.load(file_name)
            if snapshot is not None and snapshot.is_valid:
                return snapshot
        return None

    def load(self, file_name: str) -> Snapshot | None:
        """Return the snapshot of a data file's canonical name, ``None`` when there is none.

        A file that is just appearing or going, or that a crash left between
        the two, is none either.
        """
        parts = split_data_file_name(file_name)
        if parts is None:
            return None
        snapshot = self._load_once(file_name, parts)
        for _ in range(_LOOKS):
            if snapshot is None or snapshot.is_valid:
                break
            # Between two looks another process may have replaced it: damage is
            # what is there twice.
            before, snapshot = snapshot, self._load_once(file_name, parts)
            if before == snapshot:
                break
        return snapshot

    def _load_once(self, file_name: str, parts: DataFileName) -> Snapshot | None:
        try:
            manifest = self.read_manifest(file_name)
        except FileNotFoundError:
            if self.is_unfinished(file_name):
                return None
            return self._damaged(file_name, parts, "it has no manifest, so it is not known to be complete")
        except (OSError, KeikakuError) as error:
            return self._damaged(file_name, parts, f"the manifest cannot be used: {_reason(error)}")
        if (manifest.name, manifest.version, manifest.suffix) != parts:
            problem = f"the manifest is that of {manifest.name} {manifest.version}, not of this file"
            return self._damaged(file_name, parts, problem)
        return self._examined(manifest, file_name)

    def is_unfinished(self, file_name: str) -> bool:
        """Tell whether a data file without manifest is half published or half deleted.

        A leftover of ours proves it: the temporary name of the same file, or
        the manifest that was to be, or was, beside it.
        """
        path = self.path / file_name
        status = lstat(path)
        if status is None:
            return False
        for item in self.leftovers():
            if item.kind == "" and os.path.samestat(item.status, status):
                return True
            manifest = item.manifest()
            if manifest and canonical_name(manifest) == file_name and is_data_of(manifest, path, status):
                return True
        return False

    def leftovers(self) -> list[Leftover]:
        """Return the temporary files of this account, oldest first."""
        found = []
        with contextlib.suppress(FileNotFoundError), os.scandir(self.path) as entries:
            for entry in entries:
                match = TEMPORARY.fullmatch(entry.name)
                status = lstat(Path(entry.path)) if match else None
                if match is None or status is None or status.st_uid != os.geteuid():
                    continue
                kind = match["kind"] or ""
                link = stat.S_ISLNK(status.st_mode) and kind == "latest"
                is_file = stat.S_ISREG(status.st_mode) and kind not in DIRECTORY_KINDS
                if is_file or link or (stat.S_ISDIR(status.st_mode) and kind in DIRECTORY_KINDS):
                    found.append(Leftover(Path(entry.path), status, kind))
        return sorted(found, key=lambda item: (item.status.st_mtime, item.path.name))

    def data_without_manifest(self) -> list[Path]:
        """Return the data files that have no manifest, whoever made them."""
        paths = [self.path / file_name for file_name in self._data_files()]
        return [path for path in paths if lstat(path) and not has_manifest(path)]

    def read_manifest(self, file_name: str) -> Manifest:
        """Return the manifest of a data file's canonical name.

        Raises:
            SnapshotCorruptError: It is not usable.
            OSError: It cannot be read.
        """
        return Manifest.from_json(
            read_regular(self.path / (file_name + MANIFEST_SUFFIX), MANIFEST_LIMIT_BYTES)
        )

    def not_found(
        self, name: str, version: str | None, found: list[Snapshot]
    ) -> SnapshotNotFoundError | SnapshotCorruptError:
        """Return the error for a snapshot that is not there, with what is there instead.

        Damage that came after a snapshot was complete is told as damage: a fixture that makes a new
        one on FileNotFoundError must not hide it. What a killed create left is only "not there".
        """
        what = (
            f"there is no snapshot {name!r}" if version is None else f"there is no snapshot {name} {version}"
        )
        if not found:
            return SnapshotNotFoundError(what, found=f"in {self.path}")
        if version is not None:
            versions = ", ".join(item.version for item in found[:10])
            return SnapshotNotFoundError(what, found=f"{self.path} has these versions of it: {versions}.")
        lines = "\n".join(f"  {item.version}: {item.problem}" for item in found[:10])
        damaged = next((item for item in found if item.manifest), None)
        kind = corrupt_error(damaged) if damaged else SnapshotNotFoundError
        return kind(
            f"there is no valid snapshot {name!r}", found=f"{self.path} has only damaged ones:\n{lines}"
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
        path, status = self._data_of(manifest, file_name)
        found = _look_at(manifest, path, status)
        return Snapshot(
            path=path,
            name=manifest.name,
            version=manifest.version,
            created_at=manifest.created_at,
            size_bytes=found.size_bytes,
            row_counts=manifest.row_counts,
            is_valid=not found.problem,
            problem=found.problem,
            format=manifest.format,
            manifest=manifest,
            own_bytes=found.own_bytes,
            shared_bytes=found.size_bytes - found.own_bytes,
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
        format_name = format_of_suffix(parts.suffix)[0]
        size_bytes = own_bytes = status.st_size if status else 0
        if status is not None and format_name == "directory" and stat.S_ISDIR(status.st_mode):
            _, size_bytes, own_bytes = look(path, {})
        elif status is not None and (wrong := _wrong_kind(format_name, status)):
            problem = f"{wrong}; {problem}"
        return Snapshot(
            path=path,
            name=parts.name,
            version=parts.version,
            created_at=order.moment
            if order
            else datetime.fromtimestamp(status.st_mtime if status else 0, UTC),
            size_bytes=size_bytes,
            is_valid=False,
            problem=problem,
            format=format_name,
            own_bytes=own_bytes,
            shared_bytes=size_bytes - own_bytes,
        )


def is_data_of(manifest: Manifest, path: Path, status: os.stat_result) -> bool:
    """Tell whether what lies at ``path`` can be the data of a manifest, by its kind, names and sizes.

    Args:
        manifest: The manifest.
        path: Where something lies.
        status: Its status, links not followed.
    """
    if manifest.format == "directory":
        return stat.S_ISDIR(status.st_mode) and not look(path, from_manifest(manifest.parts)).problem
    # Empty: the name is held on a file system without hard links.
    return stat.S_ISREG(status.st_mode) and status.st_size in {manifest.size_bytes, 0}


def _look_at(manifest: Manifest, path: Path, status: os.stat_result | None) -> Look:
    """Compare data with its manifest, without reading it."""
    if manifest.format == "directory" and status is not None and stat.S_ISDIR(status.st_mode):
        return look(path, from_manifest(manifest.parts))
    size_bytes, problem = status.st_size if status else 0, ""
    if status is None:
        problem = f"the data {'directory' if manifest.format == 'directory' else 'file'} is missing"
    elif wrong := _wrong_kind(manifest.format, status):
        problem = wrong
    elif size_bytes != manifest.size_bytes:
        problem = f"the data file has {size_bytes} bytes, the manifest says {manifest.size_bytes}"
    elif not os.access(path, os.R_OK):
        problem = "the data file cannot be read by this account"
    return Look(problem, size_bytes, size_bytes)


def _wrong_kind(format_name: str, status: os.stat_result) -> str:
    """Why something cannot be the data of a format at all, in words."""
    if format_name == "directory":
        found = "" if stat.S_ISDIR(status.st_mode) else kind_of(status.st_mode)
        return found and f"the data directory is not a directory but a {found}"
    found = "" if stat.S_ISREG(status.st_mode) else kind_of(status.st_mode)
    return found and f"the data file is not a regular file but a {found}"


def corrupt_error(snapshot: Snapshot) -> type[SnapshotCorruptError]:
    """Return the class of error for a damaged snapshot: the JSON of test data has its own words."""
    return JSONCorruptError if snapshot.format == "json" else SnapshotCorruptError


def canonical_name(snapshot: Snapshot | Manifest) -> str:
    """Return the data file's lasting name."""
    return data_file_name(snapshot.name, snapshot.version, snapshot.suffix)


def has_manifest(data: Path) -> bool:
    """Tell whether a manifest lies beside a data file."""
    return lstat(data.with_name(data.name + MANIFEST_SUFFIX)) is not None


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
