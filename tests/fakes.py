"""Scripted programs that stand in for pg_dump, pg_restore and psql.

A fake follows a list of steps and takes notes of how it was called::

    fake = make_fake(tmp_path, write(1000), stderr("boom"), leave(1))
    result = run_pg_dump(fake.tools, url, target)
    fake.calls()[0].argv

Steps run in the order given. The end of the script is exit code 0. The
programs are Python scripts because the environment they get is bare.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from keikaku_snapshots.postgres.tools import Tools

if TYPE_CHECKING:
    from pathlib import Path

Step: TypeAlias = tuple[str, Any]

_SCRIPT = """\
#!{python} -IS
import json, os, signal, sys, time
STEPS, VERSION, NOTES = {steps!r}, {version!r}, {notes!r}
name = os.path.basename(sys.argv[0])
if "--version" in sys.argv:
    print(f"{{name}} (PostgreSQL) {{VERSION}}")
    sys.exit(0)


def target():
    for index, item in enumerate(sys.argv):
        if item.startswith("--file="):
            return item[7:]
        if item == "-f":
            return sys.argv[index + 1]
    return None


passfile = os.environ.get("PGPASSFILE")
service = os.environ.get("PGSERVICEFILE")
note = {{
    "program": name,
    "pid": os.getpid(),
    "pgid": os.getpgid(0),
    "sid": os.getsid(0),
    "argv": sys.argv[1:],
    "cmdline": "",
    "env": dict(os.environ),
    "stdin": os.read(0, 100).decode(),
    "umask": os.umask(0o077),
    "passfile": open(passfile).read() if passfile else None,
    "passfile_mode": os.stat(passfile).st_mode & 0o7777 if passfile else None,
    "passdir_mode": os.stat(os.path.dirname(passfile)).st_mode & 0o7777 if passfile else None,
    "service": open(service).read() if service else None,
    "children": [],
}}
if os.path.exists("/proc/self/cmdline"):
    note["cmdline"] = open("/proc/self/cmdline", "rb").read().decode(errors="replace")
ignored = [value for kind, value in STEPS if kind == "ignore"]
for number in ignored:
    signal.signal(number, signal.SIG_IGN)
for kind, value in STEPS:
    if kind == "spawn":
        child = os.fork()
        if child == 0:
            for number in ignored:
                signal.signal(number, signal.SIG_IGN)
            time.sleep(value)
            os._exit(0)
        note["children"].append(child)
with open(NOTES + f".{{os.getpid()}}", "w") as file:
    json.dump(note, file)
os.rename(NOTES + f".{{os.getpid()}}", NOTES + f"/{{time.time_ns()}}.json")
for kind, value in STEPS:
    if kind == "write":
        with open(target(), "ab") as file:
            file.write(bytes.fromhex(value))
    elif kind == "grow":
        with open(target(), "ab", buffering=0) as file:
            for _ in range(value[0]):
                file.write(b"x" * value[1])
                time.sleep(value[2])
    elif kind == "stderr":
        for _ in range(value[1]):
            os.write(2, bytes.fromhex(value[0]))
    elif kind == "stdout":
        for _ in range(value[1]):
            os.write(1, bytes.fromhex(value[0]))
    elif kind == "hang":
        time.sleep(value)
    elif kind == "kill":
        if value != signal.SIGKILL:
            signal.signal(value, signal.SIG_DFL)  # Python ignores SIGXFSZ
        os.kill(os.getpid(), value)
    elif kind == "leave":
        os._exit(value)
"""


def write(data: bytes | int) -> Step:
    """Append bytes, or that many, to the output file."""
    return "write", (data if isinstance(data, bytes) else b"-" * data).hex()


def grow(times: int, size_bytes: int, pause_s: float) -> Step:
    """Append to the output file bit by bit."""
    return "grow", [times, size_bytes, pause_s]


def stderr(text: str | bytes, repeat: int = 1) -> Step:
    """Write to the error output, so many times."""
    return "stderr", [(text.encode() if isinstance(text, str) else text).hex(), repeat]


def stdout(text: str | bytes, repeat: int = 1) -> Step:
    """Write to the standard output, so many times."""
    return "stdout", [(text.encode() if isinstance(text, str) else text).hex(), repeat]


def hang(seconds: float = 60.0) -> Step:
    """Do nothing for so long."""
    return "hang", seconds


def ignore(number: signal.Signals = signal.SIGTERM) -> Step:
    """Ignore a signal from the beginning on."""
    return "ignore", int(number)


def spawn(seconds: float = 60.0) -> Step:
    """Have a child that sleeps so long; its pid is in `Call.children`."""
    return "spawn", seconds


def kill(number: signal.Signals) -> Step:
    """Die of a signal."""
    return "kill", int(number)


def leave(code: int) -> Step:
    """End with this code."""
    return "leave", code


@dataclass(frozen=True)
class Call:
    """How a fake was called."""

    #: pg_dump, pg_restore or psql.
    program: str
    pid: int
    #: Process group.
    pgid: int
    #: Session.
    sid: int
    #: Arguments without the program.
    argv: list[str]
    #: /proc/PID/cmdline, which everybody on the machine can read.
    cmdline: str
    env: dict[str, str]
    #: What could be read from standard input.
    stdin: str
    umask: int
    #: Content of PGPASSFILE.
    passfile: str | None
    passfile_mode: int | None
    #: Mode of the directory of PGPASSFILE.
    passdir_mode: int | None
    #: Content of PGSERVICEFILE.
    service: str | None
    #: Pids of the processes it started.
    children: list[int]


@dataclass(frozen=True)
class Fake:
    """Three scripted programs in a directory of their own."""

    #: As `find_tools` would give them.
    tools: Tools
    #: Where the notes are.
    notes: Path

    @property
    def directory(self) -> Path:
        """The directory of the programs."""
        return self.tools.directory

    def calls(self) -> list[Call]:
        """Give all calls so far, oldest first; ``--version`` is none."""
        return [Call(**json.loads(path.read_text())) for path in sorted(self.notes.glob("*.json"))]

    def wait_for_call(self, timeout_s: float = 10.0) -> Call:
        """Wait until it has been called and say how."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if calls := self.calls():
                return calls[-1]
            time.sleep(0.005)
        raise AssertionError("the fake was not called")


def make_fake(base: Path, *steps: Step, version: str = "18.4", name: str = "fake") -> Fake:
    """Make the three programs below `base`; they all follow the same steps.

    Args:
        base: An existing directory, such as tmp_path.
        steps: What they do, in order.
        version: What they answer to ``--version``.
        name: Name of the directory, for several fakes in one test.
    """
    directory, notes = base / name / "bin", base / name / "notes"
    directory.mkdir(parents=True)
    notes.mkdir()
    script = _SCRIPT.format(python=sys.executable, steps=list(steps), version=version, notes=str(notes))
    paths = {}
    for program in ("pg_dump", "pg_restore", "psql"):
        paths[program] = directory / program
        paths[program].write_text(script)
        paths[program].chmod(0o755)
    major = int(version.partition(".")[0])
    return Fake(Tools(directory, major, version, **paths, source="fake"), notes)
