"""The store fails, is interrupted or killed at every file operation, and nothing is ever half there."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, get_args

import pytest

from keikaku_snapshots.errors import CreateFailedError, DiskFullError, FileOperationError, KeikakuError
from keikaku_snapshots.snapshots.latest import LatestMode
from keikaku_snapshots.snapshots.store import SnapshotStore
from tests.crash import BreakingFileSystem, Mode, RecordingFileSystem, count_operations, run_killed
from tests.snapshot_files import NOW, write

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from keikaku_snapshots.snapshots.files import FileSystem

FIRST, SECOND, THIRD = "21000102_030405", "21000102_030405_2", "21000102_030405_3"
#: No work has more operations than this; more means that a loop does not end.
MANY = 60
MODES = get_args(LatestMode)


def store_at(path: Path, files: FileSystem | None = None, mode: LatestMode = "symlink") -> SnapshotStore:
    """Return a store whose clock stands still and whose leftovers are old at once."""
    return SnapshotStore(path, files=files, latest_mode=mode, grace_s=0, clock=lambda: NOW)


def valid(store: SnapshotStore) -> dict[str, str]:
    """Return version and content of every valid snapshot, read and checked in full."""
    found = {}
    for snapshot in store.list():
        if snapshot.is_valid:
            with store.reading(snapshot) as opened:
                opened.check()
                found[f"{snapshot.name} {snapshot.version}"] = snapshot.path.read_text()
    return found


def names(path: Path) -> list[str]:
    """Return the directory's files, the locks and records of ours left out."""
    return sorted(item.name for item in path.iterdir() if item.name not in {".locks", ".app_latest.sql.json"})


@dataclass(frozen=True)
class Work:
    """One thing to do to a directory that has two versions, and what may be there afterwards."""

    #: What is done.
    do: Callable[[SnapshotStore], object]
    #: Valid snapshots when it has not happened.
    before: dict[str, str]
    #: Valid snapshots when it has.
    after: dict[str, str]


TWO = {f"app {FIRST}": "one", f"app {SECOND}": "two"}
WORKS = {
    "publish": Work(lambda store: write(store, "three", THIRD), TWO, {**TWO, f"app {THIRD}": "three"}),
    "overwrite": Work(
        lambda store: write(store, "two again", SECOND, overwrite=True),
        TWO,
        {**TWO, f"app {SECOND}": "two again"},
    ),
    "delete": Work(lambda store: store.delete(store.find("app")), TWO, {f"app {FIRST}": "one"}),
    "delete_old": Work(lambda store: store.delete_old("app", 1), TWO, {f"app {SECOND}": "two"}),
    "pin": Work(lambda store: store.change(store.find("app"), pinned=True), TWO, TWO),
}


SWEEP = Work(lambda store: store.sweep(), TWO, TWO)
RENAME = Work(lambda store: store.rename("app", "new"), TWO, TWO)


def do_in(work: Work, path: Path, mode: LatestMode, files: FileSystem) -> None:
    """Do the work in a directory through the given file operations."""
    work.do(store_at(path, files, mode))


@pytest.fixture
def directories(memory_path: Path) -> Callable[[LatestMode], Path]:
    """Give a new directory with two versions at each call."""
    numbers = count()

    def make(mode: LatestMode) -> Path:
        path = memory_path / f"snapshots{next(numbers)}"
        store = store_at(path, mode=mode)
        write(store, "one", FIRST)
        write(store, "two", SECOND)
        return path

    return make


def assert_whole(path: Path, work: Work, mode: LatestMode) -> None:
    """Check the promises right after a crash, then that the next command finds everything in order."""
    store = store_at(path, mode=mode)
    now = valid(store)
    assert now in (work.before, work.after), "only whole snapshots are there"
    assert all(item.is_valid for item in store.list()), "no half file is listed"
    link = path / "app_latest.sql"
    if link.exists():
        assert link.read_text() in {*work.before.values(), *work.after.values()}, (
            "the link is a whole snapshot"
        )
    # The next command: sweeps, and makes a new version.
    store.sweep()
    assert valid(store) == now, "the sweep removes no valid snapshot"
    newest = store.find("app")
    assert link.read_text() == newest.path.read_text(), "the link is computed again"
    files = {item.path.name for item in store.list()}
    assert names(path) == sorted({*files, *(f"{name}.manifest.json" for name in files), "app_latest.sql"})
    assert all(item.is_valid for item in store.list()), "nothing half is left"
    made = write(store, "next", store.next_version("app"))
    assert store.find("app") == made
    assert link.read_text() == "next"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", WORKS)
def test_killed_at_any_operation_leaves_only_whole_snapshots(
    name: str, mode: LatestMode, directories: Callable[[LatestMode], Path]
) -> None:
    """FAULTS 49, 65: SIGKILL between any two file operations loses nothing and shows nothing half."""
    work = WORKS[name]
    for at in range(MANY):
        path = directories(mode)
        died = run_killed(partial(do_in, work, path, mode), at)
        assert_whole(path, work, mode)
        if not died:
            assert at > 3, "the harness saw the operations"
            return
    pytest.fail("the work never ended")


