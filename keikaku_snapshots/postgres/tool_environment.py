"""The environment of a client program: made from nothing, with the password in a private file."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from keikaku_snapshots.errors import AccessDeniedError, DiskFullError
from keikaku_snapshots.postgres.connect import KEEPALIVES
from keikaku_snapshots.postgres.inherited import DEFAULT_CONNECT_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from keikaku_snapshots.postgres.url import DatabaseURL

#: What a program may inherit: to be found, to find certificates and tickets, and its clock.
#: HOME is where libpq looks for ~/.pgpass and ~/.postgresql.
INHERITED = (
    "PATH",
    "HOME",
    "TZ",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "KRB5CCNAME",
    "KRB5_CONFIG",
)
APPLICATION_NAME = "keikaku_snapshots"
#: A server process whose client was killed notices within this time instead of
#: going on to the end of its statement (FAULTS 47).
CONNECTION_CHECK_MS = 500
#: Parameters with an environment variable in every supported libpq. All others go
#: through a service file, where an older libpq refuses what it does not know:
#: as a variable it would ignore it, and with it for example require_auth.
_VARIABLES = {
    "application_name": "PGAPPNAME",
    "connect_timeout": "PGCONNECT_TIMEOUT",
    "hostaddr": "PGHOSTADDR",
    "passfile": "PGPASSFILE",
    "sslmode": "PGSSLMODE",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
}
_SERVICE = "keikaku"
_PREFIX = "keikaku-pass-"
#: Seconds before a directory of secrets that nobody locks counts as left behind.
_LEFTOVER_S = 60.0


def base_environment() -> dict[str, str]:
    """Return the environment of a program that connects to nothing."""
    env = {name: os.environ[name] for name in INHERITED if name in os.environ}
    env.setdefault("PATH", os.defpath)
    env["LC_ALL"] = "C"  # messages that can be recognised (FAULTS 75)
    return env


@contextlib.contextmanager
def tool_environment(
    url: DatabaseURL,
    *,
    settings: Mapping[str, str] | None = None,
    application_name: str = APPLICATION_NAME,
) -> Iterator[dict[str, str]]:
    """Give the whole environment of a program that connects to a database.

    The files that it names are removed when the block ends, so end the program first.

    Args:
        url: The database and role.
        settings: Server settings of the session, such as ``{"lock_timeout": "2s"}``. A dump
            resets lock_timeout and statement_timeout by itself (FAULTS 6).
        application_name: Shown in pg_stat_activity unless the URL has its own.

    Yields:
        The environment for `run_tool` and `start_tool`.
    """
    prepared = prepare_environment(url, settings=settings, application_name=application_name)
    try:
        yield prepared.env
    finally:
        prepared.remove()


@dataclass(slots=True)
class PreparedEnvironment:
    """An environment and the private directory it refers to."""

    #: For the program.
    env: dict[str, str]
    #: Holds password and service file; None once removed.
    directory: Path | None
    #: Locked descriptor of the directory: while it is locked, no sweep takes it.
    lock_fd: int | None

    def remove(self) -> None:
        """Remove the files; the program must have ended."""
        directory, self.directory = self.directory, None
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)
        lock_fd, self.lock_fd = self.lock_fd, None
        if lock_fd is not None:
            os.close(lock_fd)


def prepare_environment(
    url: DatabaseURL,
    *,
    settings: Mapping[str, str] | None = None,
    application_name: str = APPLICATION_NAME,
) -> PreparedEnvironment:
    """Make what `tool_environment` yields, for a program that outlives the call; remove it by hand."""
    _sweep()
    env = base_environment()
    parameters = dict(url.parameters)
    if not url.socket_directory:
        parameters = {**{name: str(value) for name, value in KEEPALIVES.items()}, **parameters}
    options = _options(parameters.pop("options", ""), settings or {})
    parameters.pop("client_encoding", None)
    env |= {
        "PGHOST": url.effective_host,
        "PGPORT": str(url.effective_port),
        "PGUSER": url.user,
        "PGDATABASE": url.database,
        "PGOPTIONS": options,
        "PGCLIENTENCODING": "UTF8",
        "PGAPPNAME": application_name,
        "PGCONNECT_TIMEOUT": str(DEFAULT_CONNECT_TIMEOUT_S),
    }
    env |= {_VARIABLES[name]: parameters.pop(name) for name in list(parameters) if name in _VARIABLES}
    prepared = PreparedEnvironment(env, None, None)
    try:
        directory = prepared.directory = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
        prepared.lock_fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
        fcntl.flock(prepared.lock_fd, fcntl.LOCK_EX)
        if url.password is not None:
            _give_password(env, directory, url.password)
        if parameters:
            lines = [f"[{_SERVICE}]", *(f"{name}={value}" for name, value in parameters.items())]
            env["PGSERVICEFILE"] = _write_private(directory / "service", "\n".join(lines) + "\n")
            env["PGSERVICE"] = _SERVICE
    except BaseException as error:
        prepared.remove()
        if isinstance(error, OSError):
            raise _no_private_file(error) from error
        raise
    return prepared


def _no_private_file(error: OSError) -> AccessDeniedError | DiskFullError:
    kind = DiskFullError if error.errno in {errno.ENOSPC, errno.EDQUOT} else AccessDeniedError
    return kind(
        "The password file for PostgreSQL's programs cannot be written",
        found=f"The system says: {error.strerror or error}",
        hint="Set TMPDIR to a directory with free space that this account may write to.",
    )


def _give_password(env: dict[str, str], directory: Path, password: str) -> None:
    if any(character in password for character in "\r\n"):
        # A password file ends a line there; the environment can be read by the same account only.
        env["PGPASSWORD"] = password
        return
    escaped = password.replace("\\", "\\\\").replace(":", "\\:")
    env["PGPASSFILE"] = _write_private(directory / "pass", f"*:*:*:*:{escaped}\n")


def _write_private(path: Path, text: str) -> str:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8", errors="surrogateescape") as file:
        # Under an odd umask the mode may lack our own rights; libpq refuses more (FAULTS 40).
        os.fchmod(fd, 0o600)
        file.write(text)
    return str(path)


def _options(given: str, settings: Mapping[str, str]) -> str:
    """Write PGOPTIONS: what the URL asks for comes last and wins over our own."""
    wanted = {"client_connection_check_interval": str(CONNECTION_CHECK_MS), **settings}
    parts = []
    for name, value in wanted.items():
        escaped = value.replace("\\", "\\\\").replace(" ", "\\ ")
        parts.append(f"-c {name}={escaped}")
    return " ".join([*parts, given]).strip()


def _sweep() -> None:
    """Remove the secrets of processes that were killed: directories of ours that nobody locks."""
    with contextlib.suppress(OSError), os.scandir(tempfile.gettempdir()) as entries:
        for entry in entries:
            if entry.name.startswith(_PREFIX):
                with contextlib.suppress(OSError):
                    _sweep_one(Path(entry.path))


def _sweep_one(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        state = os.fstat(fd)
        is_ours = state.st_uid == os.geteuid() and stat.S_IMODE(state.st_mode) == 0o700
        # A young one may be between mkdtemp and its lock.
        if is_ours and time.time() - state.st_mtime > _LEFTOVER_S:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(fd)
