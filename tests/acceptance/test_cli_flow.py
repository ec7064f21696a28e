"""The command line as a user meets it: real processes against a real server."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from keikaku_snapshots.postgres.url import DatabaseURL

if TYPE_CHECKING:
    from tests.prefork import Prefork

ROOT = Path(__file__).parents[2]
TABLES = {
    "staffs": 101,
    "offices": 10,
    "office_staffs": 100,
    "welfare_recipients": 1000,
    "office_welfare_recipients": 1000,
    "individual_support_plans": 1000,
    "support_plan_cycles": 1000,
}

Keikaku = Callable[..., subprocess.CompletedProcess[str]]


def _environment(directory: Path, **more: str) -> dict[str, str]:
    """Little more than cron gives: no HOME, no terminal, no locale."""
    return {"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}:{directory}", **more}


@pytest.fixture
def keikaku(tmp_path: Path) -> Keikaku:
    """Run `keikaku …` in an empty directory, without a terminal, with cron's environment."""
    return _keikaku_in(tmp_path)


def _keikaku_in(directory: Path) -> Keikaku:
    def call(
        *arguments: str, url: DatabaseURL | None = None, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        if url is not None:
            variables["KEIKAKU_DB_URL"] = url.text
        return subprocess.run(
            [sys.executable, "-m", "keikaku_snapshots", *arguments],
            cwd=directory,
            env=_environment(directory, **variables),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            umask=0,
        )

    return call


def _query(url: DatabaseURL, text: str) -> Any:
    with psycopg.connect(**url.connect_arguments()) as connection:
        cursor = connection.execute(text)
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


def _contents(url: DatabaseURL) -> dict[str, str]:
    query = "SELECT md5(string_agg(t::text, E'\\n' ORDER BY t::text)) FROM {} t"
    return {table: _query(url, query.format(table)) for table in TABLES}


def test_generate_damage_restore_delete(keikaku: Keikaku, database: DatabaseURL, tmp_path: Path) -> None:
    """The README's first screen: data, a snapshot, damage, and back to exactly what was."""
    made = keikaku("generate", "--scale", "small", "--json", url=database)
    document = json.loads(made.stdout)
    assert made.returncode == 0, made.stderr
    assert document["rows"] == TABLES
    assert document["snapshot"]["name"] == "small_10_offices"
    assert "copy staffs: 101 rows" in made.stderr

    before = _contents(database)
    _query(database, "DROP TABLE support_plan_cycles; UPDATE staffs SET full_name = 'x'")
    back = keikaku("restore", "small_10_offices", url=database)
    assert back.returncode == 0, back.stderr
    assert "restored small_10_offices" in back.stderr
    assert back.stdout == ""
    assert _contents(database) == before

    listed = json.loads(keikaku("list", "--json").stdout)
    assert [item["name"] for item in listed] == ["small_10_offices"]
    assert sum(listed[0]["row_counts"].values()) == sum(TABLES.values())
    assert listed[0]["manifest"]["metadata"]["seed"] == 0
    table = keikaku("list").stdout.splitlines()
    assert table[0].split() == ["NAME", "VERSION", "MADE", "(UTC)", "SIZE", "ROWS", "FORMAT", "STATE"]
    assert "4,211" in table[1]

    shown = keikaku("show", "small_10_offices").stdout
    assert "public.welfare_recipients" in shown
    assert "seed 0" in shown
    verified = keikaku("verify", "small_10_offices", "--json")
    assert json.loads(verified.stdout)["sha256"] == listed[0]["manifest"]["sha256"]

    version = listed[0]["version"]
    assert keikaku("delete", "small_10_offices", "--version", version).returncode == 0
    assert json.loads(keikaku("list", "--json").stdout) == []
    assert not list((tmp_path / "snapshots").glob("*small*.sql"))


def test_the_module_generates_and_keeps(keikaku: Keikaku, database: DatabaseURL, tmp_path: Path) -> None:
    """`python -m keikaku_snapshots.generate` is the same door; --keep deletes older ones."""
    for seed in ("1", "2", "3"):
        done = subprocess.run(
            [
                *(sys.executable, "-m", "keikaku_snapshots.generate", "--scale", "small", "--seed", seed),
                *("--name", "nightly", "--keep", "2", "-q", "--reference-date", "2025-06-30"),
            ],
            cwd=tmp_path,
            env=_environment(tmp_path, TEST_DATABASE_URL=database.text),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    listed = json.loads(keikaku("list", "nightly", "--json").stdout)
    assert [item["manifest"]["metadata"]["seed"] for item in listed] == [3, 2]
    assert listed[0]["manifest"]["metadata"]["reference_date"] == "2025-06-30"
    assert _query(database, "SELECT count(*) FROM offices") == 10
    assert str(_query(database, "SELECT max(end_date) FROM support_plan_cycles")) <= "2025-07-30"


def test_files_are_private_whatever_the_umask(
    keikaku: Keikaku, database: DatabaseURL, tmp_path: Path
) -> None:
    """PEERS 14, FAULTS 34: a run from cron with umask 0 leaves a 0700 directory with 0600 files."""
    assert keikaku("create", "x", url=database).returncode == 0

    directory = tmp_path / "snapshots"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    for file in directory.iterdir():
        if file.is_file() and not file.is_symlink():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


class Terminal:
    """A command with a terminal in front of it."""

    def __init__(self, arguments: list[str], directory: Path, url: DatabaseURL | None) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.chdir(directory)
            named = {"KEIKAKU_DB_URL": url.text} if url else {}
            environment = _environment(directory, TERM="dumb", **named)
            argv = [sys.executable, "-m", "keikaku_snapshots", *arguments]
            os.execve(sys.executable, argv, environment)  # noqa: S606 - no shell is wanted
        self.text = ""

    def until(self, words: str | None, timeout_s: float = 90) -> bool:
        """Read until the words, or to the end; False when time ran out first."""
        deadline = time.monotonic() + timeout_s
        while words is None or words not in self.text:
            if time.monotonic() > deadline:
                return False
            if not select.select([self._fd], [], [], 0.2)[0]:
                continue
            try:
                piece = os.read(self._fd, 65536)
            except OSError:  # Linux says so at the end of a terminal
                return True
            if not piece:
                return True
            self.text += piece.decode(errors="replace")
        return True

    def answer(self, text: str) -> int:
        """Type an answer, wait for the end; the exit code."""
        for _ in range(10):
            os.write(self._fd, text.encode())
            if self.until(None, timeout_s=5):
                os.close(self._fd)
                return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            # Ctrl-C in the moment before readline waits is noticed at the next key only.
        raise AssertionError(self.text)


@pytest.mark.parametrize(("answer", "code", "rows"), [("n\n", 130, 2), ("\x03", 130, 2), ("y\n", 0, 1)])
def test_a_terminal_is_asked_before_restoring(
    answer: str, code: int, rows: int, keikaku: Keikaku, database: DatabaseURL, tmp_path: Path
) -> None:
    """B15: host, database and rows are shown; no and Ctrl-C change nothing, yes restores."""
    _query(database, "CREATE TABLE t (id integer); INSERT INTO t VALUES (1)")
    keikaku("create", "x", url=database)
    _query(database, "INSERT INTO t VALUES (2)")

    terminal = Terminal(["restore", "x"], tmp_path, database)
    terminal.until("Restore? [y/N]")

    assert database.location in terminal.text
    assert "2 rows in 1 table" in terminal.text
    assert terminal.answer(answer) == code
    assert _query(database, "SELECT count(*) FROM t") == rows


def test_sigterm_while_generating_leaves_nothing(database: DatabaseURL, tmp_path: Path) -> None:
    """FAULTS 43, 46: `systemctl stop` in the middle: 143, no rows, no tables, no file."""
    process = subprocess.Popen(
        [sys.executable, "-m", "keikaku_snapshots", "generate", "--scale", "large"],
        cwd=tmp_path,
        env=_environment(tmp_path, KEIKAKU_DB_URL=database.text),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("copy welfare_recipients"):
            break
    process.send_signal(signal.SIGTERM)
    rest = process.stderr.read()
    process.stderr.close()

    assert process.wait(timeout=30) == 143
    assert "error: stopped by SIGTERM" in rest
    assert _query(database, "SELECT count(*) FROM pg_class WHERE relname = 'offices'") == 0
    assert not [file for file in tmp_path.glob("snapshots/*") if "lock" not in file.name]


def test_the_embedded_server_is_started_and_stopped(open_directory: Path) -> None:
    """`server start | status | url | stop`, and --embedded uses it."""
    keikaku = _keikaku_in(open_directory)
    start = keikaku("server", "start", "--setting", "fsync=off", "--json")
    try:
        status = json.loads(start.stdout)
        url = keikaku("server", "url").stdout.strip()
        used = keikaku("create", "empty", "--embedded")
        doctor = Terminal(["doctor"], open_directory, None)
        assert doctor.until(None)

        assert status["running"] is True
        assert json.loads(keikaku("server", "status", "--json").stdout)["pid"] == status["pid"]
        assert _query(DatabaseURL.parse(url), "SELECT current_database()") == "keikaku"
        assert used.returncode == 0, used.stderr
        assert "using the embedded PostgreSQL" in used.stderr
        assert "Database: 127.0.0.1:" in doctor.text, "on a terminal doctor looks at what commands use"
    finally:
        stop = keikaku("server", "stop")
    assert stop.returncode == 0
    assert "does not run" in keikaku("server", "status").stdout
    assert "it was not running" in keikaku("server", "stop").stderr


def test_a_compression_is_an_option_of_every_command_that_makes_snapshots(
    prefork: Prefork, tmp_path: Path, database: DatabaseURL
) -> None:
    """B5: the option, the configuration, `none` to leave it out once; a level that does not exist is told."""

    def keikaku(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = _environment(tmp_path, KEIKAKU_DB_URL=database.text, **variables)
        return prefork.run(arguments, cwd=tmp_path, env=environment, timeout_s=120)

    _query(database, "CREATE TABLE t (id integer PRIMARY KEY); INSERT INTO t VALUES (1)")
    configured = {"KEIKAKU_COMPRESSION": "gzip", "KEIKAKU_COMPRESSION_LEVEL": "9"}
    for arguments, variables, suffix in (
        (["create", "a", "--compression", "zstd", "--level", "19"], {}, "sql.zst"),
        (["create", "b"], configured, "sql.gz"),
        (["create", "c", "--compression", "none"], configured, "sql"),
        (["create", "d", "--format", "custom"], configured, "dump"),
        (["create", "e", "--compression", "zstd"], configured, "sql.zst"),
        (["refresh", "f", "--dump-only", "--compression", "gzip", "--no-prune"], {}, "sql.gz"),
        (["refresh", "g", "--dump-only", "--no-prune"], configured, "sql.gz"),
        (["generate", "--scale", "small", "--name", "h", "--compression", "zstd"], {}, "sql.zst"),
    ):
        done = keikaku(*arguments, "--json", **variables)
        assert done.returncode == 0, done.stderr
        path = Path(json.loads(done.stdout)["snapshot"]["path"])
        assert path.name.split(".", 1)[1] == suffix
        assert path.with_name(f"{path.name[0]}_latest.{suffix}").exists()
    table = {line.split()[0]: line for line in keikaku("list").stdout.splitlines()}
    assert "plain zstd" in table["a"]
    assert "plain gzip" in table["b"]
    done = keikaku("create", "i", "--compression", "gzip", "--level", "10")
    assert done.returncode == 2
    assert "from 1 to 9" in done.stderr
    done = keikaku("generate", "--scale", "small", "--level", "3")
    assert (done.returncode, "needs a compression" in done.stderr) == (2, True)
