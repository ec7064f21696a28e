"""`keikaku patch worker --once` as cron starts it, stopped and killed while it is at work."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from keikaku_snapshots.postgres.connect import connect
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.postgres.url import DatabaseURL

PATCH = """
from keikaku_snapshots.patches.definition import SqlPatch, data_patch

@data_patch("count_up")
class CountUp(SqlPatch):
    '''Add one to each quantity.'''

    table = "public.stock"
    set = {"quantity": "quantity + 1"}
"""
CONFIGURATION = """
patch_modules: ['{module}']
patches: {{count_up: {{batch_size: 10, adaptive: false, pause_s: {pause_s}, on_crash: {on_crash}}}}}
scheduling:
  maintenance_windows: []
  schedule: [{{patch: count_up, cron: '0 0 1 1 *'}}]
security: {{log_encryption: false, audit_key_file: '{directory}/audit.key'}}
engine: {{lease_s: 1, heartbeat_s: 0.2}}
"""


class Cron:
    """Starts workers, one after the other, as cron would."""

    def __init__(self, url: DatabaseURL, directory: Path, connection: Connection) -> None:
        self._directory = directory
        self.connection = connection
        self._environment = {"PATH": "/usr/bin:/bin", "HOME": str(directory), "KEIKAKU_DB_URL": url.text}
        self._command = [sys.executable, "-m", "keikaku_snapshots", "patch"]
        (directory / "own.py").write_text(PATCH, encoding="utf-8")
        self.rest_between_batches(0.3)

    def rest_between_batches(self, seconds: float, on_crash: str = "resume") -> None:
        """Make the next workers slow or fast."""
        text = CONFIGURATION.format(
            module=self._directory / "own.py", directory=self._directory, pause_s=seconds, on_crash=on_crash
        )
        (self._directory / "data_patches.yml").write_text(text, encoding="utf-8")

    def make_due(self) -> None:
        """Let the time of the entry have come."""
        self.connection.execute(
            "UPDATE keikaku_patches.schedule SET handled_until = now() - interval '1 year'"
        )

    @contextmanager
    def start(self, *words: str) -> Iterator[subprocess.Popen[str]]:
        """Start a worker, or another command of patches; it does not outlive the block."""
        process = subprocess.Popen(
            [*self._command, *(words or ("worker", "--once"))],
            cwd=self._directory,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def run(self, *words: str) -> tuple[int, str, str]:
        """Let a worker make its pass: exit code, stdout, stderr."""
        with self.start(*words) as process:
            out, err = process.communicate(timeout=60)
            return process.returncode, out, err

    def batches(self) -> int:
        """How many were committed."""
        row = self.connection.execute("SELECT count(*) FROM keikaku_patches.batch_log").fetchone()
        assert row is not None
        return int(row[0])

    def runs(self) -> list[tuple[str, str]]:
        """State of all runs."""
        query = "SELECT status, sub_state FROM keikaku_patches.execution WHERE kind = 'run'"
        return [(row[0], row[1]) for row in self.connection.execute(query)]

    def quantities(self) -> list[int]:
        """The different quantities there are."""
        query = "SELECT DISTINCT quantity FROM stock ORDER BY quantity"
        return [row[0] for row in self.connection.execute(query)]


@pytest.fixture
def cron(shared_database: DatabaseURL, tmp_path: Path) -> Iterator[Cron]:
    """A hundred rows in ten slow batches; the entry of the schedule is due."""
    with connect(shared_database, autocommit=True) as connection:
        connection.execute("CREATE TABLE stock (id int PRIMARY KEY, quantity int NOT NULL)")
        connection.execute("INSERT INTO stock SELECT n, 0 FROM generate_series(1, 100) AS n")
        cron = Cron(shared_database, tmp_path, connection)
        assert cron.run() == (0, "", "")
        cron.make_due()
        yield cron


def test_sigterm_lets_the_batch_finish_and_the_next_pass_goes_on(cron: Cron) -> None:
    """Exit code 143; what was done is done once, and the second pass says nothing."""
    with cron.start() as process:
        until(lambda: cron.batches() >= 2)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
        assert process.returncode == 143
    assert cron.runs() == [("running", "paused")]

    cron.rest_between_batches(0)
    assert cron.run() == (0, "", "")
    assert cron.runs() == [("completed", "done")]
    assert cron.quantities() == [1]


def test_what_a_killed_worker_had_begun_is_reaped_by_the_next_one(cron: Cron) -> None:
    """SIGKILL in mid-run: no row is changed twice, and the schedule does not begin a second run."""
    with cron.start() as process:
        until(lambda: cron.batches() >= 2)
        process.kill()
        process.communicate()
    cron.rest_between_batches(0)

    def is_done() -> bool:
        code, _out, _err = cron.run()
        assert code == 0
        return cron.runs() == [("completed", "done")]

    until(is_done)
    assert cron.quantities() == [1]


def test_reap_takes_back_what_a_killed_worker_did_where_that_is_wanted(cron: Cron) -> None:
    """`keikaku patch reap` by hand, with `on_crash: rollback`; what it did is said."""
    with cron.start() as process:
        until(lambda: cron.batches() >= 2)
        process.kill()
        process.communicate()
    cron.rest_between_batches(0, on_crash="rollback")
    said: list[str] = []

    def is_done() -> bool:
        code, out, _err = cron.run("reap")
        assert code == 0
        said.append(out)
        return cron.runs() == [("failed", "rolled_back")]

    until(is_done)
    assert said[-1].startswith("count_up ")
    assert cron.quantities() == [0]