@pytest.mark.parametrize(
    ("how", "for_good", "mode"),
    [
        *[("error", False, mode) for mode in MODES],
        *[("error", True, "symlink"), ("full", True, "symlink"), ("interrupt", False, "symlink")],
    ],
)
@pytest.mark.parametrize("name", WORKS)
def test_failing_at_any_operation_leaves_only_whole_snapshots(
    name: str, for_good: bool, how: Mode, mode: LatestMode, directories: Callable[[LatestMode], Path]
) -> None:
    """FAULTS 9, 49: EIO, a full disk or Ctrl-C at any operation is an error of ours, never a half state."""
    work = WORKS[name]
    expected: type[BaseException] = {"interrupt": KeyboardInterrupt, "full": DiskFullError}.get(
        how, KeikakuError
    )
    for at in range(MANY):
        path = directories(mode)
        files = BreakingFileSystem(at, how, for_good=for_good)
        with contextlib.suppress(expected):
            work.do(store_at(path, files, mode))
        assert_whole(path, work, mode)
        if len(files.operations) <= at:
            return
    pytest.fail("the work never ended")


def overwrite_as_archive(path: Path, files: FileSystem) -> None:
    """Replace the second version, which is plain, by one in the custom format."""
    write(store_at(path, files), "two again", SECOND, overwrite=True, format="custom")


@pytest.mark.parametrize("how", ["delete", "delete_old"])
def test_what_a_killed_overwrite_replaced_goes_with_its_version(
    how: str, directories: Callable[[LatestMode], Path]
) -> None:
    """FAULTS 49: an overwrite in another format is killed anywhere; deleting the version deletes both."""
    both = 0
    for at in range(MANY):
        path = directories("symlink")
        died = run_killed(partial(overwrite_as_archive, path), at)
        store = store_at(path)
        both += len(store.list("app")) == 3
        if how == "delete":
            assert store.find("app").version == SECOND
            store.delete(store.find("app"))
            assert valid(store) == {f"app {FIRST}": "one"}
        else:
            write(store, "three", THIRD)
            store.delete_old("app", 1)
            assert valid(store) == {f"app {THIRD}": "three"}
        if not died:
            assert both, "the harness stopped between the two formats"
            return
    pytest.fail("the overwrite never ended")


def test_a_deletion_killed_anywhere_brings_no_replaced_format_back(
    directories: Callable[[LatestMode], Path],
) -> None:
    """FAULTS 49: of a version in two formats the one that was replaced goes first."""

    def delete(path: Path, files: FileSystem) -> None:
        store_at(path, files).delete(store_at(path).find("app"))

    for between in range(MANY):
        path = directories("symlink")
        assert run_killed(partial(overwrite_as_archive, path), between), "it stopped between the formats"
        if len(store_at(path).list("app")) == 3:
            break
    for at in range(MANY):
        path = directories("symlink")
        assert run_killed(partial(overwrite_as_archive, path), between)
        died = run_killed(partial(delete, path), at)
        for store in (store_at(path), store_at(path)):
            newest = store.find("app")
            assert newest.path.read_text() == ("two again" if newest.version == SECOND else "one")
            store.sweep()
        if not died:
            return
    pytest.fail("the deletion never ended")


@pytest.mark.parametrize("name", ["publish", "overwrite", "delete", "pin", "sweep", "rename"])
def test_a_failing_disk_is_told_in_the_words_of_what_was_done(
    name: str, directories: Callable[[LatestMode], Path]
) -> None:
    """EIO while a snapshot is made is "作成に失敗" (19); while one is deleted or renamed it is not."""
    do = {**WORKS, "sweep": SWEEP, "rename": RENAME}[name].do
    making = name in {"publish", "overwrite"}
    kind, term, code = (CreateFailedError, "作成", 19) if making else (FileOperationError, "ファイル操作", 30)
    raised = []
    for at in range(8):
        path = directories("symlink")
        if name == "sweep":
            assert run_killed(partial(do_in, WORKS["delete"], path, "symlink"), 5)
        try:
            do(store_at(path, BreakingFileSystem(at, "error")))
        except KeikakuError as error:
            raised.append(error)
    assert raised
    for told in raised:
        assert type(told) is kind
        assert term in told.term
        assert told.exit_code == code
        assert "Input/output error" in told.found


@pytest.mark.parametrize("name", ["publish", "overwrite", "delete"])
def test_an_error_before_the_commit_means_that_nothing_happened(
    name: str, directories: Callable[[LatestMode], Path]
) -> None:
    """When publish or overwrite raises, the snapshots are those of before."""
    work = WORKS[name]
    total = count_operations(lambda files: work.do(store_at(directories("symlink"), files)))
    raised = 0
    for at in range(total):
        path = directories("symlink")
        try:
            work.do(store_at(path, BreakingFileSystem(at, "error")))
        except KeikakuError:
            raised += 1
            if name != "delete":
                assert valid(store_at(path)) == work.before
    assert raised >= 3


