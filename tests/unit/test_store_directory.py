"""Snapshots whose data is a directory of parts: made, read, found damaged, replaced, renamed, removed."""

from __future__ import annotations

import os
import stat
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from keikaku_snapshots.errors import (
    CreateFailedError,
    RefusedError,
    SnapshotCorruptError,
    SnapshotExistsError,
    SnapshotInUseError,
    UsageError,
)
from keikaku_snapshots.snapshots.hashing import FileHash
from keikaku_snapshots.snapshots.manifest import Manifest
from keikaku_snapshots.snapshots.names import split_data_file_name, suffix_of
from keikaku_snapshots.snapshots.part_files import hash_parts
from keikaku_snapshots.snapshots.parts import digest_of, to_manifest
from keikaku_snapshots.snapshots.store import SnapshotStore
from tests.snapshot_files import NOW, write, write_parts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from keikaku_snapshots.progress import Progress
    from keikaku_snapshots.snapshots.manifest import Snapshot

PARTS = {"toc.dat": "toc one", "3001.dat.gz": "offices", "3002.dat.gz": "staffs"}
FIRST, SECOND = "21000102_030405", "21000102_030405_2"


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    """A store whose clock stands still and whose leftovers are old at once."""
    return SnapshotStore(tmp_path / "snapshots", grace_s=0, clock=lambda: NOW)


def content(snapshot: Snapshot) -> dict[str, str]:
    """Return the text of each part."""
    return {path.name: path.read_text() for path in sorted(snapshot.path.iterdir())}


def manifest_of(name: str, listing: dict[str, FileHash], **facts: object) -> Manifest:
    """Return a manifest of a directory with these parts."""
    whole = digest_of(listing)
    manifest = Manifest(
        name=name,
        version=FIRST,
        created_at=NOW,
        data_file="unset",
        size_bytes=whole.size_bytes,
        sha256=whole.sha256,
        format="directory",
        parts=to_manifest(listing),
    )
    return replace(manifest, **facts)  # type: ignore[arg-type]


def with_nothing(path: Path) -> Path:
    """Return a path whose file is gone."""
    path.unlink()
    return path


def writable(path: Path) -> Path:
    """Return a path that its owner may write to."""
    path.chmod(0o600)
    return path


