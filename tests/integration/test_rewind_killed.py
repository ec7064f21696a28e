"""kill -9 of a process that makes checkpoints and rewinds, at any moment."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from keikaku_snapshots import SnapshotManager
from tests.integration.test_rewind import SHOP, run, state
from tests.servers import connect
from tests.waiting import until

if TYPE_CHECKING:
    from keikaku_snapshots.postgres.url import DatabaseURL
    from tests.conftest import MakeDatabase
    from tests.servers import Server

_WORK = """
import sys
from keikaku_snapshots import SnapshotManager
from keikaku_snapshots.postgres.url import DatabaseURL
from tests.servers import connect

url = DatabaseURL.parse(sys.stdin.readline().strip())
manager, session = SnapshotManager(url), connect(url)
session.execute("SET application_name = 'writer'")
print("ready", flush=True)
while True:
    session.execute("UPDATE offices SET name = name || 'x' WHERE id < 15; DELETE FROM staffs WHERE id < 20")
    session.execute("INSERT INTO offices (name) VALUES (gen_random_uuid()::text)")
    manager.rewind(wait_s=20)
    {again}
"""

_WRITERS = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'writer'"
)


@pytest.mark.parametrize("role", ["postgres", "keikaku_owner"])
@pytest.mark.parametrize("again", ["pass", "manager.drop_checkpoint(); manager.checkpoint()"])
def test_a_killed_process_leaves_what_the_next_one_can_go_on_with(
    server: Server, make_database: MakeDatabase, role: str, again: str
) -> None:
    """Rows are never half-way back; whatever it was doing, a rewind or a new checkpoint finds its way."""
    url = make_database(server, role)
    run(url, SHOP)
    before = state(url)
    moments = random.Random(7)
    with SnapshotManager(url) as manager:
        manager.checkpoint()
        for _ in range(3):
            _work_and_die(url, again, moments.uniform(0, 0.15))
            if again == "pass":
                manager.rewind(wait_s=20)
                assert state(url) == before
            else:
                # Between drop and checkpoint there is none, and what is there then becomes the state.
                manager.checkpoint(wait_s=20)
                there = state(url)
                run(url, "DELETE FROM offices")
                manager.rewind(wait_s=20)
                assert state(url) == there


def _work_and_die(url: DatabaseURL, again: str, after_s: float) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", _WORK.format(again=again)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(url.text + "\n")
        child.stdin.flush()
        assert child.stdout.readline() == "ready\n"
        time.sleep(after_s)  # any moment is as good as another
    finally:
        child.kill()
        child.wait()
        child.stdin.close()
        child.stdout.close()
    # The server ends a statement whose sender has died, and would commit it after our rewind.
    with connect(url) as connection:
        until(lambda: connection.execute(_WRITERS).fetchone() == (0,))
