"""Load a directory archive on several connections (docs/design.md, Directory).

``pg_restore -j`` is given what takes long and belongs to nobody in particular:
the rows, and the indexes and constraints behind them. All the rest goes through
`Loader`, before and after, so that owners, grants, extensions, policies and
comments follow the same rules as in every other restore. What depends on what
is read from the archive itself; where something is not as pg_dump writes it,
nothing is loaded in parallel.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from keikaku_snapshots.errors import SnapshotCorruptError
from keikaku_snapshots.postgres.tools import start_pg_restore, translate_tool_failure
from keikaku_snapshots.snapshots.archive import Section, chosen, file_names, read_contents
from keikaku_snapshots.snapshots.load import Loader
from keikaku_snapshots.snapshots.script import Kind, copies_rows, read_parts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.postgres.tools import Tools
    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.snapshots.archive import Contents, Entry
    from keikaku_snapshots.snapshots.dump_script import Script
    from keikaku_snapshots.snapshots.reading import OpenSnapshot
    from keikaku_snapshots.snapshots.rights import RoleRights

#: What pg_restore makes in parallel when the rows are there: it takes long, and its owner is its table's.
_PARALLEL = frozenset({"INDEX", "INDEX ATTACH", "CONSTRAINT", "FK CONSTRAINT"})
#: Grants come last, as pg_restore itself has it: an owner may have taken a right from itself.
_GRANTS = frozenset({"ACL", "DEFAULT ACL"})
#: pg_restore needs these for itself and takes them whatever it is told.
_ALWAYS = frozenset({"ENCODING", "STDSTRINGS", "SEARCHPATH"})
#: What pg_restore says of its progress; the rest of its output is about failures.
_FINISHED = re.compile(rb"finished item (\d+) ")
_CHATTER = re.compile(
    r" ?(?:pg_restore: ?)*(?:launching|finished|skipping|processing|connecting|entering|implied"
    r"|creating|executing|restoring|restored|disabling|enabling)\b.*"
)
#: Seconds between two progress values.
_PROGRESS_S = 0.25
#: Nobody sees the new database yet, and the rename's COMMIT brings all of it to the disk.
_SETTINGS = {"synchronous_commit": "off", "idle_session_timeout": "0"}


@dataclass(frozen=True, slots=True)
class Plan:
    """Who loads which entries of an archive, in this order."""

    #: `Loader`: definitions that rows need.
    before: tuple[int, ...]
    #: pg_restore: rows; the COPY statement and the file of each.
    rows: Mapping[int, Entry]
    #: pg_restore: indexes and constraints.
    indexes: tuple[int, ...]
    #: `Loader`: sequences, large objects, triggers, grants, and whatever needs one of them.
    after: tuple[int, ...]


def make_plan(contents: Contents) -> Plan | None:
    """Decide who loads what.

    Args:
        contents: The table of contents.

    Returns:
        The plan; None when the rows are not all written as pg_dump writes them for us.
    """
    before: list[int] = []
    rows: dict[int, Entry] = {}
    indexes: list[int] = []
    after: list[int] = []
    late: set[int] = set()
    for entry in contents.entries:
        if entry.kind in _ALWAYS:
            continue
        if entry.kind == "TABLE DATA":
            if not copies_rows(entry.copy.strip()) or not entry.file:
                return None
            rows[entry.id] = entry
        elif entry.section is Section.PRE_DATA and entry.kind not in _GRANTS:
            before.append(entry.id)
        elif entry.kind in _PARALLEL and not entry.needs & late and _only_defines(entry):
            indexes.append(entry.id)
        else:
            late.add(entry.id)
            after.append(entry.id)
    return Plan(tuple(before), rows, tuple(indexes), tuple(after))


def _only_defines(entry: Entry) -> bool:
    """Whether `Loader` would run this, too; what it refuses, it shall see."""
    try:
        parts = list(read_parts(entry.definition, name=entry.tag))
    except SnapshotCorruptError:
        return False
    return all(part.kind is Kind.DEFINITION for part in parts)


@dataclass(frozen=True, slots=True)
class Archive:
    """A checked directory archive and the scripts of what is not loaded in parallel."""

    #: What to call it in errors.
    name: str
    #: Descriptor of the directory.
    descriptor: int
    #: Who loads what.
    plan: Plan
    #: Definitions that rows need.
    before: Script
    #: What comes behind the rows.
    after: Script
    #: Programs of the server's major version.
    tools: Tools
    #: Connections at once.
    jobs: int
    #: Bytes of each file, by name.
    files: Mapping[str, int]

    @property
    def size_bytes(self) -> int:
        """Bytes of the rows' files, for progress."""
        return sum(self.files.values())

    def loader(
        self,
        connection: Connection,
        url: DatabaseURL,
        rights: RoleRights,
        *,
        progress: Callable[[int], None] | None = None,
        loaded: Callable[[bytes], None] | None = None,
    ) -> ParallelLoader:
        """Return what loads it; see `Script.loader`."""
        return ParallelLoader(self, connection, url, rights, progress=progress, loaded=loaded)


