"""Locks between processes: who waits, who fails, and what a dead process leaves."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from keikaku_snapshots.errors import AccessDeniedError, KeikakuError, LockBusyError, RefusedError
from keikaku_snapshots.snapshots.lock import FileLock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: Takes the lock named by the first argument (shared when there is a third one) and says so.
HOLDER = """
import sys, time
from keikaku_snapshots.snapshots.lock import FileLock
with FileLock(sys.argv[1], operation=sys.argv[2], shared=len(sys.argv) > 3):
    print("held", flush=True)
    time.sleep(60)
"""

#: Six processes take and release one lock for a second; the guarded file tells of any overlap.
STORM = """
import os, sys, time
from keikaku_snapshots.snapshots.lock import FileLock
path, guarded, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
end, taken, overlaps = time.monotonic() + seconds, 0, 0
while time.monotonic() < end:
    with FileLock(path, wait_s=20):
        try:
            os.close(os.open(guarded, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            overlaps += 1
        else:
            os.unlink(guarded)
        taken += 1
print(taken, overlaps)
"""


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start processes that hold a lock; they are ended with the test."""
    running: list[subprocess.Popen[str]] = []

    def start(path: Path, operation: str = "nightly create", *extra: str) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(path), operation, *extra], stdout=subprocess.PIPE, text=True
        )
        running.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        return child

    yield start
    for child in running:
        child.kill()
        child.communicate()


def try_lock(path: Path, *, shared: bool = False, wait_s: float = 0) -> bool:
    """Tell whether the lock could be taken; it is released again."""
    try:
        with FileLock(path, shared=shared, wait_s=wait_s):
            return True
    except LockBusyError:
        return False


def test_a_lock_in_another_process_fails_at_once_and_says_who(
    tmp_path: Path, hold: Callable[..., subprocess.Popen[str]]
) -> None:
    """FAULTS 54: the second one fails with pid, host, operation and time of the first."""
    child = hold(tmp_path / "a.lock")
    begun = time.monotonic()
    with pytest.raises(LockBusyError) as caught:
        FileLock(tmp_path / "a.lock", subject="snapshot 'app'").acquire()

    assert time.monotonic() - begun < 1
    text = str(caught.value)
    for part in (
        "snapshot 'app'",
        f"process {child.pid} on {os.uname().nodename} since 20",
        "nightly create",
    ):
        assert part in text
    assert caught.value.exit_code == 11


def test_a_lock_is_waited_for_until_the_deadline(
    tmp_path: Path, hold: Callable[..., subprocess.Popen[str]]
) -> None:
    """FAULTS 54: with wait_s the second one waits for the first to let go, or fails at the deadline."""
    child = hold(tmp_path / "a.lock")
    begun = time.monotonic()
    assert not try_lock(tmp_path / "a.lock", wait_s=0.2)
    assert 0.2 <= time.monotonic() - begun < 2
    threading.Timer(0.2, child.kill).start()

    assert try_lock(tmp_path / "a.lock", wait_s=20)


def test_the_lock_of_a_killed_process_is_no_obstacle(
    tmp_path: Path, hold: Callable[..., subprocess.Popen[str]]
) -> None:
    """B8: its note stays in the file and means nothing."""
    child = hold(tmp_path / "a.lock")
    child.kill()
    child.wait()

    assert f'"pid": {child.pid}' in (tmp_path / "a.lock").read_text()
    assert try_lock(tmp_path / "a.lock")


