"""Databases of ours: how they are called, and the mark in the comment that makes them ours.

The name alone decides nothing: a database counts as ours only if its comment
says so, and then the comment says for whom and what for.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from keikaku_snapshots.errors import InvalidNameError
from keikaku_snapshots.postgres.url import NAME_LIMIT_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping

#: What a comment of ours begins with.
MARK = "keikaku_snapshots "

Kind: TypeAlias = Literal["new", "old", "tpl", "spare", "test"]


@dataclass(frozen=True, slots=True)
class Identity:
    """What the comment of a database of ours says."""

    #: Role of the database in our work: being built, replaced, template, ready clone, test worker.
    kind: Kind
    #: Name of the database it was made for.
    target: str
    #: When it was made, UTC, ISO 8601.
    created_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    #: When it may be dropped at the earliest, UTC, ISO 8601; None for as soon as nobody works on it.
    keep_until: str | None = None
    #: Server process of the session that holds the target's lock.
    backend_pid: int | None = None
    #: Process that made it.
    pid: int = field(default_factory=os.getpid)
    #: Host of that process.
    host: str = field(default_factory=socket.gethostname)
    #: The comment that the database had before, to be given back.
    comment: str | None = None
    #: Anything the caller needs to find again, such as a template's key.
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_comment(self) -> str:
        """Write it as the text of a database comment."""
        return MARK + json.dumps(asdict(self), ensure_ascii=False, sort_keys=True)

    @classmethod
    def from_comment(cls, comment: str | None) -> Identity | None:
        """Read a database comment.

        Args:
            comment: The comment, if there is one.

        Returns:
            The identity, or None for a database that is not ours.
        """
        if not comment or not comment.startswith(MARK):
            return None
        try:
            values = json.loads(comment.removeprefix(MARK))
        except ValueError:
            return None
        if not isinstance(values, dict) or not isinstance(values.get("target"), str):
            return None
        known = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        try:
            return cls(**known)
        except TypeError:
            return None

    def is_kept(self, now: datetime | None = None) -> bool:
        """Tell whether `keep_until` still protects the database.

        Args:
            now: The time; the present when None.

        Returns:
            True until then.
        """
        if self.keep_until is None:
            return False
        return datetime.fromisoformat(self.keep_until) > (now or datetime.now(UTC))


def sibling_name(kind: Kind, target: str, token: str | None = None) -> str:
    """Make the name of a database of ours beside another.

    Args:
        kind: Its role.
        target: The database it is for.
        token: What makes it unique (letters and digits, at most 40); random when None.

    Returns:
        At most 63 bytes; equal arguments with a token give equal names.

    Raises:
        InvalidNameError: The token is too long or has other characters.
    """
    ending = token if token is not None else os.urandom(4).hex()
    if not ending.isascii() or not ending.isalnum() or len(ending) > 40:
        raise InvalidNameError(
            "a token of a database name must be at most 40 letters and digits", found=ending[:80]
        )
    head = f"keikaku_{kind}_"
    room = NAME_LIMIT_BYTES - len(head) - len(ending) - 1
    raw = target.encode()
    if len(raw) > room:
        # A cut name could be another database's; its hash tells them apart.
        short = hashlib.sha256(raw).hexdigest()[:6]
        raw = raw[: max(room - 7, 0)].decode(errors="ignore").encode() + b"_" + short.encode()
        raw = raw[-room:]
    return f"{head}{raw.decode(errors='ignore')}_{ending}"


def lock_key(target: str) -> int:
    """Make the advisory lock key of a database name: signed 64 bits, the same everywhere.

    Args:
        target: Database name.

    Returns:
        The key for pg_advisory_lock.
    """
    digest = hashlib.sha256(b"keikaku_snapshots target\0" + target.encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)
