"""File operations behind one seam, and what goes wrong with them in plain words.

Everything that the store does to the disk goes through a `FileSystem`, whose
`FileSystem.before` is called ahead of each operation: tests stop or kill the
program there, at every operation in turn.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from typing import TYPE_CHECKING, Final

from keikaku_snapshots.errors import (
    AccessDeniedError,
    DiskFullError,
    FileOperationError,
    KeikakuError,
    SnapshotCorruptError,
    SnapshotNotFoundError,
    UsageError,
)

if TYPE_CHECKING:
    from pathlib import Path

_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_RIGHT: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
# Some file systems cannot sync a directory (FAULTS 1); a file's sync must work.
_NO_DIRECTORY_SYNC: Final = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP})
_NO_HARD_LINKS: Final = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS})


class FileSystem:
    """The operations that the store needs, each a thin cover of the system's."""

    def before(self, operation: str, path: Path) -> None:
        """Be told of an operation ahead of it; does nothing here."""

    def create(self, path: Path) -> int:
        """Make a file that must not exist, for reading and writing, mode 0600 under any umask."""
        self.before("create", path)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
        os.fchmod(descriptor, 0o600)
        return descriptor

    def write(self, descriptor: int, content: bytes, path: Path) -> None:
        """Write all of ``content``."""
        self.before("write", path)
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]

    def fsync(self, descriptor: int, path: Path) -> None:
        """Bring a file's content to the disk."""
        self.before("fsync", path)
        os.fsync(descriptor)

    def fsync_directory(self, path: Path) -> None:
        """Bring a directory's names to the disk, where the file system can."""
        self.before("fsync_directory", path)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in _NO_DIRECTORY_SYNC:
                raise
        finally:
            os.close(descriptor)

    def mkdir(self, path: Path) -> None:
        """Make a directory that must not exist, mode 0700 under any umask."""
        self.before("mkdir", path)
        path.mkdir(mode=0o700)
        path.chmod(0o700)

    def rmdir(self, path: Path) -> None:
        """Remove an empty directory."""
        self.before("rmdir", path)
        path.rmdir()

    def chmod(self, descriptor: int, mode: int, path: Path) -> None:
        """Set the mode of an open file."""
        self.before("chmod", path)
        os.fchmod(descriptor, mode)

    def link(self, source: Path, target: Path) -> None:
        """Give a file a second name, which must not exist."""
        self.before("link", target)
        os.link(source, target, follow_symlinks=False)

    def replace(self, source: Path, target: Path) -> None:
        """Move a name over another one in one step."""
        self.before("replace", target)
        source.replace(target)

    def symlink(self, text: str, path: Path) -> None:
        """Make a symbolic link, which must not exist."""
        self.before("symlink", path)
        path.symlink_to(text)

    def unlink(self, path: Path) -> None:
        """Remove a name; that it is gone already is no error."""
        self.before("unlink", path)
        path.unlink(missing_ok=True)


def move_without_clobber(files: FileSystem, source: Path, target: Path) -> None:
    """Give ``source`` the name ``target`` without ever replacing a file.

    ``source`` may still exist afterwards (as a second name of the same file);
    the caller removes it when the work is committed.

    Raises:
        FileExistsError: ``target`` exists.
        OSError: Anything else.
    """
    try:
        files.link(source, target)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        # No hard links here: hold the name with an empty file, then replace
        # it. Without its manifest the empty file is no snapshot.
        os.close(files.create(target))
        try:
            files.replace(source, target)
        except BaseException:
            if target.stat().st_size == 0:
                target.unlink()
            raise


def move_directory(files: FileSystem, source: Path, target: Path) -> None:
    """Give a directory the name ``target`` without ever replacing anything.

    A rename replaces at most an empty directory; anything else at ``target`` makes it fail.

    Raises:
        FileExistsError: ``target`` exists.
        OSError: Anything else.
    """
    try:
        files.replace(source, target)
    except OSError as error:
        if error.errno in {errno.ENOTEMPTY, errno.ENOTDIR}:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
        raise


