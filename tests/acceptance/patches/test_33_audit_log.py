"""Acceptance 33: tampering with the audit log is found; keys, rotation, retention."""

from __future__ import annotations

import dataclasses
import secrets
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from keikaku_snapshots.patches.audit import AuditLog
from keikaku_snapshots.patches.records import ensure_schema
from keikaku_snapshots.patches.settings import AuditSettings
from tests import servers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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
TAMPERED = {
    "a letter of a line": (f"UPDATE {A} SET line = overlay(line placing 'x' from 30) WHERE number = 3", 3),
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
        "UPDATE keikaku_patches.audit_mark SET line = overlay(line placing '9' from 12)",
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
