"""The test kit's own rules: what happens when a server is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import conftest, servers


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without any PostgreSQL."""
    monkeypatch.setattr(servers, "programs", dict)


@pytest.mark.usefixtures("nothing_installed")
@pytest.mark.parametrize("major", [16, 18])
def test_in_ci_a_missing_server_fails(
    major: int, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
) -> None:
    """With CI=true a server that the wheel should bring is a failure, never a skip."""
    monkeypatch.setenv("CI", "true")

    with pytest.raises(pytest.fail.Exception, match=f"PostgreSQL {major} is not installed"):
        conftest._server(pytestconfig, major)


@pytest.mark.usefixtures("nothing_installed")
@pytest.mark.parametrize(("major", "ci"), [(15, "true"), (18, "")])
def test_a_missing_server_is_skipped_with_the_reason(
    major: int, ci: str, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
) -> None:
    """15 is tested where the machine has it; on a developer's machine others may be missing too."""
    monkeypatch.setenv("CI", ci)

    with pytest.raises(pytest.skip.Exception, match=f"PostgreSQL {major} is not installed"):
        conftest._server(pytestconfig, major)


@pytest.mark.usefixtures("nothing_installed")
def test_the_header_says_what_is_missing() -> None:
    """The first lines of a run name each version, also the ones that are not there."""
    assert conftest.pytest_report_header() == "PostgreSQL servers: 15 MISSING, 16 MISSING, 18 MISSING"


def test_the_environment_is_scrubbed() -> None:
    """No variable of the developer's shell reaches the tests; the key of audit logs is one of our own."""
    assert {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("PG", "KEIKAKU_")) or name.endswith("DATABASE_URL")
    } == {"KEIKAKU_AUDIT_KEY": "5e" * 32}


def test_servers_of_a_killed_run_are_cleaned_up() -> None:
    """A run that was killed leaves a directory with its process id; the next run removes it."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    left = Path(f"{tempfile.gettempdir()}/{servers._PREFIX}{gone.pid}-left")
    left.mkdir()

    servers.remove(servers.make_base_directory())

    assert not left.exists()


def test_servers_are_in_memory_where_there_is_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not where it is too small, as in many containers, and not for what is to be measured on a disk."""
    memory = tmp_path / "memory"
    memory.mkdir()
    monkeypatch.setattr(servers, "_MEMORY", memory)
    for free_bytes, on_disk, place in (
        (64 << 20, False, Path(tempfile.gettempdir())),
        (24 << 30, True, Path(tempfile.gettempdir())),
        (24 << 30, False, memory),
    ):
        usage = SimpleNamespace(free=free_bytes)
        monkeypatch.setattr(shutil, "disk_usage", lambda _, usage=usage: usage)
        base = servers.make_base_directory(on_disk=on_disk)
        assert base.parent == place
        servers.remove(base)
