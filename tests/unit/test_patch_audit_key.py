"""Keys of the audit log: where they come from, and that a key file is whole or not there."""

from __future__ import annotations

import base64
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from keikaku_snapshots.errors import AccessDeniedError, AuditError, ConfigurationError
from keikaku_snapshots.patches.audit_key import (
    AuditKey,
    add_key,
    decode_key,
    key_file_of,
    load_keys,
    make_key_file,
    new_key,
    read_key_file,
)
from keikaku_snapshots.patches.settings import AuditSettings

ROOT = Path(__file__).parents[2]
MASTER = bytes(range(32))
#: Makes the key file that it is told, with no more than so many bytes for a file.
MAKER = """
import resource, signal, sys
from pathlib import Path
from keikaku_snapshots.errors import KeikakuError
from keikaku_snapshots.patches.audit_key import make_key_file
if sys.argv[2:]:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    print(make_key_file(Path(sys.argv[1])).current.key_id)
except KeikakuError as error:
    print(type(error).__name__, error.headline)
"""


def making(path: Path, *limit: str) -> subprocess.Popen[str]:
    """Start a process that makes the key file."""
    environ = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", MAKER, str(path), *limit],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


@pytest.mark.parametrize(
    "text",
    [
        MASTER.hex(),
        MASTER.hex().upper(),
        base64.b64encode(MASTER).decode(),
        base64.urlsafe_b64encode(MASTER).decode().rstrip("="),
        f"  {MASTER.hex()}\n",
    ],
)
def test_a_key_is_32_bytes_in_hex_or_base64(text: str) -> None:
    """With the spaces and the missing padding that variables come with."""
    assert decode_key(text) == MASTER


@pytest.mark.parametrize("text", ["", "secret", MASTER.hex()[:-1], MASTER.hex() + "00", "é" * 32])
def test_anything_else_is_no_key(text: str) -> None:
    """A password is not made a key."""
    assert decode_key(text) is None


def test_a_variable_that_holds_no_key_is_named_and_not_quoted(tmp_path: Path) -> None:
    """Both variables at once; nothing of them is repeated."""
    environ = {"KEIKAKU_AUDIT_KEY": "S3cretCanary", "KEIKAKU_AUDIT_OLD_KEYS": "S3cretCanary, too"}

    with pytest.raises(ConfigurationError) as caught:
        load_keys(AuditSettings(key_file=tmp_path / "audit.key"), environ)

    assert "KEIKAKU_AUDIT_KEY:" in str(caught.value)
    assert "KEIKAKU_AUDIT_OLD_KEYS:" in str(caught.value)
    assert "S3cretCanary" not in str(caught.value)


def test_the_variable_wins_and_old_keys_are_found_by_their_id(tmp_path: Path) -> None:
    """The file is not even read then."""
    path = tmp_path / "audit.key"
    path.write_text("damaged", encoding="utf-8")
    old = [new_key(), new_key()]

    ring = load_keys(
        AuditSettings(key_file=path),
        {"KEIKAKU_AUDIT_KEY": MASTER.hex(), "KEIKAKU_AUDIT_OLD_KEYS": ", ".join(old)},
    )

    assert ring is not None
    assert ring.current == AuditKey.of(MASTER)
    assert [ring.find(AuditKey.of(bytes.fromhex(text)).key_id) for text in old] == list(ring.old)
    assert MASTER.hex() not in repr(ring) + repr(ring.current)


def test_without_home_the_file_is_where_the_account_database_says() -> None:
    """As under cron."""
    assert key_file_of(AuditSettings(), {}).name == "audit.key"
    assert key_file_of(AuditSettings(), {"XDG_CONFIG_HOME": "/etc/x"}) == Path(
        "/etc/x/keikaku_snapshots/audit.key"
    )


@pytest.mark.parametrize(
    "content", ["", f"{MASTER.hex()}"[:40], f"{MASTER.hex()}", f"{MASTER.hex()}\nxyz\n", "# only words\n"]
)
def test_a_damaged_key_file_is_reported_and_never_replaced(content: str, tmp_path: Path) -> None:
    """Half written, cut, empty: the log may need it."""
    path = tmp_path / "audit.key"
    path.write_text(content, encoding="utf-8")
    path.chmod(0o600)

    for use in (read_key_file, make_key_file, add_key):
        with pytest.raises(AuditError, match="damaged"):
            use(path)

    assert path.read_text(encoding="utf-8") == content


def test_a_key_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    """And one that is a link."""
    path, link = tmp_path / "audit.key", tmp_path / "link"
    make_key_file(path)
    link.symlink_to(path)
    path.chmod(0o640)

    with pytest.raises(AuditError, match="open to others"):
        read_key_file(path)
    with pytest.raises(AuditError, match="symbolic link"):
        read_key_file(link)


def test_of_many_who_make_the_key_at_once_one_makes_it(tmp_path: Path) -> None:
    """All have the same key then, and nothing else is left."""
    path = tmp_path / "keys" / "audit.key"

    makers = [making(path) for _ in range(4)]
    said = {maker.communicate(timeout=60)[0] for maker in makers}

    assert said == {read_key_file(path).current.key_id + "\n"}
    assert sorted(file.name for file in path.parent.iterdir()) == ["audit.key", "audit.key.lock"]


def test_a_full_disk_leaves_no_key_file(tmp_path: Path) -> None:
    """A half-written key would look like one; the next try makes a whole one."""
    path = tmp_path / "audit.key"

    said = making(path, "16").communicate(timeout=60)[0]

    assert said.startswith("DiskFullError the disk is full while writing the key of the audit log")
    assert [file.name for file in tmp_path.iterdir()] == ["audit.key.lock"]
    make_key_file(path)


def test_a_full_disk_leaves_the_old_keys_when_one_is_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is replaced in one step, or not at all."""
    path = tmp_path / "audit.key"
    before = make_key_file(path)

    def full(_: int) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="the disk is full"):
            add_key(path)

    assert read_key_file(path).current == before.current
    assert len(list(tmp_path.iterdir())) == 2


def test_a_directory_that_may_not_be_written_is_said(tmp_path: Path) -> None:
    """With the way out: a variable."""
    blocked = tmp_path / "file"
    blocked.write_text("", encoding="utf-8")

    with pytest.raises((AccessDeniedError, OSError)) as caught:
        make_key_file(blocked / "audit.key")

    assert "the key of the audit log" in str(caught.value)


def test_an_added_key_comes_first_and_the_others_stay(tmp_path: Path) -> None:
    """Old lines stay readable; the mode stays 0600."""
    path = tmp_path / "audit.key"
    first = make_key_file(path).current
    second = add_key(path).current

    third = add_key(path)

    assert third.old == (second, first)
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_notice_names_the_file_and_not_the_key(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is given once, when the file is made."""
    caplog.set_level(logging.INFO)
    path = tmp_path / "audit.key"

    make_key_file(path)
    make_key_file(path)

    assert caplog.text.count(f"was made: {path}") == 1
    assert path.read_text(encoding="utf-8").splitlines()[-1] not in caplog.text
