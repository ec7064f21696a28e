"""`tools`: the right programs, called with nothing but what they need, and their failures in plain words."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from keikaku_snapshots import errors
from keikaku_snapshots._process import ToolResult, run_tool
from keikaku_snapshots.postgres import tool_search
from keikaku_snapshots.postgres.tools import (
    find_tools,
    pg_restore_script,
    public_stderr,
    run_pg_dump,
    run_pg_restore,
    run_psql,
    start_pg_dump,
    tool_environment,
    translate_tool_failure,
)
from keikaku_snapshots.postgres.url import DatabaseURL
from tests.fakes import Fake, Step, grow, hang, ignore, kill, leave, make_fake, spawn, stderr, write

if TYPE_CHECKING:
    from collections.abc import Iterator

CANARY = "c4nary/p@ss:w\\rd"
URL = DatabaseURL("db.example.com", 5433, "mika", CANARY, "host=evil dbname=x")


@pytest.fixture(autouse=True)
def private_temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where secrets go in these tests; empty again after each."""
    directory = tmp_path / "secrets"
    directory.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(directory))
    yield directory
    left = [path.name for path in directory.iterdir() if not path.name.startswith("keikaku-pass-keep")]
    assert left == [], "secrets were left behind"


# --- environment


def test_nothing_is_inherited_but_the_allow_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """FAULTS 8, 11: an inherited PGHOSTADDR would beat our host."""
    for name in ("PGHOSTADDR", "PGOPTIONS", "PGSERVICE", "PGCLIENTENCODING", "PSQLRC", "PGPASSWORD", "OTHER"):
        monkeypatch.setenv(name, "evil")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    with tool_environment(URL) as env:
        assert "evil" not in env.values()
        assert env["PGCLIENTENCODING"] == "UTF8"
        assert env["LC_ALL"] == "C"
        assert env["TZ"] == "Asia/Tokyo"
        assert {name for name in env if name.startswith("PG")} == {
            "PGHOST",
            "PGPORT",
            "PGUSER",
            "PGDATABASE",
            "PGPASSFILE",
            "PGOPTIONS",
            "PGCLIENTENCODING",
            "PGAPPNAME",
            "PGCONNECT_TIMEOUT",
            "PGSERVICE",
            "PGSERVICEFILE",
        }


def test_the_database_name_is_a_single_field(tmp_path: Path) -> None:
    """FAULTS 38: in PGDATABASE it is a name, in argv it would be a connection string."""
    fake = make_fake(tmp_path)
    run_pg_dump(fake.tools, URL, tmp_path / "out")
    run_psql(fake.tools, URL, [tmp_path / "in.sql"])
    run_pg_restore(fake.tools, URL, tmp_path / "in.dump")

    assert [call.program for call in fake.calls()] == ["pg_dump", "psql", "pg_restore"]
    for call in fake.calls():
        assert call.env["PGDATABASE"] == "host=evil dbname=x"
        assert not any("evil" in argument for argument in call.argv)


def test_the_password_is_in_a_private_file_and_nowhere_else(tmp_path: Path) -> None:
    r"""FAULTS 30, 40: 0600 in a 0700 directory, with ":" and "\\" escaped; argv is world-readable."""
    fake = make_fake(tmp_path)
    old = os.umask(0)
    try:
        run_psql(fake.tools, URL, ["x.sql"])
    finally:
        os.umask(old)
    call = fake.calls()[0]

    assert call.passfile == "*:*:*:*:c4nary/p@ss\\:w\\\\rd\n"
    assert (call.passfile_mode, call.passdir_mode) == (0o600, 0o700)
    assert CANARY not in call.cmdline
    assert not any(CANARY in value for value in call.env.values())


def test_without_a_password_the_users_own_file_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """~/.pgpass is found by HOME; an inherited PGPASSFILE is not."""
    monkeypatch.setenv("HOME", "/home/mika")
    monkeypatch.setenv("PGPASSFILE", "/evil")
    with tool_environment(DatabaseURL("h", None, "u", None, "d")) as env:
        assert "PGPASSFILE" not in env
        assert env["HOME"] == "/home/mika"


