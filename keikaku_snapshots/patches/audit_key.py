"""The keys of the audit log: from the environment, or from a file of this account alone.

A key file is never seen half written: it gets its name when it is complete and
on the disk. One that is damaged is reported and never replaced, since the lines
of the log can be read with its keys only.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import errno
import fcntl
import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from keikaku_snapshots.errors import (
    AccessDeniedError,
    AuditError,
    ConfigurationError,
    DiskFullError,
    FileOperationError,
    KeikakuError,
    LockBusyError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from keikaku_snapshots.patches.settings import AuditSettings

log = logging.getLogger("keikaku_snapshots.audit")

#: Bytes of a key: AES-256.
KEY_BYTES: Final = 32
#: Bytes of a key file with hundreds of old keys; more is something else.
_FILE_LIMIT_BYTES: Final = 64 * 1024
#: Seconds to wait for another process that makes or rotates the key; it needs milliseconds.
_LOCK_WAIT_S: Final = 10.0
_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_RIGHT: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_HEADER: Final = (
    "# Keys of the audit log of data patches: the first one writes, the others read what is older.\n"
    "# Without it the log cannot be read. Keep a copy where the database's backups are not.\n"
)


@dataclass(frozen=True, slots=True, repr=False)
class AuditKey:
    """A key as it is used: one for encryption, one for signatures, both made from the 32 bytes."""

    #: What tells it from others; says nothing about the key.
    key_id: str
    #: Key of AES-256-GCM.
    encryption: bytes
    #: Key of HMAC-SHA256.
    signing: bytes

    def __repr__(self) -> str:
        return f"AuditKey({self.key_id})"

    @classmethod
    def of(cls, master: bytes) -> AuditKey:
        """Make it from the 32 bytes of the variable or file."""

        def derived(purpose: bytes) -> bytes:
            return hmac.digest(master, b"keikaku_snapshots audit log 1: " + purpose, hashlib.sha256)

        return cls(derived(b"identity").hex()[:16], derived(b"encryption"), derived(b"signature"))


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The key that lines are written with, and those that older ones were written with."""

    #: For new lines.
    current: AuditKey
    #: For lines of before.
    old: tuple[AuditKey, ...]
    #: Where they come from, for messages.
    source: str

    def find(self, key_id: str) -> AuditKey | None:
        """Return the key of this id, if it is here."""
        return next((key for key in (self.current, *self.old) if key.key_id == key_id), None)


def decode_key(text: str) -> bytes | None:
    """Read 32 bytes in hex or base64; None when it is neither."""
    text = text.strip()
    if re.fullmatch(r"[0-9a-fA-F]{64}", text):
        return bytes.fromhex(text)
    try:
        plain = base64.b64decode(
            text.replace("-", "+").replace("_", "/") + "=" * (-len(text) % 4), validate=True
        )
    except (binascii.Error, ValueError):
        return None
    return plain if len(plain) == KEY_BYTES else None


def new_key() -> str:
    """Return a new random key in hex, as the environment variable takes it."""
    return secrets.token_hex(KEY_BYTES)


def key_file_of(settings: AuditSettings, environ: Mapping[str, str]) -> Path:
    """Return where the key file is, or would be."""
    if settings.key_file is not None:
        return settings.key_file
    home = environ.get("XDG_CONFIG_HOME", "")
    # Path.home() asks the account database where HOME is not set, as under cron.
    return (Path(home) if home else Path.home() / ".config") / "keikaku_snapshots" / "audit.key"


def load_keys(settings: AuditSettings, environ: Mapping[str, str]) -> KeyRing | None:
    """Read the keys of the environment, else of the key file.

    Args:
        settings: Names of the variables and of the file.
        environ: The environment.

    Returns:
        The keys; None when there is no variable and no file.

    Raises:
        ConfigurationError: A variable does not hold a key.
        AuditError: The file is damaged, or others may read it.
    """
    if environ.get(settings.key_variable, "").strip():
        texts = [environ[settings.key_variable]]
        older = [part for part in re.split(r"[\s,]+", environ.get(settings.old_keys_variable, "")) if part]
        return _ring_of_variables(texts + older, settings)
    try:
        return read_key_file(key_file_of(settings, environ))
    except FileNotFoundError:
        return None


def _ring_of_variables(texts: list[str], settings: AuditSettings) -> KeyRing:
    names = [settings.key_variable] + [settings.old_keys_variable] * (len(texts) - 1)
    keys = [decode_key(text) for text in texts]
    wrong = list(dict.fromkeys(name for name, key in zip(names, keys, strict=True) if key is None))
    if wrong:
        raise ConfigurationError(
            "the key of the audit log is not a key",
            found="\n".join(
                f"{name}: not 32 bytes in hex (64 digits) or base64 (44 characters)" for name in wrong
            ),
            hint=f"Make one: `openssl rand -hex 32`, and set it: export {settings.key_variable}=…",
            hint_ja="`openssl rand -hex 32` で鍵を作成し、環境変数に設定してください。",
        )
    made = [AuditKey.of(key) for key in keys if key is not None]
    return KeyRing(made[0], tuple(made[1:]), f"the environment variable {settings.key_variable}")


