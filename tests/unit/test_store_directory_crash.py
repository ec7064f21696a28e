"""Directories fail, are interrupted or killed at every file operation, and nothing is ever half there."""

from __future__ import annotations

import contextlib
import os
import shutil
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, TypeAlias

import pytest

from keikaku_snapshots.errors import DiskFullError, KeikakuError
from keikaku_snapshots.snapshots.store import SnapshotStore
from tests.crash import BreakingFileSystem, Mode, RecordingFileSystem, run_killed
from tests.snapshot_files import NOW, write_parts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from keikaku_snapshots.snapshots.files import FileSystem

FIRST, SECOND, THIRD = "21000102_030405", "21000102_030405_2", "21000102_030405_3"
#: No work has more operations than this; more means that a loop does not end.
MANY = 120
Content: TypeAlias = dict[str, str]

# "same" is in all of them under different names, so it is one file.
ONE: Content = {"toc.dat": "one", "1.dat": "same", "2.dat": "old"}
TWO: Content = {"toc.dat": "two", "2.dat": "same", "3.dat": "new"}
THREE: Content = {"toc.dat": "three", "5.dat": "same", "6.dat": "new"}
WORKS: dict[str, tuple[Callable[[SnapshotStore], object], dict[str, Content], dict[str, Content]]] = {
    "publish": (lambda store: write_parts(store, THREE, THIRD), {}, {THIRD: THREE}),
    "overwrite": (
        lambda store: write_parts(store, THREE, SECOND, overwrite=True),
        {SECOND: TWO},
        {SECOND: THREE},
    ),
    "delete": (lambda store: store.delete(store.find("app")), {SECOND: TWO}, {}),
    "delete_old": (lambda store: store.delete_old("app", 1), {FIRST: ONE}, {}),
    "pin": (lambda store: store.change(store.find("app"), pinned=True), {}, {}),
}
BOTH = {FIRST: ONE, SECOND: TWO}


def store_at(path: Path, files: FileSystem | None = None) -> SnapshotStore:
    """Return a store whose clock stands still and whose leftovers are old at once."""
    return SnapshotStore(path, files=files, grace_s=0, clock=lambda: NOW)


def content(path: Path) -> Content:
    """Return the text of each part."""
    return {part.name: part.read_text() for part in path.iterdir()}


