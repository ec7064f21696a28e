"""Compressed plain snapshots on a real server: made whole or not at all, checked before use."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import zstandard

from keikaku_snapshots import SnapshotManager
from keikaku_snapshots.errors import (
    AccessDeniedError,
    DiskFullError,
    KeikakuError,
    SnapshotCorruptError,
    ToolMissingError,
)
from keikaku_snapshots.postgres import tools
from keikaku_snapshots.postgres.connect import RetryPolicy
from keikaku_snapshots.snapshots import dump as dump_module
from keikaku_snapshots.snapshots import packed_file, unpack
from keikaku_snapshots.snapshots.disk import ReserveWatcher
from keikaku_snapshots.snapshots.packed_file import PackedFile
from keikaku_snapshots.snapshots.store import SnapshotStore
from tests.integration import schemas
from tests.integration.test_restore_in_place import CHANGED, SMALL

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from keikaku_snapshots._process import RunningTool
    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.progress import Progress
    from tests.conftest import MakeDatabase
    from tests.servers import Server

COMPRESSIONS = {"gzip": "sql.gz", "zstd": "sql.zst"}
#: Rows of several megabytes that no compression makes small.
LARGE = "CREATE TABLE noise AS SELECT i, gen_random_uuid() AS v FROM generate_series(1, 100000) AS i"
COUNT = "SELECT count(*) FROM children"


@pytest.fixture
def manager(database: DatabaseURL, tmp_path: Path) -> Iterator[SnapshotManager]:
    """A manager of a small database, without snapshots."""
    schemas.run(database, SMALL)
    retry = RetryPolicy(attempts=1, wait_min_s=0, wait_max_s=0)
    with SnapshotManager(database, tmp_path / "snapshots", minimum_free_mb=1, retry=retry) as made:
        yield made


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[RunningTool]:
    """Every pg_dump that a create starts."""
    found: list[RunningTool] = []
    start = tools.start_pg_dump

    def remembered(*arguments: Any, **options: Any) -> RunningTool:
        found.append(start(*arguments, **options))
        return found[-1]

    monkeypatch.setattr(dump_module, "start_pg_dump", remembered)
    return found


def _files(manager: SnapshotManager) -> list[str]:
    return sorted(path.name for path in manager.directory.iterdir() if path.is_file())


def _unpacked(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix == ".gz":
        return gzip.decompress(content)
    return zstandard.ZstdDecompressor().decompressobj().decompress(content)


# -- making --------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_compressed_snapshot_is_the_dump_in_a_file_of_its_name(
    manager: SnapshotManager, compression: str
) -> None:
    """B5: NAME_VERSION.sql.gz or .sql.zst; the manifest describes the file and the text in it."""
    told: list[Progress] = []
    made = manager.create_snapshot("small", compression=compression, progress=told.append)
    assert made.path.name == f"small_{made.version}.{COMPRESSIONS[compression]}"
    link = manager.directory / f"small_latest.{COMPRESSIONS[compression]}"
    assert str(link.readlink()) == made.path.name
    text = _unpacked(made.path)
    assert text.startswith(b"--\n-- PostgreSQL database dump\n")
    manifest = made.manifest
    assert manifest is not None
    assert (manifest.format, manifest.compression) == ("plain", compression)
    assert manifest.uncompressed_bytes == len(text)
    assert manifest.uncompressed_sha256 == hashlib.sha256(text).hexdigest()
    assert manifest.size_bytes == made.path.stat().st_size < len(text)
    assert (told[-1].finished, told[-1].done) == (True, len(text))
    checks = manager.verify_snapshot("small").checks
    assert checks == ("manifest", "size", "SHA-256", "unpacked size and SHA-256", "header and end")


@pytest.mark.parametrize(("number", "block"), [(signal.SIGKILL, 1), (signal.SIGTERM, 4)])
def test_a_pg_dump_that_dies_leaves_nothing(
    manager: SnapshotManager,
    started: list[RunningTool],
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    block: int,
) -> None:
    """FAULTS 8, 10, 43: with a pipe between, its exit code and the end marker still decide."""
    schemas.run(manager.url, LARGE)
    write, blocks = PackedFile.write, []

    def kill_at(self: PackedFile, data: bytes) -> None:
        blocks.append(len(data))
        if len(blocks) == block:
            os.kill(started[-1].pid, number)
        write(self, data)

    monkeypatch.setattr(PackedFile, "write", kill_at)
    with pytest.raises(KeikakuError) as caught:
        manager.create_snapshot("small", compression="zstd")
    assert not isinstance(caught.value, DiskFullError)
    assert len(blocks) >= block
    assert manager.list_snapshots() == []
    assert _files(manager) == ["audit.log"]


@pytest.mark.parametrize("block", [1, 4])
def test_a_disk_that_is_full_for_our_writer_stops_pg_dump(
    manager: SnapshotManager, started: list[RunningTool], monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    """FAULTS 9: ディスク容量不足, pg_dump is stopped, no file is left, the earlier snapshot stays."""
    schemas.run(manager.url, LARGE)
    earlier = manager.create_snapshot("small", compression="gzip")
    before, write, blocks = _files(manager), os.write, []

    def full(descriptor: int, data: Any) -> int:
        blocks.append(len(data))
        if len(blocks) >= block:
            raise OSError(28, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr(packed_file, "os", SimpleNamespace(write=full))
    with pytest.raises(DiskFullError, match="ディスク容量不足"):
        manager.create_snapshot("small", compression="gzip")
    assert started[-1].has_ended(0)
    monkeypatch.undo()
    assert [one.version for one in manager.list_snapshots()] == [earlier.version]
    assert set(_files(manager)) == set(before)


_LIMITED = """
import resource, sys
from keikaku_snapshots import SnapshotManager
from keikaku_snapshots.errors import DiskFullError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    SnapshotManager(sys.argv[1], sys.argv[2], minimum_free_mb=0).create_snapshot("small", compression="zstd")
except DiskFullError as error:
    sys.exit(error.exit_code)
