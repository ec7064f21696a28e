"""The snapshot directory: what is listed, replaced, deleted, linked, read, and refused."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import stat
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keikaku_snapshots.errors import (
    CreateFailedError,
    DiskFullError,
    KeikakuError,
    LockBusyError,
    RefusedError,
    SnapshotCorruptError,
    SnapshotExistsError,
    SnapshotInUseError,
    SnapshotNotFoundError,
    UsageError,
)
from keikaku_snapshots.snapshots.files import FileSystem
from keikaku_snapshots.snapshots.hashing import GrowingFileHash, hash_descriptor
from keikaku_snapshots.snapshots.latest import LatestMode
from keikaku_snapshots.snapshots.manifest import Manifest, Snapshot
from keikaku_snapshots.snapshots.retention import old_ones
from keikaku_snapshots.snapshots.store import SnapshotStore
from tests.snapshot_files import NOW, write

if TYPE_CHECKING:
    from collections.abc import Callable

    from keikaku_snapshots.progress import Progress

MODES = get_args(LatestMode)


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    """A store whose clock stands still."""
    return SnapshotStore(tmp_path / "snapshots", grace_s=0, clock=lambda: NOW)


def versions(store: SnapshotStore, name: str = "app") -> list[str]:
    """Return the contents of a name's versions, newest first."""
    return [snapshot.path.read_text() for snapshot in store.list(name)]


