"""Parts that did not change are stored once, and each snapshot stays whole whatever happens to the others."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from keikaku_snapshots.errors import CreateFailedError, SnapshotCorruptError
from keikaku_snapshots.snapshots.files import FileSystem
from keikaku_snapshots.snapshots.store import SnapshotStore
from tests.snapshot_files import NOW, write_parts

if TYPE_CHECKING:
    from keikaku_snapshots.snapshots.manifest import Snapshot

OFFICES, STAFFS = "o" * 5000, "s" * 3000
PARTS = {"toc.dat": "toc one", "3001.dat.gz": OFFICES, "3002.dat.gz": STAFFS}
# The same tables under other numbers, one of them changed: as after a new table.
LATER = {"toc.dat": "toc two", "3005.dat.gz": OFFICES, "3006.dat.gz": "t" * 3000}
FIRST, SECOND, THIRD = "21000102_030405", "21000102_030405_2", "21000102_030405_3"


def store_at(path: Path, files: FileSystem | None = None) -> SnapshotStore:
    """Return a store whose clock stands still and whose leftovers are old at once."""
    return SnapshotStore(path, files=files, grace_s=0, clock=lambda: NOW)


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    """A directory for snapshots."""
    return store_at(tmp_path / "snapshots")


def inodes(snapshot: Snapshot) -> dict[str, int]:
    """Return the inode of each part."""
    return {path.name: path.stat().st_ino for path in snapshot.path.iterdir()}


def again(store: SnapshotStore, snapshot: Snapshot) -> Snapshot:
    """Return a snapshot as it is now."""
    return store.find(snapshot.name, snapshot.version)


def check(store: SnapshotStore, snapshot: Snapshot) -> None:
    """Read every part."""
    with store.reading(snapshot) as opened:
        opened.check()


def overwrite(part: Path, content: bytes) -> None:
    """Change a part in place, as somebody with an editor does."""
    mtime_ns = part.stat().st_mtime_ns
    part.chmod(0o600)
    part.write_bytes(content)
    part.chmod(0o400)
    os.utime(part, ns=(mtime_ns, mtime_ns))


class CountingFileSystem(FileSystem):
    """Fails at links as some file systems do, and remembers them."""

    def __init__(self, code: int) -> None:
        self.code = code
        self.tried = 0

    def link(self, source: Path, target: Path) -> None:
        """Fail."""
        self.tried += 1
        raise OSError(self.code, os.strerror(self.code), str(target))


class TestSharing:
    """What is shared, and what is not."""

    def test_unchanged_parts_are_one_file(self, store: SnapshotStore) -> None:
        """By content, not by name: dump ids shift when a table is added."""
        first = write_parts(store, PARTS)
        second = write_parts(store, LATER)

        assert inodes(second)["3005.dat.gz"] == inodes(first)["3001.dat.gz"]
        assert len({*inodes(first).values(), *inodes(second).values()}) == 5
        check(store, first)
        check(store, second)
        assert {path.name: path.read_text() for path in second.path.iterdir()} == LATER

    def test_own_and_shared_bytes_say_what_a_deletion_frees(self, store: SnapshotStore) -> None:
        """B11: shared with any other snapshot is shared; the size stays that of the whole."""
        first = write_parts(store, PARTS)
        assert (first.own_bytes, first.shared_bytes) == (8007, 0)
        second = write_parts(store, LATER)

        assert (second.size_bytes, second.own_bytes, second.shared_bytes) == (8007, 3007, 5000)
        assert (again(store, first).own_bytes, again(store, first).shared_bytes) == (3007, 5000)
        again(store, first).manifest_path.unlink()
        (lost,) = [item for item in store.list() if not item.is_valid]
        assert (lost.own_bytes, lost.shared_bytes) == (3007, 5000)
        store.delete(lost)
        assert (again(store, second).own_bytes, again(store, second).shared_bytes) == (8007, 0)

    def test_snapshots_of_other_names_share_too(self, store: SnapshotStore) -> None:
        """What counts is the content; the names have nothing else in common."""
        first = write_parts(store, PARTS, name="app")
        second = write_parts(store, LATER, name="other")
        assert set(inodes(first).values()) & set(inodes(second).values())

    def test_the_newest_snapshot_is_asked_first(self, store: SnapshotStore) -> None:
        """When an older one has a file of its own, the newest one's is taken."""
        write_parts(store_at(store.directory, CountingFileSystem(errno.EMLINK)), PARTS, FIRST)
        second = write_parts(store_at(store.directory, CountingFileSystem(errno.EMLINK)), PARTS, SECOND)
        third = write_parts(store, PARTS, THIRD)
        assert inodes(third)["3001.dat.gz"] == inodes(second)["3001.dat.gz"]

    def test_an_older_one_is_asked_when_the_newest_is_damaged(
        self, store: SnapshotStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Bytes are compared before linking: rot is not spread, and it is told."""
        first = write_parts(store_at(store.directory, CountingFileSystem(errno.EMLINK)), PARTS, FIRST)
        second = write_parts(store_at(store.directory, CountingFileSystem(errno.EMLINK)), PARTS, SECOND)
        overwrite(second.path / "3001.dat.gz", b"x" + OFFICES[1:].encode())
        with caplog.at_level(logging.WARNING, logger="keikaku_snapshots.snapshots"):
            third = write_parts(store, PARTS, THIRD)

        assert inodes(third)["3001.dat.gz"] == inodes(first)["3001.dat.gz"]
        check(store, third)
        told = [record.getMessage() for record in caplog.records]
        assert told == [f"{second.path / '3001.dat.gz'} is damaged and is not shared; run `keikaku verify`"]

    def test_a_damaged_part_is_read_once_however_many_snapshots_have_it(
        self, store: SnapshotStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        """One file under many names is one file."""
        for version in ("a", "b", "c"):
            made = write_parts(store, {"1.dat": OFFICES}, version)
        overwrite(made.path / "1.dat", b"x" * len(OFFICES))
        with caplog.at_level(logging.WARNING, logger="keikaku_snapshots.snapshots"):
            last = write_parts(store, {"1.dat": OFFICES}, "d")
        assert len(caplog.records) == 1
        assert last.own_bytes == len(OFFICES)

    @pytest.mark.parametrize(
        "code", [errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV, errno.ENOSPC, errno.EIO]
    )
    def test_what_cannot_be_linked_is_a_file_of_its_own(self, code: int, store: SnapshotStore) -> None:
        """RECIPES 4: too many links, none on this file system, another device: the copy is kept."""
        first = write_parts(store, PARTS)
        files = CountingFileSystem(code)
        second = write_parts(store_at(store.directory, files), LATER)

        assert files.tried == 1
        assert not set(inodes(first).values()) & set(inodes(second).values())
        check(store, second)

    def test_the_old_part_is_not_touched(self, store: SnapshotStore) -> None:
        """Neither its time nor its mode nor its bytes."""
        first = write_parts(store, PARTS)
        part = first.path / "3001.dat.gz"
        before = part.stat()
        with store.reading(first) as opened:
            write_parts(store, LATER)
            opened.check_unchanged()
        after = part.stat()
        assert (before.st_mtime_ns, before.st_mode, before.st_ino) == (
            after.st_mtime_ns,
            after.st_mode,
            after.st_ino,
        )
        assert after.st_nlink == 2

    def test_empty_parts_are_not_shared(self, store: SnapshotStore) -> None:
        """There is nothing to save."""
        write_parts(store, {"1.dat": ""})
        assert (write_parts(store, {"1.dat": ""}).path / "1.dat").stat().st_nlink == 1

    def test_damaged_snapshots_and_other_accounts_are_not_linked_to(self, store: SnapshotStore) -> None:
        """Another account could change its file afterwards; of a damaged snapshot nothing is believed."""
        first = write_parts(store, PARTS)
        (first.path / "toc.dat").unlink()
        second = write_parts(store, LATER)
        assert second.shared_bytes == 0
        if os.geteuid() == 0:
            os.chown(second.path / "3005.dat.gz", 12345, -1)
            assert write_parts(store, LATER).own_bytes == 5000

    def test_a_part_replaced_while_it_is_compared_is_not_linked(self, store: SnapshotStore) -> None:
        """What is linked is the file that was compared, although no lock is held so long."""
        first = write_parts(store, PARTS)
        part = first.path / "3001.dat.gz"

        class Replaced(FileSystem):
            def before(self, operation: str, path: Path) -> None:
                if operation == "link":
                    part.rename(store.directory / "away")
                    part.write_text("x" * 5000)

        second = write_parts(store_at(store.directory, Replaced()), LATER)

        assert second.shared_bytes == 0
        assert (second.path / "3005.dat.gz").read_text() == OFFICES
        check(store, second)

    def test_a_link_that_cannot_be_taken_back_is_not_published(self, store: SnapshotStore) -> None:
        """The directory is looked at again after sharing: nothing in it is foreign."""
        first = write_parts(store, PARTS)

        class Stuck(FileSystem):
            def before(self, operation: str, path: Path) -> None:
                if operation == "link" and path.name == ".link":
                    (first.path / "3001.dat.gz").rename(store.directory / "away")
                    (first.path / "3001.dat.gz").write_text("x" * 5000)
                if operation == "unlink" and path.name == ".link":
                    raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

        with pytest.raises(CreateFailedError, match="changed after it was checked"):
            write_parts(store_at(store.directory, Stuck()), LATER)
        assert len(store.list()) == 1
        assert [path.name for path in store.sweep()] != []
        assert not list(store.directory.glob(".*.tmp"))

    def test_a_snapshot_deleted_while_it_is_compared_is_no_error(self, store: SnapshotStore) -> None:
        """A prune of another process goes on; the part is a file of its own."""
        first = write_parts(store, PARTS)

        class Deleted(FileSystem):
            def before(self, operation: str, path: Path) -> None:
                if operation == "link" and path.name == ".link":
                    store.delete(first)

        second = write_parts(store_at(store.directory, Deleted()), LATER)
        assert second.shared_bytes == 0
        check(store, second)


class TestDamage:
    """One file is in many snapshots, and so is its damage."""

    def test_every_snapshot_that_a_damaged_part_hurts_is_named(self, store: SnapshotStore) -> None:
        """B11: verify of one names the others, by the file they share."""
        first = write_parts(store, PARTS)
        second = write_parts(store, LATER)
        other = write_parts(store, {"toc.dat": "toc", "7.dat": OFFICES}, name="other")
        sound = write_parts(store, {"toc.dat": "toc 4", "8.dat": STAFFS})
        overwrite(first.path / "3001.dat.gz", b"x" * 5000)
        with pytest.raises(SnapshotCorruptError) as caught:
            check(store, again(store, second))

        assert caught.value.details["damaged_parts"] == ["3005.dat.gz"]
        assert caught.value.details["also_hurt"] == [f"{other} (7.dat)", f"{first} (3001.dat.gz)"]
        assert "The same damage is in: other " in caught.value.found
        check(store, sound)

    def test_a_copy_of_the_same_content_is_named_only_when_it_is_damaged(self, store: SnapshotStore) -> None:
        """Files of their own are read before they are accused."""
        alone = store_at(store.directory, CountingFileSystem(errno.EMLINK))
        made = [write_parts(alone, {"1.dat": OFFICES}, version) for version in ("a", "b", "c")]
        for snapshot in made[:2]:
            overwrite(snapshot.path / "1.dat", b"x" * 5000)
        with pytest.raises(SnapshotCorruptError) as caught:
            check(store, made[0])
        assert caught.value.details["also_hurt"] == [f"{made[1]} (1.dat)"]

    def test_a_shared_part_that_was_cut_is_told_by_looking(self, store: SnapshotStore) -> None:
        """All that have it are listed as damaged, and each names the others."""
        first = write_parts(store, PARTS)
        second = write_parts(store, LATER)
        (second.path / "3005.dat.gz").chmod(0o600)
        os.truncate(second.path / "3005.dat.gz", 10)

        assert [item.is_valid for item in store.list()] == [False, False]
        with pytest.raises(SnapshotCorruptError, match="cannot be read") as caught, store.reading(second):
            pass
        assert caught.value.details["also_hurt"] == [f"{first} (3001.dat.gz)"]

    def test_a_part_without_the_right_to_write_is_not_edited_by_mistake(self, store: SnapshotStore) -> None:
        """The mode says so to everybody but root."""
        made = write_parts(store, PARTS)
        if os.geteuid() != 0:
            with pytest.raises(PermissionError):
                (made.path / "3001.dat.gz").write_text("x")
        assert (made.path / "3001.dat.gz").stat().st_mode & 0o222 == 0


@pytest.mark.skipif(
    subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode != 0,
    reason="no mount namespaces here",
)
def test_a_full_file_system_holds_many_that_share_and_loses_none(tmp_path: Path) -> None:
    """FAULTS 9: twenty snapshots of 600 kB on 2 MB; one that finds no room leaves all others whole."""
    script = textwrap.dedent(
        """
        import os, sys
        from datetime import UTC, datetime
        from keikaku_snapshots.errors import DiskFullError
        from keikaku_snapshots.snapshots.store import SnapshotStore
        from tests.snapshot_files import write_parts

        store = SnapshotStore(sys.argv[1], grace_s=0, clock=lambda: datetime.now(UTC))
        rows = os.urandom(600_000)
        for number in range(20):
            write_parts(store, {"toc.dat": str(number), "1.dat": rows})
        failures = 0
        for number in range(5):
            try:
                # The first two fit; then there is no room for a manifest, a link or a part.
                write_parts(store, {"toc.dat": "x" * 9000, "1.dat": os.urandom(550_000)})
            except (DiskFullError, OSError):
                failures += 1
        for snapshot in store.list():
            with store.reading(snapshot) as opened:
                opened.check()
        print(len(store.list()), failures, len(list(store.directory.glob(".*.tmp"))))
        """
    )
    mounted = f"mount -t tmpfs -o size=2m none {tmp_path} && exec {sys.executable} -c '{script}' {tmp_path}/s"
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", mounted],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": os.environ["PATH"]},
        timeout=60,
    )
    assert done.stdout.split() == ["22", "3", "0"], done.stderr