def read_key_file(path: Path) -> KeyRing:
    """Read a key file.

    Args:
        path: The file.

    Returns:
        Its keys, the first one for new lines.

    Raises:
        FileNotFoundError: There is none.
        AuditError: It is damaged, or others may read it.
        AccessDeniedError: It cannot be read.
    """
    made = [AuditKey.of(key) for key in _masters(path)]
    return KeyRing(made[0], tuple(made[1:]), f"the key file {path}")


def _masters(path: Path) -> list[bytes]:
    content = _content(path)
    lines = [line.strip() for line in content.splitlines()]
    keys = [decode_key(line) for line in lines if line and not line.startswith("#")]
    # The end of the line tells a whole file from one that was cut.
    if not keys or None in keys or not content.endswith("\n"):
        raise AuditError(
            "the key file of the audit log is damaged",
            found=f"{path}: not one key of 32 bytes in a line",
            hint="Put the copy of the file back; while the log is empty, delete the file: a new one is made.",
            hint_ja="鍵ファイルをバックアップから戻してください。監査ログが空の場合は削除すると再作成されます。",
        )
    return [key for key in keys if key is not None]


def _content(path: Path) -> str:
    with _translated(path, "reading the key of the audit log"):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode) or stat.S_IMODE(mode) & 0o077:
                raise AuditError(
                    "the key file of the audit log is open to others",
                    found=f"{path}: mode {stat.S_IMODE(mode):04o}, must be a file of mode 0600",
                    hint=f"Make it private: chmod 600 {path}; rotate the key if somebody may have read it.",
                    hint_ja="chmod 600 で本人のみ読めるようにし、漏えいの恐れがあれば鍵を更新してください。",
                )
            return file.read(_FILE_LIMIT_BYTES).decode("utf-8", "replace")


def make_key_file(path: Path) -> KeyRing:
    """Make the key file if it is not there, with a notice; of two who do it at once, one makes it.

    Args:
        path: The file; its directory is made with mode 0700.

    Returns:
        Its keys.

    Raises:
        DiskFullError: There is no room; nothing is left behind.
        AccessDeniedError: It may not be written there.
        AuditError: There is one, and it is damaged.
    """
    with _locked(path):
        with contextlib.suppress(FileNotFoundError):
            return read_key_file(path)
        _replace(path, [secrets.token_bytes(KEY_BYTES)])
    log.warning(
        "a key for the audit log of patches was made: %s; the log cannot be read without it, so keep a copy",
        path,
    )
    return read_key_file(path)


def add_key(path: Path) -> KeyRing:
    """Put a new key in front of those of the file; the old ones stay, to read what they wrote.

    Args:
        path: The key file.

    Returns:
        Its keys now.

    Raises:
        KeikakuError: It cannot be read or written; it is as before then.
    """
    with _locked(path):
        _replace(path, [secrets.token_bytes(KEY_BYTES), *_masters(path)])
    return read_key_file(path)


def _replace(path: Path, masters: list[bytes]) -> None:
    """Give the name to a complete file that is on the disk, in one step."""
    text = _HEADER + "".join(f"{master.hex()}\n" for master in masters)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(6)}.tmp")
    with _translated(path, "writing the key of the audit log"):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems cannot sync a directory; nothing more can be done there.
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time make or change the file; the lock file stays, or two could hold it."""
    lock = path.with_name(f"{path.name}.lock")
    with _translated(path, "making the key of the audit log"):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + _LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise LockBusyError(
                        "another process works on the key of the audit log", found=str(lock)
                    ) from None
                time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _translated(path: Path, doing: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except KeikakuError:
        raise
    except OSError as error:
        found = f"{error.filename or path}: {error.strerror or type(error).__name__}"
        if error.errno in _NO_SPACE:
            raise DiskFullError(
                f"the disk is full while {doing}",
                found=found,
                hint="Free space there, or set the key as an environment variable.",
                hint_ja="空き容量を確保するか、鍵を環境変数で指定してください。",
            ) from error
        if error.errno in _NO_RIGHT:
            raise AccessDeniedError(
                f"not allowed while {doing}",
                found=found,
                hint="Give this account the right, or set the key as an environment variable.",
                hint_ja="権限を付与するか、鍵を環境変数で指定してください。",
            ) from error
        if error.errno == errno.ELOOP:
            raise AuditError(
                "the key file of the audit log is a symbolic link",
                found=found,
                hint="Name the file itself in the configuration.",
                hint_ja="リンクではなくファイル自体を指定してください。",
            ) from error
        raise FileOperationError(f"a file operation failed while {doing}", found=found) from error
