"""`_process`: programs start clean, are bounded, and never outlive what started them."""

from __future__ import annotations

import logging
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from keikaku_snapshots import _process, _running
from keikaku_snapshots._process import run_tool, start_tool
from keikaku_snapshots.errors import OperationTimeoutError, ToolError, ToolMissingError, UsageError
from tests.fakes import hang, ignore, leave, make_fake, spawn, stderr, stdout

if TYPE_CHECKING:
    from collections.abc import Callable

SHELL = "/bin/sh"
ROOT = Path(__file__).parents[2]
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="death signals exist on Linux only")


def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.005)


def gone(pid: int) -> bool:
    """True when a process has ended, reaped or not."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def shell(script: str, **options: object) -> _process.ToolResult:
    """Run a shell script."""
    return run_tool([SHELL, "-c", script], env={"PATH": os.defpath}, **options)  # type: ignore[arg-type]


def test_a_return_code_is_given_back_and_never_raised() -> None:
    """The caller decides what a code means; both outputs are kept apart."""
    result = shell("echo out; echo err >&2; exit 3", capture_stdout=True)

    assert (result.returncode, result.stdout, result.stderr) == (3, "out\n", "err\n")
    assert not result.ok


def test_a_signal_is_a_negative_code() -> None:
    """A program ended by a signal has the negative number as its code."""
    assert shell("kill -USR1 $$").returncode == -signal.SIGUSR1


def test_the_environment_is_exactly_what_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """FAULTS 11: nothing is inherited, PGHOSTADDR least of all."""
    monkeypatch.setenv("PGHOSTADDR", "192.0.2.1")
    result = run_tool(["/usr/bin/env"], env={"ONLY": "this"}, capture_stdout=True)

    assert result.stdout == "ONLY=this\n"


def test_a_program_has_no_stdin_and_a_session_of_its_own(tmp_path: Path) -> None:
    """FAULTS 48, 80: no prompt can wait for an answer, and the whole group can be killed."""
    fake = make_fake(tmp_path)
    run_tool([fake.tools.psql], env={})
    call = fake.calls()[0]

    assert call.stdin == ""
    assert call.pid == call.pgid == call.sid != os.getpid()
    assert call.umask == 0o077


def test_megabytes_of_noise_neither_hang_nor_fill_the_memory(tmp_path: Path) -> None:
    """A full pipe would stop the program for ever; head and tail are kept, whole lines only."""
    fake = make_fake(tmp_path, stderr("first\n"), stderr("noise" * 200 + "\n", 20_000), stderr("last\n"))
    result = run_tool([fake.tools.psql], env={}, timeout_s=60)

    assert result.returncode == 0
    assert result.stderr.startswith("first\n")
    assert result.stderr.endswith("last\n")
    assert "bytes left out" in result.stderr
    assert len(result.stderr) <= _running.STDERR_HEAD_BYTES + _running.STDERR_TAIL_BYTES + 100
    assert set(result.stderr.splitlines()[1:-1]) >= {"noise" * 200}
    assert all(len(line) in {0, 4, 5, 1000} or "left out" in line for line in result.stderr.splitlines())


def test_a_secret_cut_in_two_by_the_bound_is_not_shown() -> None:
    """FAULTS 31: text is cut at line ends, so redaction by value still finds a secret."""
    bounded = _running._Bounded(20_000, 20_000)
    line = b"password canary-secret and more\n"
    for _ in range(5000):
        bounded.write(line)
    text = bounded.text()

    assert text.count("canary-secret") == text.count("password canary-secret and more")


def test_one_endless_line_is_cut_with_a_margin() -> None:
    """A secret may straddle the cut of a line without an end: its neighbourhood goes."""
    bounded = _running._Bounded(10_000, 10_000)
    secret = b"canary-secret"
    bounded.write(b"x" * 9_995 + secret + b"y" * 50_000 + secret + b"z" * 9_992)

    assert "canar" not in bounded.text()
    assert "cret" not in bounded.text()


def test_bytes_that_are_no_utf8_are_replaced() -> None:
    """FAULTS 75: a server that speaks LATIN1 must not hide its message behind UnicodeDecodeError."""
    assert shell(r"printf 'caf\351 closed' >&2; exit 1").stderr == "caf� closed"


def test_error_output_is_redacted_and_not_part_of_the_repr() -> None:
    """FAULTS 31, 33: secrets go; rows that messages quote stay out of logs."""
    result = shell("echo canary and row >&2", redact=lambda text: text.replace("canary", "***"))

    assert result.stderr == "*** and row\n"
    assert "row" not in repr(result)


def test_a_time_limit_stops_the_whole_group(tmp_path: Path) -> None:
    """FAULTS 47, 48: a program that ignores SIGTERM and its child are both killed after the grace."""
    fake = make_fake(tmp_path, ignore(signal.SIGTERM), spawn(), hang())
    with pytest.raises(OperationTimeoutError, match=r"time limit of 0\.4 s") as caught:
        run_tool([fake.tools.psql], env={}, timeout_s=0.4, grace_s=0.1)
    call = fake.calls()[0]

    assert caught.value.details["returncode"] == -signal.SIGKILL
    assert gone(call.pid)
    until(lambda: gone(call.children[0]))


def test_the_cancel_signal_is_the_one_given(tmp_path: Path) -> None:
    """FAULTS 47: psql cancels its query on SIGINT only."""
    fake = make_fake(tmp_path, ignore(signal.SIGTERM), hang())
    with start_tool([fake.tools.psql], env={}, cancel_signal=signal.SIGINT, grace_s=10) as running:
        fake.wait_for_call()
        running.cancel("test")
        result = running.wait()

    assert result.returncode in {-signal.SIGINT, 1}
    assert result.seconds < 9
    assert result.stopped == "test"


def test_an_error_in_the_block_cancels_the_program(tmp_path: Path) -> None:
    """Whatever goes wrong beside a running program, the program does not stay."""
    fake = make_fake(tmp_path, hang())
    with pytest.raises(ZeroDivisionError), start_tool([fake.tools.psql], env={}, grace_s=1) as running:  # noqa: PT012 - what the block does is the point
        fake.wait_for_call()
        _ = 1 / 0

    assert gone(running.pid)


def test_a_grandchild_that_outlives_its_parent_is_killed(tmp_path: Path) -> None:
    """FAULTS 48: nothing that we started goes on, and nobody waits for its open pipe."""
    fake = make_fake(tmp_path, spawn(60), leave(0))
    started = time.monotonic()
    result = run_tool([fake.tools.psql], env={})

    assert result.returncode == 0
    assert time.monotonic() - started < 5
    until(lambda: gone(fake.calls()[0].children[0]))


def test_a_watcher_can_stop_the_program(tmp_path: Path) -> None:
    """A reason given by `watch` ends the program and is in the result."""
    fake = make_fake(tmp_path, hang())
    reason = "only 10 MB are free"
    result = run_tool([fake.tools.psql], env={}, watch=lambda: reason, watch_interval_s=0.01, grace_s=1)

    assert result.stopped == reason
    assert not result.ok


def test_a_watcher_that_fails_stops_the_program_and_is_heard(tmp_path: Path) -> None:
    """An error of `watch` is not swallowed in its thread."""
    fake = make_fake(tmp_path, hang())

    def watch() -> str | None:
        raise LookupError("no such disk")

    with pytest.raises(LookupError, match="no such disk"):
        run_tool([fake.tools.psql], env={}, watch=watch, watch_interval_s=0.01, grace_s=1)


def test_time_limit_holds_while_nobody_waits(tmp_path: Path) -> None:
    """A caller that is busy elsewhere does not prolong the limit."""
    fake = make_fake(tmp_path, hang())
    running = start_tool([fake.tools.psql], env={}, timeout_s=0.2, grace_s=0.5)
    assert running.has_ended(10)

    with pytest.raises(OperationTimeoutError):
        running.wait()


def test_what_must_happen_at_the_end_happens_before_wait_returns(tmp_path: Path) -> None:
    """A password file is gone as soon as the result is there."""
    done = threading.Event()
    with start_tool([SHELL, "-c", ":"], env={}, on_end=done.set) as running:
        running.wait()

    assert done.is_set()


def test_output_is_captured_only_when_asked(tmp_path: Path) -> None:
    """Query results of a restore are nobody's business."""
    fake = make_fake(tmp_path, stdout("data"))

    assert run_tool([fake.tools.psql], env={}).stdout == ""
    assert run_tool([fake.tools.psql], env={}, capture_stdout=True).stdout == "data"


