"""A server with two shops that are restored, one that is rewound, and those who work there at once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psycopg

from keikaku_snapshots import SnapshotManager
from keikaku_snapshots.errors import SnapshotNotFoundError
from keikaku_snapshots.postgres import databases
from keikaku_snapshots.postgres.identity import Identity
from tests import servers
from tests.campaigns import bookstore
from tests.campaigns.world import digest
from tests.integration.test_rewind import state
from tests.waiting import until

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping
    from types import TracebackType

    from keikaku_snapshots.postgres.url import DatabaseURL
    from tests.servers import Server

ROOT = Path(__file__).parents[2]
#: Databases that are restored, and the one that is rewound.
SHOPS, REWOUND = ("shop_a", "shop_b"), "shop_c"
#: Snapshots, by their rows in `sales`.
SNAPSHOTS = {"one": 1500, "two": 700}
_FILL = """
INSERT INTO sales (stock_id, buyer, notes)
  SELECT 1 + i % 10, md5(i::text), '{{"paid": true}}' FROM generate_series(1, {0}) AS i
"""
SUITE = f"""
import psycopg
import pytest

@pytest.mark.parametrize("number", range(4))
def test_it(keikaku_db, number):
    with psycopg.connect(keikaku_db) as connection:
        assert connection.execute("SELECT count(*) FROM sales").fetchone() == ({SNAPSHOTS["one"]},)
        connection.execute("DELETE FROM sales WHERE id > 100")
