"""Acceptance 33: tampering with the audit log is found; keys, rotation, retention."""

from __future__ import annotations

import dataclasses
import secrets
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from keikaku_snapshots.errors import AuditError, KeikakuError, UsageError
from keikaku_snapshots.patches import audit_store
from keikaku_snapshots.patches.audit import AuditLog
from keikaku_snapshots.patches.records import ensure_schema
from keikaku_snapshots.patches.settings import AuditSettings
from tests import servers
from tests.proxy import Proxy, at_commit_after_it_was_done, at_commit_before_it_is_done

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from keikaku_snapshots.patches.audit_crypto import Line
    from keikaku_snapshots.postgres.url import DatabaseURL

CANARY = "S3cretCanary"
KEY = secrets.token_hex(32)
OTHER_KEY = secrets.token_hex(32)
PLAIN = AuditSettings(log_encryption=False)


@dataclasses.dataclass
class Clock:
    """Tells a time that the test sets."""

    now: datetime = datetime(2026, 1, 15, 3, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        """Tell it."""
        return self.now


@pytest.fixture
def url(shared_database: DatabaseURL) -> DatabaseURL:
    """A database with the schema of records."""
    with servers.connect(shared_database) as connection:
        ensure_schema(connection)
    return shared_database


@pytest.fixture
def open_log(url: DatabaseURL) -> Iterator[Callable[..., AuditLog]]:
    """Opens the audit log; closes it with the test."""
    opened: list[AuditLog] = []

    def make(settings: AuditSettings | None = None, clock: Clock | None = None, **keys: str) -> AuditLog:
        environ = keys or {"KEIKAKU_AUDIT_KEY": KEY}
        opened.append(AuditLog(url, settings, environ=environ, clock=clock or Clock()))
        return opened[-1]

    yield make
    for log in opened:
        log.close()


def run(url: DatabaseURL, statement: str) -> list[tuple[object, ...]]:
    """Do what somebody with the rights of the database's owner can do."""
    with servers.connect(url) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def write(log: AuditLog, count: int = 5) -> None:
    """Write so many lines."""
    for number in range(count):
        log.append("run_began", {"patch": "p", "number": number, "note": CANARY})


A = "keikaku_patches.audit"


def _other(place: int) -> str:
    """SQL for a letter that is not the one that stands there."""
    return f"CASE substr(line, {place}, 1) WHEN 'x' THEN 'y' ELSE 'x' END"


TAMPERED = {
    "a letter of a line": (
        f"UPDATE {A} SET line = overlay(line placing {_other(30)} from 30) WHERE number = 3",
        3,
    ),
    "a space at the end": (f"UPDATE {A} SET line = line || ' ' WHERE number = 3", 3),
    "a deleted line": (f"DELETE FROM {A} WHERE number = 3", 3),
    "the first line": (f"DELETE FROM {A} WHERE number = 1", 1),
    "the last line": (f"DELETE FROM {A} WHERE number = 5", 5),
    "the month": (f"UPDATE {A} SET month = '2020-01-01' WHERE number = 2", 2),
    "the key's id": (f"UPDATE {A} SET key_id = 'abc' WHERE number = 2", 2),
    "two lines changed places": (
        f"UPDATE {A} a SET line = b.line FROM {A} b WHERE (a.number, b.number) IN ((2, 3), (3, 2))",
        2,
    ),
    "a copy at the end": (
        f"INSERT INTO {A} SELECT 6, month, key_id, line FROM {A} WHERE number = 5",
        6,
    ),
    "a line before the first": (
        f"INSERT INTO {A} SELECT 0, month, key_id, line FROM {A} WHERE number = 1",
        0,
    ),
    "renumbered over a gap": (
        f"DELETE FROM {A} WHERE number = 3; UPDATE {A} SET number = number - 1 WHERE number > 3",
        3,
    ),
    "all lines": (f"DELETE FROM {A}", 1),
    "the head": ("DELETE FROM keikaku_patches.audit_mark", None),
    "a letter of the head": (
        f"UPDATE keikaku_patches.audit_mark SET line = overlay(line placing {_other(12)} from 12)",
        None,
    ),
}


@pytest.mark.parametrize("settings", [AuditSettings(), PLAIN], ids=["encrypted", "plain"])
@pytest.mark.parametrize(("statement", "number"), TAMPERED.values(), ids=TAMPERED.keys())
def test_tampering_is_found_with_its_line(
    statement: str,
    number: int | None,
    settings: AuditSettings,
    open_log: Callable[..., AuditLog],
    url: DatabaseURL,
) -> None:
    """Flipped, deleted, moved, inserted, cut off: found, and at its place."""
    log = open_log(settings)
    write(log)
    assert log.verify() == []

    run(url, statement)

    problems = log.verify()
    assert next(problem.number for problem in problems) == number


def test_nothing_is_found_in_a_log_that_nobody_touched(
    open_log: Callable[..., AuditLog], url: DatabaseURL
) -> None:
    """All lines are read as they were written, and the table shows nothing of them."""
    log = open_log()
    write(log, 3)

    assert log.verify() == []
    assert [(entry.number, entry.event, entry.facts["number"]) for entry in log.read()] == [
        (1, "run_began", 0),
        (2, "run_began", 1),
        (3, "run_began", 2),
    ]
    assert CANARY not in str(run(url, f"SELECT * FROM {A}"))


def test_a_wrong_key_cannot_read_and_says_so(open_log: Callable[..., AuditLog]) -> None:
    """Nor does it verify, or go on with the log."""
    write(open_log(), 3)
    other = open_log(KEIKAKU_AUDIT_KEY=OTHER_KEY)

    with pytest.raises(AuditError, match="another key") as read:
        list(other.read())
    with pytest.raises(AuditError, match="another key"):
        other.append("run_began")
    with pytest.raises(AuditError, match="another key"):
        other.check()

    assert [problem.kind for problem in other.verify()] == ["key", "key"]
    assert "KEIKAKU_AUDIT_KEY" in str(read.value)
    assert open_log().verify() == []


def test_without_any_key_a_log_that_exists_gets_no_new_one(
    open_log: Callable[..., AuditLog], tmp_path: Path
) -> None:
    """A new key file would only hide that the right one is missing."""
    write(open_log(), 1)
    file = tmp_path / "keys" / "audit.key"
    log = open_log(AuditSettings(key_file=file), HOME=str(tmp_path))

    with pytest.raises(AuditError, match="another key"):
        log.append("run_began")
    with pytest.raises(AuditError, match="another key"):
        log.verify()

    assert not file.exists()


def test_the_first_line_makes_a_key_file_with_a_notice(
    open_log: Callable[..., AuditLog], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """For this account alone; the next log uses it."""
    file = tmp_path / "keys" / "audit.key"
    settings = AuditSettings(key_file=file)

    write(open_log(settings, HOME=str(tmp_path)), 2)

    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert "a key for the audit log of patches was made" in caplog.text
    assert file.read_text(encoding="utf-8").splitlines()[-1] not in caplog.text
    assert open_log(settings, HOME=str(tmp_path)).verify() == []


def test_a_rotated_key_file_reads_old_lines_and_new_ones(
    open_log: Callable[..., AuditLog], tmp_path: Path
) -> None:
    """The rotation is a line; a log that another process has open takes the new key by itself."""
    settings = AuditSettings(key_file=tmp_path / "audit.key")
    log, other = (open_log(settings, HOME=str(tmp_path)) for _ in range(2))
    write(log, 2)
    write(other, 1)

    key_id = log.rotate()
    write(other, 1)

    assert [entry.event for entry in log.read()] == [
        "run_began", "run_began", "run_began", "audit_key_rotated", "audit_key_in_use", "run_began",
    ]  # fmt: skip
    assert open_log(settings, HOME=str(tmp_path)).verify() == []
    assert {line.key_id for line in stored(log)[4:]} == {key_id}
    assert len({line.key_id for line in stored(log)}) == 2


def test_a_key_of_the_environment_is_rotated_by_its_two_variables(open_log: Callable[..., AuditLog]) -> None:
    """The next line hands over; without the old key the old lines cannot be read, and that is said."""
    write(open_log(), 2)
    both = {"KEIKAKU_AUDIT_KEY": OTHER_KEY, "KEIKAKU_AUDIT_OLD_KEYS": KEY}
    with pytest.raises(UsageError, match="already"):
        open_log().rotate()

    write(open_log(**both), 1)

    assert open_log(**both).verify() == []
    assert [entry.event for entry in open_log(**both).read()][2:] == ["audit_key_rotated", "run_began"]
    (problem,) = open_log(KEIKAKU_AUDIT_KEY=OTHER_KEY).verify()
    assert (problem.number, problem.kind) == (1, "key")
    with pytest.raises(AuditError, match="another key"):
        open_log().append("run_began")


def test_old_months_go_and_the_rest_stays_verifiable(
    open_log: Callable[..., AuditLog], url: DatabaseURL
) -> None:
    """A signed checkpoint stands for what was dropped; that it was dropped is a line."""
    clock = Clock()
    log = open_log(clock=clock)
    for _ in range(6):
        write(log, 2)
        clock.now += timedelta(days=30)
    anchor = log.anchor()

    assert log.purge(days=90) == 6
    assert log.purge(days=90) == 0

    assert log.verify() == []
    assert log.verify(anchor) == []
    entries = list(log.read())
    assert (entries[0].number, entries[-1].event, entries[-1].facts["last_line"]) == (7, "audit_purged", 6)
    run(url, "DELETE FROM keikaku_patches.audit_mark WHERE kind = 'checkpoint'")
    assert [(problem.number, problem.kind) for problem in log.verify()] == [(1, "missing")]


def test_a_log_that_was_tampered_with_is_not_purged_and_not_continued(
    open_log: Callable[..., AuditLog], url: DatabaseURL
) -> None:
    """What is left of it is evidence."""
    clock = Clock()
    log = open_log(clock=clock)
    write(log, 4)
    clock.now += timedelta(days=200)
    run(url, f"UPDATE {A} SET line = replace(line, 'aes', 'des') WHERE number = 2")

    with pytest.raises(AuditError, match="not as it was written"):
        log.purge()
    run(url, f"DELETE FROM {A} WHERE number = 4")
    with pytest.raises(AuditError, match="tampered with"):
        log.append("run_began")

    assert run(url, f"SELECT count(*) FROM {A}") == [(3,)]


def test_a_log_that_was_put_aside_is_followed_by_a_new_one(
    open_log: Callable[..., AuditLog], url: DatabaseURL
) -> None:
    """As the how-to says, after the evidence was looked at; what was put aside is still there."""
    write(open_log(), 3)
    run(url, f"DELETE FROM {A} WHERE number = 3")
    run(url, f"ALTER TABLE {A} RENAME TO audit_2026_11")
    run(url, "ALTER TABLE keikaku_patches.audit_mark RENAME TO audit_mark_2026_11")
    log = open_log()

    write(log, 1)

    assert log.verify() == []
    assert [entry.number for entry in log.read()] == [1]
    assert run(url, f"SELECT count(*) FROM {A}_2026_11") == [(2,)]


def test_lines_cut_off_with_their_head_are_found_by_an_anchor(
    open_log: Callable[..., AuditLog], url: DatabaseURL
) -> None:
    """The whole log put back to an earlier state fits together: only what was noted elsewhere tells."""
    log = open_log()
    write(log, 2)
    run(url, "CREATE TABLE old_mark AS SELECT * FROM keikaku_patches.audit_mark")
    write(log, 2)
    anchor = log.anchor()
    run(
        url,
        f"DELETE FROM {A} WHERE number > 2; DELETE FROM keikaku_patches.audit_mark;"
        " INSERT INTO keikaku_patches.audit_mark SELECT * FROM old_mark",
    )

    assert log.verify() == []
    assert [problem.kind for problem in log.verify(anchor)] == ["anchor"]


def test_many_writers_at_once_continue_one_chain(open_log: Callable[..., AuditLog]) -> None:
    """Each waits for the lock until the other's line is committed."""
    logs = [open_log() for _ in range(4)]
    threads = [threading.Thread(target=write, args=(log, 15)) for log in logs for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert logs[0].verify() == []
    assert len(list(logs[0].read())) == 120


def test_a_line_belongs_to_the_transaction_that_it_is_given(
    open_log: Callable[..., AuditLog], url: DatabaseURL
) -> None:
    """Without one it stays, whatever becomes of the run."""
    log = open_log()
    with servers.connect(url) as connection:
        with connection.transaction(force_rollback=True):
            log.append("state_changed", connection=connection)
        with connection.transaction():
            log.append("state_changed", {"committed": True}, connection=connection)
    log.append("run_failed")

    assert [entry.event for entry in log.read()] == ["state_changed", "run_failed"]
    assert log.verify() == []


def test_a_session_that_ended_while_idle_costs_no_line(
    open_log: Callable[..., AuditLog], url: DatabaseURL
) -> None:
    """Hours may lie between two lines."""
    log = open_log()
    write(log, 1)
    run(
        url,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'keikaku_snapshots audit'",
    )
    write(log, 1)

    assert len(list(log.read())) == 2
    assert log.verify() == []


@pytest.mark.parametrize("rule", [at_commit_before_it_is_done, at_commit_after_it_was_done])
def test_a_connection_cut_at_commit_neither_loses_nor_doubles_a_line(
    rule: Any, open_log: Callable[..., AuditLog], url: DatabaseURL
) -> None:
    """Whether the line is there is asked before it is written again."""
    with (
        Proxy(url, rule) as proxy,
        AuditLog(proxy.url, environ={"KEIKAKU_AUDIT_KEY": KEY}, clock=Clock()) as log,
    ):
        write(log, 2)

    assert proxy.cuts == 1
    assert [entry.facts["number"] for entry in open_log().read()] == [0, 1]
    assert open_log().verify() == []


def test_what_cannot_be_written_is_an_error_or_a_warning_never_silence(
    open_log: Callable[..., AuditLog], url: DatabaseURL, caplog: pytest.LogCaptureFixture
) -> None:
    """As the option says; `note` only warns, since what it tells of has happened."""
    strict, lenient = open_log(), open_log(AuditSettings(on_failure="warn"))
    run(url, f"ALTER TABLE {A} RENAME line TO text")

    with pytest.raises(KeikakuError):
        strict.append("run_began")
    lenient.append("run_began")
    strict.note("run_ended")
    run(url, f"DROP TABLE {A}")

    assert caplog.text.count("the audit log could not be written") == 2


def stored(log: AuditLog) -> list[Line]:
    """The lines as the table has them."""
    with log._reading() as (connection, _):
        return list(audit_store.lines(connection))
