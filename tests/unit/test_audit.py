"""The audit log: what is written, how, and what happens when it cannot be."""

from __future__ import annotations

import json
import logging
import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from keikaku_snapshots import RetentionPolicy, SnapshotManager
from keikaku_snapshots.errors import AuditError, DiskFullError, RestoreFailedError, UsageError
from keikaku_snapshots.postgres.url import DatabaseURL
from keikaku_snapshots.snapshots.audit import AuditLog
from keikaku_snapshots.snapshots.files import FileSystem
from keikaku_snapshots.snapshots.store import SnapshotStore
from tests.snapshot_files import write

ROOT = Path(__file__).parents[2]
CANARY = "S3cretCanary"
KEEP_ONE = RetentionPolicy(keep_last=1)


def entries(directory: Path) -> list[dict[str, Any]]:
    """The lines of the log."""
    lines = (directory / "audit.log").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line]


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    """A directory with three versions of "app"."""
    store = SnapshotStore(tmp_path / "snapshots")
    for version in ("20260101_000000", "20260102_000000", "20260103_000000"):
        write(store, "x", version)
    return store


def manager(store: SnapshotStore, audit: str = "warn") -> SnapshotManager:
    """A manager of that directory whose database has a password that must never be seen."""
    return SnapshotManager(f"postgresql://u:{CANARY}@127.0.0.1:1/db", store.directory, audit=audit)


class TestLines:
    """What is written."""

    def test_who_what_when_and_how_it_ended(self, store: SnapshotStore) -> None:
        """B14: each operation has a line before and a line after it, with the same id."""
        made = manager(store)
        made.delete_snapshot("app", "20260101_000000")
        made.pin_snapshot("app", "20260103_000000")
        made.prune(KEEP_ONE)
        made.rename_snapshot("app", "web")
        made.delete_old_snapshots("web", 1)
        found = entries(store.directory)

        assert [(line["action"], line["outcome"]) for line in found] == [
            (action, outcome)
            for action in ("delete", "pin", "prune", "rename", "delete")
            for outcome in ("begun", "done")
        ]
        assert [first["id"] == second["id"] for first, second in zip(found[::2], found[1::2], strict=True)]
        assert found[1]["name"] == "app"
        assert found[1]["version"] == "20260101_000000"
        assert found[5]["deleted"] == ["app 20260102_000000"]
        assert found[6]["new_name"] == "web"
        assert {"user", "host", "pid", "time", "seconds"} <= set(found[1])
        assert found[1]["database"] == "127.0.0.1:1/db"
        assert found[1]["role"] == "u"

    def test_looking_writes_nothing(self, store: SnapshotStore) -> None:
        """Only what changes something is recorded, and a dry run changes nothing."""
        made = manager(store)
        made.list_snapshots()
        made.get_snapshot("app")
        made.prune(KEEP_ONE, dry_run=True)
        assert made.delete_snapshot("missing") is False

        assert not (store.directory / "audit.log").exists()

    def test_a_failure_is_recorded_by_its_kind_only(self, store: SnapshotStore) -> None:
        """FAULTS 31, 33: the text of an error may quote a row or a password; its name and code do not."""
        audit = AuditLog(store, url=DatabaseURL.parse(f"postgresql://u:{CANARY}@h/db"))
        with pytest.raises(RestoreFailedError), audit.recording("restore", "app", version="v1"):
            raise RestoreFailedError(f"row (1, {CANARY})", found=CANARY, key=CANARY)
        with pytest.raises(KeyboardInterrupt), audit.recording("restore", "app"):
            raise KeyboardInterrupt
        found = entries(store.directory)

        assert [line["outcome"] for line in found] == ["begun", "failed"] * 2
        assert [found[1]["error"], found[1]["exit_code"], found[3]["error"]] == [
            "RestoreFailedError",
            25,
            "KeyboardInterrupt",
        ]
        assert CANARY not in (store.directory / "audit.log").read_text()

    def test_a_restore_is_recorded_although_nobody_answers(self, store: SnapshotStore) -> None:
        """B14: also what did not work was tried by somebody."""
        with pytest.raises(ConnectionError):
            manager(store).restore_snapshot("app")
        found = entries(store.directory)

        assert [line["outcome"] for line in found] == ["begun", "failed"]
        assert found[1]["error"] == "ConnectError"
        assert found[1]["version"] == "20260103_000000"
        assert CANARY not in (store.directory / "audit.log").read_text()

    @pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
    def test_it_is_private_under_any_umask(self, umask: int, store: SnapshotStore) -> None:
        """FAULTS 34: it says what there is and who does what."""
        before = os.umask(umask)
        try:
            manager(store).delete_snapshot("app", "20260101_000000")
        finally:
            os.umask(before)

        assert stat.S_IMODE((store.directory / "audit.log").stat().st_mode) == 0o600

    def test_a_missing_directory_is_not_made(self, tmp_path: Path) -> None:
        """Where there are no snapshots nothing can be done to them."""
        nowhere = SnapshotStore(tmp_path / "nowhere")
        manager(nowhere).prune(KEEP_ONE)
        with pytest.raises(FileNotFoundError):
            manager(nowhere).restore_snapshot("app")

        assert not nowhere.directory.exists()


