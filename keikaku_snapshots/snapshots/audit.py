"""The audit log: who did what to the snapshots, when, and how it ended.

One JSON object a line in ``audit.log`` of the snapshot directory. Every
operation writes a line before it touches anything and one when it has ended;
both have the same ``id``, so a line "begun" without a second one is a run that
was killed. A line holds names, versions and numbers, never the text of an
error: that could quote a row or a password.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import platform
import pwd
import stat
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from keikaku_snapshots.errors import AuditError, KeikakuError, OutcomeUnknownError, UsageError
from keikaku_snapshots.snapshots.lock import wait_for_flock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.snapshots.store import SnapshotStore

log = logging.getLogger("keikaku_snapshots.audit")

#: Name of the file in the snapshot directory.
AUDIT_FILE: Final = "audit.log"
#: What happens when it cannot be written.
AUDIT_MODES: Final = ("warn", "error")
#: Seconds to wait for another process that writes a line; it needs milliseconds.
_WAIT_S: Final = 5.0


class Record:
    """What is known of the running operation; the code that does it adds to it."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.fields = fields

    def note(self, **fields: Any) -> None:
        """Add facts to the line that is written at the end; never a secret or a value of a row."""
        self.fields |= fields


class AuditLog:
    """Appends to the audit log of one directory.

    Args:
        store: The directory.
        mode: ``warn``: a failure to write is a warning of the log; ``error``: it is an
            error, before the operation wherever possible.
        url: The database that is worked on.
    """

    def __init__(self, store: SnapshotStore, mode: str = "warn", url: DatabaseURL | None = None) -> None:
        if mode not in AUDIT_MODES:
            raise UsageError(f"audit {mode!r} is not known", found=f"known: {', '.join(AUDIT_MODES)}")
        self._store = store
        self._mode = mode
        self._url = url

    @property
    def path(self) -> Path:
        """Where the log is."""
        return self._store.directory / AUDIT_FILE

    @contextlib.contextmanager
    def recording(self, action: str, name: str | None, **fields: Any) -> Iterator[Record]:
        """Write a line before and a line after the block.

        Args:
            action: ``create``, ``restore``, ``delete``, ``prune``, ``rename``, …
            name: Name of the snapshot; None for all.
            fields: Further facts that are known beforehand.

        Yields:
            Takes the facts that become known.

        Raises:
            AuditError: In mode ``error``: it cannot be written. What the block raises comes first.
        """
        if action != "create" and not self._store.directory.is_dir():
            yield Record({})  # there is nothing that could be changed, and nothing is made
            return
        fixed = {"id": os.urandom(6).hex(), "action": action, "name": name} | self._who()
        record = Record({key: value for key, value in fields.items() if value is not None})
        begun = time.monotonic()
        told = self._write({**fixed, **record.fields, "outcome": "begun"}, strict=self._mode == "error")

        def ended(outcome: str, *, strict: bool, **facts: Any) -> None:
            seconds = round(time.monotonic() - begun, 3)
            line = {**fixed, **record.fields, "outcome": outcome, "seconds": seconds, **facts}
            self._write(line, strict=strict, warned=told)

        try:
            yield record
        except BaseException as error:
            facts: dict[str, Any] = {"error": type(error).__name__}
            if isinstance(error, KeikakuError):
                facts["exit_code"] = error.exit_code
            unknown = isinstance(error, OutcomeUnknownError)
            ended("unknown" if unknown else "failed", strict=False, **facts)
            raise
        ended("done", strict=self._mode == "error")

    def _who(self) -> dict[str, Any]:
        who = {"user": _account(), "host": platform.node(), "pid": os.getpid()}
        if self._url is not None:
            who |= {"database": self._url.location, "role": self._url.user}
        return who

    def _write(self, line: dict[str, Any], *, strict: bool, warned: bool = False) -> bool:
        """Write a line; returns True when that failed and a warning told it."""
        try:
            self._append({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **line})
        except (OSError, KeikakuError) as error:
            reason = error.what if isinstance(error, KeikakuError) else error.strerror or str(error)
            what = f"the audit log could not be written for {line['action']} ({line['outcome']})"
            if strict:
                done = line["outcome"] == "done"
                raise AuditError(
                    what,
                    found=f"{self.path}: {reason}\n"
                    + ("The operation itself was done." if done else "Nothing was changed."),
                ) from error
            if not warned:
                log.warning("%s: %s: %s", what, self.path, reason)
            return True
        return warned

    def _append(self, line: dict[str, Any]) -> None:
        """Append one line in one write and bring it to the disk."""
        self._store.prepare()
        content = (json.dumps(line, ensure_ascii=False, default=str) + "\n").encode(
            "utf-8", "backslashreplace"
        )
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        is_new = not self.path.exists()
        descriptor = os.open(self.path, flags, 0o600)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(0, "it is not a regular file")
            if not wait_for_flock(descriptor, shared=False, wait_s=_WAIT_S):
                raise OSError(0, "another process holds it")
            if is_new:
                os.fchmod(descriptor, 0o600)  # under any umask
            size_bytes = os.fstat(descriptor).st_size
            if size_bytes and os.pread(descriptor, 1, size_bytes - 1) != b"\n":
                content = b"\n" + content  # a crash or a full disk cut the last line
            self._store.files.before("write", self.path)
            if os.write(descriptor, content) != len(content):
                raise OSError(0, "the disk took only a part of the line")
            self._store.files.fsync(descriptor, self.path)
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        finally:
            os.close(descriptor)
        if is_new:
            self._store.files.fsync_directory(self._store.directory)


def _account() -> str:
    """The account of this process; from the system, because an environment variable could say anything."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())  # an account without a name, as containers have