class TestPublish:
    """A directory appears whole or not at all."""

    def test_a_stage_for_a_directory_is_an_empty_locked_directory(self, store: SnapshotStore) -> None:
        """pg_dump fills it; only this account can look into it, and no sweep takes it."""
        with store.stage("app", "dir") as stage:
            assert list(stage.path.iterdir()) == []
            assert stat.S_IMODE(stage.path.stat().st_mode) == 0o700
            assert os.path.samestat(os.fstat(stage.fileno()), stage.path.stat())
            (stage.path / "toc.dat").write_text("half")
            assert store.sweep() == []
        assert not stage.path.exists()

    def test_a_directory_becomes_a_snapshot(self, store: SnapshotStore) -> None:
        """It is listed with the size of its parts, can be read whole, and the link names it."""
        made = write_parts(store, PARTS)

        assert store.list() == [made]
        assert made.is_valid
        assert made.path == store.directory / f"app_{FIRST}.dir"
        assert made.size_bytes == made.own_bytes == sum(map(len, PARTS.values()))
        assert content(made) == dict(sorted(PARTS.items()))
        assert (store.directory / "app_latest.dir").resolve() == made.path
        with store.reading(made) as opened:
            assert opened.check().size_bytes == made.size_bytes
            assert {path.name for path in type(made.path)(f"/dev/fd/{opened.fileno()}").iterdir()} == set(
                PARTS
            )

    @pytest.mark.parametrize("umask", [0, 0o022, 0o077])
    def test_parts_are_private_and_read_only_under_any_umask(self, umask: int, store: SnapshotStore) -> None:
        """FAULTS 34: nobody else can read them, and nobody changes them by mistake: they may be shared."""
        store.prepare()
        before = os.umask(umask)
        try:
            made = write_parts(store, PARTS)
        finally:
            os.umask(before)

        assert stat.S_IMODE(made.path.stat().st_mode) == 0o700
        assert {stat.S_IMODE(path.stat().st_mode) for path in made.path.iterdir()} == {0o400}

    def test_the_checksum_can_be_computed_by_hand(self, store: SnapshotStore) -> None:
        """The manifest's checksum is that of what sha256sum prints."""
        made = write_parts(store, PARTS)
        done = subprocess.run(
            ["/bin/sh", "-c", "LC_ALL=C sha256sum * | sha256sum"],
            cwd=made.path,
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )

        assert made.manifest
        assert done.stdout.split()[0] == made.manifest.sha256

    def test_a_directory_that_was_swapped_is_refused(self, store: SnapshotStore) -> None:
        """What is published is what was looked at."""
        with store.stage("app", "dir") as stage:
            (stage.path / "toc.dat").write_text("toc")
            listing = hash_parts(stage.fileno())
            stage.path.rename(store.directory / "away")
            stage.path.mkdir()
            (stage.path / "toc.dat").write_text("toc")
            with pytest.raises(CreateFailedError, match="replaced"):
                store.publish(stage, manifest_of("app", listing))
        assert store.list() == []

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            (lambda path: (path / "toc.dat").write_text("longer than before"), "part toc.dat has 18 bytes"),
            (lambda path: (path / "more.dat").write_text("x"), "more.dat, which is not part"),
            (lambda path: (path / "toc.dat").unlink(), "toc.dat is missing"),
        ],
        ids=["size", "more", "fewer"],
    )
    def test_a_directory_that_changed_after_hashing_is_refused(
        self, change: Callable[[Path], object], told: str, store: SnapshotStore
    ) -> None:
        """Nothing is published that the manifest does not describe."""
        with store.stage("app", "dir") as stage:
            (stage.path / "toc.dat").write_text("toc")
            listing = hash_parts(stage.fileno())
            change(stage.path)
            with pytest.raises(CreateFailedError) as caught:
                store.publish(stage, manifest_of("app", listing))
        assert told in caught.value.found
        assert list(store.directory.glob("[!.]*")) == []

    def test_an_existing_version_is_refused_unless_overwrite(self, store: SnapshotStore) -> None:
        """Whatever lies at the place of the data stays."""
        write_parts(store, PARTS, FIRST)
        with pytest.raises(SnapshotExistsError):
            write_parts(store, {"toc.dat": "other"}, FIRST)
        (store.directory / f"app_{SECOND}.dir").mkdir()
        with pytest.raises(SnapshotExistsError):
            write_parts(store, {"toc.dat": "other"}, SECOND)
        assert content(store.find("app", FIRST)) == dict(sorted(PARTS.items()))

        replaced = write_parts(store, {"toc.dat": "other"}, FIRST, overwrite=True)

        assert content(replaced) == {"toc.dat": "other"}
        assert replaced.path.name == f"app_{FIRST}.dir"
        assert not list(store.directory.glob(".*.tmp"))

    def test_overwriting_in_another_format_leaves_one_version(self, store: SnapshotStore) -> None:
        """A file takes a directory's place and the other way round."""
        write(store, "one", FIRST)
        write_parts(store, PARTS, FIRST, overwrite=True)
        assert [item.format for item in store.list()] == ["directory"]
        write(store, "two", FIRST, overwrite=True)
        assert [(item.format, item.path.read_text()) for item in store.list()] == [("plain", "two")]

    def test_overwriting_what_is_being_restored_is_refused(self, store: SnapshotStore) -> None:
        """The old version stays whole for its reader."""
        old = write_parts(store, PARTS, FIRST)
        with store.reading(old) as opened:
            with pytest.raises(SnapshotInUseError):
                write_parts(store, {"toc.dat": "other"}, FIRST, overwrite=True)
            opened.check()
            opened.check_unchanged()

    @pytest.mark.parametrize("mode", ["hardlink", "copy"])
    def test_a_link_that_cannot_be_made_is_refused_before_the_work(self, mode: str, tmp_path: Path) -> None:
        """A directory has no hard links and cannot be replaced in one step."""
        store = SnapshotStore(tmp_path / "snapshots", latest_mode=mode)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=mode), store.stage("app", "dir"):
            pass
        assert not list(store.directory.glob(".*.tmp"))
        # What another manager made keeps its symbolic link.
        symlinks = SnapshotStore(tmp_path / "snapshots")
        write_parts(symlinks, PARTS, FIRST)
        newest = write_parts(symlinks, PARTS, SECOND)
        store.delete(newest)
        assert os.readlink(store.directory / "app_latest.dir") == f"app_{FIRST}.dir"  # noqa: PTH115


