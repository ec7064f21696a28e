"""A snapshot's file or directory while it is written: a temporary name, readable by us only, locked."""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING, Self

from keikaku_snapshots.errors import CreateFailedError, UsageError
from keikaku_snapshots.snapshots.directory import SnapshotDirectory, identity
from keikaku_snapshots.snapshots.files import temporary_path
from keikaku_snapshots.snapshots.part_files import entries, open_directory, sync_parts
from keikaku_snapshots.snapshots.parts import DIRECTORY_SUFFIX, from_manifest, problem_of
from keikaku_snapshots.snapshots.publish import remove_data_quietly
from keikaku_snapshots.snapshots.sharing import share_parts

if TYPE_CHECKING:
    from types import TracebackType

    from keikaku_snapshots.snapshots.manifest import Manifest


class Stage:
    """A new file that is being written: temporary name, mode 0600, locked; a context manager.

    Leaving it without `SnapshotStore.publish` removes the file.
    """

    #: Kind of the temporary name.
    _kind = ""

    def __init__(self, directory: SnapshotDirectory, name: str) -> None:
        self._directory = directory
        #: Name of the snapshot it is for.
        self.name = name
        #: Where to write; the file or directory exists and is empty.
        self.path = temporary_path(directory.path, name, self._kind)
        self._descriptor = self._make()
        with contextlib.suppress(OSError):
            # So that no sweep takes it for dead. Where there are no locks the grace period does that.
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    @property
    def is_directory(self) -> bool:
        """It is a directory, to be filled with parts."""
        return False

    def fileno(self) -> int:
        """Return the descriptor: to hash from, and to pass to the writing program.

        A program that has it keeps the file from being swept after this process was killed.

        Raises:
            ValueError: The stage is closed.
        """
        if self._descriptor < 0:
            raise ValueError("the stage is closed")
        return self._descriptor

    def check(self, manifest: Manifest) -> None:
        """Make sure that the file is the one that was made here and what the manifest says.

        Raises:
            CreateFailedError: It was swapped, or changed after it was looked at.
            UsageError: The manifest is for another snapshot.
        """
        status = os.fstat(self.fileno())
        if identity(self.path) != (status.st_dev, status.st_ino):
            raise CreateFailedError(
                "the temporary file was replaced while it was written",
                found=str(self.path),
                hint="Keep others from writing in the snapshot directory (chmod 700).",
            )
        if self.name != manifest.name:
            raise UsageError(f"the stage is for {self.name!r}, the manifest for {manifest.name!r}")
        if (manifest.format == "directory") != self.is_directory:
            raise UsageError(f"the stage is not for the format {manifest.format!r}")
        self._check_content(manifest)

    def complete(self, manifest: Manifest) -> None:
        """Bring what was written to the disk; of a directory, link first what earlier snapshots have.

        Raises:
            CreateFailedError: It changed after it was looked at.
            OSError: A file operation failed.
        """
        self.check(manifest)
        self._directory.files.fsync(self.fileno(), self.path)

    def unlock(self) -> None:
        """Let others lock the file; done just before it becomes a snapshot."""
        with contextlib.suppress(OSError):
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        """Remove the file when it was not published; harmless when repeated."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            mine = os.fstat(descriptor)
            os.close(descriptor)
            if identity(self.path) == (mine.st_dev, mine.st_ino):
                remove_data_quietly(self._directory, self.path)

    def published(self) -> None:
        """Close without removing anything: the file belongs to the publication now."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _make(self) -> int:
        return self._directory.files.create(self.path)

    def _check_content(self, manifest: Manifest) -> None:
        size_bytes = os.fstat(self.fileno()).st_size
        if size_bytes != manifest.size_bytes:
            raise CreateFailedError(
                "the temporary file changed after it was checked",
                found=f"{self.path}: {size_bytes} bytes, expected {manifest.size_bytes}.",
            )


class DirectoryStage(Stage):
    """A new directory that is being filled with parts: temporary name, mode 0700, locked."""

    _kind = "parts"

    @property
    def is_directory(self) -> bool:
        """It is a directory, to be filled with parts."""
        return True

    def complete(self, manifest: Manifest) -> None:
        """Link what earlier snapshots have, then bring every part and the directory to the disk.

        Raises:
            CreateFailedError: It changed after it was looked at.
            OSError: A file operation failed.
        """
        self.check(manifest)
        share_parts(self._directory, self.path, self.fileno(), from_manifest(manifest.parts))
        self.check(manifest)
        sync_parts(self._directory.files, self.fileno(), self.path)

    def _make(self) -> int:
        self._directory.files.mkdir(self.path)
        return open_directory(self.path)

    def _check_content(self, manifest: Manifest) -> None:
        problem = problem_of(entries(self.fileno()), from_manifest(manifest.parts))
        if problem:
            raise CreateFailedError(
                "the temporary directory changed after it was checked", found=f"{self.path}: {problem}"
            )


def make_stage(directory: SnapshotDirectory, name: str, suffix: str) -> Stage:
    """Return a new stage for data of a suffix.

    Args:
        directory: Where.
        name: Name of the snapshot it is for.
        suffix: Suffix of the data, without the leading dot.

    Raises:
        OSError: It could not be made.
    """
    return DirectoryStage(directory, name) if suffix == DIRECTORY_SUFFIX else Stage(directory, name)
