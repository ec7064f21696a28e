"""What the acceptance tests share: the command line in this process, disks that are full, recorded texts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pytest

from keikaku_snapshots.cli import keikaku
from keikaku_snapshots.cli.run import run
from tests import servers
from tests.messages import Said
from tests.prefork import Prefork

if TYPE_CHECKING:
    from keikaku_snapshots.postgres.url import DatabaseURL

ROOT = Path(__file__).parents[2]
#: Shell: the command, then which files are there.
_RUN_AND_LIST = '"$@" >&2; code=$?; find . -type f; exit $code'

#: Runs ``keikaku ARGUMENTS``; gives exit code, stdout and stderr.
Command: TypeAlias = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database: DatabaseURL
) -> Command:
    """The command line in this process: a directory and a database of its own, remedies in Japanese."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    for name, value in _variables(database).items():
        monkeypatch.setenv(name, value)
    # The key of the audit log of patches is made there, and not in the home of who runs the tests.
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / ".config"))

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run(keikaku, list(arguments), "keikaku")
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def _variables(database: DatabaseURL) -> dict[str, str]:
    return {
        "KEIKAKU_DB_URL": database.text,
        "KEIKAKU_LANG": "ja",
        "KEIKAKU_MINIMUM_FREE_MB": "1",
        "KEIKAKU_RETRY_WAIT_MIN_S": "0",
        "KEIKAKU_RETRY_WAIT_MAX_S": "0",
    }


@pytest.fixture(scope="session")
def prefork() -> Iterator[Prefork]:
    """A process that has imported the package, for tests of many commands in processes of their own."""
    with Prefork() as process:
        yield process


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that root's server, which runs under another account, gets through.

    Not below `tmp_path`: every session of pytest on the machine closes its parent to others again.
    """
    # On the disk: copies of programs may be run there, which memory often forbids.
    base = servers.make_base_directory(on_disk=True)
    yield base
    servers.remove(base)


@pytest.fixture
def said(database: DatabaseURL, tmp_path: Path) -> Said:
    """Compares what was said with the recorded text."""
    return Said(database, tmp_path)


@dataclass(frozen=True)
class SmallDisk:
    """A process with little room, as on a disk that fills up."""

    #: Where it works.
    directory: Path
    #: What it needs to find the database.
    variables: dict[str, str]

    def run(self, *arguments: str, size_mb: int) -> tuple[int, str, str]:
        """Run ``keikaku`` where `snapshots` is a disk of this size.

        Returns:
            Exit code, the files that are on the disk afterwards, stderr.
        """
        disk = self.directory / "snapshots"
        disk.mkdir(exist_ok=True)
        # Only this process and its children see the disk; it is gone with them.
        script = f'mount -t tmpfs -o size="$1" none "$2" || exit 99; shift 2; {_RUN_AND_LIST}'
        return self._run(
            ["unshare", "-Urm", "sh", "-c", script, "sh", f"{size_mb}m", str(disk), *_keikaku(arguments)]
        )

    def run_limited(self, *arguments: str, file_kb: int) -> tuple[int, str, str]:
        """Run ``keikaku`` with no file allowed to grow beyond this."""
        script = f'ulimit -f "$1"; shift; {_RUN_AND_LIST}'
        return self._run(["bash", "-c", script, "bash", str(file_kb), *_keikaku(arguments)])

    def _run(self, argv: list[str]) -> tuple[int, str, str]:
        ran = subprocess.run(
            argv,
            cwd=self.directory,
            env=self.variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        return ran.returncode, ran.stdout, ran.stderr


def _keikaku(arguments: tuple[str, ...]) -> list[str]:
    return [sys.executable, "-m", "keikaku_snapshots", *arguments]


@pytest.fixture
def small_disk(tmp_path: Path, database: DatabaseURL) -> SmallDisk:
    """Disks that are too small; skips where the machine gives none to ordinary accounts."""
    probe = ["unshare", "-Urm", "sh", "-c", 'mount -t tmpfs -o size=1m none "$1"', "sh", str(tmp_path)]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("this machine has no user namespaces (unshare -Urm)")
    variables = {**_variables(database), "KEIKAKU_MINIMUM_FREE_MB": "0", "PATH": os.environ["PATH"]}
    # A file of a compiled module would be cut too.
    variables |= {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return SmallDisk(tmp_path, variables)