"""
#: Longest that anybody may take; every wait of ours has a limit below it.
_PATIENCE_S = 120


@dataclass
class Participant:
    """A process that takes part in a round."""

    #: What it was told.
    given: Mapping[str, Any]
    #: Process number.
    pid: int
    #: Exit code; None while it lives.
    code: int | None = None
    #: True once it was killed.
    killed: bool = False
    #: A run of pytest, which is a child of ours.
    process: subprocess.Popen[str] | None = None

    @property
    def text(self) -> str:
        """What it said at its end."""
        path = Path(self.given["report"])
        return path.read_text(encoding="utf-8") if path.exists() else ""

    @property
    def ending(self) -> str:
        """How it ended, in a word."""
        if self.code == -signal.SIGKILL:
            return "killed"
        if self.code and self.process is None:
            return self.text.partition(":")[0].partition("\n")[0]
        return {0: "done", 1: "failed"}.get(self.code or 0, str(self.code))

    def __str__(self) -> str:
        words = {name: self.given[name] for name in ("what", "url", "name", "strategy", "spare", "clear")
                 if name in self.given}  # fmt: skip
        if "url" in words:
            words["url"] = str(words["url"]).rpartition("/")[2]
        return f"{' '.join(map(str, words.values()))}{' killed' if self.killed else ''} -> {self.code}"


@dataclass
class World:
    """The server, the databases and the snapshots; each round goes on where the last one ended."""

    server: Server
    #: Where the files are.
    base: Path
    #: Rows that each snapshot brings back, and those of the rewound database.
    states: dict[str, str] = field(default_factory=dict)
    #: Digest of each snapshot's file.
    files: dict[str, str] = field(default_factory=dict)
    _count: int = 0
    _ended: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        self.directory = self.base / "snapshots"
        suite = self.base / "suite"
        suite.mkdir()
        suite.joinpath("test_suite.py").write_text(SUITE, encoding="utf-8")
        suite.joinpath("pytest.ini").write_text("[pytest]\nkeikaku_snapshot = one\n", encoding="utf-8")
        for name in (*SHOPS, REWOUND):
            servers.create_database(self.server, name=name)
            bookstore.run(self.url(name), bookstore.SCHEMA)
        with self.manager(SHOPS[0]) as manager:
            for name, rows in SNAPSHOTS.items():
                bookstore.run(manager.url, "TRUNCATE sales RESTART IDENTITY;" + _FILL.format(rows))
                manager.create_snapshot(name)
                self.states[name] = self.rows(SHOPS[0])
            self.files = {one.name: digest(one) for one in manager.list_snapshots()}
        with self.manager(SHOPS[1]) as manager:
            manager.restore_snapshot("two")
        bookstore.run(self.url(REWOUND), _FILL.format(200))
        self.states[REWOUND] = self.rows(REWOUND)
        with self.manager(REWOUND) as manager:
            manager.checkpoint()
        self._forks = subprocess.Popen(
            [sys.executable, "-m", "tests.campaigns.instant_worker"],
            cwd=ROOT,
            env={"PYTHONPATH": str(ROOT), "PATH": os.defpath, "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._forks.kill()
        self._forks.communicate()

    def url(self, database: str) -> DatabaseURL:
        """One of the databases."""
        return self.server.url.with_database(database)

    def manager(self, database: str) -> SnapshotManager:
        """A manager in this process."""
        return SnapshotManager(self.url(database), self.directory, minimum_free_mb=0, lock_wait_s=60)

    # -- those who take part ---------------------------------------------------------

    def start(self, **given: Any) -> Participant:
        """Let somebody take part."""
        self._count += 1
        given |= {"report": str(self.base / f"report{self._count}"), "directory": str(self.directory)}
        if given["what"] == "plugin":
            process = self._suite(Path(given["report"]))
            return Participant(given, process.pid, process=process)
        self._tell({**given, "url": self.url(given["url"]).text})
        return Participant(given, int(self._answer()))

    def _tell(self, line: Mapping[str, Any]) -> None:
        assert self._forks.stdin is not None
        self._forks.stdin.write(json.dumps(line) + "\n")
        self._forks.stdin.flush()

    def _answer(self) -> str:
        assert self._forks.stdout is not None
        while (line := self._forks.stdout.readline()).startswith("ended"):
            self._ended.append(line)
        return line

    def _suite(self, report: Path) -> subprocess.Popen[str]:
        environment = {
            "PATH": os.defpath,
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "KEIKAKU_DB_URL": self.url(SHOPS[1]).text,
            "KEIKAKU_SNAPSHOT_DIR": str(self.directory),
            "KEIKAKU_MINIMUM_FREE_MB": "1",
        }
        with report.open("w", encoding="utf-8") as out:
            return subprocess.Popen(
                [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header"],
                cwd=self.base / "suite",
                env=environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def wait(self, taking_part: list[Participant]) -> None:
        """Wait until all have ended."""
        by_pid = {one.pid: one for one in taking_part if one.process is None}
        assert self._forks.stdout is not None
        while by_pid:
            line = self._ended.pop(0) if self._ended else self._forks.stdout.readline()
            _, pid, code = line.split()
            by_pid.pop(int(pid)).code = int(code)
        for one in taking_part:
            if one.process is not None:
                one.code = one.process.wait(_PATIENCE_S)

    def run_suite(self) -> tuple[int, str]:
        """A run of pytest that nobody disturbs: its exit code and words."""
        report = self.base / "undisturbed"
        code = self._suite(report).wait(_PATIENCE_S)
        return code, report.read_text(encoding="utf-8")

    # -- faults ----------------------------------------------------------------------

    def kill(self, victim: Participant) -> None:
        """Kill a process, unless it has ended: its parent knows, and hits nobody who has its number since."""
        victim.killed = True
        if victim.process is not None:
            victim.process.kill()
        else:
            self._tell({"kill": victim.pid})

    def hit_a_session(self, dice: random.Random, *, hard: bool) -> str:
        """Terminate a server process of somebody who takes part, or kill it, which the whole server feels."""
        with contextlib.suppress(psycopg.OperationalError), self.server.admin() as admin:
            rows = admin.execute(
                "SELECT pid, coalesce(application_name, '') FROM pg_stat_activity"
                " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() ORDER BY backend_start"
            ).fetchall()
            if not rows:
                return ""
            pid, name = dice.choice(rows)
            if hard:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(str(pid)), signal.SIGKILL)
            else:
                admin.execute("SELECT pg_terminate_backend(%s)", [pid])
            return re.sub(r" \d.*", "", str(name)) or "a test's own session"
        return ""

    def wait_for_server(self) -> None:
        """Until the server has recovered and nobody of the round is at work in it."""

        def quiet() -> bool:
            try:
                with self.server.admin() as admin:
                    row = admin.execute(
                        "SELECT count(*) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                        " AND backend_type = 'client backend'"
                    ).fetchone()
            except psycopg.OperationalError:
                return False
            return row == (0,)

        until(quiet)

    # -- looking ---------------------------------------------------------------------

    def rows(self, database: str) -> str:
        """A digest of all rows and sequences."""
        return hashlib.sha256(repr(state(self.url(database))).encode()).hexdigest()

    def damaged_files(self) -> list[str]:
        """Snapshots that are not as they were."""
        found = SnapshotManager(None, self.directory).list_snapshots()
        now = {one.name: digest(one) for one in found if one.is_valid}
        return [] if now == self.files else [f"{one}: {one.problem}" for one in found] or ["all are gone"]

    def rewind(self) -> None:
        """Go back to the checkpoint; only who arms can have left none, and then nothing was changed."""
        with self.manager(REWOUND) as manager:
            try:
                manager.rewind(wait_s=20)
            except SnapshotNotFoundError:
                manager.checkpoint(wait_s=20)

    def unmarked(self) -> list[str]:
        """Databases with a name of ours that do not say that they are ours."""
        with self.server.admin() as admin:
            rows = admin.execute(
                "SELECT datname::text, shobj_description(oid, 'pg_database') FROM pg_database"
                " WHERE datname LIKE 'keikaku\\_%'"
            ).fetchall()
        return [str(name) for name, comment in rows if Identity.from_comment(str(comment or "")) is None]

    def drop_unmarked(self) -> None:
        """What only a crash of the server can leave: `doctor` names it, people drop it."""
        with self.server.admin() as admin:
            for name in self.unmarked():
                admin.execute(f"DROP DATABASE {name}")

    def begin_anew(self) -> None:
        """After a round that failed: no template, no trace of it."""
        self.wait_for_server()
        with self.server.admin() as admin:
            rows = admin.execute("SELECT datname::text FROM pg_database WHERE datname LIKE 'keikaku\\_%'")
            for (name,) in rows.fetchall():
                admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        for name in SHOPS:
            with self.manager(name) as manager:
                manager.restore_snapshot("two", strategy="swap")
        self.rewind()

    def left(self, *kinds: str) -> list[str]:
        """Databases of ours of these kinds, once the server has dropped what was left to it."""
        found: list[str] = []
        deadline = time.monotonic() + 20
        with self.server.admin() as admin:
            while time.monotonic() < deadline:
                ours = databases.our_databases(admin, kinds=kinds)  # type: ignore[arg-type]
                found = [one.name for one in ours]
                if not found:
                    break
                time.sleep(0.02)
        return found