"""
_ENVIRONMENT = {
    "PATH": os.defpath,
    "PYTHONPATH": os.pathsep.join(sys.path),
    "PYTHONDONTWRITEBYTECODE": "1",
}


def test_a_file_size_limit_is_a_disk_error(manager: SnapshotManager) -> None:
    """FAULTS 52: the limit is ours now, because the file is."""
    schemas.run(manager.url, LARGE)
    manager.directory.mkdir(mode=0o700)
    ran = subprocess.run(
        [sys.executable, "-c", _LIMITED, manager.url.text, str(manager.directory)],
        env=_ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ran.returncode == 14, ran.stderr
    assert manager.list_snapshots() == []
    assert _files(manager) == ["audit.log"]


_BLOCKED = """
import sys, time
from keikaku_snapshots import SnapshotManager
from keikaku_snapshots.snapshots import dump
from keikaku_snapshots.snapshots.packed_file import PackedFile
start = dump.start_pg_dump
def told(*arguments, **options):
    running = start(*arguments, **options)
    print(running.pid, flush=True)
    return running
dump.start_pg_dump = told
def write(self, block):
    print("block", flush=True)
    time.sleep(600)
PackedFile.write = write
SnapshotManager(sys.argv[1], sys.argv[2], minimum_free_mb=0).create_snapshot("small", compression="gzip")
"""


def test_when_we_are_killed_pg_dump_goes_too_and_nothing_is_published(manager: SnapshotManager) -> None:
    """PEERS 2, 3, FAULTS 2, 10, 44, 57: SIGKILL in the middle of the pipe."""
    schemas.run(manager.url, LARGE)
    manager.directory.mkdir(mode=0o700)
    with subprocess.Popen(
        [sys.executable, "-c", _BLOCKED, manager.url.text, str(manager.directory)],
        env=_ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert process.stdout.readline() == "block\n"
        pg_dump = psutil.Process(pid)
        assert pg_dump.name() == "pg_dump"
        process.kill()
    pg_dump.wait(timeout=10)
    assert manager.list_snapshots() == []
    made = manager.create_snapshot("small", compression="gzip")
    assert [one.version for one in manager.list_snapshots()] == [made.version]


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_every_version_writes_into_the_pipe(
    each_server: Server, make_database: MakeDatabase, tmp_path: Path, compression: str
) -> None:
    """B5: what comes back is what pg_dump of 15, 16 and 18 wrote, to the byte."""
    url = make_database(each_server)
    schemas.run(url, SMALL)
    before = schemas.dump_text(each_server, url)
    with SnapshotManager(url, tmp_path, minimum_free_mb=1) as manager:
        manager.create_snapshot("small", compression=compression)
        schemas.run(url, CHANGED)
        manager.restore_snapshot("small")
    assert schemas.dump_text(each_server, url) == before


# -- bringing back -------------------------------------------------------------------------


def _unchanged(manager: SnapshotManager, files: list[str]) -> None:
    assert schemas.rows_of(manager.url, COUNT) == [(300,)]
    assert _files(manager) == files


@pytest.mark.parametrize(("compression", "strategy"), [("gzip", "in_place"), ("zstd", "swap")])
def test_a_damaged_file_is_refused_before_the_database_is_touched(
    manager: SnapshotManager, compression: str, strategy: str
) -> None:
    """B13, FAULTS 1, 3, 7: cut or changed anywhere; with a manifest, and on trust without one."""
    made = manager.create_snapshot("small", compression=compression)
    schemas.run(manager.url, CHANGED)
    whole = made.path.read_bytes()
    places = [1, 17, len(whole) // 3, len(whole) - 2, len(whole) - 1]
    damages = [whole[:place] for place in places] + [
        whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :] for place in places[1:]
    ]
    for trust in (False, True):
        if trust:
            made.manifest_path.unlink()
        files = _files(manager)
        for damaged in damages:
            made.path.write_bytes(damaged)
            with pytest.raises(SnapshotCorruptError, match="スナップショットが破損"):
                manager.restore_snapshot("small", made.version, strategy=strategy, trust=trust)
        _unchanged(manager, files)
    made.path.write_bytes(whole)
    assert manager.restore_snapshot("small", made.version, strategy=strategy, trust=True).warnings
    assert schemas.rows_of(manager.url, COUNT) == [(500,)]


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_dump_packed_by_hand_is_restored_on_trust(
    manager: SnapshotManager, compression: str, tmp_path: Path
) -> None:
    """B5: what `gzip` and `zstd` make of a dump of pg_dump, in several pieces too."""
    made = manager.create_snapshot("small")
    schemas.run(manager.url, CHANGED)
    text = made.path.read_bytes()
    pack = gzip.compress if compression == "gzip" else zstandard.ZstdCompressor(level=19).compress
    target = manager.directory / f"byhand_v1.{COMPRESSIONS[compression]}"
    target.write_bytes(pack(text[:1000]) + pack(text[1000:]))
    restored = manager.restore_snapshot("byhand", trust=True)
    assert "no manifest" in restored.warnings[0]
    assert schemas.rows_of(manager.url, COUNT) == [(500,)]
    target.write_bytes(text)
    with pytest.raises(SnapshotCorruptError, match=f"not packed with {compression}"):
        manager.restore_snapshot("byhand", trust=True)


def test_too_little_room_for_the_text_is_said_before_anything_is_written(
    manager: SnapshotManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS 9: the manifest says what the text takes."""
    manager.create_snapshot("small", compression="gzip")
    schemas.run(manager.url, CHANGED)
    files = _files(manager)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    for strategy in ("in_place", "swap"):
        with pytest.raises(DiskFullError, match="too little room to unpack snapshot small"):
            manager.restore_snapshot("small", strategy=strategy)
    _unchanged(manager, files)


