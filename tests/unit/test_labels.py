"""Names, pins, tags, and finding a snapshot by the beginning of its version."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from keikaku_snapshots import RetentionPolicy, SnapshotManager
from keikaku_snapshots.cli import keikaku
from keikaku_snapshots.cli.run import run
from keikaku_snapshots.errors import (
    InvalidNameError,
    ParameterTypeError,
    SnapshotCorruptError,
    SnapshotExistsError,
    SnapshotNotFoundError,
    UsageError,
)
from keikaku_snapshots.snapshots.store import SnapshotStore
from tests.snapshot_files import write

if TYPE_CHECKING:
    from pathlib import Path

Run = Callable[..., tuple[int, str, str]]
VERSIONS = ("20260130_010000", "20260131_010000", "20260131_020000", "20260131_020000_2", "v1.2")


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    """A directory with five versions of "app"."""
    store = SnapshotStore(tmp_path / "snapshots")
    for number, version in enumerate(VERSIONS):
        write(store, str(number), version)
    return store


@pytest.fixture
def manager(store: SnapshotStore) -> SnapshotManager:
    """The manager of that directory."""
    return SnapshotManager(None, store.directory)


class TestPrefix:
    """`get_snapshot(name, "20260130")`."""

    @pytest.mark.parametrize(
        ("given", "version"),
        [
            ("20260130", "20260130_010000"),
            ("2026013", None),
            ("20260131_01", "20260131_010000"),
            ("20260131_020000", "20260131_020000"),
            ("20260131_020000_", "20260131_020000_2"),
            ("v", "v1.2"),
            ("20270101", ""),
        ],
    )
    def test_so_much_as_fits_one(self, given: str, version: str | None, manager: SnapshotManager) -> None:
        """B3: the whole version always wins; one that fits is taken, several are named, none is not found."""
        if version is None:
            with pytest.raises(UsageError, match="4 versions of 'app' begin with '2026013'") as caught:
                manager.get_snapshot("app", given)
            assert "20260131_020000_2, 20260131_020000" in caught.value.found
        elif not version:
            with pytest.raises(SnapshotNotFoundError) as missing:
                manager.get_snapshot("app", given)
            assert "has these versions of it" in missing.value.found
        else:
            assert manager.get_snapshot("app", given).version == version

    @pytest.mark.parametrize("given", ["", "../x", "-rf", "*", "2026 01", "x" * 41])
    def test_what_begins_no_version_is_refused(self, given: str, manager: SnapshotManager) -> None:
        """FAULTS 37: nothing that means something to a file system."""
        with pytest.raises(UsageError, match="version"):
            manager.get_snapshot("app", given)

    def test_deleting_takes_whole_versions_only(self, manager: SnapshotManager) -> None:
        """What cannot be undone is named exactly."""
        with pytest.raises(UsageError):
            manager.delete_snapshot("app", "20260130")
        assert len(manager.list_snapshots("app")) == 5


class TestPin:
    """A pin guards against rules."""

    def test_a_pinned_version_stays_until_the_pin_goes(self, manager: SnapshotManager) -> None:
        """B10: pins."""
        policy = RetentionPolicy(keep_last=1)
        manager.pin_snapshot("app", "20260130")
        manager.pin_snapshot("app", "20260130", pinned=True)
        assert len(manager.prune(policy).keep) == 2
        manager.pin_snapshot("app", "20260130_010000", pinned=False)

        assert [d.snapshot.version for d in manager.prune(policy).delete] == ["20260130_010000"]

    def test_a_missing_one_is_an_error(self, manager: SnapshotManager) -> None:
        """A slip in a version must not look like a pin."""
        with pytest.raises(SnapshotNotFoundError):
            manager.pin_snapshot("app", "20280101")


class TestTag:
    """Free words."""

    def test_tags_are_added_once_and_removed(self, manager: SnapshotManager) -> None:
        """In the order in which they came."""
        manager.tag_snapshot("app", "v1.2", add=["release", "確認済み", "release"])
        changed = manager.tag_snapshot("app", "v1.2", add=["a b"], remove=["release", "never there"])

        assert changed.tags == ("確認済み", "a b")
        assert manager.get_snapshot("app", "v1.2").tags == changed.tags

    @pytest.mark.parametrize("word", ["", " a", "a ", "a,b", "a\nb", "a\x1b[31m", "x" * 101])
    def test_what_breaks_a_line_is_no_tag(self, word: str, manager: SnapshotManager) -> None:
        """A tag is shown on a terminal."""
        with pytest.raises(InvalidNameError):
            manager.tag_snapshot("app", add=[word])
        assert manager.get_snapshot("app", "v1.2").tags == ()

    def test_one_text_is_not_many_letters(self, manager: SnapshotManager) -> None:
        """`add="release"` would add seven letters."""
        with pytest.raises(ParameterTypeError):
            manager.tag_snapshot("app", add="release")

    def test_two_at_once_lose_none(self, store: SnapshotStore) -> None:
        """Tags are added to what is there under the lock, not to what was there."""

        def add(word: str) -> None:
            SnapshotManager(None, store.directory).tag_snapshot("app", "v1.2", add=[word])

        threads = [threading.Thread(target=add, args=(f"tag{number}",)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert sorted(store.find("app", "v1.2").tags) == [f"tag{number}" for number in range(6)]


class TestRename:
    """`rename_snapshot`; that a crash at any operation loses nothing is tested with the store."""

    def test_all_versions_move(self, manager: SnapshotManager, caplog: pytest.LogCaptureFixture) -> None:
        """B3: with their facts, and the newest one is found under the new name."""
        manager.pin_snapshot("app", "20260130")
        with caplog.at_level(logging.WARNING):
            renamed = manager.rename_snapshot("app", "web")

        assert renamed == manager.get_snapshot("web")
        assert not manager.snapshot_exists("app")
        assert sorted(item.version for item in manager.list_snapshots("web")) == sorted(VERSIONS)
        assert manager.get_snapshot("web", "20260130").pinned
        assert (manager.directory / "web_latest.sql").exists()
        assert not (manager.directory / "app_latest.sql").is_symlink()

    def test_a_name_that_is_taken_is_refused(self, manager: SnapshotManager, store: SnapshotStore) -> None:
        """Two applications' snapshots never become one."""
        write(store, "other", name="web")
        with pytest.raises(SnapshotExistsError):
            manager.rename_snapshot("app", "web")
        assert len(manager.list_snapshots("app")) == 5


