"""What can go wrong around a restore: a connection lost at COMMIT, foreign files, full disks."""

from __future__ import annotations

import dataclasses
import errno
import gzip
import hashlib
import os
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Self

import psycopg
import pytest

from keikaku_snapshots import SnapshotManager
from keikaku_snapshots.errors import (
    ConnectError,
    DiskFullError,
    OutcomeUnknownError,
    RestoreFailedError,
    SnapshotCorruptError,
    ToolError,
    UnsafeRestoreError,
)
from keikaku_snapshots.snapshots import in_place, load
from keikaku_snapshots.snapshots.files import FileSystem
from tests import proxy
from tests.integration import schemas
from tests.integration.test_restore_in_place import CHANGED, SMALL
from tests.integration.test_restore_swap import siblings
from tests.servers import create_database

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.snapshots.script import Part
    from tests.conftest import FreshServer
    from tests.servers import Server

COUNT = "SELECT count(*) FROM children"


@pytest.fixture
def small(database: DatabaseURL, tmp_path: Path) -> Iterator[SnapshotManager]:
    """A manager whose database was snapshotted as ``small`` and changed afterwards."""
    schemas.run(database, SMALL)
    with SnapshotManager(database, tmp_path / "snapshots", minimum_free_mb=1) as manager:
        manager.create_snapshot("small")
        schemas.run(database, CHANGED)
        yield manager


def at_commit_behind(word: bytes, verdict: proxy.Verdict) -> proxy.Rule:
    """Cut at the first COMMIT that any connection sends after one has sent this word."""
    seen = False

    def rule(chunk: bytes, sent: int) -> proxy.Verdict:
        nonlocal seen
        seen = seen or word in chunk
        return verdict if seen and b"COMMIT\0" in chunk else "pass"

    return rule


def _through(cutting: proxy.Proxy, small: SnapshotManager) -> SnapshotManager:
    return SnapshotManager(cutting.url, small.directory, minimum_free_mb=1)


def test_a_commit_that_was_done_is_success_though_the_answer_was_lost(small: SnapshotManager) -> None:
    """FAULTS 17: the server knows what became of the transaction."""
    with (
        proxy.Proxy(small.url, at_commit_behind(b"FROM stdin", "deliver-then-cut")) as cutting,
        _through(cutting, small) as manager,
    ):
        assert manager.restore_snapshot("small", strategy="in_place").strategy == "in_place"
        assert cutting.cuts == 1
    assert schemas.rows_of(small.url, COUNT) == [(500,)]


def test_a_commit_that_never_arrived_is_a_failure_with_nothing_changed(small: SnapshotManager) -> None:
    """FAULTS 17, 51: the server rolled back, and says so."""
    with (
        proxy.Proxy(small.url, at_commit_behind(b"FROM stdin", "cut")) as cutting,
        _through(cutting, small) as manager,
        pytest.raises(RestoreFailedError, match="rolled back"),
    ):
        manager.restore_snapshot("small", strategy="in_place")
    assert schemas.rows_of(small.url, COUNT) == [(300,)]