def valid(store: SnapshotStore) -> dict[str, Content]:
    """Return version and parts of every valid snapshot, read and checked in full."""
    found = {}
    for snapshot in store.list():
        if snapshot.is_valid:
            with store.reading(snapshot) as opened:
                opened.check()
                found[snapshot.version] = content(snapshot.path)
    return found


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with two versions that share a part."""
    path = tmp_path_factory.mktemp("template") / "snapshots"
    write_parts(store_at(path), ONE, FIRST)
    assert write_parts(store_at(path), TWO, SECOND).shared_bytes == len("same")
    return path


@pytest.fixture
def directories(memory_path: Path, template: Path) -> Callable[[], Path]:
    """Give a new copy of the template at each call, hard links kept."""
    numbers = count()
    return lambda: copied(template, memory_path / f"snapshots{next(numbers)}")


def copied(source: Path, target: Path) -> Path:
    """Copy a directory of snapshots; one file under two names stays one."""
    seen: dict[int, str] = {}

    def copy(one: str, other: str) -> str:
        first = seen.setdefault(os.lstat(one).st_ino, other)
        if first != other:
            os.link(first, other)
            return other
        return shutil.copy2(one, other)

    return shutil.copytree(source, target, symlinks=True, copy_function=copy)


def do_in(name: str, path: Path, files: FileSystem) -> None:
    """Do a work in a directory through the given file operations."""
    WORKS[name][0](store_at(path, files))


def possible(name: str) -> list[dict[str, Content]]:
    """Return what may be there after a work that was stopped: what was before, and what is to be."""
    _, before, after = WORKS[name]
    rest = {key: value for key, value in BOTH.items() if key not in {*before, *after}}
    return [rest | before, rest | after]


def assert_whole(path: Path, name: str) -> None:
    """Check the promises right after a crash, then that the next command finds everything in order."""
    store = store_at(path)
    now = valid(store)
    assert now in possible(name), "only whole snapshots are there"
    assert all(item.is_valid for item in store.list()), "no half directory is listed"
    link = path / "app_latest.dir"
    if link.exists():
        assert content(link) in [*BOTH.values(), THREE], "the link is a whole snapshot"
    store.sweep()
    assert valid(store) == now, "the sweep removes nothing of a valid snapshot"
    assert content(link) == content(store.find("app").path), "the link is computed again"
    files = {item.path.name for item in store.list()}
    left = {item.name for item in path.iterdir()}
    assert left == {*files, *(f"{one}.manifest.json" for one in files), "app_latest.dir", ".locks"}
    made = write_parts(store, {"9.dat": "same"})
    assert store.find("app") == made
    assert made.shared_bytes == len("same")


@pytest.mark.parametrize("name", WORKS)
def test_killed_at_any_operation_leaves_only_whole_directories(
    name: str, directories: Callable[[], Path]
) -> None:
    """FAULTS 49, B11: SIGKILL between any two operations, parts shared or not, loses nothing."""
    for at in range(MANY):
        path = directories()
        died = run_killed(partial(do_in, name, path), at)
        assert_whole(path, name)
        if not died:
            assert at > 3, "the harness saw the operations"
            return
    pytest.fail("the work never ended")


@pytest.mark.parametrize(
    ("name", "how", "for_good"),
    [
        *[(name, "error", False) for name in WORKS],
        *[(name, "full", True) for name in ("publish", "overwrite", "delete")],
        *[(name, "interrupt", False) for name in ("publish", "overwrite")],
    ],
)
def test_failing_at_any_operation_leaves_only_whole_directories(
    name: str, how: Mode, for_good: bool, directories: Callable[[], Path]
) -> None:
    """FAULTS 9, 49: EIO, a full disk or Ctrl-C at any operation is an error of ours, never a half state."""
    expected = {"interrupt": KeyboardInterrupt, "full": DiskFullError}.get(how, KeikakuError)
    for at in range(MANY):
        path = directories()
        files = BreakingFileSystem(at, how, for_good=for_good)
        with contextlib.suppress(expected):
            do_in(name, path, files)
        assert_whole(path, name)
        if len(files.operations) <= at:
            return
    pytest.fail("the work never ended")


def test_a_crash_while_sweeping_is_ended_by_the_next_sweep(directories: Callable[[], Path]) -> None:
    """FAULTS 43, 49: what killed works left goes, however often the sweep is killed."""
    works = ("publish", "delete_old", "overwrite")
    ends = {name: len(operations_of(name, directories())) for name in works}
    for at in range(MANY):
        path = directories()
        # Each killed shortly before its end, with directories half removed or without manifest.
        for name in works:
            assert run_killed(partial(do_in, name, path), ends[name] - 6)
        died = run_killed(lambda files, path=path: store_at(path, files).sweep(), at)  # type: ignore[misc]
        now = valid(store_at(path))
        store_at(path).sweep()
        assert valid(store_at(path)) == now
        assert not list(path.glob(".*.tmp"))
        assert all(item.is_valid for item in store_at(path).list())
        if not died:
            return
    pytest.fail("the sweep never ended")


def operations_of(name: str, path: Path) -> list[tuple[str, Path]]:
    """Return the operations of a work."""
    files = RecordingFileSystem()
    do_in(name, path, files)
    return files.operations


def test_rename_is_ended_by_calling_it_again(directories: Callable[[], Path]) -> None:
    """A rename killed anywhere keeps every version under one of the two names; a second call ends it."""
    for at in range(2 * MANY):
        path = directories()
        died = run_killed(lambda files, path=path: store_at(path, files).rename("app", "new"), at)  # type: ignore[misc]
        assert valid(store_at(path)) == BOTH
        if store_at(path).latest("app"):
            store_at(path).rename("app", "new")
        store_at(path).sweep()
        assert valid(store_at(path)) == BOTH
        assert {item.name for item in store_at(path).list()} == {"new"}
        assert content(path / "new_latest.dir") == TWO
        left = {item.name for item in path.iterdir() if not item.name.startswith("new_")}
        assert left == {".locks"}
        if not died:
            return
    pytest.fail("the rename never ended")


def test_every_part_is_synced_before_the_manifest_is_renamed(directories: Callable[[], Path]) -> None:
    """Publish order: parts, shared ones too, and directory are synced; then the manifest is the commit."""
    done = [
        (operation, path.name.split(".")[0] if path.name[0] != "." else path.name.split(".")[-2])
        for operation, path in operations_of("publish", directories())
    ]
    begin = done.index(("link", "link") if ("link", "link") in done else ("link", ""))
    assert [operation for operation, _ in done[begin:]] == [
        *("link", "replace"),  # 5.dat
        *("link", "replace"),  # 6.dat
        *("fsync", "fsync"),  # both, read-only since they were first published
        *("chmod", "fsync"),  # toc.dat
        "fsync_directory",
        *("create", "write", "fsync"),  # the manifest
        "replace",  # the directory takes its name
        "replace",  # the manifest takes its name: the commit
        "fsync_directory",
        *("symlink", "replace", "fsync_directory"),
    ]


def test_a_directory_is_renamed_before_its_parts_go(directories: Callable[[], Path]) -> None:
    """Delete order: the manifest ends the snapshot; a half removed directory never has a snapshot's name."""
    path = directories()
    operations = operations_of("delete", path)
    done = [(operation, target.name.rsplit(".", 2)[-2:]) for operation, target in operations]
    first = next(index for index, (_, kind) in enumerate(done) if kind == ["deleted", "tmp"])
    assert done[first:] == [
        ("replace", ["deleted", "tmp"]),
        ("fsync_directory", [path.name]),
        ("replace", ["doomed", "tmp"]),
        ("unlink", ["2", "dat"]),
        ("unlink", ["3", "dat"]),
        ("unlink", ["toc", "dat"]),
        ("rmdir", ["doomed", "tmp"]),
        ("unlink", ["deleted", "tmp"]),
        ("fsync_directory", [path.name]),
    ]


