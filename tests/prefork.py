"""Runs `keikaku …` in processes that need not start Python and import the package first.

That takes more time than most commands do. A process of this module imports everything once and forks
a child for each command, which calls `main` with arguments, environment, directory and streams of its
own, and ends with its exit code.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Self

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).parents[1]


class Prefork:
    """The process that forks; a context manager."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        # Its group: a command that hangs goes too.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()

    def run(
        self, arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str], timeout_s: float
    ) -> subprocess.CompletedProcess[str]:
        """Run ``keikaku ARGUMENTS`` with nothing on stdin, as `subprocess.run` would.

        Raises:
            subprocess.TimeoutExpired: It takes too long.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with tempfile.TemporaryDirectory() as directory:
            streams = [Path(directory, name) for name in ("stdout", "stderr")]
            job = [list(arguments), str(cwd), dict(env), [str(stream) for stream in streams]]
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
            if not select.select([self._process.stdout], [], [], timeout_s)[0]:
                raise subprocess.TimeoutExpired(["keikaku", *arguments], timeout_s)
            code = int(self._process.stdout.readline())
            out, err = (stream.read_text(encoding="utf-8") for stream in streams)
        return subprocess.CompletedProcess(["keikaku", *arguments], code, out, err)


def _serve() -> None:
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _become(*json.loads(line))
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        sys.stdout.flush()


def _become(arguments: list[str], cwd: str, env: dict[str, str], streams: list[str]) -> NoReturn:
    """Be the process that a shell would have started."""
    places = [(os.devnull, os.O_RDONLY), *((stream, os.O_WRONLY | os.O_CREAT) for stream in streams)]
    for number, (path, flags) in enumerate(places):
        opened = os.open(path, flags, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    # What was read of the next jobs is not for it.
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - as long as the process
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = [str(Path(sys.executable).with_name("keikaku")), *arguments]

    from keikaku_snapshots.cli import main

    code: object = 1
    try:
        main()
    except SystemExit as ended:
        code = ended.code
    finally:
        # Taking apart everything that was imported would cost more than the command.
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    import importlib
    import pkgutil

    sys.path[0] = str(Path(sys.executable).parent)  # as for the script `keikaku`
    for package in ("cli", "snapshots", "postgres", "datasets"):
        folder = importlib.import_module(f"keikaku_snapshots.{package}").__path__
        for found in pkgutil.iter_modules(folder, f"keikaku_snapshots.{package}."):
            importlib.import_module(found.name)
    for name in ("keikaku_snapshots.config", "keikaku_snapshots.generate", "sqlalchemy", "pydantic"):
        importlib.import_module(name)
    _serve()