def test_a_crash_while_sweeping_is_ended_by_the_next_sweep(directories: Callable[[LatestMode], Path]) -> None:
    """FAULTS 43, 49: leftovers of a killed publication and deletion go, however often the sweep is killed."""
    for at in range(MANY):
        path = directories("symlink")
        # Killed with the data linked and the manifest not yet renamed; then with the manifest gone.
        for work, operation in ((WORKS["publish"], 6), (WORKS["delete"], 5)):
            assert run_killed(partial(do_in, work, path, "symlink"), operation)
        died = run_killed(partial(do_in, SWEEP, path, "symlink"), at)
        now = valid(store_at(path))
        store_at(path).sweep()
        assert valid(store_at(path)) == now
        assert not [name for name in names(path) if name.endswith(".tmp")]
        if not died:
            return
    pytest.fail("the sweep never ended")


def test_rename_is_ended_by_calling_it_again(directories: Callable[[LatestMode], Path]) -> None:
    """A rename killed anywhere keeps every version under one of the two names; a second call ends it."""
    wanted = {"new " + key.removeprefix("app "): content for key, content in TWO.items()}
    for at in range(2 * MANY):
        path = directories("symlink")
        died = run_killed(partial(do_in, RENAME, path, "symlink"), at)
        now = valid(store_at(path))
        assert set(now.values()) == {"one", "two"}
        if store_at(path).latest("app"):
            store_at(path).rename("app", "new")
        store_at(path).sweep()
        assert valid(store_at(path)) == wanted
        assert (path / "new_latest.sql").read_text() == "two"
        assert not (path / "app_latest.sql").is_symlink()
        if not died:
            return
    pytest.fail("the rename never ended")


def test_publish_syncs_before_it_renames(tmp_path: Path) -> None:
    """Publish order: file and manifest are synced, named, then the directory is synced, then the link."""
    files = RecordingFileSystem()
    store = store_at(tmp_path / "snapshots", files)
    write(store, "one", FIRST)
    done = [
        operation
        for operation, path in files.operations
        if operation in {"fsync", "link", "replace", "fsync_directory", "symlink"}
    ]
    assert done == [
        "fsync",
        "fsync",
        "link",
        "replace",
        "fsync_directory",
        "symlink",
        "replace",
        "fsync_directory",
    ]
    targets = [path.name for operation, path in files.operations if operation in {"link", "replace"}]
    assert targets == [f"app_{FIRST}.sql", f"app_{FIRST}.sql.manifest.json", "app_latest.sql"]


def test_delete_removes_the_manifest_before_the_data(directories: Callable[[LatestMode], Path]) -> None:
    """Design, Publish order: the link moves, the manifest goes and is synced, then the data."""
    files = RecordingFileSystem()
    path = directories("symlink")
    store_at(path, files).delete(store_at(path).find("app"))
    done = [(operation, target.name.split(".")[-1]) for operation, target in files.operations]
    assert done[-6:] == [
        ("fsync_directory", path.name),
        ("replace", "tmp"),
        ("fsync_directory", path.name),
        ("unlink", "sql"),
        ("unlink", "tmp"),
        ("fsync_directory", path.name),
    ]


def test_young_or_locked_leftovers_stay(tmp_path: Path) -> None:
    """FAULTS 43: a sweep takes nothing that a living process writes, nor anything younger than the grace."""
    store = SnapshotStore(tmp_path / "snapshots", grace_s=3600, clock=lambda: datetime.now(UTC))
    late = SnapshotStore(
        tmp_path / "snapshots", grace_s=3600, clock=lambda: datetime.now(UTC) + timedelta(hours=2)
    )
    with store.stage("app", "sql") as stage:
        assert late.sweep() == [], "it is locked"
        stage.unlock()
        assert store.sweep() == [], "it is young"
        assert late.sweep(dry_run=True) == [stage.path]
        assert stage.path.exists()
        assert late.sweep() == [stage.path]
        assert not stage.path.exists()


def test_foreign_files_are_never_swept(tmp_path: Path) -> None:
    """Publish order: a hand-made dump, other hidden files and other directories are no business of ours."""
    store = store_at(tmp_path / "snapshots")
    write(store, "one", FIRST)
    foreign = [
        "app_20200101_000000.sql",
        "notes.txt",
        ".app.1.abc.tmp",
        ".hidden.tmp",
        "app_20200101_000000.sql.tmp",
        "x.manifest.json",
    ]
    for name in foreign:
        (store.directory / name).write_text("mine")
    (store.directory / ".app.1.0123456789ab.tmp").mkdir()

    assert store.sweep() == []
    assert all((store.directory / name).read_text() == "mine" for name in foreign)
