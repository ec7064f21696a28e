"""Acceptance 32: services that are dead, hang or fail change no run; messages arrive later; no secrets."""

from __future__ import annotations

import dataclasses
import email
import email.policy
import json
import logging
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from keikaku_snapshots.errors import ConfigurationError, PatchFailedError
from keikaku_snapshots.patches import outbox
from keikaku_snapshots.patches.definition import SqlPatch, data_patch
from keikaku_snapshots.patches.executor import DataPatchExecutor
from keikaku_snapshots.patches.notify import Sender
from keikaku_snapshots.patches.notify_rules import require_channels
from keikaku_snapshots.patches.outbox import enqueue
from keikaku_snapshots.patches.registry import DataPatchRegistry
from keikaku_snapshots.patches.settings import Channel, NotifySettings, PatchSettings
from tests import servers
from tests.endpoints import MailEndpoint, WebEndpoint, slack_certificate
from tests.patch_items import AddOne, quantities
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from keikaku_snapshots.patches.execution import Execution
    from keikaku_snapshots.postgres.url import DatabaseURL

CANARY = "S3cretCanary"
SLACK = Channel(name="slack", url_variable="SLACK_URL")
EMAIL = Channel(name="email", url_variable="EMAIL_URL")
#: Longer than any of these tests may take: who waited for a service would be seen.
LONG = NotifySettings(channels=(SLACK,), timeout_s=60, linger_s=0.3)
FAST = NotifySettings(channels=(SLACK, EMAIL), timeout_s=20)


@data_patch("divide")
class Divide(SqlPatch):
    """Cannot be done."""

    table, key = "public.items", ("id",)
    where = "true"
    set = {"qty": "qty / 0"}  # noqa: RUF012 - the form that a patch has


@pytest.fixture
def web() -> Iterator[WebEndpoint]:
    """A web service."""
    endpoint = WebEndpoint()
    yield endpoint
    endpoint.stop()


@pytest.fixture
def mail() -> Iterator[MailEndpoint]:
    """A mail server."""
    endpoint = MailEndpoint()
    endpoint.start()
    yield endpoint
    endpoint.stop()


def run(url: DatabaseURL, name: str = "add_one", notify: Any = enqueue) -> Execution:
    """Run a patch on the ten rows."""
    registry = DataPatchRegistry([AddOne, Divide], shipped=False, entry_points=False)
    settings = {known: PatchSettings(require_dry_run=False) for known in ("add_one", "divide")}
    executor = DataPatchExecutor(url.text, registry=registry, settings=settings, notify=notify)
    return executor.execute(name, dry_run=False, actor="aoki")


def due_again(url: DatabaseURL) -> None:
    """Let the time pass until everything is due: waits between tries, claims of senders that have gone."""
    with servers.connect(url) as connection:
        connection.execute("UPDATE keikaku_patches.delivery SET next_try_at = now(), claimed_until = NULL")


def everything(url: DatabaseURL) -> str:
    """All that the schema of records holds, as text."""
    with servers.connect(url) as connection:
        tables = connection.execute(
            "SELECT tablename::text FROM pg_tables WHERE schemaname = 'keikaku_patches'"
        ).fetchall()
        return "\n".join(
            str(row)
            for (table,) in tables
            for row in connection.execute(f"SELECT t::text FROM keikaku_patches.{table} t").fetchall()
        )


BAD = {
    "refused": f"json://u:{CANARY}@127.0.0.1:1/{CANARY}",
    "nonsense": f"{CANARY}:/{CANARY}",
    "500": "",
    "cut": "",
    "hang": "",
}