def killed_delete(path: Path, operation: str, kind: str) -> None:
    """Kill a deletion ahead of an operation on a name of a kind."""
    copy = copied(path, path.with_name("copy"))
    done = [(name, target.name) for name, target in operations_of("delete", copy)]
    shutil.rmtree(copy)
    at = next(n for n, (name, target) in enumerate(done) if name == operation and target.endswith(kind))
    assert run_killed(partial(do_in, "delete", path), at)


def test_a_deletion_that_was_decided_needs_no_grace(directories: Callable[[], Path]) -> None:
    """Half removed parts free their room with the next command, not an hour later."""
    path = directories()
    killed_delete(path, "unlink", "toc.dat")
    patient = SnapshotStore(path, grace_s=3600)
    assert {one.name.split(".")[-2] for one in patient.sweep()} == {"deleted", "doomed"}
    assert not list(path.glob(".*.tmp"))
    assert valid(store_at(path)) == {FIRST: ONE}


def test_what_somebody_put_into_a_half_deleted_directory_stays(directories: Callable[[], Path]) -> None:
    """A directory that is no longer what the deleted manifest says is not proven to be ours."""
    path = directories()
    killed_delete(path, "replace", "doomed.tmp")
    (path / f"app_{SECOND}.dir" / "notes").write_text("mine")
    store_at(path).sweep()
    assert (path / f"app_{SECOND}.dir" / "notes").read_text() == "mine"
    assert valid(store_at(path)) == {FIRST: ONE}


def test_a_written_or_foreign_directory_is_never_swept(tmp_path: Path) -> None:
    """FAULTS 43: pg_dump that outlives us keeps its directory; hand-made ones are no business of ours."""
    store = store_at(tmp_path / "snapshots")
    write_parts(store, ONE, FIRST)
    for name in ("app_20200101_000000.dir", ".app.1.0123456789ab.tmp", ".app.1.0123456789ab.manifest.tmp"):
        (store.directory / name).mkdir()
        (store.directory / name / "toc.dat").write_text("mine")
    young = SnapshotStore(store.directory, grace_s=3600)
    with store.stage("app", "dir") as stage:
        child = os.dup(stage.fileno())
        (stage.path / "toc.dat").write_text("half")
        stage.published()  # as if this process had died
        assert store.sweep() == [], "a program that inherited the descriptor is still writing"
        os.close(child)
        assert young.sweep() == [], "it is young"
        os.utime(stage.path, (0, 0))
        assert young.sweep() == [], "its parts are young"
        assert store.sweep() == [stage.path]

    assert valid(store) == {FIRST: ONE}
    assert len([path for path in store.directory.glob("*/toc.dat") if path.read_text() == "mine"]) == 3