class TestDamage:
    """What is found by looking, and what by reading."""

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            (lambda path: (path / "toc.dat").unlink(), "toc.dat is missing"),
            (
                lambda path: os.truncate(writable(path / "toc.dat"), 3),
                "part toc.dat has 3 bytes, the manifest says 7",
            ),
            (lambda path: (path / "notes.txt").write_text("x"), "notes.txt, which is not part"),
            (lambda path: (path / ".hidden").write_text("x"), ".hidden, which is not part"),
            (lambda path: (path / "more").mkdir(), "more, which is not part"),
            (
                lambda path: with_nothing(path / "toc.dat").mkdir(),
                "not a regular file but a directory",
            ),
            (
                lambda path: with_nothing(path / "toc.dat").symlink_to("3001.dat.gz"),
                "a symbolic link",
            ),
            (lambda path: os.mkfifo(with_nothing(path / "toc.dat")), "a FIFO"),
            (lambda path: path.rename(path.with_name("away")), "the data directory is missing"),
            (
                lambda path: (path.rename(path.with_name("away")), path.write_text("x")),
                "not a directory but a regular file",
            ),
            (
                lambda path: (path.rename(path.with_name("away")), path.symlink_to("away")),
                "not a directory but a symbolic link",
            ),
        ],
        ids=[
            "missing",
            "cut",
            "foreign",
            "hidden",
            "inner",
            "directory",
            "link",
            "fifo",
            "gone",
            "file",
            "linked",
        ],
    )
    def test_looking_finds_it(
        self, change: Callable[[Path], object], told: str, store: SnapshotStore
    ) -> None:
        """It is listed with the reason, refused when it is to be read, and hides no other."""
        good = write_parts(store, {"toc.dat": "another"}, FIRST)
        bad = write_parts(store, PARTS, SECOND)
        change(bad.path)

        found = {item.version: item for item in store.list()}

        assert found[FIRST].is_valid
        assert not found[SECOND].is_valid
        assert told in found[SECOND].problem
        assert store.find("app") == good
        with pytest.raises(SnapshotCorruptError) as caught, store.reading(bad):
            pass
        assert told in caught.value.found

    def test_reading_finds_a_changed_byte_and_names_the_part(self, store: SnapshotStore) -> None:
        """FAULTS 7: the size is right, the content is not."""
        made = write_parts(store, PARTS)
        for part in ("3001.dat.gz", "toc.dat"):
            (made.path / part).chmod(0o600)
            (made.path / part).write_bytes(b"!" * len(PARTS[part]))
        assert store.find("app").is_valid
        with store.reading(made) as opened, pytest.raises(SnapshotCorruptError, match="changed") as caught:
            opened.check()

        assert caught.value.details["damaged_parts"] == ["3001.dat.gz", "toc.dat"]
        assert f"{made.path / '3001.dat.gz'}: SHA-256 " in caught.value.found
        assert "3002" not in caught.value.found

    def test_a_part_that_changes_while_it_is_read_is_found(self, store: SnapshotStore) -> None:
        """What pg_restore has read is what was checked; a new hard link elsewhere is no change."""
        made = write_parts(store, PARTS)
        with store.reading(made) as opened:
            opened.check()
            (store.directory / "elsewhere").hardlink_to(made.path / "3001.dat.gz")
            opened.check_unchanged()
            (made.path / "3001.dat.gz").chmod(0o600)
            (made.path / "3001.dat.gz").write_text("OFFICES")
            with pytest.raises(SnapshotCorruptError, match="while it was read"):
                opened.check_unchanged()

    def test_a_directory_without_manifest_needs_trust(self, store: SnapshotStore) -> None:
        """One made by hand with pg_dump is listed, and read only when asked for."""
        store.prepare()
        path = store.directory / f"app_{FIRST}.dir"
        path.mkdir()
        (path / "toc.dat").write_text("toc")

        (found,) = store.list()

        assert (found.is_valid, found.format, found.size_bytes) == (False, "directory", 3)
        assert found.problem == "it has no manifest, so it is not known to be complete"
        with pytest.raises(SnapshotCorruptError), store.reading(found):
            pass
        with store.reading(found, trust=True) as opened:
            assert opened.hash().size_bytes == 3

    @pytest.mark.parametrize(
        ("changes", "told"),
        [
            ({"parts": {}}, "a directory needs parts"),
            ({"parts": {"../toc.dat": {"sha256": "0" * 64, "size_bytes": 1}}}, "not the name of a part"),
            ({"parts": {".link": {"sha256": "0" * 64, "size_bytes": 1}}}, "not the name of a part"),
            ({"parts": {"toc.dat": {"sha256": "0" * 63, "size_bytes": 1}}}, "64 hexadecimal digits"),
            ({"parts": {"toc.dat": {"sha256": "0" * 64, "size_bytes": -1}}}, "0 or more"),
            ({"parts": {"toc.dat": {"sha256": "0" * 64, "size_bytes": True}}}, "0 or more"),
            ({"parts": {"toc.dat": {"sha256": "0" * 64}}}, "0 or more"),
            ({"size_bytes": 4}, "not those of the parts"),
            ({"sha256": "0" * 64}, "not those of the parts"),
            ({"format": "plain"}, "has no parts"),
        ],
    )
    def test_a_manifest_whose_parts_cannot_be_is_refused(self, changes: dict[str, object], told: str) -> None:
        """Nothing outside the directory is ever named, and the sum of the parts is the whole."""
        with pytest.raises(UsageError, match=told):
            manifest_of("app", {"toc.dat": FileHash("1" * 64, 3)}, **changes)

    def test_progress_is_told_in_bytes(self, store: SnapshotStore) -> None:
        """Verifying a large directory shows how far it is."""
        told: list[Progress] = []
        made = write_parts(store, PARTS)
        with store.reading(made) as opened:
            opened.check(progress=told.append)

        assert [item.done for item in told] == [7, 13, 20, 20]
        assert told[-1].finished
        assert {item.total for item in told} == {20}


