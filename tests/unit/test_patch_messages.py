"""What messages say, who gets them and when: without a database or a network."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from keikaku_snapshots.patches.execution import Execution
from keikaku_snapshots.patches.messages import compose
from keikaku_snapshots.patches.notify_child import is_ours, reason_of, send
from keikaku_snapshots.patches.notify_rules import OpenMessage, backoff_s, check_channels, decide
from keikaku_snapshots.patches.settings import EVENTS, Channel, NotifySettings

SLACK = Channel(name="slack", url_variable="SLACK_URL", events=("completed", "failed"))
EMAIL = Channel(name="email", url_variable="EMAIL_URL", urgent_only=True)
SPARE = Channel(name="spare", url_variable="SPARE_URL", events=())
SETTINGS = NotifySettings(channels=(SLACK, EMAIL, SPARE))
ALL = ("slack", "email", "spare")


def execution(**changes: Any) -> Execution:
    """A run in the middle of its work."""
    values: dict[str, Any] = {field.name: 0 for field in dataclasses.fields(Execution)}
    values |= {
        "execution_id": UUID(int=7),
        "patch_name": "round_prices",
        "dry_run": False,
        "actor": "aoki",
        "created_at": datetime(2026, 1, 1, tzinfo=UTC),
        "estimated_records": 100_000,
        "processed_records": 2_000,
        "changed_records": 1_900,
        "batch_number": 2,
        "error_message": "division by zero",
        "parameters": {"token": "S3cretCanary"},
    }
    return Execution(**(values | changes))


def message(**changes: Any) -> OpenMessage:
    """An urgent message that was just written."""
    values: dict[str, Any] = {
        "number": 1, "event": "failed", "urgent": True, "age_s": 1.0, "waited_s": 1.0,
        "channels": (), "delivered": (), "dead": (),
    }  # fmt: skip
    return OpenMessage(**(values | changes))


@pytest.mark.parametrize("event", EVENTS)
def test_every_message_says_what_where_who_and_what_to_do(event: str) -> None:
    """Short, with the run's number and commands; no parameters."""
    said = compose(execution(), event, {}, "stockrx")

    text = f"{said.title}\n{said.body}"
    assert "round_prices" in said.title
    assert "\n" not in said.title
    for needed in ("stockrx", "aoki", str(UUID(int=7)), "keikaku patch ", "2,000 of about 100,000"):
        assert needed in text
    assert any("぀" < letter < "龥" for letter in said.title)
    assert "S3cretCanary" not in text
    assert len(text) < 1000


def test_urgent_is_what_somebody_must_look_at() -> None:
    """Failures, a broken invariant, and three times the estimate."""
    urgent = {event for event in EVENTS if compose(execution(), event, {}, "d").urgent}

    assert urgent == {"failed", "rolled_back", "rollback_incomplete", "integrity"}
    assert not compose(execution(), "overtime", {"times": 2}, "d").urgent
    assert compose(execution(), "overtime", {"times": 3}, "d").urgent


def test_facts_of_the_event_are_in_the_text() -> None:
    """In megabytes and seconds; a cause is cut."""
    memory = compose(execution(), "memory", {"used_bytes": 420 << 20, "limit_bytes": 500 << 20}, "d").body
    time = compose(execution(), "overtime", {"active_s": 61.0, "estimated_s": 30.0, "times": 2}, "d").body
    long = compose(execution(error_message="x" * 5000), "failed", {}, "d").body

    assert "420 MB of 500 MB" in memory
    assert "61 s, estimated 30 s" in time
    assert len(long) < 1000


def test_a_failure_says_whether_anything_was_changed() -> None:
    """Nobody is sent to roll back what was never changed."""
    nothing = compose(execution(batch_number=0), "failed", {}, "d").body
    something = compose(execution(), "failed", {}, "d").body
    back = compose(execution(), "rolled_back", {}, "d").body

    assert "Nothing was changed" in nothing
    assert "keikaku patch rollback" not in nothing + back
    assert "keikaku patch rollback" in something


def test_a_message_goes_to_all_who_want_it() -> None:
    """By event and urgency, also to those that are off here."""
    assert decide(message(), SETTINGS, ()).give_to == ("slack", "email")
    assert decide(message(event="completed", urgent=False), SETTINGS, ALL).give_to == ("slack",)
    assert decide(message(event="memory", urgent=False), SETTINGS, ALL).close


def test_an_urgent_one_goes_on_when_it_is_late_or_all_were_given_up() -> None:
    """To one channel at a time, never to one that is off, and not when anybody has it."""
    given = {"channels": ("slack", "email")}

    assert decide(message(**given, waited_s=599), SETTINGS, ALL).give_to == ()
    late = decide(message(**given, waited_s=600), SETTINGS, ALL)
    assert (late.give_to, late.escalated) == (("spare",), True)
    assert decide(message(**given, dead=("slack", "email")), SETTINGS, ALL).give_to == ("spare",)
    assert decide(message(**given, waited_s=600), SETTINGS, ("slack",)).give_to == ()
    assert decide(message(**given, waited_s=600, delivered=("email",)), SETTINGS, ALL).give_to == ()
    assert decide(message(event="memory"), NotifySettings(channels=(SPARE,)), ALL).give_to == ("spare",)


def test_a_message_is_over_when_all_have_it_or_were_given_up_or_it_is_old() -> None:
    """Not before; and with no channel at all it waits until it is old."""
    given = {"channels": ("slack", "email"), "delivered": ("slack",)}

    assert not decide(message(**given), SETTINGS, ALL).close
    assert decide(message(**given, dead=("email",)), SETTINGS, ALL).close
    assert decide(message(age_s=73 * 3600), SETTINGS, ALL).close
    assert not decide(message(), NotifySettings(), ()).close


def test_tries_are_further_and_further_apart() -> None:
    """Doubled each time, up to an hour, however many there were."""
    waits = [backoff_s(tries, SETTINGS) for tries in (1, 2, 3, 8, 10_000)]

    assert waits == [30, 60, 120, 3600, 3600]


def test_without_the_library_a_required_channel_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is not required is none: its messages are reported as not delivered."""
    monkeypatch.setitem(__import__("sys").modules, "apprise", None)
    needed = dataclasses.replace(SLACK, required=True)
    environ = {"SLACK_URL": "json://x"}

    assert check_channels(SETTINGS, environ) == []
    (problem,) = check_channels(NotifySettings(channels=(needed,)), environ)
    assert "pip install 'keikaku_snapshots[notify]'" in problem
    assert send("json://x", "t", "b", urgent=False) == "the library that sends is not installed"


@pytest.mark.parametrize(
    ("logged", "said"),
    [
        (
            "Failed to send Slack notification: S3cretCanary, error=500.",
            "the service answered with status 500",
        ),
        ("Socket Exception: [Errno 111] Connection refused S3cretCanary", "connection refused"),
        ("HTTPSConnectionPool(host='S3cretCanary'): Read timed out.", "no answer in time"),
        ("getaddrinfo failed for S3cretCanary", "host not found"),
        ("certificate verify failed S3cretCanary", "the TLS connection was not accepted"),
        ("S3cretCanary", "the service did not take it"),
    ],
)
def test_reasons_are_words_of_ours(logged: str, said: str) -> None:
    """What a library logs may hold a token; only a status of three digits is taken from it."""
    assert reason_of([logged]) == said
    assert is_ours(said)
    assert not is_ours(logged)