@pytest.mark.parametrize(("how", "address"), BAD.items(), ids=BAD.keys())
def test_a_run_does_not_notice_and_the_message_arrives_later(
    how: str,
    address: str,
    ten_items: DatabaseURL,
    web: WebEndpoint,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The result is the same, the run waits for nobody, and no secret is in a log or a table."""
    caplog.set_level(logging.DEBUG)
    good = f"json://u:{CANARY}@127.0.0.1:{web.port}/{CANARY}"
    web.web.behaviour = how if not address else "ok"
    sender = Sender(ten_items, LONG, environ={"SLACK_URL": address or good})

    began = time.monotonic()
    with sender.in_background() as background:
        execution = run(ten_items, notify=background.enqueue)
    seconds = time.monotonic() - began

    assert (execution.status, execution.processed_records, quantities(ten_items)) == ("completed", 10, {1})
    assert seconds < 15
    assert how != "hang" or "keikaku patch worker --once" in caplog.text
    # What was being sent when the run had ended is stopped, and that is written down.
    until(lambda: all(thread.name != "keikaku-notify" for thread in threading.enumerate()))
    web.web.behaviour = "ok"
    web.web.requests.clear()
    due_again(ten_items)
    done = Sender(ten_items, LONG, environ={"SLACK_URL": good}).deliver_due()
    assert (done.sent, done.failed, done.waiting) == (1, 0, 0)
    ((_, body),) = web.web.requests
    assert str(execution.execution_id) in body
    assert CANARY not in caplog.text + everything(ten_items)


def test_a_failed_run_tells_the_administrators_at_once(ten_items: DatabaseURL, web: WebEndpoint) -> None:
    """The message is urgent, goes to those who want urgent ones, and says what to do."""
    everybody = Channel(name="slack", url_variable="SLACK_URL", events=("completed",))
    admins = Channel(name="admins", url_variable="ADMIN_URL", urgent_only=True)
    settings = NotifySettings(channels=(everybody, admins))
    environ = {
        "SLACK_URL": f"json://127.0.0.1:{web.port}/slack",
        "ADMIN_URL": f"json://127.0.0.1:{web.port}/admins",
    }

    with pytest.raises(PatchFailedError):
        run(ten_items, "divide")
    done = Sender(ten_items, settings, environ=environ).deliver_due()

    assert (done.sent, done.failed) == (1, 0)
    ((path, body),) = web.web.requests
    said = json.loads(body)
    assert path == "/admins"
    assert said["type"] == "failure"
    assert "URGENT (緊急)" in said["title"]
    assert "keikaku patch report" in said["message"]
    assert quantities(ten_items) == {0}


def test_slack_and_mail_get_it_through_the_real_library(
    ten_items: DatabaseURL, mail: MailEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slack's own address, over TLS through a proxy that answers in its place; and an SMTP server."""
    certificate, trusted = slack_certificate(tmp_path)
    proxy = WebEndpoint(certificate)
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(trusted))
    tokens = ("T1JJ3T3L2", "A1BRTD4JD", "TIiajkdnlazkcOXrIdevi7")
    environ = {
        "SLACK_URL": f"slack://{'/'.join(tokens)}/",
        "EMAIL_URL": f"mailto://127.0.0.1:{mail.port}?from=patches@example.com&to=ops@example.com",
    }

    execution = run(ten_items)
    done = Sender(ten_items, FAST, environ=environ).deliver_due()
    proxy.stop()

    assert (done.sent, done.failed, done.waiting) == (2, 0, 0)
    ((path, body),) = proxy.web.requests
    assert path == f"/services/{'/'.join(tokens)}"
    assert str(execution.execution_id) in body
    ((recipients, content),) = mail.mails.taken
    text = email.message_from_bytes(content, policy=email.policy.default)
    assert recipients == ["ops@example.com"]
    assert "add_one completed (データパッチ完了)" in str(text["Subject"])
    assert f"keikaku patch report {execution.execution_id}" in text.get_content()


def test_a_channel_that_hangs_does_not_hold_the_others_up(
    ten_items: DatabaseURL, web: WebEndpoint, mail: MailEndpoint
) -> None:
    """They are sent to side by side; the one that hangs is stopped when its time is over."""
    web.web.behaviour = "hang"
    environ = {
        "SLACK_URL": f"json://127.0.0.1:{web.port}/?rto=30",
        "EMAIL_URL": f"mailto://127.0.0.1:{mail.port}?from=patches@example.com&to=ops@example.com",
    }
    settings = dataclasses.replace(FAST, timeout_s=2.5)

    run(ten_items)
    began = time.monotonic()
    done = Sender(ten_items, settings, environ=environ).deliver_due()

    assert time.monotonic() - began < 10
    assert (done.sent, done.failed, done.waiting) == (1, 1, 1)
    assert len(mail.mails.taken) == 1
    assert "no answer within" in everything(ten_items)