class TestPublish:
    """How a snapshot comes to be."""

    def test_two_snapshots_in_one_second_have_two_names(self, store: SnapshotStore) -> None:
        """FAULTS 90: the second is called _2 and is the newest."""
        first, second = write(store, "one"), write(store, "two")

        assert second.version == f"{first.version}_2"
        assert versions(store) == ["two", "one"]
        assert store.latest("app") == second

    @pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
    def test_files_are_private_under_any_umask(self, tmp_path: Path, umask: int) -> None:
        """FAULTS 34: 0600 in a 0700 directory."""
        before = os.umask(umask)
        try:
            store = SnapshotStore(tmp_path / "snapshots")
            snapshot = write(store, "secret")
        finally:
            os.umask(before)

        assert stat.S_IMODE(snapshot.path.stat().st_mode) == 0o600
        assert stat.S_IMODE(snapshot.manifest_path.stat().st_mode) == 0o600
        assert stat.S_IMODE(store.directory.stat().st_mode) == 0o700
        assert stat.S_IMODE((store.directory / ".locks").stat().st_mode) == 0o700

    def test_a_planted_link_is_not_written_through(self, store: SnapshotStore, tmp_path: Path) -> None:
        """FAULTS 35: neither at the temporary name nor at the lasting one."""
        victim = tmp_path / "victim"
        victim.write_text("precious")
        store.prepare()
        (store.directory / "app_v1.sql").symlink_to(victim)
        with pytest.raises(SnapshotExistsError):
            write(store, "new", "v1")
        with pytest.raises(FileExistsError):
            FileSystem().create(store.directory / "app_v1.sql")

        assert victim.read_text() == "precious"

    def test_a_temporary_file_that_was_swapped_is_refused(self, store: SnapshotStore) -> None:
        """FAULTS 35: what is published is the very file that was made here."""
        with store.stage("app", "sql") as stage:
            stage.path.unlink()
            stage.path.write_text("evil")
            manifest = Manifest(
                name="app", version="v1", created_at=NOW, data_file="x", size_bytes=4,
                sha256=hashlib.sha256(b"evil").hexdigest(), format="plain",
            )  # fmt: skip
            with pytest.raises(CreateFailedError, match="replaced"):
                store.publish(stage, manifest)

        assert store.list() == []
        assert stage.path.read_text() == "evil", "it is not ours, so it is not removed"

    def test_a_snapshot_can_be_read_although_its_writer_lingers(self, store: SnapshotStore) -> None:
        """FAULTS 57: the writer's lock on the file ends with publication, whoever still has it open."""
        with store.stage("app", "sql") as stage:
            manifest = Manifest(
                name="app", version="v1", created_at=NOW, data_file="x", size_bytes=0,
                sha256=hashlib.sha256(b"").hexdigest(), format="plain",
            )  # fmt: skip
            child = subprocess.Popen(["sleep", "60"], pass_fds=(stage.fileno(),))
            try:
                with store.reading(store.publish(stage, manifest)) as opened:
                    opened.check()
            finally:
                child.kill()
                child.wait()

    def test_an_existing_version_is_refused_unless_overwrite(self, store: SnapshotStore) -> None:
        """B9: a ValueError, before and at publication; the old one stays."""
        write(store, "one", "20260101_000000")
        with pytest.raises(ValueError, match="exists already"):
            store.check_free("app", "20260101_000000")
        with pytest.raises(SnapshotExistsError):
            write(store, "two", "20260101_000000")
        assert versions(store) == ["one"]
        store.check_free("app", "20260101_000000", overwrite=True)
        write(store, "two", "20260101_000000", overwrite=True)

        assert versions(store) == ["two"]
        assert sorted(path.name for path in store.directory.iterdir()) == [
            ".locks", "app_20260101_000000.sql", "app_20260101_000000.sql.manifest.json", "app_latest.sql",
        ]  # fmt: skip

    def test_overwriting_what_is_being_restored_is_refused(self, store: SnapshotStore) -> None:
        """B8: the reader keeps its file, the new one leaves nothing behind."""
        old = write(store, "one", "v1")
        with store.reading(old) as opened:
            with pytest.raises(SnapshotInUseError):
                write(store, "two", "v1", overwrite=True)
            opened.check()

        assert versions(store) == ["one"]
        assert not list(store.directory.glob(".app*.tmp"))

    def test_the_new_data_stays_when_the_old_manifest_cannot_be_put_back(self, tmp_path: Path) -> None:
        """B9: the disk fails right after the commit and stays so: the manifest's data is never removed."""

        class FailsAfterCommit(FileSystem):
            failing = False

            def before(self, operation: str, path: Path) -> None:
                self.failing = self.failing or operation == "fsync_directory"
                if self.failing and operation in {"fsync_directory", "create", "replace"}:
                    raise OSError(errno.EIO, "Input/output error", str(path))

        write(SnapshotStore(tmp_path / "s"), "one", "v1")
        with pytest.raises(CreateFailedError):
            write(SnapshotStore(tmp_path / "s", files=FailsAfterCommit()), "two again", "v1", overwrite=True)
        store = SnapshotStore(tmp_path / "s")

        assert versions(store) == ["two again"]
        store.sweep()
        assert versions(store) == ["two again"]
        assert [path.name for path in store.directory.glob("app_v1.*")].count("app_v1.sql") == 1

    def test_overwriting_in_another_format_leaves_one_version(self, store: SnapshotStore) -> None:
        """The same version as .sql and as .dump would be two answers to one question."""
        write(store, "one", "v1")
        made = write(store, "two", "v1", overwrite=True, format="custom")

        assert [item.path.name for item in store.list()] == ["app_v1.dump"]
        assert store.find("app", "v1") == made
        assert not (store.directory / "app_latest.sql").is_symlink()

    def test_without_hard_links_the_name_is_held_then_replaced(self, tmp_path: Path) -> None:
        """Some file systems have no hard links: publication still never clobbers."""

        class NoLinks(FileSystem):
            def link(self, source: Path, target: Path) -> None:
                raise PermissionError(errno.EPERM, "Operation not permitted", str(target))

        store = SnapshotStore(tmp_path / "snapshots", files=NoLinks(), clock=lambda: NOW)
        write(store, "one", "v1")
        write(store, "again", "v1", overwrite=True)
        write(store, "two", "v2")
        (store.directory / "app_v3.sql").write_text("foreign")
        with pytest.raises(SnapshotExistsError):
            write(store, "three", "v3")
        store.rename("app", "new")

        assert versions(store, "new") == ["two", "again"]
        assert (store.directory / "app_v3.sql").read_text() == "foreign"

    def test_another_file_system_is_an_error_that_says_so(self, tmp_path: Path) -> None:
        """FAULTS 94: temporary files lie beside the final ones; EXDEV, should it come, is no half state."""

        class OtherDevice(FileSystem):
            def link(self, source: Path, target: Path) -> None:
                raise OSError(errno.EXDEV, "Invalid cross-device link", str(target))

        store = SnapshotStore(tmp_path / "snapshots", files=OtherDevice())
        with store.stage("app", "sql") as stage:
            assert stage.path.parent == store.directory
        with pytest.raises(CreateFailedError, match="cross-device"):
            write(store, "one")
        assert store.list() == []
        assert [path.name for path in store.directory.iterdir()] == [".locks"]

    @pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
    def test_a_directory_that_cannot_be_synced_is_no_error(
        self, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """FAULTS 1: some file systems cannot sync directories; files must sync."""
        real = os.fsync

        def fsync(descriptor: int) -> None:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode) == directories:
                raise OSError(code, os.strerror(code))
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
        directories = True
        store = SnapshotStore(tmp_path / "snapshots")
        write(store, "one", "v1")
        directories = False
        with pytest.raises(CreateFailedError):
            write(store, "two", "v2")

        assert versions(store) == ["one"]

    def test_a_disk_that_is_full_leaves_nothing(self, tmp_path: Path) -> None:
        """FAULTS 9, 52: a limit on file size, as a full disk, leaves the latest as it was."""
        script = (
            "import resource, signal, sys\n"
            "from keikaku_snapshots.snapshots.store import SnapshotStore\n"
            "from keikaku_snapshots.errors import DiskFullError\n"
            "from tests.snapshot_files import write\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "store = SnapshotStore(sys.argv[1])\n"
            "write(store, 'one')\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))\n"
            "try:\n"
            "    write(store, 'two')\n"
            "except DiskFullError as error:\n"
            "    print(error)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "s")], capture_output=True, text=True, check=True
        )

        assert "ディスク容量不足" in done.stdout
        assert versions(SnapshotStore(tmp_path / "s")) == ["one"]
        assert len(list((tmp_path / "s").iterdir())) == 4, "data, manifest, link, locks"

    def test_a_second_writer_of_the_name_fails_and_another_name_does_not(self, store: SnapshotStore) -> None:
        """FAULTS 54, B8: one lock for each name."""
        with store.writing("app", operation="nightly create"):
            with pytest.raises(LockBusyError):
                store.writing("app").acquire()
            write(store, "other", name="other")
            assert store.find("other").is_valid

    def test_four_processes_making_one_name_lose_nothing(self, tmp_path: Path) -> None:
        """FAULTS 54, 90: every version is there, whole, with its own name and number."""
        script = (
            "import sys\n"
            "from keikaku_snapshots.errors import LockBusyError\n"
            "from keikaku_snapshots.snapshots.store import SnapshotStore\n"
            "from tests.snapshot_files import write\n"
            "store, made = SnapshotStore(sys.argv[1]), 0\n"
            "while made < 5:\n"
            "    try:\n"
            "        write(store, sys.argv[2] + str(made))\n"
            "        made += 1\n"
            "    except LockBusyError:\n"
            "        pass\n"
        )
        children = [
            subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "s"), letter]) for letter in "abcd"
        ]
        assert [child.wait(timeout=60) for child in children] == [0] * 4
        store = SnapshotStore(tmp_path / "s")

        assert sorted(versions(store)) == sorted(
            f"{letter}{number}" for letter in "abcd" for number in range(5)
        )
        assert sorted(item.manifest.sequence for item in store.list() if item.manifest) == list(range(1, 21))
        assert (store.directory / "app_latest.sql").read_text() == versions(store)[0]


