"""What goes wrong while an action runs: deaths, full disks, lost connections, at moments that dice choose."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import psycopg

from tests.campaigns.world import DATABASE
from tests.proxy import Proxy, Verdict

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from tests.campaigns.actions import Action
    from tests.campaigns.world import World

ROOT = Path(__file__).parents[2]
#: Longest that an action may take after its fault: waits of ours have limits.
_PATIENCE_S = 120


@dataclass(frozen=True)
class Measure:
    """How long an action is when nothing goes wrong."""

    #: Seconds from "begin" to its end.
    seconds: float
    #: File operations.
    operations: int
    #: Chunks that the client sent over the network, and that the server answered.
    sent: int
    answered: int


@dataclass(frozen=True)
class Ended:
    """How an action ended."""

    #: Exit code; negative for a signal.
    code: int
    #: Class of the error, or nothing.
    error: str = ""
    #: What was said.
    text: str = ""
    #: File operations that were counted.
    operations: int = 0
    #: Seconds from "begin" to the end.
    seconds: float = 0.0


@dataclass
class Running:
    """An action in a process of its own."""

    process: subprocess.Popen[str]
    begun: float = field(default_factory=time.monotonic)

    def wait(self) -> Ended:
        """Wait for its end."""
        try:
            out, err = self.process.communicate(timeout=_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise AssertionError(f"the action did not end within {_PATIENCE_S} s") from None
        seconds = time.monotonic() - self.begun
        assert "Traceback" not in err, err
        lines = out.splitlines()
        report = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
        assert self.process.returncode < 0 or report, (self.process.returncode, out, err)
        return Ended(
            self.process.returncode,
            report.get("error") or "",
            report.get("text", "") + err,
            report.get("operations", 0),
            seconds,
        )


def start(world: World, action: Action, *, url: str = "", **specification: Any) -> Running:
    """Start an action; returns when it begins."""
    document = {
        "url": url or world.url.text,
        "directory": str(world.directory),
        "method": action.method,
        "arguments": action.arguments,
        "options": dict(action.options),
        **specification,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.campaigns.worker", json.dumps(document)],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": os.defpath, "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    assert first == "begin\n", (first, process.communicate())
    return Running(process)


def measure(world: World, action: Action) -> tuple[Measure, Ended]:
    """Do the action unbroken and count."""
    sent = answered = 0

    def count_sent(_chunk: bytes, _before: int) -> Verdict:
        nonlocal sent
        sent += 1
        return "pass"

    def count_answered(_chunk: bytes, _before: int) -> Verdict:
        nonlocal answered
        answered += 1
        return "pass"

    with Proxy(world.url, count_sent, cut_answer_at=count_answered) as proxy:
        ended = start(world, action, url=proxy.url.text).wait()
    return Measure(ended.seconds, ended.operations, sent, answered), ended


def _number(count: int, dice: random.Random) -> int:
    """One of so many steps; often one of the last, where what was built takes its place."""
    last = min(count, 30)
    return dice.choice([dice.randrange(max(1, count)), count - dice.randint(min(1, last), last)])


def _moment(measured: Measure, dice: random.Random) -> float:
    return dice.uniform(0, measured.seconds * 1.1)


def none(world: World, action: Action, _measured: Measure, _dice: random.Random) -> Ended:
    """Nothing goes wrong."""
    return start(world, action).wait()


def kill_by_time(world: World, action: Action, measured: Measure, dice: random.Random) -> Ended:
    """Kill -9 of our process, at any moment."""
    running = start(world, action)
    time.sleep(_moment(measured, dice))
    running.process.kill()
    return running.wait()


def kill_at_file(world: World, action: Action, measured: Measure, dice: random.Random) -> Ended:
    """Kill -9 between two file operations."""
    at = dice.randrange(max(1, measured.operations))
    return start(world, action, breaking={"at": at, "mode": "kill"}).wait()


def kill_at_message(world: World, action: Action, measured: Measure, dice: random.Random) -> Ended:
    """Kill -9 between two messages to the server; it gets the last one, or not."""
    at, verdict = _number(measured.sent, dice), dice.choice(_VERDICTS)
    running: list[Running] = []
    ready = threading.Event()
    seen = 0

    def rule(_chunk: bytes, _before: int) -> Verdict:
        nonlocal seen
        seen += 1
        if seen != at + 1:
            return "pass"
        assert ready.wait(30)
        running[0].process.kill()
        return verdict

    with Proxy(world.url, rule) as proxy:
        running.append(start(world, action, url=proxy.url.text))
        ready.set()
        return running[0].wait()


_VERDICTS: tuple[Verdict, ...] = ("pass", "cut", "deliver-then-cut")


def cut(world: World, action: Action, measured: Measure, dice: random.Random) -> Ended:
    """The network goes at any message of either side, once, for some connections, or for good."""
    cuts, answers = dice.choice([1, 1, 3, 1000]), dice.random() < 0.5
    at = _number(measured.answered if answers else measured.sent, dice)
    verdict: Verdict = "cut" if answers else dice.choice(("cut", "deliver-then-cut"))
    seen = 0

    def rule(_chunk: bytes, _before: int) -> Verdict:
        nonlocal seen
        seen += 1
        return verdict if seen > at else "pass"

    def never(_chunk: bytes, _before: int) -> Verdict:
        return "pass"

    with Proxy(world.url, never if answers else rule, cuts, cut_answer_at=rule if answers else None) as proxy:
        return start(world, action, url=proxy.url.text).wait()


def break_files(world: World, action: Action, measured: Measure, dice: random.Random) -> Ended:
    """ENOSPC, a quota or a broken disk at any file operation, once or from then on."""
    at, mode = dice.randrange(max(1, measured.operations)), dice.choice(["full", "quota", "error"])
    broken = {"at": at, "mode": mode, "for_good": dice.random() < 0.5}
    return start(world, action, breaking=broken).wait()


def limit_files(world: World, action: Action, _measured: Measure, dice: random.Random) -> Ended:
    """No file may grow beyond so many bytes, neither ours nor pg_dump's (RLIMIT_FSIZE)."""
    return start(world, action, limit_bytes=int(10 ** dice.uniform(2, 6.5))).wait()


