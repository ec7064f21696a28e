"""One PostgreSQL cluster on disk: make it, start it, stop it, see whether it runs.

Callers hold the server's lock (`EmbeddedServer`); nothing here waits for others.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import socket
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from keikaku_snapshots.errors import ConnectError, ToolError
from keikaku_snapshots.postgres.embedded_programs import Account, run_as

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keikaku_snapshots._process import ToolResult

#: The superuser of every embedded server.
SUPERUSER = "postgres"

#: sun_path holds 108 bytes with its final zero; ".s.PGSQL.65535" is 14 and a slash 1.
_SOCKET_DIRECTORY_BYTES = 107 - 15
#: Backends of a killed server need a moment to notice; until then it cannot start again.
_ORPHAN_WAIT_S = 15.0
_PORT_TRIES = 5
_LOG_LIMIT_BYTES = 10_000_000


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


class Cluster:
    """The files and the process of one server.

    Args:
        home: Folder that holds ``data``, ``password``, ``server.log`` and ``run``.
        major: PostgreSQL major version.
        programs: Folder of the server programs.
        account: Who runs them when we are root.
        settings: Configuration parameters beside our own.
    """

    def __init__(
        self, home: Path, major: int, programs: Path, account: Account | None, settings: Mapping[str, str]
    ) -> None:
        self.home = home
        self.major = major
        self.data_directory = home / "data"
        self.log_file = home / "server.log"
        self.password_file = home / "password"
        # Says where the socket is when it cannot be in home.
        self._socket_note = home / "run.path"
        self._programs = programs
        self._account = account
        self._settings = dict(settings)

    @property
    def exists(self) -> bool:
        """True when initdb has finished here."""
        return (self.data_directory / "PG_VERSION").exists()

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

    def create(self, timeout_s: float) -> None:
        """Make the cluster.

        Raises:
            ToolError: initdb failed.
        """
        # Built aside and renamed: an initdb that was killed is never taken for a cluster.
        for leftover in self.home.glob("data.new-*"):
            _remove(leftover)
        aside = Path(tempfile.mkdtemp(prefix="data.new-", dir=self.home))
        descriptor = os.open(self.password_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as out:
            out.write(secrets.token_urlsafe(24) + "\n")
        self._give(aside, self.password_file)
        argv: list[str | Path] = ["-D", aside, "-U", SUPERUSER, "--pwfile", self.password_file]
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

    def start(self, timeout_s: float) -> None:
        """Start the server on the port of last time, or another when that is taken.

        Raises:
            ConnectError: It did not start; the end of its log is in the text.
        """
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
            said = self.log_tail(log_start)
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

    def stop(self, mode: str, timeout_s: float) -> ToolResult:
        """Stop the server; ``mode`` is pg_ctl's: fast or immediate."""
        seconds = str(int(timeout_s))
        argv = ("-D", self.data_directory, "-m", mode, "-w", "-t", seconds)
        result = self._run("pg_ctl", "stop", *argv, timeout_s=timeout_s + 10)
        if result.returncode == 0 and self._socket_note.exists():
            with contextlib.suppress(OSError):
                Path(self._socket_note.read_text(encoding="utf-8")).rmdir()
            self._socket_note.unlink()
        return result

    def _write_configuration(self, port: int) -> None:
        values = {
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "unix_socket_directories": str(self._socket_directory()),
            "unix_socket_permissions": "0700",
            "timezone": "UTC",
            "log_timezone": "UTC",
            # Else each session loads it at its first function or trigger: half a millisecond.
            "shared_preload_libraries": "plpgsql",
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
            link = self._socket_note
            if link.exists() and Path(link.read_text(encoding="utf-8")).is_dir():
                place = Path(link.read_text(encoding="utf-8"))
            else:
                place = Path(tempfile.mkdtemp(prefix="keikaku-", dir="/tmp"))
                link.write_text(str(place), encoding="utf-8")
        place.mkdir(mode=0o700, exist_ok=True)
        self._give(place)
        return place

    def clear_stale(self) -> None:
        """Remove a stale ``postmaster.pid`` whose number another process has got since.

        PostgreSQL itself copes with a number that is dead. A living one stops it
        when the process is of the same account, which is usual in containers.
        """
        import psutil

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

    def log_tail(self, start: int = 0) -> str:
        """Give the last 2,000 bytes of the server's log, nothing before byte ``start``."""
        try:
            with self.log_file.open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(start, size - 2000))
                return log.read().decode("utf-8", "replace").strip()
        except OSError:
            return ""

    def _give(self, *paths: Path) -> None:
        if self._account:
            for path in paths:
                os.chown(path, self._account.uid, self._account.gid)

    def _run(self, program: str, *arguments: str | Path, timeout_s: float = 90.0) -> ToolResult:
        return run_as([self._programs / program, *arguments], self._account, timeout_s=timeout_s)


def _remove(leftover: Path) -> None:
    """Remove what an earlier initdb left; it may be writing still when only its starter was killed."""
    deadline = time.monotonic() + _ORPHAN_WAIT_S
    while leftover.exists() and time.monotonic() < deadline:
        shutil.rmtree(leftover, ignore_errors=True)
        time.sleep(0.02)


def _is_server_of(pid: int, data_directory: Path) -> bool:
    """Whether this process is the postmaster of this cluster, not another that got its number."""
    import psutil

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
    import psutil

    place = str(data_directory.resolve())
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.name().startswith("postgres") and process.cwd() == place:
                return True
    return False


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