class TestDescribe:
    """`describe_snapshot(name, text)`."""

    def test_the_description_of_one_version_changes(self, manager: SnapshotManager) -> None:
        """B4: it is in the manifest; the others keep theirs, and an empty text takes it away."""
        assert manager.describe_snapshot("app", "移行前", "20260130").description == "移行前"
        assert manager.get_snapshot("app", "20260130").description == "移行前"
        assert manager.get_snapshot("app", "v1.2").description != "移行前"
        assert manager.describe_snapshot("app", "", "20260130").description == ""

    def test_it_is_in_the_audit_log_and_so_is_a_tag(self, manager: SnapshotManager) -> None:
        """B14: every change of a snapshot is recorded, begun and done."""
        manager.describe_snapshot("app", "x", "20260130")
        manager.tag_snapshot("app", "20260130", add=["a"])
        lines = [json.loads(line) for line in (manager.directory / "audit.log").read_text().splitlines()]
        assert [(line["action"], line["version"], line["outcome"]) for line in lines] == [
            ("describe", "20260130_010000", "begun"),
            ("describe", "20260130_010000", "done"),
            ("tag", "20260130_010000", "begun"),
            ("tag", "20260130_010000", "done"),
        ]

    def test_what_is_no_text_or_no_snapshot_is_refused(self, manager: SnapshotManager) -> None:
        """A type error before anything is written, and the usual error of a missing one."""
        with pytest.raises(ParameterTypeError):
            manager.describe_snapshot("app", 3)  # type: ignore[arg-type]
        with pytest.raises(SnapshotNotFoundError):
            manager.describe_snapshot("missing", "x")