def test_a_captured_output_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An output that never ends stops the program, not the machine."""
    monkeypatch.setattr(_running, "STDOUT_LIMIT_BYTES", 100_000)
    fake = make_fake(tmp_path, stdout("x" * 1000, 10_000), hang())
    result = run_tool([fake.tools.psql], env={}, capture_stdout=True)

    assert "larger than 100000 bytes" in result.stopped
    assert len(result.stdout) <= 100_000


def test_descriptors_are_passed_only_when_named(tmp_path: Path) -> None:
    """FAULTS 57: a lock's descriptor goes to the child, all others are closed."""
    with (tmp_path / "a").open("w") as passed, (tmp_path / "b").open("w") as kept:
        os.set_inheritable(kept.fileno(), True)
        result = run_tool(
            ["/bin/ls", "/proc/self/fd"], env={}, pass_fds=[passed.fileno()], capture_stdout=True
        )
        numbers = result.stdout.split()

        assert str(passed.fileno()) in numbers
        assert str(kept.fileno()) not in numbers


def test_the_largest_file_size_kills_without_a_word(tmp_path: Path) -> None:
    """FAULTS 52: the signal that Python ignores is back to its default in the child."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    target = tmp_path / "out"
    code = (
        "import resource, sys; from keikaku_snapshots._process import run_tool;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000));"
        f"r = run_tool(['/bin/dd', 'if=/dev/zero', 'of={target}', 'bs=5000', 'count=1'], env={{}});"
        "sys.stdout.write(str(r.returncode))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)

    assert int(done.stdout) == -signal.SIGXFSZ
    assert resource.getrlimit(resource.RLIMIT_FSIZE) == limit


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("/nonexistent/pg_dump", "No such file"),
        ("/etc/passwd", "Permission denied"),
        ("/etc", "Permission denied"),
    ],
)
def test_a_program_that_cannot_run_is_named_without_its_arguments(program: str, reason: str) -> None:
    """FAULTS 32: the error names program and reason, never argv."""
    with pytest.raises(ToolMissingError, match=reason) as caught:
        run_tool([program, "canary-secret"], env={"X": "canary-secret"})

    assert program in str(caught.value)
    assert "canary" not in str(caught.value) + repr(caught.value) + repr(caught.value.__cause__)
    assert isinstance(caught.value, FileNotFoundError)


def test_a_relative_program_is_refused() -> None:
    """What PATH or the current directory holds is never run."""
    with pytest.raises(UsageError, match="absolute path"):
        run_tool(["psql"], env={})


def test_a_nul_in_an_argument_is_refused_without_repeating_it() -> None:
    """FAULTS 37: the system could not take it."""
    with pytest.raises(UsageError, match="NUL"):
        run_tool([SHELL, "a\0canary"], env={})


def test_windows_is_refused_in_plain_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """The platform is named before anything is tried."""
    monkeypatch.setattr("keikaku_snapshots._process.os.name", "nt")
    try:
        with pytest.raises(ToolError, match="Windows"):
            run_tool([SHELL], env={})
    finally:
        monkeypatch.undo()


def test_logs_name_the_program_only(caplog: pytest.LogCaptureFixture) -> None:
    """FAULTS 31: neither arguments nor environment nor output are logged."""
    caplog.set_level(logging.DEBUG)
    run_tool([SHELL, "-c", "echo canary >&2"], env={"SECRET": "canary"})

    assert "/bin/sh" in caplog.text
    assert "canary" not in caplog.text


@LINUX
def test_the_program_dies_with_a_killed_python(tmp_path: Path) -> None:
    """FAULTS 44: SIGKILL of the parent takes the program with it."""
    fake = make_fake(tmp_path, ignore(signal.SIGTERM), hang())
    code = f"from keikaku_snapshots._process import run_tool; run_tool([{str(fake.tools.psql)!r}], env={{}})"
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    try:
        call = fake.wait_for_call()
        assert not gone(call.pid)
    finally:
        parent.kill()
        parent.wait()

    until(lambda: gone(call.pid))


@LINUX
def test_the_children_of_the_program_die_with_a_killed_python(tmp_path: Path) -> None:
    """FAULTS 44, 48: pg_dump -j forks workers, and a death signal is not inherited."""
    code = (
        "from keikaku_snapshots._process import run_tool\n"
        "run_tool(['/bin/sh', '-c', 'sleep 60 & echo $! > {0}.new && mv {0}.new {0}; wait'], env={{}})\n"
    ).format(tmp_path / "pid")
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    try:
        until((tmp_path / "pid").exists)
        worker = int((tmp_path / "pid").read_text())
        assert not gone(worker)
    finally:
        parent.kill()
        parent.wait()

    until(lambda: gone(worker))


@LINUX
def test_the_program_outlives_the_worker_thread_that_started_it(tmp_path: Path) -> None:
    """FAULTS 45: the death signal belongs to a thread that stays."""
    fake = make_fake(tmp_path, hang(0.5), leave(7))
    started: list[_process.RunningTool] = []
    worker = threading.Thread(target=lambda: started.append(start_tool([fake.tools.psql], env={})))
    worker.start()
    worker.join()

    assert started[0].wait().returncode == 7


def test_a_forked_child_gets_a_launcher_of_its_own() -> None:
    """Threads do not survive a fork; a child that waited for its parent's would wait for ever."""
    code = (
        "import os; from keikaku_snapshots._process import run_tool\n"
        "run_tool(['/bin/true'], env={})\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    os._exit(run_tool(['/bin/sh', '-c', 'exit 9'], env={}).returncode)\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, timeout=30, check=False)

    assert done.returncode == 9


def test_ctrl_c_cancels_the_program_and_is_raised_again(tmp_path: Path) -> None:
    """A user's Ctrl-C ends the program first."""
    fake = make_fake(tmp_path, hang())
    code = (
        "import sys; from keikaku_snapshots._process import run_tool\n"
        "try:\n"
        f"    run_tool([{str(fake.tools.psql)!r}], env={{}}, grace_s=2)\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(42)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    call = fake.wait_for_call()
    parent.send_signal(signal.SIGINT)

    assert parent.wait(timeout=20) == 42
    assert gone(call.pid)


def test_a_signal_mask_of_the_caller_does_not_reach_the_program(tmp_path: Path) -> None:
    """A program that inherits a blocked SIGTERM could not be cancelled."""
    code = (
        "import signal, sys; from keikaku_snapshots._process import run_tool\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\n"
        "r = run_tool(['/bin/sh', '-c', 'kill -TERM $$; exit 5'], env={})\n"
        "print(r.returncode)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)

    assert int(done.stdout) == -signal.SIGTERM


def test_many_programs_can_run_at_once() -> None:
    """Starts go through one thread, waits do not."""
    started = time.monotonic()
    running = [
        start_tool([SHELL, "-c", f"sleep 0.3; exit {code}"], env={"PATH": os.defpath}) for code in range(8)
    ]
    codes = [tool.wait().returncode for tool in running]

    assert codes == list(range(8))
    assert time.monotonic() - started < 2.0


def test_a_code_that_is_lost_is_no_success() -> None:
    """Where SIGCHLD is ignored the system throws exit codes away, and `Popen.wait` answers 0 for them."""
    code = (
        "import os, signal; from keikaku_snapshots._process import run_tool, start_tool\n"
        "from keikaku_snapshots.errors import ToolError, UsageError\n"
        "r, w = os.pipe()\n"
        "running = start_tool(['/bin/sh', '-c', f'read x < /dev/fd/{r}; exit 9'], env={}, pass_fds=[r])\n"
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "os.write(w, b'go\\n')\n"
        "for work in (running.wait, lambda: run_tool(['/bin/sh', '-c', 'exit 9'], env={})):\n"
        "    try:\n"
        "        print(work().returncode)\n"
        "    except (ToolError, UsageError) as error:\n"
        "        print(type(error).__name__, 'SIGCHLD' in str(error))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)

    assert done.stdout.split() == ["ToolError", "True", "UsageError", "True"]


def test_somebody_who_waits_for_every_child_does_not_change_the_result() -> None:
    """The code is the program's own or an error, never a 0 that nobody has seen."""
    code = (
        "import os, threading; from keikaku_snapshots._process import run_tool\n"
        "from keikaku_snapshots.errors import ToolError\n"
        "def steal():\n"
        "    while True:\n"
        "        try:\n"
        "            os.waitpid(-1, 0)\n"
        "        except ChildProcessError:\n"
        "            pass\n"
        "threading.Thread(target=steal, daemon=True).start()\n"
        "for _ in range(50):\n"
        "    try:\n"
        "        assert run_tool(['/bin/sh', '-c', 'exit 9'], env={}).returncode == 9\n"
        "    except ToolError as error:\n"
        "        assert 'exit code' in error.what\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False, timeout=60
    )

    assert (done.returncode, done.stderr) == (0, "")


def test_a_forked_child_leaves_the_program_of_its_parent_alone() -> None:
    """A child that leaves the block by an exception neither kills the program nor waits for ever."""
    code = (
        "import os, sys; from keikaku_snapshots._process import start_tool\n"
        "from keikaku_snapshots.errors import UsageError\n"
        "r, w = os.pipe()\n"
        "argv = ['/bin/sh', '-c', f'read x < /dev/fd/{r}; exit 9']\n"
        "with start_tool(argv, env={}, pass_fds=[r]) as running:\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        try:\n"
        "            running.wait()\n"
        "        except UsageError:\n"
        "            sys.exit(4)\n"
        "    answer = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])\n"
        "    os.write(w, b'go\\n')\n"
        "    print(answer, running.wait().returncode)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True, text=True, cwd=ROOT, check=True, timeout=30,
    )  # fmt: skip

    assert done.stdout.split() == ["4", "9"]


def test_a_program_that_cannot_be_watched_does_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a thread to reap it (limit of processes, interpreter at its end) it is killed, and said so."""
    run_tool(["/bin/true"], env={})
    spawned: list[subprocess.Popen[bytes]] = []
    spawn_it = _process._spawn

    def remember(*args: object, **options: object) -> subprocess.Popen[bytes]:
        spawned.append(spawn_it(*args, **options))  # type: ignore[arg-type]
        return spawned[-1]

    def refuse(_target: object, name: str) -> threading.Thread:
        raise RuntimeError(f"can't start new thread {name}")

    monkeypatch.setattr(_process, "_spawn", remember)
    monkeypatch.setattr(_running, "_thread", refuse)
    with pytest.raises(ToolError, match="can't start new thread"):
        run_tool(["/bin/sleep", "60"], env={})

    assert gone(spawned[0].pid)
    assert spawned[0].returncode == -signal.SIGKILL


def test_a_file_that_took_the_place_of_a_closed_stdin_is_not_passed() -> None:
    """The program would read /dev/null in its place and call it an empty file."""
    with pytest.raises(UsageError, match="below 3"):
        run_tool(["/bin/cat", "/dev/fd/0"], env={}, pass_fds=[0])


@pytest.mark.skipif(sys.version_info < (3, 12), reason="older ones do not warn")
def test_starting_a_program_leaves_the_filters_of_other_threads_alone() -> None:
    """FAULTS 45: Python's warning about fork is silenced by one filter, made once, that names it only."""
    import warnings

    run_tool(["/bin/true"], env={})
    before = list(warnings.filters)
    run_tool(["/bin/true"], env={})

    assert warnings.filters == before
    with pytest.warns(DeprecationWarning, match="something else"):
        warnings.warn("something else", DeprecationWarning, stacklevel=1)


def test_a_program_can_be_interrupted_although_we_ignore_the_signal() -> None:
    """FAULTS 47: a shell's `command &` ignores SIGINT; inherited, psql would never cancel its query."""
    script = (
        "import os, signal\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from keikaku_snapshots._process import start_tool\n"
        "running = start_tool(['/bin/sleep', '60'], env={})\n"
        "os.kill(running.pid, signal.SIGINT)\n"
        "print(running.wait().returncode)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
        cwd=ROOT,
    )

    assert done.stdout.strip() == str(-signal.SIGINT)
