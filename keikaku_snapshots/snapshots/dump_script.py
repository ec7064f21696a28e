"""A plain dump that is open: its parts one by one, and what they say of themselves."""

from __future__ import annotations

import contextlib
import mmap
import os
import re
from typing import TYPE_CHECKING, Self

from keikaku_snapshots.snapshots.load import Loader, new_owner
from keikaku_snapshots.snapshots.script import Kind, Part, read_parts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.snapshots.rights import RoleRights

#: Definitions whose text may hold a password.
_SECRETIVE = re.compile(r"(?:CREATE|ALTER) (?:USER MAPPING|SUBSCRIPTION|SERVER|FOREIGN)")


class Script:
    """A verified plain dump, open and mapped into memory."""

    def __init__(self, descriptor: int, name: str) -> None:
        """Map an open file.

        Args:
            descriptor: The file that was verified; stays open and the caller's.
            name: What to call it in errors.
        """
        self.name = name
        self.size_bytes = os.fstat(descriptor).st_size
        self.buffer: mmap.mmap | bytes = (
            mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) if self.size_bytes else b""
        )
        self._parts: list[Part] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(self.buffer, mmap.mmap):
            # An error on its way may still hold the piece that was being sent; it must not be hidden.
            with contextlib.suppress(BufferError):
                self.buffer.close()

    @property
    def parts(self) -> list[Part]:
        """All parts; reading them checks the whole file first (`SnapshotCorruptError`)."""
        if self._parts is None:
            found = list(read_parts(self.buffer, name=self.name))
            # All that --clean adds stands in front, and the database that is filled is empty.
            last = max((index for index, part in enumerate(found) if part.kind is Kind.CLEAN), default=-1)
            self._parts = [part for part in found[: last + 1] if part.kind is Kind.SETTING] + found[
                last + 1 :
            ]
        return self._parts

    def stream(self, *, clean: bool) -> Iterable[Part]:
        """The parts one by one, each checked when its turn comes.

        Args:
            clean: True if the dump may begin with what ``--clean`` adds, which
                must be seen as a whole to be left out.
        """
        return self.parts if clean else read_parts(self.buffer, name=self.name)

    def loader(
        self,
        connection: Connection,
        url: DatabaseURL,
        rights: RoleRights,
        *,
        progress: Callable[[int], None] | None = None,
        loaded: Callable[[bytes], None] | None = None,
    ) -> Loader:
        """Return what loads all of it into a database that nobody else sees.

        Args:
            connection: Where to, in autocommit.
            url: The database that it is for; on the same server.
            rights: What the role may give back.
            progress: Told the position in the file, bytes.
            loaded: Told each COPY statement whose rows are all there.
        """
        del url  # for what needs more than one connection
        return Loader(connection, self, rights, progress=progress, loaded=loaded)

    def text(self, part: Part) -> bytes:
        """The statement of a part, without rows."""
        return bytes(self.buffer[part.start : part.end])

    def owner_roles(self) -> frozenset[str]:
        """Roles that the dump makes owners of something."""
        found = (new_owner(self.text(part)) for part in self.parts if part.kind is Kind.OWNER)
        return frozenset(role for role in found if role is not None)

    def label(self, part: Part) -> str:
        """The beginning of a statement, for messages: what it makes, never values."""
        text = bytes(self.buffer[part.start : min(part.end, part.start + 200)]).decode("utf-8", "replace")
        if _SECRETIVE.match(text):
            return " ".join(text.split()[:3])
        return re.split(r"[(\n'=]", text, maxsplit=1)[0].strip()[:100]
