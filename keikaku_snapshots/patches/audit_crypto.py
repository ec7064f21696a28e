"""A line of the audit log: canonical JSON, encrypted, chained to the line before it, signed.

::

    {"body":"…","enc":"aes-256-gcm","key":"…","mac":"…","month":"2026-11","n":7,"nonce":"…","prev":"…","v":1}

``prev`` is the SHA-256 of the whole line before. It, the number, the month and
the key's id are the associated data of AES-GCM, and HMAC-SHA256 signs all of
the line, so that a plain-text log is protected in the same way. A mark (head,
checkpoint) is signed with the same key: it says where the log ends and begins.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import math
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from keikaku_snapshots.errors import AuditError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import date, datetime

    from keikaku_snapshots.patches.audit_key import AuditKey

#: What the first line of a log follows.
GENESIS: Final = "0" * 64
_VERSION: Final = 1
_CIPHER: Final = "aes-256-gcm"
_PLAIN: Final = "none"
_NONCE_BYTES: Final = 12
#: Parts of a line that are not associated data: made by the encryption, or after it.
_NOT_ASSOCIATED: Final = frozenset({"body", "nonce", "mac"})


@dataclass(frozen=True, slots=True)
class Line:
    """A line as the table has it."""

    #: Its number, from 1 on without a gap.
    number: int
    #: First day of its month.
    month: date
    #: Id of its key.
    key_id: str
    #: The line itself.
    text: str

    @property
    def digest(self) -> str:
        """What the next line calls ``prev``."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def canonical(value: Mapping[str, Any]) -> str:
    """Write JSON in its one form: sorted keys, no spaces, every character as itself."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # A lone surrogate (a file name, a mistaken decode) is no text that UTF-8 or the server knows.
    return text.encode("utf-8", "replace").decode()


def plain(value: object) -> Any:
    """Turn a fact into what JSON has: times, UUIDs, paths and the like become texts."""
    if isinstance(value, dict):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(part) for part in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    return str(value)


def require_encryption() -> None:
    """Make sure that lines can be encrypted.

    Raises:
        ConfigurationError: The library for it is not installed.
    """
    import importlib.util

    if importlib.util.find_spec("cryptography") is None:
        raise ConfigurationError(
            "the audit log is to be encrypted, but the library for it is not installed",
            found="security.log_encryption: true needs the extra [audit]",
            hint="Install it: pip install 'keikaku_snapshots[audit]'; or set log_encryption: false.",
            hint_ja="pip install 'keikaku_snapshots[audit]' を実行するか、"
            "log_encryption: false にしてください。",
        )


def seal(
    payload: Mapping[str, Any],
    *,
    number: int,
    previous: str,
    at: datetime,
    key: AuditKey,
    encrypt: bool,
    next_key: str = "",
) -> Line:
    """Make a line.

    Args:
        payload: What it says.
        number: Its number.
        previous: Digest of the line before it, or GENESIS.
        at: When it is written.
        key: What it is encrypted and signed with.
        encrypt: False leaves the payload readable.
        next_key: Id of the key of the lines after this one, when it is another.

    Returns:
        The line.
    """
    payload = plain(dict(payload))
    month = at.date().replace(day=1)
    parts: dict[str, Any] = {
        "v": _VERSION,
        "n": number,
        "month": f"{month:%Y-%m}",
        "key": key.key_id,
        "prev": previous,
        "enc": _CIPHER if encrypt else _PLAIN,
    }
    if next_key:
        parts["next"] = next_key
    if encrypt:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = _cipher(key).encrypt(nonce, canonical(payload).encode(), canonical(parts).encode())
        parts |= {"body": base64.b64encode(sealed).decode(), "nonce": base64.b64encode(nonce).decode()}
    else:
        parts["body"] = dict(payload)
    return Line(number, month, key.key_id, canonical(parts | {"mac": _signature(parts, key)}))


def _cipher(key: AuditKey) -> Any:
    require_encryption()
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key.encryption)


def _signature(parts: Mapping[str, Any], key: AuditKey) -> str:
    return hmac.new(key.signing, canonical(parts).encode(), hashlib.sha256).hexdigest()


def signed_parts(text: str, key: AuditKey) -> dict[str, Any] | None:
    """Read a signed text.

    Args:
        text: A line or mark.
        key: The key that it names.

    Returns:
        Its parts; None when anything of it is not as it was signed.
    """
    parts = parts_of(text)
    try:
        if parts is None or canonical(parts) != text:
            return None
    except ValueError:  # NaN, which Python reads and JSON does not have
        return None
    mac = parts.pop("mac", None)
    if not isinstance(mac, str) or parts.get("key") != key.key_id:
        return None
    return parts if hmac.compare_digest(mac.encode(), _signature(parts, key).encode()) else None


def parts_of(text: str) -> dict[str, Any] | None:
    """Read a text without looking at its signature; None when it is no JSON object."""
    try:
        parts = json.loads(text)
        return parts if isinstance(parts, dict) else None
    except (ValueError, RecursionError):
        return None


def payload_of(parts: Mapping[str, Any], key: AuditKey) -> dict[str, Any]:
    """Read what a line says.

    Args:
        parts: What `signed_parts` returned.
        key: Its key.

    Returns:
        Its payload.

    Raises:
        AuditError: It cannot be decrypted.
        ConfigurationError: The library for it is not installed.
    """
    if parts["enc"] == _PLAIN:
        return dict(parts["body"])
    cipher = _cipher(key)
    from cryptography.exceptions import InvalidTag

    associated = {name: value for name, value in parts.items() if name not in _NOT_ASSOCIATED}
    try:
        opened = cipher.decrypt(
            base64.b64decode(parts["nonce"]), base64.b64decode(parts["body"]), canonical(associated).encode()
        )
    except (InvalidTag, ValueError, KeyError) as error:
        raise AuditError(f"line {parts.get('n')} of the audit log cannot be decrypted") from error
    return dict(json.loads(opened))


def sign_mark(kind: str, *, number: int, digest: str, next_key: str, key: AuditKey) -> str:
    """Sign where the log ends or begins.

    Args:
        kind: ``head`` or ``checkpoint``.
        number: The last line that there is, or that was dropped.
        digest: Its digest.
        next_key: Id of the key that the line after it must have.
        key: What it is signed with.

    Returns:
        The mark.
    """
    parts = {
        "v": _VERSION, "kind": kind, "n": number, "hash": digest, "next": next_key, "key": key.key_id,
    }  # fmt: skip
    return canonical(parts | {"mac": _signature(parts, key)})
