"""The deadline notification (D3) on a real server, for every kind of caller."""

from __future__ import annotations

from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from keikaku_snapshots.datasets import generate, get_scale
from keikaku_snapshots.errors import ParameterTypeError, UsageError
from keikaku_snapshots.perf import send_deadline_alert_emails, workload
from tests.callers import IN_TRANSACTION, OWNED, caller, settled

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keikaku_snapshots.perf import DeadlineMail
    from keikaku_snapshots.postgres.url import DatabaseURL
    from tests.conftest import MakeDatabase
    from tests.servers import Server

DAY = date(2026, 4, 1)


@pytest.fixture(scope="module")
def offices(module_database: DatabaseURL) -> DatabaseURL:
    """Ten offices: 100 staff, 1,000 cycles that end 25 days after the reference date."""
    generate("keikaku", get_scale("small"), module_database, reference_date=DAY, create_tables=True)
    return module_database


@pytest.fixture
def changed(offices: DatabaseURL) -> Iterator[psycopg.Connection[Any]]:
    """A transaction in which a test may change rows; rolled back after it."""
    with psycopg.connect(offices.text) as connection:
        yield connection
        connection.rollback()


def mails(connection: Any, **options: Any) -> list[DeadlineMail]:
    """The mails that are sent."""
    sent: list[DeadlineMail] = []
    options.setdefault("reference_date", DAY)
    send_deadline_alert_emails(connection, dry_run=False, send=sent.append, **options)
    return sent


@pytest.mark.parametrize("kind", [*IN_TRANSACTION, *OWNED])
@pytest.mark.asyncio
async def test_all_staff_of_all_offices_get_one_mail(offices: DatabaseURL, kind: str) -> None:
    """Ten staff in each of ten offices are 100 mails of 100 lines, by three queries, for every db."""
    async with caller(kind, offices) as db:
        result = await settled(send_deadline_alert_emails(db=db.db, dry_run=True, reference_date=DAY))

    assert (result["email_sent"], result["alerts"], result["queries"]) == (100, 10_000, 3)
    assert (result["offices"], result["email_failed"], result["dry_run"]) == (10, 0, True)


def test_a_hundred_offices_are_a_thousand_mails(each_server: Server, make_database: MakeDatabase) -> None:
    """D3: 100 offices, 1,000 mails, on every PostgreSQL version."""
    database = make_database(each_server)
    generate("keikaku", get_scale("medium"), database, create_tables=True)

    result = send_deadline_alert_emails(db=database)

    assert (result["email_sent"], result["queries"]) == (1000, 3)


def test_a_mail_names_office_recipients_and_days(changed: psycopg.Connection[Any]) -> None:
    """The text is Japanese and says whom, until when, and how many days are left."""
    first = mails(changed)[0]

    assert first.to.endswith("@example.com")
    assert first.subject == "【個別支援計画】更新期限のお知らせ(100件)"
    assert first.body.startswith(f"{first.name} 様\n")
    assert first.body.count("(あと25日)") == 100
    assert f"■ {first.alerts[0].office}\n  2026-04-26 (あと25日) {first.alerts[0].recipient} 様" in first.body


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("notification_preferences = notification_preferences || '{\"email_notification\": false}'", 99),
        ("notification_preferences = notification_preferences - 'email_notification'", 99),
        ('notification_preferences = notification_preferences || \'{"email_notification": "yes"}\'', 99),
        ("notification_preferences = notification_preferences || '{\"email_threshold_days\": 24}'", 99),
        ("notification_preferences = notification_preferences || '{\"email_threshold_days\": 25}'", 100),
        ("notification_preferences = notification_preferences || '{\"email_threshold_days\": 1e30}'", 100),
        ("notification_preferences = notification_preferences || '{\"email_threshold_days\": -5}'", 99),
        ("notification_preferences = notification_preferences || '{\"email_threshold_days\": -1e30}'", 99),
        ('notification_preferences = notification_preferences || \'{"email_threshold_days": "x"}\'', 100),
        ("notification_preferences = notification_preferences - 'email_threshold_days'", 100),
        ("notification_preferences = '[]'", 99),
        ("is_deleted = true", 99),
    ],
)
def test_each_staff_decides_on_mails(changed: psycopg.Connection[Any], change: str, expected: int) -> None:
    """Notification off or not said, a threshold that is not reached, a deleted account: no mail."""
    one = "(SELECT staff_id FROM office_staffs ORDER BY id LIMIT 1)"
    changed.execute(f"UPDATE staffs SET {change} WHERE id = {one}".encode())

    assert len(mails(changed)) == expected


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        ("end_date = '2026-05-01'", 100),
        ("end_date = '2026-05-02'", 90),
        ("end_date = '2026-04-01'", 100),
        ("end_date = '2026-03-31'", 90),
        ("status = 'completed'", 90),
        ("is_latest_cycle = false", 90),
    ],
)
def test_only_open_cycles_that_end_soon_are_named(
    changed: psycopg.Connection[Any], change: str, lines: int
) -> None:
    """The last day that counts is the threshold's; what is over, completed or not the latest is left out."""
    office = "(SELECT id FROM offices ORDER BY id LIMIT 1)"
    changed.execute(
        f"""UPDATE support_plan_cycles SET {change} WHERE id IN (
            SELECT c.id FROM support_plan_cycles c JOIN individual_support_plans p
            ON p.id = c.individual_support_plan_id WHERE p.office_id = {office} LIMIT 10)""".encode()
    )

    assert min(len(mail.alerts) for mail in mails(changed)) == lines