class TestSnapshotInPlaceOfAName:
    """A `Snapshot` that was listed is given where a name is asked for."""

    def test_it_means_exactly_its_version(self, manager: SnapshotManager) -> None:
        """B3: not the newest one of its name."""
        old = manager.get_snapshot("app", "20260130")
        assert manager.get_snapshot(old) == old
        assert manager.pin_snapshot(old).version == old.version
        assert manager.tag_snapshot(old, add=["a"]).version == old.version
        assert manager.describe_snapshot(old, "x").version == old.version
        with pytest.raises(SnapshotCorruptError, match="app_20260130_010000"):
            manager.verify_snapshot(old)  # these files are no dumps
        assert manager.delete_snapshot(old)
        assert not manager.delete_snapshot(old)
        with pytest.raises(SnapshotNotFoundError):
            manager.get_snapshot(old)
        assert len(manager.list_snapshots("app")) == 4

    def test_another_version_or_directory_is_refused(self, manager: SnapshotManager, tmp_path: Path) -> None:
        """Two answers to one question are no answer; another directory may have the same names."""
        old = manager.get_snapshot("app", "20260130")
        with pytest.raises(UsageError, match="another version"):
            manager.delete_snapshot(old, "v1.2")
        (tmp_path / "other").mkdir()
        with pytest.raises(UsageError, match="another directory"):
            SnapshotManager(None, tmp_path / "other").get_snapshot(old)
        (tmp_path / "link").symlink_to(manager.directory)
        assert SnapshotManager(None, tmp_path / "link").get_snapshot(old).version == old.version


def test_a_snapshot_directory_of_the_wrong_type_is_refused() -> None:
    """A8: a type error that names the parameter, not an AttributeError later."""
    with pytest.raises(ParameterTypeError, match="snapshot_dir must be a path, not int"):
        SnapshotManager(None, 3)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="snapshot_dir is empty"):
        SnapshotManager(None, "")


@pytest.fixture
def type_(capsys: pytest.CaptureFixture[str], store: SnapshotStore, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command line in this process, beside that directory."""
    monkeypatch.chdir(store.directory.parent)
    monkeypatch.setattr("signal.signal", lambda *_: None)

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run(keikaku, list(arguments), "keikaku")
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


class TestCommands:
    """`keikaku rename`, `pin`, `tag`, `show --version`."""

    def test_they_do_what_they_say(self, type_: Run) -> None:
        """One sentence each, on stderr."""
        assert type_("pin", "app", "--version", "20260130") == (0, "", "pinned app 20260130_010000\n")
        assert type_("tag", "app", "a", "b", "--version", "20260130")[2] == "app 20260130_010000: a, b\n"
        assert type_("tag", "app", "a", "--remove", "--version", "20260130")[2].endswith(": b\n")
        text = ("describe", "app", "移行前", "--version", "20260130")
        assert type_(*text)[2] == "app 20260130_010000: 移行前\n"
        assert json.loads(type_(*text, "--json")[1])["manifest"]["description"] == "移行前"
        assert type_("describe", "app", "", "--version", "20260130")[2].endswith(": no description\n")
        assert type_("rename", "app", "web")[2].startswith("renamed app to web: 5 versions, newest ")
        assert type_("pin", "web", "--version", "20260130", "--off")[2] == "unpinned web 20260130_010000\n"

    def test_json(self, type_: Run) -> None:
        """One document each."""
        assert json.loads(type_("pin", "app", "--json")[1])["manifest"]["pinned"] is True
        assert json.loads(type_("tag", "app", "x", "--json")[1])["manifest"]["tags"] == ["x"]
        assert len(json.loads(type_("rename", "app", "web", "--json")[1])["renamed"]) == 5

    def test_show_takes_the_beginning_of_a_version(self, type_: Run) -> None:
        """B3: and says which ones fit when it is too short."""
        assert "20260130_010000" in type_("show", "app", "--version", "20260130")[1]
        code, _, err = type_("show", "app", "--version", "2026")
        assert code == 2
        assert "4 versions of 'app' begin with '2026'" in err
        assert type_("show", "app", "--version", "2025")[0] == 10

    def test_a_taken_name_and_a_missing_one_have_their_codes(self, type_: Run, store: SnapshotStore) -> None:
        """Exit codes: 2 and 10."""
        write(store, "other", name="web")
        assert type_("rename", "app", "web")[0] == 2
        assert type_("rename", "missing", "new")[0] == 10

    @pytest.mark.parametrize(
        "command",
        [
            *("list", "show app", "verify app", "prune", "pin app", "rename app web"),
            "create app --db-url postgresql://u:p@127.0.0.1:1/d",
        ],
    )
    def test_a_file_as_the_directory_is_a_usage_error(self, type_: Run, command: str, tmp_path: Path) -> None:
        """Exit code 2: what was typed is wrong, and nothing failed to be created."""
        (tmp_path / "file").touch()
        code, _, err = type_(*command.split(), "--snapshot-dir", str(tmp_path / "file"))
        assert code == 2
        assert "the snapshot directory is not a directory" in err
