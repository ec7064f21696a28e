"""A snapshot opened for reading: opened once, locked, checked on the same descriptor."""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING

from keikaku_snapshots.errors import KeikakuError, LockBusyError, SnapshotNotFoundError
from keikaku_snapshots.snapshots.directory import SnapshotDirectory, canonical_name, corrupt_error, identity
from keikaku_snapshots.snapshots.files import translate_os_error
from keikaku_snapshots.snapshots.hashing import FileHash, hash_descriptor
from keikaku_snapshots.snapshots.lock import holders, wait_for_flock
from keikaku_snapshots.snapshots.part_files import entries, hash_parts, open_data
from keikaku_snapshots.snapshots.parts import digest_of, from_manifest
from keikaku_snapshots.snapshots.sharing import also_hurt

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from keikaku_snapshots.progress import ProgressCallback
    from keikaku_snapshots.snapshots.manifest import Manifest, Snapshot

#: A version can be replaced between looking and locking; each turn sees one replacement.
_TURNS = 5
#: Damaged parts named in one message.
_TOLD = 10


class OpenSnapshot:
    """A snapshot that nobody can delete or replace while it is open."""

    def __init__(self, snapshot: Snapshot, descriptor: int, directory: SnapshotDirectory) -> None:
        #: The snapshot as it is on disk now.
        self.snapshot = snapshot
        self._directory = directory
        self._descriptor = descriptor
        self._status = os.fstat(descriptor)
        self._parts = entries(descriptor) if self.is_directory else {}

    @property
    def path(self) -> Path:
        """The data file or directory, absolute."""
        return self.snapshot.path

    @property
    def is_directory(self) -> bool:
        """The data is a directory of parts."""
        return stat.S_ISDIR(self._status.st_mode)

    def state(self) -> list[tuple[object, ...]]:
        """What tells this very data from any other, and from itself once it was written to."""
        status = self._status
        own = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        return [own, *sorted((name, *facts) for name, facts in _written(self._parts).items())]

    def fileno(self) -> int:
        """Return the descriptor; pass it to the reading program, which then holds the lock too.

        That of a directory too can be read as ``/dev/fd/N``, whatever its name is by then.
        """
        return self._descriptor

    def hash(self, *, progress: ProgressCallback | None = None) -> FileHash:
        """Return checksum and size, from the open file or the parts of the open directory."""
        if self.is_directory:
            return digest_of(hash_parts(self._descriptor, progress=progress, step="verify"))
        return hash_descriptor(self._descriptor, progress=progress, step="verify")

    def check(self, *, progress: ProgressCallback | None = None) -> FileHash:
        """Read the whole file, or every part, and compare it with the manifest.

        Raises:
            SnapshotCorruptError: Size or checksum differ, or there is no manifest; of a directory the
                damaged parts are named.
        """
        manifest = self.snapshot.manifest
        if manifest is None:
            raise corrupt_error(self.snapshot)(
                f"snapshot {self.snapshot} has no usable manifest",
                found=f"{self.path}: {self.snapshot.problem}",
            )
        if self.is_directory:
            return self._check_parts(manifest, progress)
        found = self.hash(progress=progress)
        if found.size_bytes != manifest.size_bytes:
            raise corrupt_error(self.snapshot)(
                f"snapshot {self.snapshot} does not have its size",
                found=f"{self.path}: {found.size_bytes} bytes, the manifest says {manifest.size_bytes}.",
            )
        if found.sha256 != manifest.sha256:
            raise corrupt_error(self.snapshot)(
                f"snapshot {self.snapshot} was changed after it was made",
                found=f"{self.path}: SHA-256 {found.sha256}, the manifest says {manifest.sha256}.",
            )
        return found

    def _check_parts(self, manifest: Manifest, progress: ProgressCallback | None) -> FileHash:
        wanted = from_manifest(manifest.parts)
        found = hash_parts(self._descriptor, progress=progress, step="verify")
        if found == wanted:
            return digest_of(found)
        damaged = [name for name in sorted({*found, *wanted}) if found.get(name) != wanted.get(name)]
        lines = [
            f"{self.path / name}: {_difference(found.get(name), wanted.get(name))}"
            for name in damaged[:_TOLD]
        ]
        hurt = also_hurt(self._directory, self.snapshot, damaged)
        raise corrupt_error(self.snapshot)(
            f"snapshot {self.snapshot} was changed after it was made",
            found="\n".join([*lines, *_in_words(hurt)]),
            **_remedy(hurt),
            damaged_parts=damaged,
            also_hurt=hurt,
        )

    def check_unchanged(self) -> None:
        """Make sure that nobody wrote to the data or replaced it since it was opened.

        Raises:
            SnapshotCorruptError: Somebody did.
        """
        now, then = os.fstat(self._descriptor), self._status
        same = (now.st_size, now.st_mtime_ns) == (then.st_size, then.st_mtime_ns)
        if same and self.is_directory:
            same = _written(entries(self._descriptor)) == _written(self._parts)
        if not same or identity(self.path) != (then.st_dev, then.st_ino):
            raise corrupt_error(self.snapshot)(
                f"snapshot {self.snapshot} changed while it was read", found=str(self.path)
            )