def test_two_senders_at_once_send_each_message_once(ten_items: DatabaseURL, web: WebEndpoint) -> None:
    """A message is claimed, and the claim committed, before it is sent."""
    with servers.connect(ten_items) as connection:
        execution = run(ten_items)
        for number in range(5):
            enqueue(connection, execution, "overtime", {"times": 2, "active_s": number})
    environ = {"SLACK_URL": f"json://127.0.0.1:{web.port}/"}
    done: list[int] = []

    def deliver() -> None:
        done.append(Sender(ten_items, LONG, environ=environ).deliver_due().sent)

    threads = [threading.Thread(target=deliver) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    bodies = [body for _, body in web.web.requests]
    assert len(bodies) == len(set(bodies)) == sum(done) == 6


def test_a_sender_that_was_killed_leaves_its_message_to_another(
    ten_items: DatabaseURL, web: WebEndpoint
) -> None:
    """Its claim ends; until then nobody else sends."""
    run(ten_items)
    sender = Sender(ten_items, LONG, environ={"SLACK_URL": f"json://127.0.0.1:{web.port}/"})
    with servers.connect(ten_items) as connection:
        connection.execute("INSERT INTO keikaku_patches.delivery (message, channel) VALUES (1, 'slack')")
        assert outbox.claim(connection, "slack", lease_s=60) is not None

        meanwhile = sender.deliver_due()
        connection.execute("UPDATE keikaku_patches.delivery SET claimed_until = now() - interval '1 s'")
        later = sender.deliver_due()

    assert (meanwhile.sent, meanwhile.waiting) == (0, 1)
    assert (later.sent, later.waiting) == (1, 0)


def test_an_urgent_message_that_nobody_took_goes_to_the_next_channel(
    ten_items: DatabaseURL, web: WebEndpoint
) -> None:
    """After the time that was set; a channel without events gets nothing else."""
    spare = Channel(name="spare", url_variable="SPARE_URL", events=())
    settings = NotifySettings(channels=(SLACK, spare))
    environ = {"SLACK_URL": "json://127.0.0.1:1/", "SPARE_URL": f"json://127.0.0.1:{web.port}/spare"}
    sender = Sender(ten_items, settings, environ=environ)

    run(ten_items)
    with pytest.raises(PatchFailedError):
        run(ten_items, "divide")
    at_once = sender.deliver_due()
    with servers.connect(ten_items) as connection:
        connection.execute("UPDATE keikaku_patches.outbox SET created_at = now() - interval '11 minutes'")
    later = sender.deliver_due()

    assert (at_once.sent, web.web.requests[:-1]) == (0, [])
    assert later.sent == 1
    ((path, body),) = web.web.requests
    assert path == "/spare"
    assert "URGENT" in json.loads(body)["title"]


def test_a_message_is_given_up_after_its_tries(
    ten_items: DatabaseURL, caplog: pytest.LogCaptureFixture
) -> None:
    """It stays in the outbox as a dead letter, with the reason, and the log says so."""
    settings = NotifySettings(channels=(SLACK,), attempts=2)
    sender = Sender(ten_items, settings, environ={"SLACK_URL": "json://127.0.0.1:1/"})
    run(ten_items)

    first = sender.deliver_due()
    due_again(ten_items)
    second = sender.deliver_due()

    assert (first.failed, first.waiting, second.failed, second.waiting) == (1, 1, 1, 0)
    assert "connection refused (given up)" in caplog.text
    with servers.connect(ten_items) as connection:
        row = connection.execute(
            "SELECT tries, last_error, dead_at IS NOT NULL FROM keikaku_patches.delivery"
        )
        assert row.fetchone() == (2, "connection refused", True)


def test_a_channel_that_is_off_keeps_its_messages_for_a_process_that_has_its_url(
    ten_items: DatabaseURL, web: WebEndpoint
) -> None:
    """Who runs a patch by hand may not know the URLs that the worker has."""
    run(ten_items)

    by_hand = Sender(ten_items, LONG, environ={}).deliver_due()
    worker = Sender(ten_items, LONG, environ={"SLACK_URL": f"json://127.0.0.1:{web.port}/"}).deliver_due()

    assert (by_hand.sent, by_hand.failed, by_hand.waiting) == (0, 0, 1)
    assert (worker.sent, worker.waiting) == (1, 0)


def test_a_message_exists_exactly_when_its_state_was_committed(ten_items: DatabaseURL) -> None:
    """The row is written in the transaction of the change, and goes with it."""
    execution = run(ten_items, notify=None)
    with servers.connect(ten_items) as connection:
        with connection.transaction(force_rollback=True):
            enqueue(connection, execution, "completed")
        assert outbox.waiting(connection) == 0


def test_a_database_that_is_gone_is_a_warning(
    ten_items: DatabaseURL, caplog: pytest.LogCaptureFixture
) -> None:
    """Sending is never the run's problem."""
    gone = dataclasses.replace(ten_items, port=1, password=CANARY)

    done = Sender(gone, LONG, environ={"SLACK_URL": CANARY}).deliver_due()

    assert done.problem
    assert "no messages could be sent now" in caplog.text
    assert CANARY not in caplog.text


def test_a_required_channel_that_is_off_is_refused() -> None:
    """The variable is named; a channel that is not required is just off."""
    needed = dataclasses.replace(SLACK, required=True)

    require_channels(NotifySettings(channels=(SLACK, EMAIL)), {})
    with pytest.raises(ConfigurationError) as caught:
        require_channels(NotifySettings(channels=(needed, EMAIL)), {})

    assert "slack: required, but the environment variable SLACK_URL is not set" in str(caught.value)