class TestWriting:
    """How it is written."""

    def test_four_processes_write_whole_lines(self, store: SnapshotStore) -> None:
        """One write a line, at the end: nothing is mixed and nothing is lost."""
        code = textwrap.dedent(
            """
            import sys
            from keikaku_snapshots.snapshots.audit import AuditLog
            from keikaku_snapshots.snapshots.store import SnapshotStore
            audit = AuditLog(SnapshotStore(sys.argv[1]), "error")
            for number in range(15):
                with audit.recording("delete", "app", number=number, long="x" * 5000):
                    pass
            """
        )
        writers = [
            subprocess.Popen([sys.executable, "-c", code, store.directory], env={"PYTHONPATH": str(ROOT)})
            for _ in range(4)
        ]
        assert [writer.wait(60) for writer in writers] == [0] * 4

        found = entries(store.directory)
        assert len(found) == 4 * 15 * 2
        assert len({line["id"] for line in found}) == 4 * 15

    def test_a_line_that_was_cut_stays_alone(self, store: SnapshotStore) -> None:
        """After a crash or a full disk the next line begins on a line of its own."""
        path = store.directory / "audit.log"
        path.write_text('{"time": "2026-01-01T00:00', encoding="utf-8")
        manager(store).delete_snapshot("app", "20260101_000000")

        first, *others = path.read_text(encoding="utf-8").splitlines()
        assert first == '{"time": "2026-01-01T00:00'
        assert [json.loads(line)["outcome"] for line in others] == ["begun", "done"]

    def test_each_line_reaches_the_disk_before_the_work_goes_on(self, tmp_path: Path) -> None:
        """FAULTS 49: written and synced, then the snapshot is touched."""
        operations: list[tuple[str, str]] = []

        class Watched(FileSystem):
            def before(self, operation: str, path: Path) -> None:
                operations.append((operation, path.name))

        store = SnapshotStore(tmp_path, files=Watched())
        snapshot = write(store, "x")
        operations.clear()
        with AuditLog(store).recording("delete", "app"):
            store.delete(snapshot)

        log = [operation for operation, name in operations if name == "audit.log"]
        assert log == ["write", "fsync"] * 2
        assert operations[:2] == [("write", "audit.log"), ("fsync", "audit.log")]
        assert operations[-2:] == [("write", "audit.log"), ("fsync", "audit.log")]

    def test_a_killed_run_has_a_beginning_and_no_end(self, store: SnapshotStore) -> None:
        """FAULTS 44: kill -9 leaves "begun" alone, and the next line is whole."""
        code = textwrap.dedent(
            """
            import os, signal, sys
            from keikaku_snapshots.snapshots.audit import AuditLog
            from keikaku_snapshots.snapshots.store import SnapshotStore
            with AuditLog(SnapshotStore(sys.argv[1])).recording("restore", "app"):
                os.kill(os.getpid(), signal.SIGKILL)
            """
        )
        subprocess.run(
            [sys.executable, "-c", code, store.directory], env={"PYTHONPATH": str(ROOT)}, check=False
        )
        manager(store).delete_snapshot("app", "20260101_000000")

        assert [line["outcome"] for line in entries(store.directory)] == ["begun", "begun", "done"]


