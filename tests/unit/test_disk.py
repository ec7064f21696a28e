"""Looking before writing: room, inodes, rights, and the reserve that stops a dump."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from keikaku_snapshots.errors import DiskFullError, SnapshotNotFoundError
from keikaku_snapshots.snapshots import disk
from keikaku_snapshots.snapshots.disk import MEGABYTE, ReserveWatcher, check_space, estimate_bytes

#: The account that tests run programs under when they must not be root.
NOBODY = 65534


@pytest.fixture
def free_mb(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Let the disk say how much is free; changed by the test."""
    said = {"free": 5000}

    def usage(_: object) -> object:
        return SimpleNamespace(total=0, used=0, free=said["free"] * MEGABYTE)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    return said


def test_enough_room_passes_and_leaves_nothing(tmp_path: Path, free_mb: dict[str, int]) -> None:
    """B6: the trial file is gone afterwards."""
    check_space(tmp_path, 4000 * MEGABYTE)
    assert list(tmp_path.iterdir()) == []


def test_too_little_room_names_need_and_free(tmp_path: Path, free_mb: dict[str, int]) -> None:
    """PEERS 8, B6: ディスク容量不足 with estimate, minimum and what is free; looked at when it is called."""
    check_space(tmp_path, 3000 * MEGABYTE)
    free_mb["free"] = 3500
    with pytest.raises(DiskFullError, match="ディスク容量不足") as caught:
        check_space(tmp_path, 3000 * MEGABYTE)

    for part in ("needed 4,000.0 MB", "estimated 3,000.0 MB", "1,000 MB", "free 3,500.0 MB", str(tmp_path)):
        assert part in str(caught.value)
    assert caught.value.details["free_bytes"] == 3500 * MEGABYTE
    assert isinstance(caught.value, OSError)
    check_space(tmp_path, 3000 * MEGABYTE, minimum_free_mb=100)


def test_too_few_inodes_are_found(
    tmp_path: Path, free_mb: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS 53: bytes are free, names are not; a file system without a fixed number is none of that."""
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_files=1000, f_favail=2))
    with pytest.raises(DiskFullError, match="inodes"):
        check_space(tmp_path)
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_files=0, f_favail=0))
    check_space(tmp_path)
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_files=1000, f_favail=500))
    check_space(tmp_path, parts=480)
    with pytest.raises(DiskFullError, match="inodes") as caught:
        check_space(tmp_path, parts=500)
    assert "needed 516, free 500" in caught.value.found


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another account")
def test_a_directory_that_may_not_be_written_is_found(tmp_path: Path) -> None:
    """FAULTS 53: rights are tried, not guessed."""
    script = (
        "import os, sys\n"
        "from keikaku_snapshots.snapshots.disk import check_space\n"
        "from keikaku_snapshots.errors import AccessDeniedError\n"
        f"os.setgid({NOBODY}); os.setuid({NOBODY})\n"
        "try:\n    check_space(sys.argv[1], minimum_free_mb=0)\n"
        "except AccessDeniedError as error:\n    print(error)\n"
    )
    folder = Path("/tmp") / f"keikaku-rights-{os.getpid()}"
    folder.mkdir(mode=0o755)
    try:
        done = subprocess.run(
            [sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True
        )
    finally:
        folder.rmdir()
    assert str(folder) in done.stdout
    assert "--snapshot-dir" in done.stdout


@pytest.mark.skipif(
    subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode != 0,
    reason="no mount namespaces here",
)
@pytest.mark.parametrize(
    ("options", "expected"),
    [("size=1m,nr_inodes=4", "inodes"), ("size=64k,ro", "not allowed"), ("size=4k", "too full")],
    ids=["no inodes", "read-only", "full"],
)
def test_a_real_file_system_without_room_is_found(options: str, expected: str, tmp_path: Path) -> None:
    """FAULTS 9, 53: a small tmpfs, read-only, without inodes, or filled to the last byte."""
    script = (
        "import sys\n"
        "from keikaku_snapshots.snapshots.disk import check_space\n"
        "from keikaku_snapshots.errors import KeikakuError\n"
        "try:\n"
        "    if sys.argv[2] == 'too full':\n"
        "        open(sys.argv[1] + '/x', 'wb').write(b'0' * 4096)\n"
        "    check_space(sys.argv[1], minimum_free_mb=0)\n"
        "except KeikakuError as error:\n    print(type(error).__name__, error)\n"
    )
    (tmp_path / "m").mkdir()
    mount = f"mount -t tmpfs -o {options} none {tmp_path}/m"
    command = f"{mount} && exec {sys.executable} -c \"$0\" {tmp_path}/m '{expected}'"
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", command, script], capture_output=True, text=True, check=True
    )
    kinds = {"inodes": "DiskFullError", "not allowed": "AccessDeniedError", "too full": "DiskFullError"}
    assert done.stdout.startswith(kinds[expected])
    assert expected in done.stdout or "disk is full" in done.stdout


def test_a_missing_directory_is_said(tmp_path: Path) -> None:
    """The error names it."""
    with pytest.raises(SnapshotNotFoundError, match="missing"):
        check_space(tmp_path / "missing")


def test_the_watcher_speaks_when_the_reserve_is_reached(tmp_path: Path, free_mb: dict[str, int]) -> None:
    """Design, Disk check: nothing while there is room; then a text, and an error made of it."""
    watch = ReserveWatcher(tmp_path, reserve_mb=1000)
    assert watch() is None
    free_mb["free"] = 999
    said = watch()
    assert said is not None
    assert "999.0 MB" in said
    assert "ディスク容量不足" in str(watch.error(said))


def test_the_estimate_follows_the_last_snapshot(tmp_path: Path) -> None:
    """Design, Disk check: last size and a half; without one a factor of the database."""
    assert estimate_bytes(database_bytes=1, last_snapshot_bytes=1000) == 1500
    plain = estimate_bytes(database_bytes=1000)
    assert plain >= 1000
    assert estimate_bytes(database_bytes=1000, compressed=True) < plain
    assert estimate_bytes(database_bytes=1000, format_name="custom") < plain


def test_a_directory_that_others_may_write_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAULTS 35, 3.6: world-writable without sticky bit, and network file systems, are warned of."""
    tmp_path.chmod(0o700)
    assert disk.weaknesses(tmp_path) == []
    tmp_path.chmod(0o1777)
    assert disk.weaknesses(tmp_path) == []
    tmp_path.chmod(0o777)
    monkeypatch.setattr(disk, "network_file_system", lambda _: "nfs4")
    said = disk.weaknesses(tmp_path)
    tmp_path.chmod(0o700)

    assert "chmod 700" in said[0]
    assert "nfs4" in said[1]