def fill_disk(world: World, action: Action, measured: Measure, dice: random.Random) -> Ended:
    """A real file system without room, or without inodes."""
    if world.small is None or not world.directory.is_relative_to(world.small):
        return break_files(world, action, measured, dice)
    ballast = world.small / "ballast"
    ballast.mkdir()
    try:
        free = os.statvfs(world.small)
        if dice.random() < 0.3:
            left = dice.randint(0, 6)
            for number in range(max(0, free.f_favail - left)):
                (ballast / str(number)).touch()
        else:
            left = int(10 ** dice.uniform(0, 6.3))
            os.posix_fallocate(
                descriptor := os.open(ballast / "one", os.O_CREAT | os.O_WRONLY),
                0,
                max(1, free.f_bavail * free.f_frsize - left),
            )
            os.close(descriptor)
        return start(world, action).wait()
    finally:
        for path in ballast.iterdir():
            path.unlink()
        ballast.rmdir()


def kill_program(world: World, action: Action, _measured: Measure, dice: random.Random) -> Ended:
    """Kill -9 of pg_dump or pg_restore; nothing happens to actions without one."""
    running, delay_s = start(world, action), 10 ** dice.uniform(-4, -0.8)
    parent = psutil.Process(running.process.pid)
    while running.process.poll() is None:
        with contextlib.suppress(psutil.Error):
            found = [one for one in parent.children() if one.name() in {"pg_dump", "pg_restore"}]
            if found:
                time.sleep(delay_s)
                found[0].kill()
                break
        time.sleep(0.001)
    return running.wait()


def _backends(connection: psycopg.Connection[tuple[object, ...]]) -> list[int]:
    rows = connection.execute(
        "SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
    ).fetchall()
    return [int(str(pid)) for (pid,) in rows]


def end_sessions(world: World, action: Action, measured: Measure, dice: random.Random) -> Ended:
    """An administrator ends our sessions (pg_terminate_backend), one or all."""
    with world.server.admin() as connection:
        running = start(world, action)
        time.sleep(_moment(measured, dice))
        found = _backends(connection)
        for pid in found if dice.random() < 0.3 else dice.sample(found, min(1, len(found))):
            connection.execute("SELECT pg_terminate_backend(%s)", [pid])
    return running.wait()


def crash_server(world: World, action: Action, measured: Measure, dice: random.Random) -> Ended:
    """The server crashes: one of its processes is killed, it is stopped at once, or killed as a whole."""
    how = dice.choice([_kill_backend, _stop_at_once, _kill_postmaster])
    running = start(world, action)
    time.sleep(_moment(measured, dice))
    how(world, dice)
    ended = running.wait()
    world.wait_for_server()
    return ended


def _kill_backend(world: World, dice: random.Random) -> None:
    with contextlib.suppress(psycopg.OperationalError), world.server.admin() as connection:
        if found := _backends(connection):
            os.kill(dice.choice(found), signal.SIGKILL)


def _stop_at_once(world: World, _dice: random.Random) -> None:
    world.server.embedded.stop(immediate=True)


def _kill_postmaster(world: World, _dice: random.Random) -> None:
    world.server.kill()


@dataclass(frozen=True)
class Fault:
    """One kind of fault, and the errors that may come of it."""

    #: Does the action and breaks it.
    run: Callable[[World, Action, Measure, random.Random], Ended]
    #: How often, of 100.
    weight: int
    #: Errors that may be reported; kills report none.
    errors: frozenset[str] = frozenset()
    #: The connection may be lost at COMMIT.
    may_be_unknown: bool = False
    #: Only for rounds on the small file system.
    small: bool = False

    @property
    def name(self) -> str:
        """What it is called in reports."""
        return self.run.__name__


_LOST = frozenset({"ConnectError", "RestoreFailedError", "CreateFailedError", "LockBusyError"})
FAULTS = [
    Fault(none, 3),
    Fault(kill_by_time, 16),
    Fault(kill_at_file, 14),
    Fault(kill_at_message, 12),
    Fault(cut, 15, _LOST, may_be_unknown=True),
    Fault(
        break_files,
        12,
        frozenset(
            {
                "DiskFullError",
                "CreateFailedError",
                "FileOperationError",
                "PruneIncompleteError",
                "RestoreFailedError",
            }
        ),
    ),
    Fault(limit_files, 8, frozenset({"DiskFullError", "PruneIncompleteError"})),
    Fault(fill_disk, 12, frozenset({"DiskFullError", "PruneIncompleteError"}), small=True),
    # It may have been about to tell its version.
    Fault(kill_program, 5, frozenset({"CreateFailedError", "RestoreFailedError", "ToolVersionError"})),
    Fault(end_sessions, 9, _LOST, may_be_unknown=True),
    Fault(crash_server, 6, _LOST, may_be_unknown=True),
]
#: The database that rounds work on; named here for whoever reads a failure.
__all__ = ["DATABASE", "FAULTS", "Ended", "Fault", "Measure", "measure"]
