"""Temporary files without a name, which a kill cannot leave behind, in the system's place for them."""

from __future__ import annotations

import contextlib
import tempfile
from typing import IO, TYPE_CHECKING

from keikaku_snapshots.errors import AccessDeniedError, DiskFullError

if TYPE_CHECKING:
    from collections.abc import Iterator


def temporary_file() -> IO[bytes]:
    """Open an empty file, to be closed by the caller; a program can open it as ``/dev/fd/N``.

    Raises:
        AccessDeniedError: There is no place for it, as in a container whose file system is read-only.
    """
    try:
        return tempfile.TemporaryFile()
    except OSError as error:
        raise AccessDeniedError(
            "a temporary file cannot be made",
            found=f"The system says: {error.strerror or error}",
            hint="Set TMPDIR to a directory with free space that this account may write to.",
            hint_ja="書き込み可能で空きのあるディレクトリを TMPDIR に指定してください。",
        ) from error


@contextlib.contextmanager
def translated_room() -> Iterator[None]:
    """Say of a full disk that it is that of the temporary files; for the time they are written."""
    try:
        yield
    except DiskFullError as error:
        place = tempfile.gettempdir()
        error.hint = f"Free space in {place}, or set TMPDIR to a directory with more room."
        error.hint_ja = f"{place} の空き容量を確保するか、TMPDIR に空きのあるディレクトリを指定してください。"
        raise
