"""Kill -9 at each step of a restore with templates: nothing is lost, and the next command goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from keikaku_snapshots import SnapshotManager
from keikaku_snapshots.postgres import databases
from tests.integration import schemas
from tests.integration.test_restore_in_place import CHANGED, SMALL
from tests.integration.test_templates import COUNT, only, origin

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from keikaku_snapshots.postgres.url import DatabaseURL
    from tests.servers import Server

#: Reads where to die, a line for each restore: before the statement of this number, or the first with this
#: text. Only statements that make, rename, mark or drop databases or take locks have a number; what is sent
#: without waiting counts a second time, once it is sent. Forked, because Python starts slowly.
_KILLED = r"""
import os, re, signal, sys
import psycopg
from keikaku_snapshots import SnapshotManager
from keikaku_snapshots.postgres import cloning, dropping, together
url, directory = sys.argv[1:]
where, number = "", 0

def step(text):
    global number
    if re.search(r"\bDATABASE\b|advisory|xact_id", text):
        number += 1
        if where == str(number) or (not where.isdigit() and where in text):
            os.kill(os.getpid(), signal.SIGKILL)

execute, send = psycopg.Connection.execute, together.send_together

def stepping(self, query, *arguments, **options):
    if not isinstance(query, bytes):
        step(query if isinstance(query, str) else query.as_string(self))
    return execute(self, query, *arguments, **options)

def sending(connection, statements):
    text = statements[0].as_string(connection)
    step(text)
    send(connection, statements)
    step("sent " + text)

psycopg.Connection.execute = stepping
together.send_together = dropping.send_together = cloning.send_together = sending
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        where = line.strip()
        done = SnapshotManager(url, directory, minimum_free_mb=1, spare=1).restore_snapshot("small")
        os._exit(0 if done.reason.startswith(("cold", "warm", "spare")) else 1)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.fixture(scope="session")
def server(own_server: Server) -> Server:
    """A server whose templates nobody else pushes out."""
    return own_server


@pytest.fixture
def small(database: DatabaseURL, tmp_path: Path) -> Iterator[SnapshotManager]:
    """A manager that leaves spares, whose database was snapshotted as ``small`` and changed afterwards."""
    schemas.run(database, SMALL)
    with SnapshotManager(
        database, tmp_path / "snapshots", minimum_free_mb=1, spare=1, lock_wait_s=20
    ) as manager:
        manager.create_snapshot("small")
        schemas.run(database, CHANGED)
        yield manager


@pytest.fixture
def killer(small: SnapshotManager) -> Iterator[subprocess.Popen[str]]:
    """The process that restores and is killed."""
    with subprocess.Popen(
        [sys.executable, "-c", _KILLED, small.url.text, str(small.directory)],
        env={"PATH": os.defpath, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def restore_killed_at(killer: subprocess.Popen[str], where: str) -> bool:
    """Restore; True if it was killed there, False if it never came there."""
    assert killer.stdin is not None
    assert killer.stdout is not None
    killer.stdin.write(f"{where}\n")
    killer.stdin.flush()
    code = int(killer.stdout.readline())
    assert code in {0, -signal.SIGKILL}
    return code != 0


def left_behind(server: Server, url: DatabaseURL) -> list[str]:
    """What the next command does not get rid of: nothing, once the server has ended what was left to it."""
    with server.admin() as admin:
        deadline = time.monotonic() + 20
        while True:
            databases.sweep(admin, target=url.database)
            ours = databases.our_databases(admin, kinds=("new", "old"))
            left = [one.name for one in ours if one.identity.target == url.database]
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.02)


def make_ready(small: SnapshotManager, start: str) -> None:
    """Bring the server to the state in which a restore is cold, warm, or takes a spare."""
    small.clear_templates()
    if start == "cold":
        return
    small.restore_snapshot("small")  # leaves a spare
    if start == "warm":
        with SnapshotManager(small.url, small.directory, minimum_free_mb=1) as taker:
            assert origin(taker.restore_snapshot("small")) == "spare"
    schemas.run(small.url, CHANGED)


def assert_nothing_is_lost(server: Server, small: SnapshotManager) -> None:
    """The database is the old or the new one and open, the snapshot is whole, the next restore works."""
    assert schemas.rows_of(small.url, COUNT) in ([(300,)], [(500,)])
    assert small.verify_snapshot("small").sha256
    again = small.restore_snapshot("small")
    assert again.reason.startswith(("cold", "warm", "spare"))
    assert schemas.rows_of(small.url, COUNT) == [(500,)]
    assert left_behind(server, small.url) == []
    assert only(small).snapshot.startswith("small")
    schemas.run(small.url, CHANGED)


@pytest.mark.parametrize(
    ("start", "where"),
    [
        ("cold", "ALLOW_CONNECTIONS false"),  # renamed to be the template, not committed
        ("cold", 'sent CREATE DATABASE "keikaku_new'),  # the scratch database is being made
        ("cold", "STRATEGY"),  # there is a template, and no clone of it
        ("warm", "STRATEGY"),
        ("warm", "xact_id"),  # both names are changed, not committed
        ("warm", "sent DROP"),  # the restore is done, the old database is being dropped
        ("warm", 'sent CREATE DATABASE "keikaku_spare'),  # the spare is on its way
        ("spare", "ALLOW_CONNECTIONS true"),  # the spare is taken, not committed
        ("spare", "xact_id"),  # it is taken
    ],
)
def test_kill_9_at_a_step_loses_nothing(
    server: Server, small: SnapshotManager, killer: subprocess.Popen[str], start: str, where: str
) -> None:
    """PEERS 1, FAULTS 50, 62, RECIPES 3: whatever a crash leaves is used or dropped by the next command."""
    make_ready(small, start)
    assert restore_killed_at(killer, where)
    assert_nothing_is_lost(server, small)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["cold", "warm", "spare"])
def test_kill_9_before_any_statement_loses_nothing(
    server: Server, small: SnapshotManager, killer: subprocess.Popen[str], start: str
) -> None:
    """FAULTS 50, 62: the same at every statement, one after the other."""
    for number in range(1, 100):
        make_ready(small, start)
        if not restore_killed_at(killer, str(number)):
            assert number > 8, "it was really cut at many places"
            return
        assert_nothing_is_lost(server, small)
    pytest.fail("a restore has no hundred statements")
