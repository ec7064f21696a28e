"""Refresh and check: the order, the one lock, what a failure leaves, and how cron sees it."""

from __future__ import annotations

import dataclasses
import json
import re
import stat
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from keikaku_snapshots import RetentionPolicy, SnapshotManager
from keikaku_snapshots.config import Settings
from keikaku_snapshots.errors import (
    LockBusyError,
    RefusedError,
    SnapshotCorruptError,
    UsageError,
)
from keikaku_snapshots.operations.refresh import RefreshOptions, refresh
from keikaku_snapshots.postgres.locks import target_lock
from keikaku_snapshots.snapshots.store import SnapshotStore
from tests.snapshot_files import write

if TYPE_CHECKING:
    from keikaku_snapshots.postgres.url import DatabaseURL

ROOT = Path(__file__).parents[2]
DUMP = RefreshOptions(name="nightly", dump_only=True, policy=RetentionPolicy(keep_last=2))


@pytest.fixture
def filled(database: DatabaseURL) -> DatabaseURL:
    """A database with one row."""
    _execute(database, "CREATE TABLE t (id integer PRIMARY KEY); INSERT INTO t VALUES (1)")
    return database


@pytest.fixture
def manager(filled: DatabaseURL, tmp_path: Path) -> SnapshotManager:
    """A manager of that database."""
    return SnapshotManager(filled, tmp_path / "snapshots")


def _execute(url: DatabaseURL, text: str) -> None:
    with psycopg.connect(**url.connect_arguments()) as connection:
        connection.execute(text)


def _versions(directory: Path, name: str = "nightly") -> list[str]:
    return [item.version for item in SnapshotStore(directory).list(name)]