def test_no_place_for_the_password_is_said_in_plain_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """A read-only or vanished TMPDIR is the account's problem, not a traceback; a full one is the disk's."""
    monkeypatch.setattr("tempfile.tempdir", "/proc/keikaku-none")
    with pytest.raises(errors.AccessDeniedError, match="TMPDIR"), tool_environment(URL):
        pass

    def full(*_arguments: object, **_options: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.mkdtemp", full)
    with pytest.raises(errors.DiskFullError, match="TMPDIR"), tool_environment(URL):
        pass


def test_a_password_with_a_line_break_goes_into_the_environment() -> None:
    """A password file ends a line there; the environment is readable by the same account only."""
    with tool_environment(DatabaseURL("h", None, "u", "a\nb", "d")) as env:
        assert env["PGPASSWORD"] == "a\nb"
        assert "PGPASSFILE" not in env


def test_what_has_no_variable_goes_through_a_service_file(tmp_path: Path) -> None:
    """FAULTS 99: keepalives have no variable; an older libpq refuses what it does not know there."""
    fake = make_fake(tmp_path)
    url = DatabaseURL.parse(
        "postgresql://u:canary123@h/d?sslmode=require&keepalives_idle=7&require_auth=scram-sha-256&options=-c%20a%3Db"
    )
    run_psql(fake.tools, url, ["x.sql"])
    call = fake.calls()[0]
    service = (call.service or "").splitlines()

    assert service[0] == f"[{call.env['PGSERVICE']}]"
    assert {"keepalives_idle=7", "keepalives=1", "require_auth=scram-sha-256"} <= set(service)
    assert "canary123" not in (call.service or "")
    assert call.env["PGSSLMODE"] == "require"
    assert call.env["PGOPTIONS"].endswith("-c a=b")


def test_the_server_notices_a_killed_client(tmp_path: Path) -> None:
    """FAULTS 47: else the server goes on with a statement whose client is gone."""
    with tool_environment(URL, settings={"lock_timeout": "2 s"}) as env:
        assert env["PGOPTIONS"] == r"-c client_connection_check_interval=500 -c lock_timeout=2\ s"


def test_secrets_are_removed_also_after_an_error(private_temporary_directory: Path) -> None:
    """docs/design.md, Programs and secrets: removed in any case."""
    with pytest.raises(ZeroDivisionError), tool_environment(URL):  # noqa: PT012 - what the block does is the point
        assert len(list(private_temporary_directory.iterdir())) == 1
        _ = 1 / 0

    assert not list(private_temporary_directory.iterdir())


def test_secrets_of_a_killed_process_are_swept(private_temporary_directory: Path) -> None:
    """FAULTS 43, 44: SIGKILL runs no cleanup; the next command removes what nobody locks any more."""
    left = private_temporary_directory / "keikaku-pass-1-old"
    left.mkdir(mode=0o700)
    (left / "pass").write_text("*:*:*:*:canary")
    foreign = private_temporary_directory / "keikaku-pass-keep-foreign"
    foreign.mkdir(mode=0o755)
    foreign.chmod(0o755)
    young = private_temporary_directory / "keikaku-pass-keep-young"
    young.mkdir(mode=0o700)
    for path in (left, foreign):
        os.utime(path, (time.time() - 3600,) * 2)
    with tool_environment(URL) as env:
        mine = Path(env["PGPASSFILE"]).parent
        os.utime(mine, (time.time() - 3600,) * 2)
        with tool_environment(URL):
            assert mine.exists()
        assert not left.exists()

    assert foreign.exists()
    assert young.exists()


# --- arguments


def test_pg_dump_arguments(tmp_path: Path) -> None:
    """FAULTS 61, 80: never a prompt, never a wait without end, never stdout, never -C."""
    fake = make_fake(tmp_path)
    run_pg_dump(
        fake.tools,
        URL,
        tmp_path / "out",
        format="custom",
        snapshot_id="0001-1",
        lock_wait_timeout_s=1.5,
        compression="gzip:1",
        owners=False,
        clean=True,
        exclude_schemas=['keikaku_"x'],
        sections=["data"],
    )

    assert fake.calls()[0].argv == [
        "--no-password",
        "--format=custom",
        f"--file={tmp_path / 'out'}",
        "--lock-wait-timeout=1500",
        "--compress=gzip:1",
        "--no-owner",
        "--no-privileges",
        "--clean",
        "--if-exists",
        "--snapshot=0001-1",
        "--section=data",
        '--exclude-schema="keikaku_""x"',
    ]


def test_psql_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAULTS 4, 5, 6: both flags, no .psqlrc, files by absolute path, no output."""
    monkeypatch.chdir(tmp_path)
    fake = make_fake(tmp_path)
    run_psql(fake.tools, URL, ["-", "/dev/fd/5"])
    run_psql(fake.tools, URL, ["a.sql"], single_transaction=False)
    first, second = (call.argv for call in fake.calls())

    assert first[:7] == ["-X", "-q", "-w", "-v", "ON_ERROR_STOP=1", "-v", "VERBOSITY=verbose"]
    assert first[7:] == [
        "--single-transaction",
        "-o",
        "/dev/null",
        "-f",
        str(tmp_path / "-"),
        "-f",
        "/dev/fd/5",
    ]
    assert "--single-transaction" not in second


def test_pg_restore_arguments(tmp_path: Path) -> None:
    """docs/design.md, Valid files: it stops at the first error; several jobs exclude one transaction."""
    fake = make_fake(tmp_path)
    run_pg_restore(fake.tools, URL, tmp_path / "a")
    run_pg_restore(fake.tools, URL, tmp_path / "a", jobs=3, list_file=tmp_path / "l", owners=False)
    pg_restore_script(fake.tools, tmp_path / "a", tmp_path / "o.sql", section="data")
    one, many, script = (call.argv for call in fake.calls())

    assert one == [
        "--no-password",
        "--exit-on-error",
        "--dbname=",
        "--single-transaction",
        str(tmp_path / "a"),
    ]
    assert "--jobs=3" in many
    assert "--single-transaction" not in many
    assert script == [
        f"--file={tmp_path / 'o.sql'}",
        "--single-transaction",
        "--section=data",
        str(tmp_path / "a"),
    ]
    assert "PGPASSFILE" not in fake.calls()[2].env
    with pytest.raises(errors.UsageError, match="single transaction"):
        run_pg_restore(fake.tools, URL, tmp_path / "a", jobs=2, single_transaction=True)


@pytest.mark.parametrize("argument", ["-C", "--create", "-cC"])
def test_dumps_that_connect_elsewhere_cannot_be_made(tmp_path: Path, argument: str) -> None:
    """FAULTS 12: a dump made with -C restores into its source."""
    fake = make_fake(tmp_path)
    with pytest.raises(errors.UsageError, match="-C"):
        run_pg_dump(fake.tools, URL, tmp_path / "out", extra=[argument])


def test_parallel_dumps_need_a_directory(tmp_path: Path) -> None:
    """pg_dump would say so after connecting; we say it before."""
    with pytest.raises(errors.UsageError, match="format='directory'"):
        run_pg_dump(make_fake(tmp_path).tools, URL, tmp_path / "out", jobs=2)


def test_no_file_is_no_restore(tmp_path: Path) -> None:
    """Psql without -f would read its standard input and report success."""
    with pytest.raises(errors.UsageError, match="no file"):
        run_psql(make_fake(tmp_path).tools, URL, [])


def test_the_output_file_is_private(tmp_path: Path) -> None:
    """FAULTS 34: pg_dump itself would make it 0666 under umask 0."""
    fake = make_fake(tmp_path, write(10))
    old = os.umask(0)
    try:
        run_pg_dump(fake.tools, URL, tmp_path / "out")
    finally:
        os.umask(old)

    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o600


def test_a_planted_link_is_refused(tmp_path: Path) -> None:
    """FAULTS 35: pg_dump follows links and overwrites the victim."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "link").symlink_to(victim)
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe")
    fake = make_fake(tmp_path, write(10))
    for name in ("link", "dangling", "pipe"):
        with pytest.raises(errors.AccessDeniedError, match="not ours"):
            run_pg_dump(fake.tools, URL, tmp_path / name)
    with pytest.raises(errors.AccessDeniedError):
        run_pg_dump(fake.tools, URL, tmp_path / "link", format="directory")

    assert victim.read_text() == "precious"
    assert fake.calls() == []


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    """The path and the system's reason are in the error."""
    with pytest.raises(errors.AccessDeniedError, match="No such file"):
        run_pg_dump(make_fake(tmp_path).tools, URL, tmp_path / "no" / "out")


# --- scripted failures


def test_the_canary_password_is_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """FAULTS 31, 32, 3.2: no log record, exception, argv, repr or error output holds the password."""
    caplog.set_level(logging.DEBUG)
    noise = f"connection to server failed: {URL.text} password={CANARY}\nQUERY: {CANARY}\n"
    scripts: dict[str, list[Step]] = {
        "fails": [stderr(noise), leave(1)],
        "bad": [stderr(noise), stderr(b"\xff\xfe"), leave(2)],
        "loud": [stderr(noise, 5000), leave(3)],
        "dies": [stderr(noise), kill(signal.SIGSEGV)],
        "hangs": [stderr(noise), ignore(), hang()],
    }
    texts = []
    for name, steps in scripts.items():
        fake = make_fake(tmp_path, *steps, name=name)
        for program in ("pg_dump", "psql", "pg_restore"):
            try:
                result = _run(fake, program, tmp_path, timeout_s=0.5)
                error: errors.KeikakuError = translate_tool_failure(result, URL, doing="testing")
                texts += [repr(result), result.stderr]
            except errors.OperationTimeoutError as caught:
                error = caught
            texts += [str(error), repr(error), repr(error.details), repr(error.__cause__)]
        texts += [call.cmdline for call in fake.calls()]
        assert len(fake.calls()) == 3
    texts += [caplog.text, *map(str, caplog.records), str(URL), repr(URL)]

    for spelling in (CANARY, "c4nary", URL.text, "p%40ss"):
        assert not [text for text in texts if spelling in text]


@pytest.mark.parametrize(
    ("program", "steps", "kind", "words"),
    [
        (
            "pg_dump",
            [write(99), stderr("pg_dump: error: could not write: No space left on device"), leave(1)],
            errors.DiskFullError,
            "ディスク容量不足",
        ),
        ("pg_dump", [write(99), kill(signal.SIGXFSZ)], errors.DiskFullError, "largest file size"),
        (
            "pg_dump",
            [stderr("pg_dump: error: could not write to file: File too large"), leave(1)],
            errors.DiskFullError,
            "could not write",
        ),
        (
            "psql",
            [stderr("psql:x:1: ERROR:  53100: could not extend file: No space left on device"), leave(3)],
            errors.DiskFullError,
            "disk of the server",
        ),
        ("pg_dump", [kill(signal.SIGKILL)], errors.CreateFailedError, "SIGKILL"),
        ("psql", [kill(signal.SIGSEGV)], errors.RestoreFailedError, "SIGSEGV"),
        (
            "psql",
            [
                stderr(
                    'psql: error: connection to server at "h", port 1 failed: FATAL:  password '
                    'authentication failed for user "u"'
                ),
                leave(2),
            ],
            errors.AuthenticationError,
            "password",
        ),
        (
            "psql",
            [
                stderr(
                    'psql: error: connection to server at "h", port 1 failed: FATAL:  ユーザー"u"の'
                    "パスワード認証に失敗しました"
                ),
                leave(2),
            ],
            errors.AuthenticationError,
            "role",
        ),
        (
            "pg_dump",
            [
                stderr(
                    'pg_dump: error: connection to server at "h", port 1 failed: fe_sendauth: no password '
                    "supplied"
                ),
                leave(1),
            ],
            errors.AuthenticationError,
            "no password",
        ),
        (
            "psql",
            [stderr('psql: error: connection to server at "h", port 1 failed: Connection refused'), leave(2)],
            errors.ConnectError,
            "cannot be reached",
        ),
        (
            "psql",
            [stderr('psql: error: could not translate host name "h" to address: nope'), leave(2)],
            errors.ConnectError,
            "lost|reached",
        ),
        (
            "psql",
            [
                stderr(
                    "psql:x:9: FATAL:  57P01: terminating connection due to administrator command\n"
                    "psql:x:9: server closed the connection unexpectedly"
                ),
                leave(2),
            ],
            errors.ConnectError,
            "was lost",
        ),
        (
            "pg_dump",
            [
                stderr(
                    "pg_dump: error: server version: 18.4; pg_dump version: 15.18 (Debian)\n"
                    "pg_dump: error: aborting because of server version mismatch"
                ),
                leave(1),
            ],
            errors.ToolVersionError,
            "pg_dump 15.18 cannot work with server 18.4",
        ),
        (
            "pg_restore",
            [stderr("pg_restore: error: unsupported version (1.16) in file header"), leave(1)],
            errors.ToolVersionError,
            "does not fit",
        ),
        (
            "psql",
            [stderr("psql:x:5: error: invalid command \\restrict"), leave(3)],
            errors.ToolVersionError,
            "fit",
        ),
        (
            "pg_restore",
            [stderr("pg_restore: error: input file does not appear to be a valid archive"), leave(1)],
            errors.SnapshotCorruptError,
            "スナップショットが破損",
        ),
        (
            "pg_restore",
            [stderr("pg_restore: error: could not read from input file: end of file"), leave(1)],
            errors.SnapshotCorruptError,
            "cannot be read",
        ),
        (
            "psql",
            [stderr("psql:x:5: ERROR:  55P03: canceling statement due to lock timeout"), leave(3)],
            errors.DatabaseInUseError,
            "lock",
        ),
        (
            "pg_dump",
            [
                stderr("pg_dump: error: query failed: ERROR:  canceling statement due to lock timeout"),
                leave(1),
            ],
            errors.DatabaseInUseError,
            "lock",
        ),
        (
            "psql",
            [stderr("psql:x:5: ERROR:  57014: canceling statement due to statement timeout"), leave(3)],
            errors.OperationTimeoutError,
            "stopped",
        ),
        (
            "psql",
            [stderr("psql:x:5: ERROR:  42501: must be owner of extension pgcrypto"), leave(3)],
            errors.AccessDeniedError,
            "must be owner",
        ),
        (
            "pg_dump",
            [
                stderr(
                    "pg_dump: error: query failed: ERROR:  query would be affected by row-level security "
                    'policy for table "t"'
                ),
                leave(1),
            ],
            errors.AccessDeniedError,
            "BYPASSRLS",
        ),
        (
            "psql",
            [stderr('psql:x:5: ERROR:  42704: role "low" does not exist'), leave(3)],
            errors.RestoreFailedError,
            "owners=False",
        ),
        (
            "pg_restore",
            [
                stderr('pg_restore: error: could not execute query: ERROR:  role "low" does not exist'),
                leave(1),
            ],
            errors.RestoreFailedError,
            "owners=False",
        ),
        (
            "psql",
            [stderr("psql:x:5: ERROR:  53200: out of shared memory"), leave(3)],
            errors.RestoreFailedError,
            "max_locks_per_transaction",
        ),
        (
            "pg_dump",
            [
                stderr(
                    'pg_dump: error: Dumping the contents of table "t" failed: PQgetResult() failed.\n'
                    "pg_dump: detail: Error message from server: ERROR:  invalid memory alloc request size "
                    "1"
                ),
                leave(1),
            ],
            errors.CreateFailedError,
            "500 MB|invalid memory",
        ),
        (
            "psql",
            [stderr('psql: error: syntax error in service file "/x", line 2'), leave(2)],
            errors.ToolVersionError,
            "parameter",
        ),
        ("psql", [leave(1)], errors.RestoreFailedError, "code 1"),
        ("pg_dump", [stderr("something new"), leave(1)], errors.CreateFailedError, "something new"),
    ],
)
def test_a_failure_is_told_in_plain_words(
    tmp_path: Path, program: str, steps: list[Step], kind: type[errors.KeikakuError], words: str
) -> None:
    """FAULTS 51, 52, 67, 68, 70, 77 and B16: each failure has its class, its words and something to do."""
    fake = make_fake(tmp_path, *steps)
    result = _run(fake, program, tmp_path)
    error = translate_tool_failure(result, URL, doing="testing")

    assert type(error) is kind
    assert re.search(words, str(error)), str(error)
    assert "To fix this" in str(error)
    assert error.details["program"] == program


def _run(fake: Fake, program: str, tmp_path: Path, timeout_s: float | None = None) -> ToolResult:
    if program == "pg_dump":
        return run_pg_dump(fake.tools, URL, tmp_path / "out", timeout_s=timeout_s, grace_s=0.1)
    if program == "psql":
        return run_psql(fake.tools, URL, [tmp_path / "x"], timeout_s=timeout_s, grace_s=0.1)
    return run_pg_restore(fake.tools, URL, tmp_path / "x", timeout_s=timeout_s, grace_s=0.1)


CONSTRAINT = """\
psql:/s/a.sql:12: NOTICE:  00000: nothing
LOCATION:  x
psql:/s/a.sql:34: ERROR:  23505: duplicate key value violates unique constraint "staffs_email_key"
DETAIL:  Key (email)=(mika@example.com) already exists.
and (name)=(second line of mika)
SCHEMA NAME:  public
TABLE NAME:  staffs
CONSTRAINT NAME:  staffs_email_key
CONTEXT:  COPY staffs, line 3
LOCATION:  _bt_check_unique, nbtinsert.c:664
psql:/s/a.sql:40: ERROR:  25P02: current transaction is aborted
"""


def test_a_constraint_names_table_and_constraint_and_keeps_the_key_apart() -> None:
    """B2, FAULTS 33: the key may be personal data, so it is a field and not in the text."""
    result = ToolResult("/x/psql", 3, CONSTRAINT, "", 0.1)
    error = translate_tool_failure(result, URL, doing="restoring app")

    assert isinstance(error, errors.RestoreFailedError)
    assert "'staffs_email_key' of table 'public.staffs' (一意制約違反)" in str(error)
    assert "復元に失敗" in str(error)
    assert "mika@" not in str(error)
    assert error.details["key"].startswith("Key (email)=(mika@example.com) already exists.")
    assert (error.details["schema"], error.details["table"]) == ("public", "staffs")
    assert error.details["sqlstate"] == "23505"
    assert "/s/a.sql, line 34" in str(error)


def test_pg_restore_names_the_constraint_from_its_words() -> None:
    """pg_restore prints no SQLSTATE; its words hold the names."""
    text = (
        "pg_restore: while PROCESSING TOC:\n"
        "pg_restore: from TOC entry 3; 2606 5 FK CONSTRAINT b b_fk mika\n"
        'pg_restore: error: could not execute query: ERROR:  insert or update on table "b" '
        'violates foreign key constraint "b_fk"\n'
        'DETAIL:  Key (a)=(77) is not present in table "a".\nCommand was: ALTER TABLE x\n'
    )
    error = translate_tool_failure(ToolResult("/x/pg_restore", 1, text, "", 0.1), URL, doing="restoring")

    assert "'b_fk' of table 'b' (外部キー制約違反)" in str(error)
    assert "77" not in str(error)
    assert "77" in error.details["key"]


def test_public_text_has_no_rows() -> None:
    """FAULTS 33: primary messages and names stay, details, contexts and quoted input go."""
    text = public_stderr(
        CONSTRAINT + 'psql:x:1: ERROR:  22P02: invalid input syntax for type integer: "mika"\n'
        'CONTEXT:  COPY t, line 1, column v: "mika"\nLOCATION:  x'
    )

    assert "mika" not in text
    assert "TABLE NAME:  staffs" in text
    assert "invalid input syntax for type integer: …" in text


def test_connection_failures_say_whether_another_try_may_help() -> None:
    """docs/design.md, Retry: refused and lost connections may; a wrong password never."""

    def transient(stderr_text: str) -> bool:
        result = ToolResult("/x/pg_dump", 1, stderr_text, "", 0.1)
        return bool(translate_tool_failure(result, URL, doing="dumping").details["transient"])

    assert transient('pg_dump: error: connection to server at "h", port 1 failed: Connection refused')
    assert transient("pg_dump: error: query failed: server closed the connection unexpectedly")
    assert not transient(
        'pg_dump: error: connection to server at "h" failed: FATAL:  password authentication failed'
    )
    assert not transient("pg_dump: error: No space left on device")


def test_a_program_that_was_stopped_says_why(tmp_path: Path) -> None:
    """The watcher's reason is in the error, and the caller chooses the class."""
    fake = make_fake(tmp_path, write(10), hang())
    result = run_pg_dump(
        fake.tools, URL, tmp_path / "o", watch=lambda: "free space fell below 10 MB", grace_s=1
    )
    error = translate_tool_failure(result, URL, doing="dumping", kind=errors.DiskFullError)

    assert isinstance(error, errors.DiskFullError)
    assert "free space fell below 10 MB" in str(error)


def test_a_dump_can_be_watched_while_it_grows(tmp_path: Path) -> None:
    """The hash follows the growing file; the password stays until the end and not longer."""
    fake = make_fake(tmp_path, grow(5, 100, 0.02))
    with start_pg_dump(fake.tools, URL, tmp_path / "out") as running:
        passfile = Path(fake.wait_for_call().env["PGPASSFILE"])
        assert passfile.exists()
        result = running.wait()

    assert result.ok
    assert not passfile.exists()
    assert (tmp_path / "out").stat().st_size == 500


def test_a_killed_dump_takes_its_children_and_its_secrets(tmp_path: Path) -> None:
    """FAULTS 43, 48: time limit over: whole group gone, password file gone (see the fixture)."""
    fake = make_fake(tmp_path, write(1000), ignore(), spawn(), hang())
    with pytest.raises(errors.OperationTimeoutError):
        run_pg_dump(fake.tools, URL, tmp_path / "out", timeout_s=0.4, grace_s=0.1)


def test_a_bad_archive_is_an_error(tmp_path: Path) -> None:
    """FAULTS 7: pg_restore's word for it becomes our error."""
    bad = make_fake(tmp_path, stderr("pg_restore: error: did not find magic string in file header"), leave(1))
    result = pg_restore_script(bad.tools, "x", "/dev/null")
    with pytest.raises(errors.SnapshotCorruptError, match="cannot be read"):
        raise translate_tool_failure(result, None, doing="reading x")


# --- finding


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without any PostgreSQL."""
    monkeypatch.setattr(
        tool_search, "_VERSIONED_PLACES", ("/nonexistent/{major}/bin", "/nonexistent-{major}/bin")
    )
    monkeypatch.setattr(tool_search, "_WHEEL", "no_such_wheel_here")
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("PG_BIN", raising=False)


def test_the_configured_directory_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory or a program in it; the version is asked, not guessed."""
    wanted = make_fake(tmp_path, version="18.9", name="wanted")
    monkeypatch.setenv("PG_BIN", str(make_fake(tmp_path, version="18.1", name="other").directory))
    by_directory = find_tools(18, configured=wanted.directory)

    assert by_directory.version == "18.9"
    assert by_directory == find_tools(18, configured=wanted.tools.psql)
    assert find_tools(18).version == "18.1"
    assert find_tools(18).source == "PG_BIN"


def test_a_configured_directory_that_does_not_fit_is_not_second_guessed(tmp_path: Path) -> None:
    """FAULTS 67: both versions, the place and what to do are named."""
    wrong = make_fake(tmp_path, version="15.18")
    with pytest.raises(errors.ToolVersionError) as caught:
        find_tools(18, configured=wrong.directory)

    for part in ("PostgreSQL 18", "15.18", str(wrong.directory), "configured", "PG_BIN"):
        assert part in str(caught.value)
    assert caught.value.exit_code == 15


@pytest.mark.usefixtures("nowhere")
def test_path_is_searched_last_and_relative_entries_never(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program in the current directory is not run."""
    fake = make_fake(tmp_path, version="17.2")
    monkeypatch.chdir(fake.directory)
    monkeypatch.setenv("PATH", f".{os.pathsep}{os.pathsep}/nonexistent")
    with pytest.raises(errors.ToolMissingError):
        find_tools(17)
    monkeypatch.setenv("PATH", f"/nonexistent{os.pathsep}{fake.directory}")

    assert find_tools(17).source == "PATH"


@pytest.mark.usefixtures("nowhere")
def test_a_machine_without_tools_hears_every_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """B16: what was checked, and how to get the tools."""
    broken = make_fake(tmp_path, name="broken")
    broken.tools.psql.unlink()
    monkeypatch.setenv("PG_BIN", str(broken.directory))
    with pytest.raises(errors.ToolMissingError, match="psql missing") as caught:
        find_tools(18)

    assert str(broken.directory) in str(caught.value)
    assert "postgresql-client-18" in str(caught.value)


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("#!/bin/sh\nexit 1\n", "failed"),
        ("#!/bin/sh\necho nonsense\n", "failed"),
        ("#!/bin/sh\nsleep 60\n", "did not end"),
        ("#!/nonexistent\n", "cannot be run"),
    ],
)
def test_a_program_that_does_not_say_its_version_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, words: str
) -> None:
    """With a time limit: a hung network mount must not hang us."""
    monkeypatch.setattr(tool_search, "VERSION_TIMEOUT_S", 0.3)
    fake = make_fake(tmp_path)
    for program in (fake.tools.pg_dump, fake.tools.pg_restore, fake.tools.psql):
        program.write_text(script)
    monkeypatch.setenv("PG_BIN", str(fake.directory))
    with pytest.raises(errors.ToolMissingError, match=words):
        find_tools(18)


@pytest.mark.usefixtures("nowhere")
def test_programs_of_different_versions_are_no_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory of links may mix them."""
    one, two = make_fake(tmp_path, version="18.4", name="a"), make_fake(tmp_path, version="16.1", name="b")
    shutil.copy(two.tools.psql, one.tools.psql)
    with pytest.raises(errors.ToolMissingError, match=r"different versions: 16\.1, 18\.4"):
        find_tools(18, configured=one.directory)


def test_debians_wrapper_is_seen_through(tmp_path: Path) -> None:
    """FAULTS 79: /usr/bin/pg_dump chooses a version by rules of its own; the real program is recorded."""
    wrapper = tmp_path / "share" / "pg_wrapper"
    wrapper.parent.mkdir()
    wrapper.write_text("#!/usr/bin/perl")
    directory = tmp_path / "bin"
    directory.mkdir()
    for name in tool_search.PROGRAMS:
        (directory / name).symlink_to(wrapper)

    assert tool_search._directory_of(directory, 15) == Path("/usr/lib/postgresql/15/bin")
    assert tool_search._directory_of(directory / "psql", 15) == Path("/usr/lib/postgresql/15/bin")


def test_links_to_an_installation_are_resolved(tmp_path: Path) -> None:
    """The real directory is recorded, so that an upgrade of the link does not mix versions."""
    fake = make_fake(tmp_path, version="18.4")
    links = tmp_path / "links"
    links.mkdir()
    for name in tool_search.PROGRAMS:
        (links / name).symlink_to(fake.directory / name)

    assert find_tools(18, configured=links).directory == fake.directory


def test_versions_are_asked_once_and_again_after_an_upgrade(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long-lived process sees a package upgrade."""
    asked: list[str] = []

    def counting(argv: list[Path], **options: object) -> ToolResult:
        asked.append(str(argv[0]))
        return run_tool(argv, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(tool_search, "run_tool", counting)
    fake = make_fake(tmp_path, version="18.4")
    find_tools(18, configured=fake.directory)
    find_tools(18, configured=fake.directory)
    assert len(asked) == 3
    for name in tool_search.PROGRAMS:
        path = fake.directory / name
        path.write_text(path.read_text().replace("'18.4'", "'18.7'"))
        os.utime(path, ns=(1, 1))

    assert find_tools(18, configured=fake.directory).version == "18.7"