def test_staff_of_two_offices_gets_one_mail_about_both(
    changed: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One mail a person, also when the two offices are asked for in different pages."""
    monkeypatch.setattr(workload, "OFFICES_A_PAGE", 1)
    changed.execute(
        """INSERT INTO office_staffs (staff_id, office_id)
           SELECT staff_id, (SELECT id FROM offices ORDER BY id DESC LIMIT 1) FROM office_staffs
           WHERE office_id = (SELECT id FROM offices ORDER BY id LIMIT 1) LIMIT 1"""
    )

    sent = mails(changed)

    assert len(sent) == 100
    assert sorted(len(mail.alerts) for mail in sent)[-2:] == [100, 200]
    assert len({mail.to for mail in sent}) == 100


@pytest.mark.parametrize(("page", "queries"), [(3, 12), (5, 7), (10, 4), (11, 3)])
def test_pages_change_nothing_but_the_number_of_queries(
    changed: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch, page: int, queries: int
) -> None:
    """Offices are asked for in pages, so that memory does not grow with their number."""
    whole = mails(changed)
    monkeypatch.setattr(workload, "OFFICES_A_PAGE", page)

    assert mails(changed) == whole
    assert send_deadline_alert_emails(changed, reference_date=DAY)["queries"] == queries


def test_a_deleted_office_is_not_looked_at(changed: psycopg.Connection[Any]) -> None:
    """Its staff is not told of its plans; who works in another office too is told of that one only."""
    first, last = "(SELECT min(id::text)::uuid FROM offices)", "(SELECT max(id::text)::uuid FROM offices)"
    changed.execute(
        f"INSERT INTO office_staffs (staff_id, office_id) SELECT staff_id, {last} FROM office_staffs"
        f" WHERE office_id = {first} LIMIT 1"
    )
    changed.execute(f"UPDATE offices SET is_deleted = true WHERE id = {first}")

    assert [len(mail.alerts) for mail in mails(changed)] == [100] * 91
    assert send_deadline_alert_emails(changed, reference_date=DAY)["offices"] == 9


def test_an_address_that_fails_does_not_stop_the_others(
    changed: psycopg.Connection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    """When one address is refused the others get theirs; the failure is counted, no address is logged."""
    refused: list[str] = []

    def send(mail: DeadlineMail) -> None:
        if not refused:
            refused.append(mail.to)
            raise OSError(mail.to)

    result = send_deadline_alert_emails(changed, dry_run=False, send=send, reference_date=DAY)

    assert (result["email_sent"], result["email_failed"]) == (99, 1)
    assert "OSError" in caplog.text
    assert refused[0] not in caplog.text


@pytest.mark.asyncio
async def test_an_asynchronous_sender_is_awaited(offices: DatabaseURL) -> None:
    """With an asynchronous db a coroutine function may send."""
    sent: list[str] = []

    async def send(mail: DeadlineMail) -> None:
        sent.append(mail.to)

    async with caller("async-session-asyncpg", offices) as db:
        result = await send_deadline_alert_emails(db.db, dry_run=False, send=send, reference_date=DAY)

    assert result["email_sent"] == len(sent) == 100


def test_no_row_is_changed_and_the_transaction_is_the_callers(changed: psycopg.Connection[Any]) -> None:
    """The caller's transaction is open and usable afterwards, with its settings."""
    changed.execute("SET LOCAL statement_timeout = '7s'")
    send_deadline_alert_emails(changed, reference_date=DAY)

    assert changed.execute("SHOW statement_timeout").fetchone() == ("7s",)
    assert changed.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS


def test_nobody_is_told_when_nothing_ends_soon(changed: psycopg.Connection[Any]) -> None:
    """Two months before the deadlines there is no mail, not an empty one."""
    assert mails(changed, reference_date=DAY - timedelta(days=60)) == []


def test_an_empty_application_is_no_error(database: DatabaseURL) -> None:
    """Without offices there is nothing to do; without tables that is said."""
    with pytest.raises(UsageError, match="table is missing"):
        send_deadline_alert_emails(database)
    generate("keikaku", get_scale("small"), database, create_tables=True)
    with psycopg.connect(database.text) as connection:
        connection.execute("TRUNCATE offices CASCADE")

    assert send_deadline_alert_emails(database)["email_sent"] == 0


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"dry_run": False}, UsageError),
        ({"dry_run": "no"}, ParameterTypeError),
        ({"reference_date": "2026-04-01"}, ParameterTypeError),
    ],
)
def test_wrong_parameters_are_refused(options: dict[str, Any], error: type[Exception]) -> None:
    """Before the database is touched: mails that nobody can send, text in place of a date."""
    with pytest.raises(error):
        send_deadline_alert_emails("postgresql://nobody@nowhere/none", **options)


def test_a_coroutine_function_needs_an_asynchronous_database(changed: psycopg.Connection[Any]) -> None:
    """A coroutine that nobody awaits would send nothing and say nothing."""

    async def send(mail: DeadlineMail) -> None:
        del mail

    with pytest.raises(ParameterTypeError, match="coroutine"):
        send_deadline_alert_emails(changed, dry_run=False, send=send)