class TestDelete:
    """First it ceases to be a snapshot, then its parts go."""

    def test_nothing_is_left_of_a_deleted_one(self, store: SnapshotStore) -> None:
        """Manifest, parts, directory; the link names the one before."""
        first = write_parts(store, PARTS, FIRST)
        second = write_parts(store, PARTS, SECOND)
        store.delete(second)

        assert store.list() == [first]
        assert sorted(path.name for path in store.directory.glob("[!.]*")) == [
            f"app_{FIRST}.dir",
            f"app_{FIRST}.dir.manifest.json",
            "app_latest.dir",
        ]
        assert content(first) == dict(sorted(PARTS.items()))

    def test_one_being_restored_is_not_deleted(self, store: SnapshotStore) -> None:
        """FAULTS 66: the reader keeps all of its parts."""
        made = write_parts(store, PARTS)
        with store.reading(made) as opened:
            with pytest.raises(SnapshotInUseError):
                store.delete(made)
            assert opened.check()
        store.delete(made)
        assert store.list() == []

    @pytest.mark.parametrize("what", ["file", "directory"])
    def test_what_somebody_put_into_it_is_not_removed(self, what: str, store: SnapshotStore) -> None:
        """Deleting is refused with the name of what is there; nothing has gone."""
        made = write_parts(store, PARTS)
        foreign = made.path / "my notes"
        foreign.mkdir() if what == "directory" else foreign.write_text("mine")
        with pytest.raises(RefusedError, match="not the snapshot's") as caught:
            store.delete(made)
        assert "my notes" in caught.value.found
        assert len(store.list()) == 1
        assert {path.name for path in made.path.iterdir()} == {*PARTS, "my notes"}
        with pytest.raises(RefusedError):
            write_parts(store, PARTS, FIRST, overwrite=True)
        foreign.rmdir() if what == "directory" else foreign.unlink()
        store.delete(made)
        assert store.list() == []

    def test_damaged_ones_can_be_deleted(self, store: SnapshotStore) -> None:
        """A missing part, a missing directory or a missing manifest does not keep the rest."""
        one = write_parts(store, PARTS, "a")
        (one.path / "toc.dat").unlink()
        two = write_parts(store, PARTS, "b")
        two.path.rename(store.directory / "away")
        three = write_parts(store, PARTS, "c")
        three.manifest_path.unlink()
        for snapshot in store.list():
            assert not snapshot.is_valid
            store.delete(snapshot)
        assert store.list() == []
        assert [path.name for path in store.directory.glob("[!.]*")] == ["away"]


class TestRename:
    """All versions take the new name."""

    def test_parts_move_with_their_facts(self, store: SnapshotStore) -> None:
        """The content is the same, the old name is gone, and nothing is on the disk twice."""
        write_parts(store, PARTS, FIRST)
        write_parts(store, {**PARTS, "toc.dat": "toc two"}, SECOND, tags=["kept"])
        newest = store.rename("app", "new")

        assert newest.tags == ("kept",)
        assert content(newest)["toc.dat"] == "toc two"
        assert [item.name for item in store.list()] == ["new", "new"]
        assert not list(store.directory.glob("app*"))
        assert newest.own_bytes == len("toc two")

    def test_one_in_use_keeps_its_name(self, store: SnapshotStore) -> None:
        """A restore that reads it goes on."""
        made = write_parts(store, PARTS)
        with store.reading(made), pytest.raises(SnapshotInUseError):
            store.rename("app", "new")
        assert store.list("app") == [made]


def test_a_name_of_a_directory_comes_apart() -> None:
    """The suffix says the format; the compression of the parts is not in the name."""
    assert suffix_of("directory") == suffix_of("directory", "gzip") == "dir"
    assert split_data_file_name(f"app_{FIRST}.dir") == ("app", FIRST, "dir")
    assert split_data_file_name(f"app_{FIRST}.dir.gz") is None
