"""`keikaku doctor`: look at everything that can be in the way, and say what to do."""

from __future__ import annotations

import os
import shutil
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import click

from keikaku_snapshots.cli.output import size
from keikaku_snapshots.cli.session import EMBEDDED_DIRECTORY, Command, Session, pass_session
from keikaku_snapshots.errors import (
    AccessDeniedError,
    DiskFullError,
    KeikakuError,
    ProtectedDatabaseError,
    SnapshotCorruptError,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from psycopg import Connection

    from keikaku_snapshots.postgres.url import DatabaseURL

#: Free space that is advised on the disk of the snapshots: a few versions of
#: a 500-office database and the copy that a restore builds beside it.
ADVISED_FREE_BYTES = 10_000_000_000

#: Rights of others on the snapshot directory that let them read personal data.
_OPEN_TO_OTHERS = 0o077


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    #: What was looked at.
    subject: str
    #: ``problem`` makes the exit code, ``advice`` does not.
    state: Literal["ok", "advice", "problem"]
    #: What was found.
    found: str
    #: What to do; empty when it is fine.
    to_do: str = ""
    #: The exit code that a command would end with because of it.
    exit_code: int = 0


@click.command(
    "doctor",
    cls=Command,
    examples=[
        ("keikaku doctor", "Before the first use, and when something fails."),
        ("keikaku doctor --fix", "Also remove what killed runs left: temporary files, databases of ours."),
        ("keikaku doctor --json", "For a monitor; exit code 0 when all is well."),
    ],
)
@click.option("--fix", is_flag=True, help="Remove leftovers of runs that were killed.")
@pass_session
def doctor(session: Session, fix: bool) -> int:
    """Check tools, server, rights and disk; say what to do.

    Exit code 0 when all is well (advice does not count), else the code that
    other commands would end with because of the first problem.
    """
    findings: list[Finding] = []
    for check in _checks(session, fix=fix):
        for finding in _safely(check):
            findings.append(finding)
            _show(session, finding)
    problems = [finding for finding in findings if finding.state == "problem"]
    code = problems[0].exit_code if problems else 0
    if session.output.as_json:
        session.output.document({"ok": not problems, "exit_code": code, "findings": findings})
    elif problems:
        session.output.say(f"{len(problems)} to mend")
    else:
        session.output.say("all is well")
    return code


def _show(session: Session, finding: Finding) -> None:
    colour = {"ok": "green", "advice": "yellow", "problem": "red"}[finding.state]
    mark = {"ok": "ok     ", "advice": "advice ", "problem": "PROBLEM"}[finding.state]
    if finding.state == "ok" and session.output.quiet:
        return
    found = session.output.redact(finding.found).splitlines() or [""]
    session.output.data(f"{click.style(mark, fg=colour)}  {finding.subject}: {found[0]}")
    for line in found[1:]:
        session.output.data(f"           {line}")
    if finding.to_do:
        session.output.data(f"           → {session.output.redact(finding.to_do)}")


def _safely(check: Callable[[], Iterator[Finding]], subject: str = "") -> Iterator[Finding]:
    """Run one check; an error of the library is a finding like any other.

    Args:
        check: The check.
        subject: What it looks at; the first words of its docstring when empty.
    """
    try:
        yield from check()
    except KeikakuError as error:
        found = error.headline + (f"\n{error.found}" if error.found else "")
        named = subject or (check.__doc__ or "check").rstrip(".")
        yield Finding(named, "problem", found, error.hint, error.exit_code)


def _checks(session: Session, *, fix: bool) -> Iterator[Callable[[], Iterator[Finding]]]:
    def configuration() -> Iterator[Finding]:
        """Configuration."""
        from keikaku_snapshots.config import load_settings

        loaded = load_settings(session.option("config"))
        yield Finding(
            "Configuration", "ok", str(loaded.path) if loaded.path else "defaults, there is no file"
        )

    def directory() -> Iterator[Finding]:
        """Snapshot directory."""
        yield from _directory(session.snapshot_dir, session.settings.minimum_free_mb)

    def leftovers() -> Iterator[Finding]:
        """Temporary files."""
        yield from _leftover_files(session.snapshot_dir, fix=fix)

    def locks() -> Iterator[Finding]:
        """Locks."""
        yield from _locks(session.snapshot_dir)

    def embedded() -> Iterator[Finding]:
        """Embedded PostgreSQL."""
        yield from _embedded()

    def database() -> Iterator[Finding]:
        """Database."""
        yield from _database(session, fix=fix)

    yield configuration
    try:
        _ = session.settings
    except KeikakuError:
        # Everything else would be looked at in the wrong place.
        return
    yield directory
    yield leftovers
    yield locks
    yield embedded
    yield database


def _directory(directory: Path, minimum_free_mb: int) -> Iterator[Finding]:
    place = directory.absolute()
    existing = next(parent for parent in (place, *place.parents) if parent.exists())
    if existing != place:
        yield Finding("Snapshot directory", "ok", f"{place} will be made by the first `keikaku create`")
    elif not place.is_dir():
        yield Finding(
            "Snapshot directory",
            "problem",
            f"{place} is no directory",
            "Use another --snapshot-dir.",
            UsageError.exit_code,
        )
        return
    else:
        mode = stat.S_IMODE(place.stat().st_mode)
        if mode & _OPEN_TO_OTHERS:
            yield Finding(
                "Snapshot directory",
                "advice",
                f"{place} has mode {mode:04o}; other accounts may look into it",
                f"chmod 700 {place}",
            )
        else:
            yield Finding("Snapshot directory", "ok", f"{place}, mode {mode:04o}")
    if not os.access(existing, os.W_OK | os.X_OK):
        yield Finding(
            "Snapshot directory",
            "problem",
            f"{existing} is not writable for this account",
            "Change its owner, or use another --snapshot-dir.",
            AccessDeniedError.exit_code,
        )
    yield from _disk(existing, minimum_free_mb)
    if existing == place:
        yield from _snapshots(place)


def _disk(place: Path, minimum_free_mb: int) -> Iterator[Finding]:
    free = shutil.disk_usage(place).free
    inodes = os.statvfs(place)
    if free < minimum_free_mb * 1_000_000 or (inodes.f_files and not inodes.f_favail):
        found = f"{size(free)} and {inodes.f_favail:,} inodes free, {minimum_free_mb:,} MB are the least"
        yield Finding("Disk", "problem", found, DiskFullError.default_hint, DiskFullError.exit_code)
    elif free < ADVISED_FREE_BYTES:
        found = f"{size(free)} free; {size(ADVISED_FREE_BYTES)} are advised for snapshots"
        yield Finding("Disk", "advice", found, "Free space, or use another --snapshot-dir.")
    else:
        yield Finding("Disk", "ok", f"{size(free)} free")


def _snapshots(directory: Path) -> Iterator[Finding]:
    from keikaku_snapshots.snapshots.sharing import DiskUse
    from keikaku_snapshots.snapshots.store import SnapshotStore

    snapshots = SnapshotStore(directory).list()
    damaged = [snapshot for snapshot in snapshots if not snapshot.is_valid]
    for snapshot in damaged:
        yield Finding(
            "Snapshots",
            "problem",
            f"{snapshot.name} {snapshot.version} is damaged: {snapshot.problem}",
            f"keikaku delete {snapshot.name} --version {snapshot.version}",
            SnapshotCorruptError.exit_code,
        )
    total = size(DiskUse(snapshots).total_bytes)
    yield Finding("Snapshots", "ok", f"{len(snapshots) - len(damaged)} whole, {total} in all")


def _leftover_files(directory: Path, *, fix: bool) -> Iterator[Finding]:
    if not directory.is_dir():
        return
    from keikaku_snapshots.snapshots.store import SnapshotStore

    found = SnapshotStore(directory).sweep(dry_run=not fix)
    names = ", ".join(path.name for path in found)
    if not found:
        yield Finding("Temporary files", "ok", "none left by killed runs")
    elif fix:
        yield Finding("Temporary files", "ok", f"removed {names}")
    else:
        yield Finding("Temporary files", "advice", f"left by killed runs: {names}", "keikaku doctor --fix")


def _locks(directory: Path) -> Iterator[Finding]:
    from keikaku_snapshots.snapshots.lock import holders, is_held

    held = []
    for path in sorted((directory / ".locks").glob("*.lock")):
        with path.open("rb") as file:
            if is_held(file.fileno()):
                held.append(f"{path.stem} is {holders(file.fileno())}")
    if held:
        yield Finding(
            "Locks", "advice", "\n".join(held), "Wait for it; a lock ends with its process, never delete it."
        )
    elif directory.is_dir():
        yield Finding("Locks", "ok", "none is held")


def _embedded() -> Iterator[Finding]:
    from keikaku_snapshots.postgres.embedded_programs import HOW_TO_INSTALL, installed

    versions = ", ".join(str(major) for major in sorted(installed()))
    if versions:
        yield Finding("Embedded PostgreSQL", "ok", f"installed: {versions}")
    else:
        yield Finding("Embedded PostgreSQL", "ok", f"not installed ({HOW_TO_INSTALL})")


def _embedded_runs() -> bool:
    from keikaku_snapshots.postgres.embedded import EmbeddedServer

    return EmbeddedServer(EMBEDDED_DIRECTORY).status() is not None


def _database(session: Session, *, fix: bool) -> Iterator[Finding]:
    url = session.named_url
    if url is None:
        from keikaku_snapshots.errors import NoDatabaseError

        if session.option("embedded") or (session.output.on_terminal and _embedded_runs()):
            # What other commands would take now.
            url = session.url
        else:
            yield Finding(
                "Database",
                "advice",
                "none is named, so server and tools were not looked at",
                NoDatabaseError.default_hint,
            )
            return
    word = url.protected_word(session.settings.protected_words)
    if word:
        yield Finding(
            "Database",
            "advice",
            f"{url.location} has the protected word {word!r}; restore and generate will be refused",
            ProtectedDatabaseError.default_hint,
        )
    from keikaku_snapshots.postgres.connect import connect, server_info

    with connect(url, autocommit=True) as connection:
        info = server_info(connection)
        yield Finding("Database", "ok", f"{url.location}, PostgreSQL {info.version}")
        yield from _rights(connection)
        yield from _safely(lambda: _tools(info.major, session.settings.pg_bin), "PostgreSQL tools")
    yield from _safely(lambda: _leftover_databases(url, fix=fix), "Databases of ours")
    yield from _safely(lambda: _templates(url, session.snapshot_dir, fix=fix), "Templates")


def _rights(connection: Connection) -> Iterator[Finding]:
    row = connection.execute(
        "SELECT current_user, r.rolsuper, r.rolcreatedb,"
        " pg_has_role(current_user, d.datdba, 'USAGE'), pg_get_userbyid(d.datdba)"
        " FROM pg_roles r, pg_database d"
        " WHERE r.rolname = current_user AND d.datname = current_database()"
    ).fetchone()
    if row is None:
        return
    role, superuser, createdb, owner, owner_name = row
    if superuser:
        yield Finding("Rights", "ok", f"{role} is superuser: every way of restoring works")
    elif createdb and owner:
        yield Finding(
            "Rights", "ok", f"{role} owns the database and may create databases: swap and in_place work"
        )
    elif owner:
        yield Finding(
            "Rights",
            "advice",
            f"{role} owns the database but may not create databases: restore works in_place only",
            f'For swap, as superuser: ALTER ROLE "{role}" CREATEDB;',
        )
    else:
        yield Finding(
            "Rights",
            "advice",
            f"{role} is not the owner of the database ({owner_name} is): creating works where it may read "
            "every table, restoring does not",
            f'Use the owner\'s role, or as superuser: GRANT "{owner_name}" TO "{role}";',
        )


def _tools(major: int, configured: Path | None) -> Iterator[Finding]:
    """PostgreSQL tools."""
    from keikaku_snapshots.postgres.tools import find_tools

    tools = find_tools(major, configured=configured)
    yield Finding("PostgreSQL tools", "ok", f"{tools.version} in {tools.directory} (from {tools.source})")


def _leftover_databases(url: DatabaseURL, *, fix: bool) -> Iterator[Finding]:
    """Databases of ours."""
    from keikaku_snapshots.postgres.databases import (
        connect_maintenance,
        holder_of,
        leftovers,
        sweep,
        unmarked,
    )

    with connect_maintenance(url) as connection:
        holder = holder_of(connection, url.database)
        if holder is not None:
            pid, role, program = holder
            yield Finding(
                "Database lock", "advice", f"held by server process {pid} ({role}, {program})", "Wait for it."
            )
        target = url.database
        found = (
            sweep(connection, target=target)
            if fix
            else [one.name for one in leftovers(connection, target=target)]
        )
        nameless = unmarked(connection)
    if nameless:
        yield Finding(
            "Databases of ours",
            "advice",
            f"called like ours, without our mark: {', '.join(nameless)}",
            "Left by a crash of the server, or somebody else's; if nobody knows it: "
            f'DROP DATABASE "{nameless[0]}";',
        )
    names = ", ".join(found)
    if not found:
        yield Finding("Databases of ours", "ok", "none left by killed runs")
    elif fix:
        yield Finding("Databases of ours", "ok", f"dropped {names}")
    else:
        yield Finding("Databases of ours", "advice", f"left by killed runs: {names}", "keikaku doctor --fix")


def _templates(url: DatabaseURL, directory: Path, *, fix: bool) -> Iterator[Finding]:
    """Templates."""
    from keikaku_snapshots.postgres.databases import connect_maintenance
    from keikaku_snapshots.snapshots.template_sources import of_deleted_snapshots
    from keikaku_snapshots.snapshots.templates import drop_databases, look

    with connect_maintenance(url) as connection:
        present, orphans = look(connection)
        gone = of_deleted_snapshots(present, directory)
        useless = {
            "Spares": ("without a template", orphans),
            "Templates": (
                "of deleted snapshots",
                [name for one in gone for name in (one.template.database, *one.spares)],
            ),
        }
        for subject, (what, names) in useless.items():
            if names and fix:
                yield Finding(subject, "ok", f"dropped {', '.join(drop_databases(connection, names))}")
            elif names:
                yield Finding(subject, "advice", f"{what}: {', '.join(names)}", "keikaku doctor --fix")
        if fix:
            present, _ = look(connection)
    found = [one.template for one in present]
    if not found:
        yield Finding("Templates", "ok", "none")
        return
    spares = sum(len(one.spares) for one in found)
    total, largest = sum(one.total_bytes for one in found), max(one.size_bytes for one in found)
    yield Finding(
        "Templates",
        "ok",
        f"{len(found)} with {spares} spare, {size(total)} of the server's disk beside the databases"
        f"; a restore takes up to {size(largest)} more while it runs (`keikaku templates clear` frees them)",
    )