def test_a_commit_of_which_nobody_knows_is_said_to_be_unknown(
    small: SnapshotManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS 17: never guessed, never tried again."""
    monkeypatch.setattr(in_place, "_outcome", lambda *_: "")
    with (
        proxy.Proxy(small.url, at_commit_behind(b"FROM stdin", "deliver-then-cut")) as cutting,
        _through(cutting, small) as manager,
        pytest.raises(OutcomeUnknownError) as caught,
    ):
        manager.restore_snapshot("small", strategy="in_place")
    assert caught.value.exit_code == 22


@pytest.mark.parametrize(("verdict", "expected"), [("cut", 300), ("deliver-then-cut", 500)])
def test_a_swap_whose_commit_is_cut_is_either_done_or_not(
    small: SnapshotManager, verdict: proxy.Verdict, expected: int
) -> None:
    """FAULTS 17, 50: the server is asked which database has the name; the next restore finds no obstacle."""
    with (
        proxy.Proxy(small.url, at_commit_behind(b"RENAME TO", verdict)) as cutting,
        _through(cutting, small) as manager,
    ):
        if expected == 500:
            assert manager.restore_snapshot("small", strategy="swap").strategy == "swap"
        else:
            with pytest.raises((RestoreFailedError, ConnectError)):
                manager.restore_snapshot("small", strategy="swap")
        assert cutting.cuts == 1
    assert schemas.rows_of(small.url, COUNT) == [(expected,)]
    assert small.restore_snapshot("small", strategy="swap").strategy == "swap"


@pytest.mark.parametrize(
    ("strategy", "word"),
    [
        ("swap", b"pg_terminate_backend"),
        ("swap", b'DATABASE "keikaku_new'),
        ("swap", b"pg_db_role_setting"),
        ("swap", b"pg_current_xact_id"),
        ("in_place", b"pg_current_xact_id"),
        ("in_place", b"LOCK TABLE"),
    ],
)
def test_a_connection_lost_at_any_step_is_told_as_an_error_of_ours(
    small: SnapshotManager, strategy: str, word: bytes
) -> None:
    """FAULTS 51: between two statements as well as inside one, and never with an unknown outcome."""
    with (
        proxy.Proxy(small.url, lambda chunk, _: "cut" if word in chunk else "pass") as cutting,
        _through(cutting, small) as manager,
        pytest.raises((ConnectError, RestoreFailedError)),
    ):
        manager.restore_snapshot("small", strategy=strategy)
    assert cutting.cuts == 1
    assert schemas.rows_of(small.url, COUNT) == [(300,)]


class SlowCommits:
    """A server whose COMMITs wait for a standby that is not there, until it is let go."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def hold(self) -> None:
        """From now on every COMMIT waits; returns when one was seen to."""
        self._set("nobody")
        probe = psycopg.connect(**self._server.url.connect_arguments(), autocommit=True)
        self.probes.append(probe)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            probe.pgconn.send_query(b"CREATE TABLE IF NOT EXISTS probe (); DROP TABLE probe")
            while probe.pgconn.is_busy():
                if self._asks(f"pid = {probe.info.backend_pid} AND wait_event = 'SyncRep'"):
                    return
                probe.pgconn.consume_input()
            while probe.pgconn.get_result():
                pass

    def release_when_asked(self) -> None:
        """Let go when somebody asks what became of a transaction."""
        deadline = time.monotonic() + 20
        # By its name: our own last look may still be there, and asks the same.
        while not self._asks("query ~ 'pg_xact_status' AND application_name LIKE 'keikaku%'"):
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
        self._set("")

    def __enter__(self) -> Self:
        self.probes: list[psycopg.Connection[tuple[object, ...]]] = []
        self._thread = threading.Thread(target=self.release_when_asked)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        self._set("")  # also when it was held after all waiting
        for probe in self.probes:
            probe.close()

    def _set(self, name: str) -> None:
        with self._server.admin() as connection:
            connection.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'")
            connection.execute("SELECT pg_reload_conf()")

    def _asks(self, condition: str) -> bool:
        with self._server.admin() as connection:
            query = f"SELECT count(*) FROM pg_stat_activity WHERE {condition}"
            return connection.execute(query.encode()).fetchone() != (0,)


def test_a_swap_whose_commit_is_slow_is_waited_for(fresh_server: FreshServer, tmp_path: Path) -> None:
    """FAULTS 17: while the server is at COMMIT the old name says nothing, so the end of it is awaited."""
    server = fresh_server(synchronous_commit="on")
    url = create_database(server)
    schemas.run(url, SMALL)
    with SnapshotManager(url, tmp_path / "snapshots", minimum_free_mb=1) as manager:
        manager.create_snapshot("small")
    schemas.run(url, CHANGED)
    with SlowCommits(server) as slow:

        def rule(chunk: bytes, sent: int) -> proxy.Verdict:
            if b"pg_current_xact_id" in chunk:
                slow.hold()
            return "deliver-and-cut" if slow.probes and b"COMMIT\0" in chunk else "pass"

        with (
            proxy.Proxy(url, rule) as cutting,
            SnapshotManager(cutting.url, tmp_path / "snapshots", minimum_free_mb=1) as manager,
        ):
            assert manager.restore_snapshot("small", strategy="swap").strategy == "swap"
        assert cutting.cuts == 1
    assert schemas.rows_of(url, COUNT) == [(500,)]


def _replace_data(small: SnapshotManager, content: bytes) -> str:
    """Put other bytes in the place of a snapshot's data, with a manifest that vouches for them."""
    snapshot = small.get_snapshot("small")
    assert snapshot.manifest is not None
    snapshot.path.write_bytes(content)
    fitted = dataclasses.replace(
        snapshot.manifest, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest()
    )
    snapshot.manifest_path.write_bytes(fitted.to_json())
    return snapshot.version


@pytest.mark.parametrize("strategy", ["in_place", "swap"])
def test_compressed_cut_and_binary_files_are_refused_by_their_header(
    server: Server, small: SnapshotManager, strategy: str
) -> None:
    """FAULTS 3, 20: a .gz, whole or cut, an archive, zeros: nothing is piped anywhere, nothing changes."""
    packed = gzip.compress(small.get_snapshot("small").path.read_bytes())
    archive = small.create_snapshot("other", format="custom").path.read_bytes()
    for content, kind in (
        (packed, "gzip"),
        (packed[: len(packed) // 2], "gzip"),
        (archive, "custom archive"),
        (bytes(4096), "first bytes"),
        (b"\x28\xb5\x2f\xfd" + bytes(100), "zstd"),
    ):
        version = _replace_data(small, content)
        with pytest.raises(SnapshotCorruptError, match=kind):
            small.restore_snapshot("small", version, strategy=strategy)
    assert schemas.rows_of(small.url, COUNT) == [(300,)]
    assert siblings(server, small.url) == []


def test_only_the_schemas_that_are_meant_are_left_out(database: DatabaseURL, tmp_path: Path) -> None:
    """FAULTS 21, 22: names, not patterns; what a pattern would have caught or missed shows in the counts."""
    schemas.run(
        database,
        'CREATE SCHEMA keikaku_rewind; CREATE SCHEMA keikaku_rewind2; CREATE SCHEMA "Keikaku_Rewind";'
        "CREATE TABLE keikaku_rewind.t (a int); CREATE TABLE keikaku_rewind2.t (a int);"
        'CREATE TABLE "Keikaku_Rewind"."keikaku_rewind.*" (a int)',
    )
    with SnapshotManager(database, tmp_path, minimum_free_mb=1) as manager:
        made = manager.create_snapshot("t")
        assert set(made.row_counts) == {"keikaku_rewind2.t", 'Keikaku_Rewind."keikaku_rewind.*"'}
        text = made.path.read_text()
        assert "CREATE TABLE keikaku_rewind2.t" in text
        assert "CREATE TABLE keikaku_rewind.t" not in text
        assert '"Keikaku_Rewind"."keikaku_rewind.*"' in text
        manager.restore_snapshot("t", strategy="swap")


def test_records_of_patches_are_not_lost_in_a_swap(small: SnapshotManager) -> None:
    """No snapshot holds them: `auto` stays in place and keeps them, `swap` is refused."""
    schemas.run(
        small.url, "CREATE SCHEMA keikaku_patches; CREATE TABLE keikaku_patches.runs AS SELECT 1 AS id"
    )
    with pytest.raises(UnsafeRestoreError, match="records of its patches"):
        small.restore_snapshot("small", strategy="swap")
    restored = small.restore_snapshot("small")
    assert restored.strategy == "in_place"
    assert "keikaku_patches" in restored.reason
    assert schemas.rows_of(small.url, "SELECT id FROM keikaku_patches.runs") == [(1,)]


@pytest.mark.parametrize("strategy", ["in_place", "swap"])
def test_a_full_disk_of_the_server_is_said_and_nothing_changes(
    server: Server, small: SnapshotManager, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    """FAULTS 9: the server's own disk, in the middle of the rows."""

    def full(self: load.Loader, cursor: psycopg.Cursor[object], part: Part) -> None:
        raise psycopg.errors.DiskFull("could not extend file: No space left on device")

    monkeypatch.setattr(load.Loader, "_copy", full)
    with pytest.raises(DiskFullError, match="ディスク容量不足"):
        small.restore_snapshot("small", strategy=strategy)
    assert schemas.rows_of(small.url, COUNT) == [(300,)]
    assert siblings(server, small.url) == []


def test_missing_programs_stop_the_restore_of_an_archive_before_anything_is_touched(
    server: Server, small: SnapshotManager, tmp_path: Path
) -> None:
    """FAULTS 67, B16: a plain snapshot needs no program, an archive needs pg_restore."""
    small.create_snapshot("archive", format="custom")
    (tmp_path / "empty").mkdir()
    files = set(small.directory.iterdir())
    with SnapshotManager(small.url, small.directory, minimum_free_mb=1, pg_bin=tmp_path / "empty") as manager:
        for strategy in ("in_place", "swap"):
            with pytest.raises(ToolError):
                manager.restore_snapshot("archive", strategy=strategy)
        assert siblings(server, small.url) == []
        assert set(small.directory.iterdir()) == files
        assert schemas.rows_of(small.url, COUNT) == [(300,)]
        assert manager.restore_snapshot("small").strategy == "swap"


def test_a_broken_disk_is_a_failed_restore_and_not_a_failed_snapshot(
    small: SnapshotManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit codes: 25 says that the database is unchanged; here the file of an unpacked archive fails."""
    small.create_snapshot("archive", format="custom")

    def broken(_files: FileSystem, operation: str, path: Path) -> None:
        if operation == "create":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(FileSystem, "before", broken)
    with pytest.raises(RestoreFailedError, match="復元に失敗"):
        small.restore_snapshot("archive", strategy="in_place")
    assert schemas.rows_of(small.url, COUNT) == [(300,)]


_LIMITED = """
import resource, sys
from keikaku_snapshots import SnapshotManager
from keikaku_snapshots.errors import DiskFullError
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    SnapshotManager(sys.argv[1], sys.argv[2], minimum_free_mb=0).create_snapshot("small")
except DiskFullError as error:
    sys.exit(error.exit_code)
"""


def test_a_file_size_limit_is_a_disk_error_and_leaves_the_earlier_snapshot(small: SnapshotManager) -> None:
    """FAULTS 52: pg_dump is ended by a signal without a word, or writes "File too large"."""
    before = [item.version for item in small.list_snapshots()]
    ran = subprocess.run(
        [sys.executable, "-c", _LIMITED, small.url.text, str(small.directory)],
        # The limit would cut the files of compiled modules too.
        env={"PATH": os.defpath, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ran.returncode == 14, ran.stderr
    assert [item.version for item in small.list_snapshots()] == before
    assert not [path for path in small.directory.iterdir() if path.suffix == ".tmp"]