def link_or_copy(files: FileSystem, source: Path, target: Path) -> None:
    """Give a file a second name, or make a synced copy where the file system has no hard links.

    Raises:
        FileExistsError: ``target`` exists.
        OSError: Anything else.
    """
    try:
        files.link(source, target)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        copy(files, source, target)


def copy(files: FileSystem, source: Path, target: Path) -> None:
    """Make a synced copy of a regular file, mode 0600; ``target`` must not exist."""
    with os.fdopen(open_regular(source), "rb") as reader, os.fdopen(files.create(target), "wb") as writer:
        files.before("write", target)
        shutil.copyfileobj(reader, writer, 1024 * 1024)
        writer.flush()
        files.fsync(writer.fileno(), target)


def temporary_path(directory: Path, name: str, kind: str = "") -> Path:
    """Return a new name ``.NAME.PID.RANDOM[.KIND].tmp`` in ``directory``; nothing is made."""
    middle = f".{kind}" if kind else ""
    return directory / f".{name}.{os.getpid()}.{os.urandom(6).hex()}{middle}.tmp"


def open_regular(path: Path, *, writable: bool = False) -> int:
    """Open a regular file once, without following a link and without hanging on a FIFO.

    Returns:
        The descriptor; the caller closes it.

    Raises:
        SnapshotCorruptError: It is a directory, FIFO, device, socket or link.
        OSError: It cannot be opened.
    """
    flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | (os.O_RDWR if writable else os.O_RDONLY)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENXIO, errno.EISDIR, errno.EMLINK}:
            raise SnapshotCorruptError(f"{path.name} is not a regular file", found=str(path)) from error
        raise
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise SnapshotCorruptError(
            f"{path.name} is not a regular file but a {kind_of(mode)}", found=str(path)
        )
    return descriptor


def read_regular(path: Path, limit_bytes: int) -> bytes:
    """Return the content of a regular file of at most ``limit_bytes``.

    Raises:
        SnapshotCorruptError: It is larger, or no regular file.
        OSError: It cannot be read.
    """
    with os.fdopen(open_regular(path), "rb") as stream:
        content = stream.read(limit_bytes + 1)
    if len(content) > limit_bytes:
        raise SnapshotCorruptError(f"{path.name} is larger than {limit_bytes} bytes", found=str(path))
    return content


def kind_of(mode: int) -> str:
    """Return what a file mode says the file is, in a word."""
    kinds = {
        stat.S_IFDIR: "directory",
        stat.S_IFLNK: "symbolic link",
        stat.S_IFIFO: "FIFO",
        stat.S_IFSOCK: "socket",
        stat.S_IFBLK: "block device",
        stat.S_IFCHR: "character device",
    }
    return kinds.get(stat.S_IFMT(mode), "regular file")


def translate_os_error(
    error: OSError,
    *,
    doing: str,
    path: Path | None = None,
    otherwise: type[KeikakuError] = FileOperationError,
) -> KeikakuError:
    """Return the library's error for a system error; raise it ``from error``.

    Args:
        error: What the system said.
        doing: What was being done, such as "writing snapshot 'medium'".
        path: Where, when the error does not say.
        otherwise: The class for what is no lack of room, right or file, such as EIO.
    """
    if isinstance(error, KeikakuError):
        return error
    where = error.filename or path
    reason = error.strerror or str(error) or type(error).__name__
    found = f"{where}: {reason}" if where else reason
    if error.errno in _NO_SPACE:
        return DiskFullError(f"the disk is full while {doing}", found=found)
    if error.errno in _NO_RIGHT:
        return AccessDeniedError(
            f"not allowed while {doing}",
            found=found,
            hint="Give this account the right to write there, or use another --snapshot-dir.",
        )
    if error.errno == errno.ENOTDIR:
        return UsageError(
            "the snapshot directory is not a directory",
            found=found,
            hint="Use another --snapshot-dir.",
        )
    if error.errno == errno.ENOENT:
        return SnapshotNotFoundError(f"a file is missing while {doing}", found=found)
    return otherwise(f"a file operation failed while {doing}", found=found)