@pytest.mark.parametrize("strategy", ["in_place", "swap"])
def test_a_disk_that_fills_up_while_unpacking_leaves_nothing(
    manager: SnapshotManager, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    """FAULTS 9: the reserve is watched, and a full disk is a disk error."""
    manager.create_snapshot("small", compression="zstd")
    schemas.run(manager.url, CHANGED)
    files = _files(manager)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(unpack, "os", SimpleNamespace(write=full, fstat=os.fstat))
        with pytest.raises(DiskFullError, match="the disk is full while unpacking"):
            manager.restore_snapshot("small", strategy=strategy)
    with monkeypatch.context() as patched:
        patched.setattr(unpack, "_WATCH_BYTES", 0)
        patched.setattr(ReserveWatcher, "__call__", lambda _: "only 1 MB are free")
        with pytest.raises(DiskFullError, match="only 1 MB are free"):
            manager.restore_snapshot("small", strategy=strategy)
    _unchanged(manager, files)


def test_snapshots_that_are_mounted_read_only_are_unpacked_elsewhere(
    manager: SnapshotManager, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """D4: /snapshots is mounted read-only; the text goes to the system's temporary directory."""
    manager.create_snapshot("small", compression="gzip")
    schemas.run(manager.url, CHANGED)

    def refused(*_: object) -> object:
        raise AccessDeniedError("read-only")

    monkeypatch.setattr(SnapshotStore, "stage", refused)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert manager.restore_snapshot("small", strategy="swap").strategy == "swap"
    assert schemas.rows_of(manager.url, COUNT) == [(500,)]


def test_without_the_library_nothing_is_touched(
    manager: SnapshotManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B5, B16: making, restoring and verifying zstd say how to install it; exit code 15."""
    manager.create_snapshot("small", compression="zstd")
    schemas.run(manager.url, CHANGED)
    files = _files(manager)
    monkeypatch.setitem(sys.modules, "zstandard", None)
    for work in (
        lambda: manager.create_snapshot("other", compression="zstd"),
        lambda: manager.restore_snapshot("small"),
        lambda: manager.verify_snapshot("small"),
    ):
        with pytest.raises(ToolMissingError, match=r"pip install 'keikaku_snapshots\[zstd\]'") as caught:
            work()
        assert caught.value.exit_code == 15
    _unchanged(manager, files)