class TestRefresh:
    """The function behind the command."""

    def test_it_dumps_reads_back_and_prunes(self, manager: SnapshotManager) -> None:
        """B10: the old ones go when the new one is there; other names are not touched."""
        write(SnapshotStore(manager.directory), "x", "20200101_000000", name="other")
        for _ in range(4):
            done = refresh(manager, Settings(), DUMP)

        assert done.pruned is not None
        assert [len(done.pruned.keep), len(done.pruned.delete)] == [2, 1]
        assert _versions(manager.directory)[0] == done.snapshot.version
        assert _versions(manager.directory, "other") == ["20200101_000000"]
        assert done.generated is None

    def test_it_generates_under_the_database_lock(self, database: DatabaseURL, tmp_path: Path) -> None:
        """No other run's rows can get under this run's name."""
        manager = SnapshotManager(database, tmp_path)
        options = RefreshOptions(scale="small", policy=RetentionPolicy(keep_last=1))
        with target_lock(database), pytest.raises(LockBusyError):
            refresh(manager, Settings(), options)
        done = refresh(manager, Settings(), options)

        assert done.snapshot.name == "small_10_offices"
        assert done.generated is not None
        assert done.snapshot.row_counts["public.offices"] == 10

    def test_nothing_is_pruned_when_the_new_one_cannot_be_read_back(
        self, manager: SnapshotManager, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Design, Retention: only after the new snapshot was published and verified."""
        for _ in range(2):
            refresh(manager, Settings(), DUMP)

        def damaged(*_: object) -> None:
            raise SnapshotCorruptError("the file cannot be read back")

        monkeypatch.setattr(manager, "verify_snapshot", damaged)
        options = dataclasses.replace(DUMP, policy=RetentionPolicy(keep_last=1))
        with pytest.raises(SnapshotCorruptError):
            refresh(manager, Settings(), options)

        assert len(_versions(manager.directory)) == 3

    def test_two_never_overlap(self, manager: SnapshotManager, monkeypatch: pytest.MonkeyPatch) -> None:
        """PEERS 18, B8: the second one ends at once with "busy", from its beginning to the end of pruning."""
        inside, go_on = threading.Event(), threading.Event()
        original = manager.prune

        def slow(*arguments: Any, **keywords: Any) -> Any:
            inside.set()
            assert go_on.wait(30)
            return original(*arguments, **keywords)

        monkeypatch.setattr(manager, "prune", slow)
        thread = threading.Thread(target=refresh, args=(manager, Settings(), DUMP))
        thread.start()
        try:
            assert inside.wait(30)
            second = SnapshotManager(manager.url, manager.directory)
            with pytest.raises(LockBusyError, match="the refresh of 'nightly'"):
                refresh(second, Settings(), DUMP)
        finally:
            go_on.set()
            thread.join()

        assert len(_versions(manager.directory)) == 1

    def test_an_empty_database_pushes_nothing_out(self, database: DatabaseURL, tmp_path: Path) -> None:
        """FAULTS 42: tables without a row, or none, are a wrong database or a failed migration."""
        manager = SnapshotManager(database, tmp_path)
        for text in ("SELECT 1", "CREATE TABLE t (id integer)"):
            _execute(database, text)
            with pytest.raises(RefusedError, match="not a single row"):
                refresh(manager, Settings(), DUMP)
        assert _versions(tmp_path) == []
        refresh(manager, Settings(), dataclasses.replace(DUMP, allow_empty=True))

        assert len(_versions(tmp_path)) == 1

    def test_a_dump_needs_a_name(self, manager: SnapshotManager) -> None:
        """There is no dataset to take one from."""
        with pytest.raises(UsageError, match="needs a name"):
            refresh(manager, Settings(), dataclasses.replace(DUMP, name=None))


def _cron(
    directory: Path, *arguments: str, url: str | None, umask: int = 0, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command as cron at its worst: `env -i`, no HOME, no terminal, umask 0, another directory."""
    environment = {"PYTHONPATH": str(ROOT), **variables} | ({"KEIKAKU_DB_URL": url} if url else {})
    return subprocess.run(
        [sys.executable, "-m", "keikaku_snapshots", *arguments, "--snapshot-dir", str(directory)],
        env=environment,
        cwd="/",
        umask=umask,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        start_new_session=True,
    )


class TestCron:
    """Item 7: as it runs without anybody watching."""

    def test_it_works_in_an_empty_environment_and_says_nothing(
        self, filled: DatabaseURL, tmp_path: Path
    ) -> None:
        """Design, Refresh: `env -i`, no HOME, no terminal, umask 0: silent, and every file is private."""
        directory = tmp_path / "snapshots"
        done = _cron(directory, "refresh", "nightly", "--dump-only", url=filled.text)

        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        modes = {path.name: stat.S_IMODE(path.lstat().st_mode) for path in directory.rglob("*")}
        private = {name: mode for name, mode in modes.items() if not name.endswith("_latest.sql")}
        assert all(mode & 0o077 == 0 for mode in private.values()), private
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert _cron(directory, "check", "nightly", "--max-age", "1h", "-q", url=None).returncode == 0

    @pytest.mark.parametrize(
        ("arguments", "url", "code", "words"),
        [
            (["refresh", "n", "--dump-only"], None, 2, "no database is named"),
            (["refresh"], "", 2, "no database is named"),
            (["refresh", "n", "--dump-only"], "postgresql://u:S3cretCanary@127.0.0.1:1/d", 12, "127.0.0.1"),
            (["check", "n", "--max-age", "26h"], None, 10, "there is no snapshot 'n'"),
            (["check", "n", "--max-age", "26"], None, 2, "'26' is not a time span"),
        ],
    )
    def test_a_failure_is_one_line_and_a_code(
        self, arguments: list[str], url: str | None, code: int, words: str, tmp_path: Path
    ) -> None:
        """FAULTS 42; exit codes: a mail from cron says in one line what, where, and what to do."""
        done = _cron(tmp_path, *arguments, url=url, KEIKAKU_RETRY_ATTEMPTS="1")

        assert (done.returncode, done.stdout) == (code, "")
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert re.match(rf"error: {arguments[0]}( n)?: ", done.stderr)
        assert words in done.stderr
        assert "S3cretCanary" not in done.stderr

    def test_a_failed_run_leaves_what_was_there(self, filled: DatabaseURL, tmp_path: Path) -> None:
        """The newest good snapshot and the link stay, and so do those a policy would delete."""
        for _ in range(3):
            assert (
                _cron(tmp_path, "refresh", "n", "--dump-only", "--no-prune", url=filled.text).returncode == 0
            )
        before = _versions(tmp_path, "n")
        link = (tmp_path / "n_latest.sql").readlink()
        _execute(filled, "DELETE FROM t")
        done = _cron(tmp_path, "refresh", "n", "--dump-only", "--keep-last", "1", url=filled.text)

        assert done.returncode == 16
        assert "not a single row" in done.stderr
        assert _versions(tmp_path, "n") == before
        assert (tmp_path / "n_latest.sql").readlink() == link

    def test_verbose_and_json_tell_everything(self, filled: DatabaseURL, tmp_path: Path) -> None:
        """By hand with -v; for a program with --json."""
        spoken = _cron(tmp_path, "refresh", "n", "--dump-only", "-v", url=filled.text)
        assert "refreshed n " in spoken.stderr
        done = _cron(tmp_path, "refresh", "n", "--dump-only", "--keep-last", "1", "--json", url=filled.text)
        document = json.loads(done.stdout)

        assert document["snapshot"]["name"] == "n"
        assert len(document["pruned"]["delete"]) == 1
        assert done.stderr == ""

    def test_an_audit_log_that_cannot_be_written_is_told_even_when_quiet(
        self, filled: DatabaseURL, tmp_path: Path
    ) -> None:
        """B14, item 18: never silent; with audit: error nothing is made."""
        (tmp_path / "audit.log").mkdir()
        done = _cron(tmp_path, "refresh", "n", "--dump-only", "-q", url=filled.text)
        assert done.returncode == 0
        assert "the audit log could not be written for create" in done.stderr
        strict = _cron(tmp_path, "refresh", "n", "--dump-only", url=filled.text, KEIKAKU_AUDIT="error")

        assert strict.returncode == 18
        assert len(_versions(tmp_path, "n")) == 1

    @pytest.mark.parametrize("mode", ["hardlink", "copy"])
    def test_latest_can_be_a_file(self, mode: str, filled: DatabaseURL, tmp_path: Path) -> None:
        """B1: for readers over a share that has no links."""
        done = _cron(tmp_path, "refresh", "n", "--dump-only", "--latest", mode, url=filled.text)
        latest, data = tmp_path / "n_latest.sql", tmp_path / f"n_{_versions(tmp_path, 'n')[0]}.sql"

        assert done.returncode == 0, done.stderr
        assert not latest.is_symlink()
        assert latest.read_bytes() == data.read_bytes()
        assert latest.samefile(data) is (mode == "hardlink")


class TestCheck:
    """`keikaku check`."""

    @pytest.fixture
    def directory(self, tmp_path: Path) -> Path:
        """A snapshot of 1,000 bytes, made 25 hours ago."""
        moment = datetime.now(UTC) - timedelta(hours=25)
        write(SnapshotStore(tmp_path), "x" * 1000, f"{moment:%Y%m%d_%H%M%S}", name="n", created_at=moment)
        return tmp_path

    @pytest.mark.parametrize(
        ("arguments", "code", "words"),
        [
            (["--max-age", "26h", "--min-size", "1kB"], 0, "ok: n "),
            ([], 0, "is 25.0 h old, 1.0 kB"),
            (["--max-age", "24h"], 23, "it is 25.0 h old, allowed are 24.0 h"),
            (["--min-size", "1kiB"], 23, "it has 1000 bytes, expected are at least 1024"),
            (["--max-age", "1d", "--min-size", "1MB"], 23, "; it has 1000 bytes"),
            (["--verify"], 13, "スナップショットが破損"),
        ],
    )
    def test_codes(self, arguments: list[str], code: int, words: str, directory: Path) -> None:
        """Exit codes: 23 stale or too small; one line always."""
        done = _cron(directory, "check", "n", *arguments, url=None)

        assert done.returncode == code, done.stderr
        assert words in done.stderr
        assert len(done.stderr.splitlines()) == 1

    def test_only_damaged_ones_are_13_and_a_damaged_newer_one_is_told(self, directory: Path) -> None:
        """A run that was cut short does not hide behind the good one before it."""
        store = SnapshotStore(directory)
        newer = write(store, "y" * 50, name="n")
        newer.path.write_text("cut")
        done = _cron(directory, "check", "n", url=None)
        assert done.returncode == 0
        assert f"warning: n {newer.version}: the data file has 3 bytes" in done.stderr
        store.list("n")[1].path.write_text("cut")

        assert _cron(directory, "check", "n", url=None).returncode == 13

    def test_one_from_the_future_is_not_fresh(self, tmp_path: Path) -> None:
        """FAULTS 92: a clock that was wrong would hide a dead cron job for a year."""
        moment = datetime.now(UTC) + timedelta(days=365)
        write(SnapshotStore(tmp_path), "x", f"{moment:%Y%m%d_%H%M%S}", name="n", created_at=moment)
        done = _cron(tmp_path, "check", "n", "--max-age", "26h", url=None)

        assert done.returncode == 23
        assert "in the future" in done.stderr