class ParallelLoader:
    """Loads an archive into a database that nobody else sees."""

    def __init__(
        self,
        archive: Archive,
        connection: Connection,
        url: DatabaseURL,
        rights: RoleRights,
        *,
        progress: Callable[[int], None] | None = None,
        loaded: Callable[[bytes], None] | None = None,
    ) -> None:
        """Prepare; nothing runs yet.

        Args:
            archive: What to load.
            connection: Where to, in autocommit.
            url: The database that it is for, as it is called in messages; on the same server.
            rights: What the role may give back.
            progress: Told the bytes of the files that are loaded.
            loaded: Told each COPY statement whose rows are all there.
        """
        self._archive = archive
        self._connection = connection
        self._url = url
        self._rights = rights
        self._progress = progress
        self._loaded = loaded
        self._loader: Loader | None = None
        self._left = dict(archive.plan.rows)
        self._done_bytes = 0
        self._output = b""
        #: What was not given back, one line each.
        self.warnings: list[str] = []

    @property
    def current(self) -> str:
        """The statement that runs now or failed, for messages."""
        return self._loader.current if self._loader is not None else ""

    def load(self, *, clean: bool) -> None:
        """Load everything.

        Args:
            clean: Never true of an archive.

        Raises:
            psycopg.Error: The server refused a statement; `current` says which.
            KeikakuError: pg_restore failed.
        """
        del clean
        plan = self._archive.plan
        self._loader = loader = Loader(self._connection, self._archive.before, self._rights)
        loader.run(self._archive.before.stream(clean=False))
        self._restore(plan.rows, "loading the rows")
        self._restore(plan.indexes, "making indexes and constraints")
        loader.go_on_with(self._archive.after)
        loader.run(self._archive.after.stream(clean=False))
        self.warnings = loader.warnings

    def _restore(self, ids: Iterable[int], doing: str) -> None:
        """Have pg_restore load entries; it stops at the first error and dies with us."""
        ids = list(ids)
        if not ids:
            return
        archive = self._archive
        with (
            chosen(ids) as only,
            start_pg_restore(
                archive.tools,
                self._url.with_database(self._connection.info.dbname),
                f"/dev/fd/{archive.descriptor}",
                jobs=archive.jobs,
                list_file=f"/dev/fd/{only}",
                single_transaction=False,
                # Ours to give back, and pg_restore has nothing here that has an owner.
                owners=False,
                extra=["--verbose"],
                settings=_SETTINGS,
                pass_fds=(archive.descriptor, only),
                on_stderr=self._listen,
            ) as running,
        ):
            while self._progress is not None and not running.has_ended(_PROGRESS_S):
                self._progress(self._done_bytes)
            result = running.wait()
        if not result.ok:
            result = replace(result, stderr=without_chatter(result.stderr))
            raise translate_tool_failure(result, self._url, doing=doing)

    def _listen(self, data: bytes) -> None:
        """Follow pg_restore: which rows are all there."""
        *lines, self._output = (self._output + data).split(b"\n")
        for line in lines:
            for number in _FINISHED.findall(line):
                entry = self._left.pop(int(number), None)
                if entry is not None:
                    self._finished(entry)

    def _finished(self, entry: Entry) -> None:
        self._done_bytes += size_of(entry, self._archive.files)
        if self._loaded is not None:
            self._loaded(entry.copy)


def size_of(entry: Entry, files: Mapping[str, int]) -> int:
    """Return the bytes of an entry's file: the archive names it without the suffix of its compression."""
    return next((files[name] for name in file_names(entry) if name in files), 0)


def without_chatter(stderr: str) -> str:
    """Take what ``--verbose`` adds out of pg_restore's error output."""
    return "\n".join(line for line in stderr.splitlines() if not _CHATTER.match(line))


@contextlib.contextmanager
def open_archive(
    opened: OpenSnapshot,
    tools: Tools,
    *,
    jobs: int,
    script: Callable[[Sequence[int]], AbstractContextManager[Script]],
) -> Iterator[Archive | None]:
    """Open a directory archive for a parallel load.

    Args:
        opened: The snapshot, held so that nobody deletes it.
        tools: Programs of the server's major version.
        jobs: Connections at once.
        script: Writes entries out as SQL, for the time of the block.

    Yields:
        The archive; None when it is to be loaded as one script: for one job, or when something in it
        is not as pg_dump writes it for us.

    Raises:
        SnapshotCorruptError: It cannot be read.
    """
    contents = read_contents(opened.fileno(), opened.path.name) if jobs > 1 else None
    plan = make_plan(contents) if contents is not None else None
    if plan is None or not plan.rows:
        yield None
        return
    with contextlib.ExitStack() as stack:
        before, after = (stack.enter_context(script(ids)) for ids in (plan.before, plan.after))
        with os.scandir(opened.fileno()) as found:
            files = {entry.name: entry.stat().st_size for entry in found}
        yield Archive(opened.path.name, opened.fileno(), plan, before, after, tools, jobs, files)