class TestList:
    """What is there, and what is wrong with it."""

    def test_one_damaged_snapshot_never_hides_the_others(self, store: SnapshotStore) -> None:
        """B3: each kind of damage is listed with its reason, and the newest valid one is found."""
        good = write(store, "good", "v1")
        damages: dict[str, Callable[[Snapshot], object]] = {
            "v2": lambda item: item.manifest_path.write_text("{"),
            "v3": lambda item: item.manifest_path.unlink(),
            "v4": lambda item: item.path.unlink(),
            "v5": lambda item: item.path.write_text("cut"),
            "v6": make_directory,
            "v7": make_fifo,
            "v8": lambda item: item.manifest_path.write_bytes(good.manifest_path.read_bytes()),
            "v9": lambda item: item.manifest_path.write_text(
                item.manifest_path.read_text().replace("good", "evil")
            ),
        }
        for version, damage in damages.items():
            damage(write(store, f"good {version}", version, description="good"))
        listed = {item.version: item for item in store.list()}

        reasons = {"v2": "JSON", "v3": "no manifest", "v4": "missing", "v5": "3 bytes", "v6": "directory"}
        reasons |= {"v7": "FIFO", "v8": "that of app v1", "v9": "checksum differs"}
        assert set(listed) == {"v1", *damages}
        for version, reason in reasons.items():
            assert not listed[version].is_valid
            assert reason in listed[version].problem
        assert listed["v1"].is_valid
        assert store.find("app") == good
        assert store.find("app", "v5").problem, "an exact version is found, with its problem"

    def test_a_version_replaced_while_it_is_looked_at_is_not_damaged(
        self, store: SnapshotStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """FAULTS 10: the old manifest beside the new data is no damage, only a moment."""
        write(store, "one", "v1")
        read_manifest, turns = store._disk.read_manifest, iter([True])

        def read_then_replace(file_name: str) -> Manifest:
            manifest = read_manifest(file_name)
            if next(turns, False):
                write(SnapshotStore(store.directory), "longer", "v1", overwrite=True)
            return manifest

        monkeypatch.setattr(store._disk, "read_manifest", read_then_replace)
        found = store.find("app", "v1")

        assert found.is_valid
        assert found.path.read_text() == "longer"

    def test_links_and_foreign_files_are_left_out(self, store: SnapshotStore) -> None:
        """B3: the latest link, temporary files and other files are no snapshots."""
        made = write(store, "one")
        (store.directory / "app_v9.sql").symlink_to(made.path)
        (store.directory / "notes.sql").write_text("select 1")
        (store.directory / "manifest.json").write_text("{}")
        with store.stage("app", "sql"):
            assert store.list() == [made]

    def test_a_missing_directory_has_no_snapshots(self, store: SnapshotStore) -> None:
        """Reading makes nothing."""
        assert store.list() == []
        assert store.delete_old("app") == []
        assert store.sweep() == []
        with pytest.raises(FileNotFoundError):
            store.find("app")
        assert not store.directory.exists()

    def test_what_is_not_found_says_what_there_is(self, store: SnapshotStore) -> None:
        """Names the directory, and the versions or problems found; damage is not told as absence."""
        write(store, "one", "v1").path.write_text("cut short")
        with pytest.raises(SnapshotCorruptError) as caught:
            store.find("app")
        assert "v1: the data file has 9 bytes" in caught.value.found
        assert str(store.directory) in str(caught.value)
        with pytest.raises(SnapshotNotFoundError, match="v1"):
            store.find("app", "v2")

    def test_a_read_only_directory_can_be_listed_and_read(self, store: SnapshotStore) -> None:
        """D4: snapshots mounted read-only are restored from without a lock file being made."""
        made = write(store, "one")
        for path in (store.directory / ".locks").iterdir():
            path.unlink()
        (store.directory / ".locks").rmdir()
        fresh = SnapshotStore(store.directory)
        with fresh.reading(fresh.find("app")) as opened:
            opened.check()

        assert fresh.list() == [made]
        assert not (store.directory / ".locks").exists()

    def test_an_older_explicit_version_is_not_the_newest(self, store: SnapshotStore) -> None:
        """FAULTS 92, 93: order is the order of versions; modification times mean nothing."""
        newest = write(store, "now")
        old = write(store, "old", "20010101_000000")
        os.utime(newest.path, (0, 0))

        assert store.list() == [newest, old]
        assert (store.directory / "app_latest.sql").read_text() == "now"

    def test_a_clock_that_went_back_makes_a_newer_version(self, tmp_path: Path) -> None:
        """FAULTS 92: the snapshot made last is the newest, whatever the clock says."""
        clock = [NOW, NOW - timedelta(days=100), NOW - timedelta(days=100)]
        store = SnapshotStore(tmp_path / "s", clock=lambda: clock[0])
        write(store, "one")
        clock.pop(0)
        write(store, "two")

        assert versions(store) == ["two", "one"]
        assert store.latest("app") == store.list()[0]


class TestLatest:
    """The link to the newest version."""

    @pytest.mark.parametrize("mode", MODES)
    def test_the_link_follows_publication_and_deletion(self, mode: LatestMode, tmp_path: Path) -> None:
        """B1: as a relative link, a hard link or a copy."""
        store = SnapshotStore(tmp_path / "s", latest_mode=mode)
        link = store.directory / "app_latest.sql"
        write(store, "one")
        second = write(store, "two")
        assert link.read_text() == "two"
        assert link.is_symlink() == (mode == "symlink")
        assert mode != "symlink" or str(link.readlink()) == second.path.name
        assert mode != "hardlink" or link.samefile(second)
        assert mode != "copy" or (not link.samefile(second) and stat.S_IMODE(link.stat().st_mode) == 0o600)
        store.delete(second)
        assert link.read_text() == "one"
        store.delete(store.find("app"))

        assert not os.path.lexists(link)
        assert [path.name for path in store.directory.iterdir()] == [".locks"]

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("kind", ["directory", "file", "link"])
    def test_a_foreign_file_at_its_place_is_refused(
        self, kind: str, mode: LatestMode, tmp_path: Path
    ) -> None:
        """FAULTS 64: before any work is done, and it is left as it is."""
        store = SnapshotStore(tmp_path / "s", latest_mode=mode)
        store.prepare()
        link = store.directory / "app_latest.sql"
        if kind == "directory":
            link.mkdir()
        elif kind == "file":
            link.write_text("mine")
        else:
            link.symlink_to("/etc/hostname")
        with pytest.raises(RefusedError, match="not made by this program"), store.stage("app", "sql"):
            pass
        store.sweep()

        assert os.path.lexists(link)
        assert kind != "file" or link.read_text() == "mine"

    @pytest.mark.parametrize("mode", ["hardlink", "copy"])
    def test_a_file_that_we_made_is_replaced_in_every_mode(self, mode: LatestMode, tmp_path: Path) -> None:
        """PEERS 11, FAULTS 64: our record tells it from a foreign file, also once its snapshot is deleted."""
        store = SnapshotStore(tmp_path / "s", latest_mode=mode)
        write(store, "one")
        other = SnapshotStore(tmp_path / "s", latest_mode="symlink")
        write(other, "two")
        assert (store.directory / "app_latest.sql").is_symlink()
        write(store, "three")

        assert not (store.directory / "app_latest.sql").is_symlink()

    def test_a_copy_that_somebody_edited_is_refused(self, tmp_path: Path) -> None:
        """FAULTS 64: what was changed by hand is not ours any more."""
        store = SnapshotStore(tmp_path / "s", latest_mode="copy")
        write(store, "one")
        (store.directory / "app_latest.sql").write_text("edited by hand")
        with pytest.raises(RefusedError):
            write(store, "two")
        assert (store.directory / "app_latest.sql").read_text() == "edited by hand"

    def test_a_sweep_leaves_a_foreign_file_at_its_place(
        self, store: SnapshotStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        """FAULTS 64: bringing links up to date never replaces what is not ours; it is said."""
        write(store, "one")
        (store.directory / "app_latest.sql").unlink()
        (store.directory / "app_latest.sql").write_text("mine")
        with caplog.at_level(logging.WARNING):
            store.sweep()

        assert (store.directory / "app_latest.sql").read_text() == "mine"
        assert "was not updated" in caplog.text

    def test_a_link_that_was_left_behind_is_computed_again(self, store: SnapshotStore) -> None:
        """FAULTS 65: the link is a cache; restore never looks at it."""
        first, second = write(store, "one"), write(store, "two")
        link = store.directory / "app_latest.sql"
        link.unlink()
        link.symlink_to(first.path.name)
        assert store.find("app") == second
        store.sweep()
        assert link.read_text() == "two"

    def test_the_name_is_there_at_every_instant(self, store: SnapshotStore) -> None:
        """FAULTS 10, 64: a reader of the link never misses it while it is replaced."""
        write(store, "0")
        link, missing, end = store.directory / "app_latest.sql", [], threading.Event()

        def look() -> None:
            while not end.is_set():
                try:
                    link.read_text()
                except OSError as error:
                    missing.append(error)

        thread = threading.Thread(target=look)
        thread.start()
        for number in range(30):
            write(store, str(number))
        end.set()
        thread.join()

        assert missing == []


class TestDelete:
    """How snapshots go."""

    def test_a_snapshot_being_restored_is_not_deleted(self, store: SnapshotStore) -> None:
        """FAULTS 66: 使用中のため削除できません; nothing has changed, the link included."""
        made = write(store, "one")
        with (
            store.reading(made),
            pytest.raises(SnapshotInUseError, match="使用中のため削除できません") as caught,
        ):
            store.delete(made)
        assert str(os.getpid()) in str(caught.value)
        assert (store.directory / "app_latest.sql").read_text() == "one"
        store.delete(made)
        assert store.list() == []
        with pytest.raises(SnapshotNotFoundError):
            store.delete(made)

    def test_a_restore_in_a_child_keeps_the_snapshot(self, store: SnapshotStore) -> None:
        """FAULTS 57, 66: the program that reads holds the lock too, when it was given the descriptor."""
        made = write(store, "one")
        with store.reading(made) as opened:
            child = subprocess.Popen(["sleep", "60"], pass_fds=(opened.fileno(),))
        try:
            with pytest.raises(SnapshotInUseError):
                store.delete(made)
        finally:
            child.kill()
            child.wait()
        store.delete(made)

    def test_a_long_create_blocks_neither_restore_nor_delete(self, store: SnapshotStore) -> None:
        """Design, Locks: the name's lock is only for those who write a version of it."""
        made = write(store, "one")
        with store.writing("app", operation="nightly create"), store.stage("app", "sql"):
            with store.reading(made) as opened:
                opened.check()
            store.delete(made)
        assert store.list() == []

    def test_damaged_snapshots_can_be_deleted(self, store: SnapshotStore) -> None:
        """Whatever is damaged, deleting it leaves nothing of it."""
        for version in ("v1", "v2", "v3"):
            write(store, "one", version)
        store.find("app", "v1").manifest_path.write_text("{")
        store.find("app", "v2").path.unlink()
        store.find("app", "v3").manifest_path.unlink()
        for version in ("v1", "v2", "v3"):
            store.delete(store.find("app", version))

        assert [path.name for path in store.directory.iterdir()] == [".locks"]

    def test_app_never_touches_app2(self, store: SnapshotStore) -> None:
        """PEERS 10, FAULTS 22: groups are made by the manifest's name, not by how a file name begins."""
        others = ["app2", "app_test", "app-x", "ap"]
        for name in others:
            write(store, name, name=name)
        for number in range(3):
            write(store, str(number))
        store.delete_old("app", 1)

        assert versions(store) == ["2"]
        assert all(versions(store, name) == [name] for name in others)

    def test_delete_old_keeps_pinned_damaged_and_those_in_use(
        self, store: SnapshotStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Design, Retention: damaged ones neither count nor go."""
        made = [write(store, str(number)) for number in range(6)]
        store.change(made[0], pinned=True)
        made[5].path.write_text("cut short")
        with store.reading(made[1]), caplog.at_level(logging.WARNING):
            planned = store.delete_old("app", 2, dry_run=True)
            deleted = store.delete_old("app", 2)

        assert [item.version for item in planned] == [made[2].version, made[1].version]
        assert [item.version for item in deleted] == [made[2].version]
        assert [item.version for item in store.list()] == [made[i].version for i in (5, 4, 3, 1, 0)]
        assert "is kept" in caplog.text

    @pytest.mark.parametrize("count", [0, -1, True, 1.5, "3", None])
    def test_a_count_that_keeps_nothing_is_refused(self, count: object, store: SnapshotStore) -> None:
        """Design, Retention: at least one is always kept."""
        write(store, "one")
        with pytest.raises(UsageError, match="keep_count"):
            store.delete_old("app", count)  # type: ignore[arg-type]
        assert versions(store) == ["one"]

    @given(
        facts=st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 5)), max_size=12),
        keep_count=st.integers(1, 6),
    )
    @settings(max_examples=100)
    def test_the_decision_keeps_its_promises(
        self, facts: list[tuple[bool, bool, int]], keep_count: int
    ) -> None:
        """Retention: newest valid and pinned kept, invalid untouched, idempotent, monotone in the count."""
        snapshots = [
            imagined(number, valid=valid, pinned=pinned, second=second)
            for number, (valid, pinned, second) in enumerate(facts)
        ]
        gone = old_ones(snapshots, keep_count)
        kept = [item for item in snapshots if item not in gone]
        valid = sorted((item for item in snapshots if item.is_valid), key=lambda item: item.sort_key)

        assert valid[-keep_count:] == [item for item in valid[-keep_count:] if item in kept]
        assert all(item.is_valid and not item.pinned for item in gone)
        assert old_ones(kept, keep_count) == [], "doing it again changes nothing"
        assert old_ones(snapshots[::-1], keep_count) == gone
        assert set(old_ones(snapshots, keep_count + 1)) <= set(gone), "keeping more deletes less"


def make_directory(snapshot: Snapshot) -> None:
    """Put a directory in the place of the data."""
    snapshot.path.unlink()
    snapshot.path.mkdir()


def make_fifo(snapshot: Snapshot) -> None:
    """Put a FIFO in the place of the data."""
    snapshot.path.unlink()
    os.mkfifo(snapshot.path)


def imagined(number: int, *, valid: bool, pinned: bool, second: int) -> Snapshot:
    """Return a snapshot that lies on no disk."""
    version = f"2026010{second + 1}_000000" + (f"_{number + 2}" if number else "")
    manifest = Manifest(
        name="app", version=version, created_at=datetime(2026, 1, second + 1, tzinfo=UTC), data_file="x",
        size_bytes=1, sha256="0" * 64, format="plain", pinned=pinned, sequence=number + 1,
    )  # fmt: skip
    return Snapshot(
        Path(f"/s/{version}"), "app", version, manifest.created_at, 1, {}, valid, manifest=manifest
    )


class TestReading:
    """A snapshot opened for restore."""

    def test_a_changed_byte_is_found(self, store: SnapshotStore) -> None:
        """B13, FAULTS 7: same size, other content."""
        made = write(store, "one")
        made.path.write_text("onE")
        with (
            store.reading(made) as opened,
            pytest.raises(SnapshotCorruptError, match="スナップショットが破損") as caught,
        ):
            opened.check()
        assert str(made.path) in caught.value.found

    def test_a_file_that_changes_while_it_is_read_is_found(self, store: SnapshotStore) -> None:
        """Design, Valid files: checked on the same descriptor, before and after."""
        made = write(store, "one")
        with store.reading(made) as opened:
            opened.check_unchanged()
            made.path.unlink()
            made.path.write_text("one")
            with pytest.raises(SnapshotCorruptError, match="changed while"):
                opened.check_unchanged()

    @pytest.mark.parametrize("kind", ["fifo", "directory", "link"])
    def test_what_is_no_regular_file_is_refused_at_once(self, kind: str, store: SnapshotStore) -> None:
        """FAULTS 95: a FIFO would hang, a link leads elsewhere."""
        made = write(store, "one")
        made.path.unlink()
        if kind == "fifo":
            os.mkfifo(made.path)
        elif kind == "directory":
            made.path.mkdir()
        else:
            made.path.symlink_to("/etc/hostname")
        begun = time.monotonic()
        with pytest.raises(SnapshotCorruptError, match="not a regular file"), store.reading(made):
            pass
        assert time.monotonic() - begun < 5

    def test_a_file_without_manifest_needs_trust(self, store: SnapshotStore) -> None:
        """Design, Valid files: refused, or read with trust=True, but never called checked."""
        store.prepare()
        (store.directory / "app_v1.sql").write_text("by hand")
        snapshot = store.find("app", "v1")
        with pytest.raises(SnapshotCorruptError, match="no manifest"), store.reading(snapshot):
            pass
        with store.reading(snapshot, trust=True) as opened:
            assert opened.hash().size_bytes == 7
            with pytest.raises(SnapshotCorruptError):
                opened.check()

    def test_what_was_deleted_meanwhile_is_not_found(self, store: SnapshotStore) -> None:
        """A FileNotFoundError of ours."""
        made = write(store, "one")
        store.delete(made)
        with pytest.raises(SnapshotNotFoundError), store.reading(made):
            pass

    def test_readers_and_writers_of_one_version_never_mix(self, store: SnapshotStore) -> None:
        """FAULTS 10, 66: a reader sees one whole version while others overwrite and delete it."""
        made = write(store, "0" * 100, "v1")
        errors: list[BaseException] = []
        end = threading.Event()

        def read() -> None:
            while not end.is_set():
                try:
                    with store.reading(made, wait_s=5) as opened:
                        opened.check()
                        opened.check_unchanged()
                except (SnapshotNotFoundError, LockBusyError):
                    pass
                except KeikakuError as error:
                    errors.append(error)

        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        for number in range(40):
            try:
                write(store, str(number) * 100, "v1", overwrite=True)
                if number % 5 == 0:
                    store.delete(made)
            except SnapshotInUseError:
                pass
        end.set()
        for thread in threads:
            thread.join()

        assert errors == []


class TestHash:
    """Checksums of files at rest and files that grow."""

    def test_a_growing_file_is_hashed_while_it_grows(self, tmp_path: Path) -> None:
        """C2: the result is that of the finished file, and ready when it is."""
        path = tmp_path / "dump"
        path.touch()
        with GrowingFileHash(path) as growing, path.open("wb", buffering=0) as stream:
            for number in range(50):
                stream.write(os.urandom(50_000 + number))
            found = growing.finish()
        content = path.read_bytes()

        assert found == (hashlib.sha256(content).hexdigest(), len(content))

    def test_a_file_begun_again_is_hashed_anew(self, tmp_path: Path) -> None:
        """A writer that empties the file and starts over gives the hash of what is there in the end."""
        path = tmp_path / "dump"
        path.write_bytes(b"x" * 1000)
        with GrowingFileHash(path) as growing:
            while growing._position < 1000:
                time.sleep(0.001)
            path.write_bytes(b"y" * 10)
            assert growing.finish().sha256 == hashlib.sha256(b"y" * 10).hexdigest()

    def test_an_abandoned_hash_ends_its_thread(self, tmp_path: Path) -> None:
        """After a failed dump nothing runs on."""
        (tmp_path / "dump").touch()
        with GrowingFileHash(tmp_path / "dump") as growing:
            pass
        assert not growing._thread.is_alive()

    def test_progress_is_told(self, tmp_path: Path) -> None:
        """The last value is finished and has all bytes."""
        (tmp_path / "dump").write_bytes(b"x" * 10)
        told: list[Progress] = []
        with (tmp_path / "dump").open("rb") as stream:
            hash_descriptor(stream.fileno(), progress=told.append)
        assert (told[-1].done, told[-1].total, told[-1].finished) == (10, 10, True)


class TestRename:
    """Another name for all versions."""

    def test_all_versions_move_with_their_facts(self, store: SnapshotStore) -> None:
        """B3: order, pins and rows stay; damaged versions keep the old name."""
        for number in range(3):
            write(store, str(number), row_counts={"public.t": number})
        damaged = write(store, "damaged")
        damaged.path.write_text("x")
        store.change(store.list()[3], pinned=True)
        newest = store.rename("app", "new")

        assert versions(store, "new") == ["2", "1", "0"]
        assert newest.row_counts == {"public.t": 2}
        assert store.list("new")[-1].pinned
        assert [item.version for item in store.list("app")] == [damaged.version]

    def test_a_name_that_is_taken_or_missing_or_in_use_is_refused(self, store: SnapshotStore) -> None:
        """Nothing is mixed and nothing lost."""
        made = write(store, "one")
        write(store, "two", name="other")
        with pytest.raises(SnapshotExistsError):
            store.rename("app", "other")
        with pytest.raises(SnapshotNotFoundError):
            store.rename("missing", "new")
        with pytest.raises(UsageError):
            store.rename("app", "app")
        with store.reading(made), pytest.raises(SnapshotInUseError):
            store.rename("app", "new")
        assert versions(store) == ["one"]
        assert versions(store, "new") == []

    def test_rename_of_a_version_in_use_renames_none(self, store: SnapshotStore) -> None:
        """B15: nobody wants a history under two names because a restore runs."""
        write(store, "one", "v1")
        newest = write(store, "two", "v2")
        with store.reading(newest), pytest.raises(SnapshotInUseError):
            store.rename("app", "new")
        assert versions(store) == ["two", "one"]
        assert versions(store, "new") == []
        store.rename("app", "new")
        assert versions(store, "new") == ["two", "one"]


def test_a_full_disk_says_so_in_japanese(tmp_path: Path) -> None:
    """FAULTS 9: ENOSPC and EDQUOT while publishing are ディスク容量不足."""

    class Full(FileSystem):
        def write(self, descriptor: int, content: bytes, path: Path) -> None:
            raise OSError(errno.EDQUOT, "Disk quota exceeded", str(path))

    store = SnapshotStore(tmp_path / "s", files=Full())
    with pytest.raises(DiskFullError, match="ディスク容量不足"):
        write(store, "one")
    assert [path.name for path in store.directory.iterdir()] == [".locks"]