class TestFailure:
    """Item 18 of the first users' list: a failure to write it is never unnoticed."""

    @staticmethod
    def _break(directory: Path, way: str) -> None:
        path = directory / "audit.log"
        if way == "directory":
            path.mkdir()
        elif way == "fifo":
            os.mkfifo(path)
        else:
            path.symlink_to(directory.parent / "elsewhere")

    @staticmethod
    def _lose(store: SnapshotStore) -> None:
        """Let the log become unusable in the midst of an operation."""
        (store.directory / "audit.log").unlink()
        (store.directory / "audit.log").mkdir()

    @pytest.mark.parametrize("way", ["directory", "fifo", "link"])
    def test_it_is_a_warning_and_the_work_is_done(
        self, way: str, store: SnapshotStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        """B14: by default; said once for an operation, not for each line; a planted link is not followed."""
        self._break(store.directory, way)
        with caplog.at_level(logging.WARNING):
            assert manager(store).delete_snapshot("app", "20260101_000000")

        assert caplog.text.count("the audit log could not be written for delete") == 1
        assert not (store.directory.parent / "elsewhere").exists()

    @pytest.mark.parametrize("way", ["directory", "fifo", "link"])
    def test_it_is_an_error_before_anything_is_touched(self, way: str, store: SnapshotStore) -> None:
        """B14: `audit="error"`: what cannot be recorded is not done."""
        self._break(store.directory, way)
        with pytest.raises(AuditError, match="delete") as caught:
            manager(store, "error").delete_snapshot("app", "20260101_000000")

        assert caught.value.exit_code == 18
        assert "Nothing was changed." in caught.value.found
        assert len(store.list()) == 3

    def test_an_end_that_cannot_be_written_says_that_the_work_was_done(self, store: SnapshotStore) -> None:
        """The caller must not do it again."""
        with (
            pytest.raises(AuditError, match="done") as caught,
            AuditLog(store, "error").recording("delete", "app"),
        ):
            self._lose(store)

        assert "The operation itself was done." in caught.value.found

    def test_the_operations_own_error_comes_first(
        self, store: SnapshotStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A failure is told as what it is, and that it was not recorded is a warning."""

        def fail() -> None:
            self._lose(store)
            raise DiskFullError("full")

        with (
            caplog.at_level(logging.WARNING),
            pytest.raises(DiskFullError),
            AuditLog(store, "error").recording("create", "app"),
        ):
            fail()

        assert "could not be written for create (failed)" in caplog.text

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only")
    def test_a_full_disk_is_a_warning_with_its_reason(
        self, store: SnapshotStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """FAULTS 9: ENOSPC while the line is written."""

        def full(_descriptor: int, _content: bytes) -> int:
            with Path("/dev/full").open("wb", buffering=0) as stream:
                return stream.write(b"x") or 0

        monkeypatch.setattr("keikaku_snapshots.snapshots.audit.os.write", full)
        with caplog.at_level(logging.WARNING), AuditLog(store).recording("delete", "app"):
            pass

        assert "No space left on device" in caplog.text

    def test_an_unknown_mode_is_refused(self, tmp_path: Path) -> None:
        """A slip must not switch it off."""
        with pytest.raises(UsageError, match="audit 'off'"):
            SnapshotManager(None, tmp_path, audit="off")
