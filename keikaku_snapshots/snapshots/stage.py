"""A snapshot's file while it is written: a temporary name, mode 0600, locked."""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING, Self

from keikaku_snapshots.errors import CreateFailedError, UsageError
from keikaku_snapshots.snapshots.directory import SnapshotDirectory, identity
from keikaku_snapshots.snapshots.files import temporary_path
from keikaku_snapshots.snapshots.publish import remove_quietly

if TYPE_CHECKING:
    from types import TracebackType

    from keikaku_snapshots.snapshots.manifest import Manifest


class Stage:
    """A new file that is being written: temporary name, mode 0600, locked; a context manager.

    Leaving it without `SnapshotStore.publish` removes the file.
    """

    def __init__(self, directory: SnapshotDirectory, name: str) -> None:
        self._directory = directory
        #: Name of the snapshot it is for.
        self.name = name
        #: Where to write; the file exists and is empty.
        self.path = temporary_path(directory.path, name)
        self._descriptor = directory.files.create(self.path)
        with contextlib.suppress(OSError):
            # So that no sweep takes it for dead. Where there are no locks the grace period does that.
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

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
        if status.st_size != manifest.size_bytes:
            raise CreateFailedError(
                "the temporary file changed after it was checked",
                found=f"{self.path}: {status.st_size} bytes, expected {manifest.size_bytes}.",
            )

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
                remove_quietly(self._directory, self.path)

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