def test_a_child_that_was_given_the_lock_keeps_it(tmp_path: Path) -> None:
    """FAULTS 57: a dump that outlives its killed parent still holds the lock."""
    script = (
        "import subprocess, sys, time\n"
        "from keikaku_snapshots.snapshots.lock import FileLock\n"
        "lock = FileLock(sys.argv[1]).acquire()\n"
        "child = subprocess.Popen(['sleep', '60'], pass_fds=(lock.fileno(),), stdout=subprocess.DEVNULL)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    path = tmp_path / "a.lock"
    parent = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    grandchild = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    try:
        assert not try_lock(path), "the child still works"
    finally:
        os.kill(grandchild, signal.SIGKILL)

    assert try_lock(path, wait_s=10), "and then it is free"


def test_the_lock_file_is_never_removed(tmp_path: Path) -> None:
    """FAULTS 55: the same file, the same inode, at every use."""
    with FileLock(tmp_path / "a.lock"):
        first = (tmp_path / "a.lock").stat().st_ino
    with FileLock(tmp_path / "a.lock"):
        pass

    assert (tmp_path / "a.lock").stat().st_ino == first


def test_six_processes_never_hold_one_lock_together(tmp_path: Path) -> None:
    """FAULTS 54, 55: a lock storm of two seconds, with no overlap."""
    argv = [sys.executable, "-c", STORM, str(tmp_path / "a.lock"), str(tmp_path / "guarded"), "1.5"]
    children = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    results = [child.communicate(timeout=60)[0].split() for child in children]

    assert sum(int(overlaps) for _, overlaps in results) == 0
    assert sum(int(taken) for taken, _ in results) > 20


def test_the_same_thread_fails_at_once_instead_of_waiting_for_itself(tmp_path: Path) -> None:
    """FAULTS 56: taking a lock twice is an error now, not a hang."""
    begun = time.monotonic()
    with FileLock(tmp_path / "a.lock", operation="create"):
        with pytest.raises(LockBusyError, match="by this process itself") as caught:
            FileLock(tmp_path / "a.lock", wait_s=30).acquire()
        with pytest.raises(LockBusyError):
            FileLock(tmp_path / "x" / ".." / "a.lock", wait_s=30).acquire()

    assert "create" in str(caught.value)
    assert time.monotonic() - begun < 5
    assert try_lock(tmp_path / "a.lock")


def test_a_lock_of_another_thread_is_not_blamed_on_another_process(tmp_path: Path) -> None:
    """Whoever looks for another process by the message would look in vain."""
    caught: list[LockBusyError] = []

    def second() -> None:
        with pytest.raises(LockBusyError) as error:
            FileLock(tmp_path / "a.lock").acquire()
        caught.append(error.value)

    with FileLock(tmp_path / "a.lock"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert "in use by another thread of this process" in caught[0].what


def test_another_thread_waits(tmp_path: Path) -> None:
    """FAULTS 56: two threads of one process take turns like two processes."""
    got = threading.Event()

    def second() -> None:
        with FileLock(tmp_path / "a.lock", wait_s=20):
            got.set()

    with FileLock(tmp_path / "a.lock"):
        thread = threading.Thread(target=second)
        thread.start()
        assert not got.wait(0.1)
    thread.join()

    assert got.is_set()


def test_shared_locks_go_together_and_keep_writers_out(
    tmp_path: Path, hold: Callable[..., subprocess.Popen[str]]
) -> None:
    """FAULTS 66: readers share; a writer fails and hears which processes read."""
    children = [hold(tmp_path / "a.lock", "restore", "shared") for _ in range(2)]
    assert try_lock(tmp_path / "a.lock", shared=True)
    with pytest.raises(LockBusyError) as caught:
        FileLock(tmp_path / "a.lock").acquire()

    for child in children:
        assert str(child.pid) in caught.value.found
    with FileLock(tmp_path / "a.lock", shared=True), FileLock(tmp_path / "a.lock", shared=True):
        pass


def test_a_forked_child_neither_has_nor_keeps_nor_frees_the_lock(tmp_path: Path) -> None:
    """A fork (multiprocessing, xdist) inherits descriptors: the lock stays the parent's alone."""
    lock = FileLock(tmp_path / "a.lock").acquire()
    ready, go_on = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.write(ready[1], b"1" if not lock.is_held and not try_lock(tmp_path / "a.lock") else b"0")
        os.read(go_on[0], 1)
        os._exit(0)
    try:
        assert os.read(ready[0], 1) == b"1", "the child does not hold it and cannot take it"
        assert lock.is_held
        assert subprocess.run(["flock", "-n", tmp_path / "a.lock", "true"], check=False).returncode == 1
        lock.release()
        assert try_lock(tmp_path / "a.lock"), "the living child does not keep it"
    finally:
        os.write(go_on[1], b"1")
        os.waitpid(child, 0)
        for descriptor in (*ready, *go_on):
            os.close(descriptor)


def test_the_lock_file_is_private_and_close_on_exec(tmp_path: Path) -> None:
    """Design, Locks: mode 0600 even under umask 0, and no program inherits it by accident."""
    before = os.umask(0)
    try:
        with FileLock(tmp_path / "a.lock", operation="create") as lock:
            assert stat.S_IMODE((tmp_path / "a.lock").stat().st_mode) == 0o600
            assert not os.get_inheritable(lock.fileno())
            note = json.loads((tmp_path / "a.lock").read_text())
    finally:
        os.umask(before)
    assert (note["pid"], note["operation"]) == (os.getpid(), "create")
    with pytest.raises(ValueError, match="not held"):
        lock.fileno()


@pytest.mark.parametrize("kind", ["link", "fifo", "directory"])
def test_a_planted_lock_file_is_refused(kind: str, tmp_path: Path) -> None:
    """FAULTS 35, 95: a link leads elsewhere, a FIFO would hang: both are refused and left alone."""
    path = tmp_path / "a.lock"
    if kind == "link":
        (tmp_path / "victim").write_text("precious")
        path.symlink_to(tmp_path / "victim")
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(KeikakuError) as caught:
        FileLock(path).acquire()

    assert isinstance(caught.value, RefusedError)
    assert str(path) in str(caught.value)
    if kind == "link":
        assert (tmp_path / "victim").read_text() == "precious"


def test_a_lock_in_a_missing_directory_says_where(tmp_path: Path) -> None:
    """The error names the path."""
    with pytest.raises(AccessDeniedError, match="lock file cannot be opened") as caught:
        FileLock(tmp_path / "missing" / "a.lock").acquire()
    assert "missing/a.lock" in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "null", '{"pid": "x"}', "\0" * 100, '{"pid": 1}'])
def test_what_is_written_inside_is_for_messages_only(
    text: str, tmp_path: Path, hold: Callable[..., subprocess.Popen[str]]
) -> None:
    """Design, Locks: a damaged note frees nothing, blocks nothing and breaks no message."""
    path = tmp_path / "a.lock"
    path.write_text(text)
    assert try_lock(path)
    child = hold(path)
    path.write_text(text)
    with pytest.raises(LockBusyError) as caught:
        FileLock(path).acquire()
    assert str(child.pid) in caught.value.found