@contextlib.contextmanager
def open_snapshot(
    directory: SnapshotDirectory, snapshot: Snapshot, *, wait_s: float, trust: bool
) -> Iterator[OpenSnapshot]:
    """Open a snapshot for reading; see `SnapshotStore.reading`."""
    try:
        current, descriptor = _open_locked(directory, snapshot, wait_s=wait_s, trust=trust)
    except KeikakuError:
        raise
    except OSError as error:
        raise translate_os_error(error, doing=f"opening snapshot {snapshot}", path=snapshot.path) from error
    try:
        yield OpenSnapshot(current, descriptor, directory)
    finally:
        os.close(descriptor)


def _open_locked(
    directory: SnapshotDirectory, snapshot: Snapshot, *, wait_s: float, trust: bool
) -> tuple[Snapshot, int]:
    for _ in range(_TURNS):
        current = directory.load(canonical_name(snapshot))
        if current is None:
            raise _gone(snapshot)
        if not current.is_valid and not (trust and current.manifest is None):
            hurt = _hurt_by_size(directory, current)
            raise corrupt_error(current)(
                f"snapshot {current} cannot be read",
                found="\n".join([f"{current.path}: {current.problem}", *_in_words(hurt)]),
                **_remedy(hurt),
                also_hurt=hurt,
            )
        try:
            descriptor = open_data(current.path, directory=current.format == "directory")
        except FileNotFoundError:
            continue
        try:
            _lock_shared(descriptor, current, wait_s)
            status = os.fstat(descriptor)
            # Between looking and locking the file may have been deleted or
            # replaced: only what is still at its place counts (FAULTS 10).
            again = directory.load(canonical_name(snapshot))
            if again == current and identity(current.path) == (status.st_dev, status.st_ino):
                return current, descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    raise LockBusyError(f"snapshot {snapshot} is replaced again and again")


def _lock_shared(descriptor: int, snapshot: Snapshot, wait_s: float) -> None:
    if not wait_for_flock(descriptor, shared=True, wait_s=wait_s):
        raise LockBusyError(f"snapshot {snapshot} is being deleted or replaced", found=holders(descriptor))


def _difference(found: FileHash | None, wanted: FileHash | None) -> str:
    """What is wrong with a part, in words."""
    if found is None:
        return "it is missing."
    if wanted is None:
        return "it is not part of the snapshot."
    if found.size_bytes != wanted.size_bytes:
        return f"{found.size_bytes} bytes, the manifest says {wanted.size_bytes}."
    return f"SHA-256 {found.sha256}, the manifest says {wanted.sha256}."


def _hurt_by_size(directory: SnapshotDirectory, snapshot: Snapshot) -> list[str]:
    """Other snapshots that have the parts of a damaged one whose size is wrong, in words."""
    if snapshot.manifest is None or snapshot.format != "directory":
        return []
    try:
        present = entries(snapshot.path)
    except OSError:
        return []
    wanted = from_manifest(snapshot.manifest.parts)
    damaged = [
        name for name in wanted if name in present and present[name].st_size != wanted[name].size_bytes
    ]
    return also_hurt(directory, snapshot, damaged)


def _in_words(hurt: list[str]) -> list[str]:
    """The line that names the other snapshots with a damaged part; none when there are none."""
    return [f"The same damage is in: {', '.join(hurt)}."] if hurt else []


def _remedy(hurt: list[str]) -> dict[str, str]:
    """What to do when older versions are damaged too; nothing special when they are not."""
    if not hurt:
        return {}
    return {
        "hint": "Restore a version that is not named here (`keikaku list`), or make a new snapshot.",
        "hint_ja": (
            "ここに挙げられていない版を復元するか(`keikaku list`)、スナップショットを作り直してください。"
        ),
    }


def _written(parts: dict[str, os.stat_result]) -> dict[str, tuple[int, int, int]]:
    """What tells whether parts were written to or replaced; a new hard link changes none of it."""
    return {name: (status.st_ino, status.st_size, status.st_mtime_ns) for name, status in parts.items()}


def _gone(snapshot: Snapshot) -> SnapshotNotFoundError:
    return SnapshotNotFoundError(f"there is no snapshot {snapshot}", found=str(snapshot.path))
