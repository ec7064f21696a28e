"""The outbox: messages are rows, written in the transaction of what they tell of.

So a message exists exactly when what it says was committed, whatever becomes
of the process, the network or the service that takes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid4

from psycopg import sql

from keikaku_snapshots.patches.messages import compose
from keikaku_snapshots.patches.notify_rules import Decision, OpenMessage
from keikaku_snapshots.patches.records import storable
from keikaku_snapshots.patches.records_schema import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keikaku_snapshots.patches.execution import Execution
    from keikaku_snapshots.postgres.connect import Connection

OUTBOX: Final = sql.Identifier(SCHEMA, "outbox")
DELIVERY: Final = sql.Identifier(SCHEMA, "delivery")


def enqueue(
    connection: Connection, execution: Execution, event: str, facts: Mapping[str, Any] | None = None
) -> None:
    """Put the message of an event into the outbox, within the transaction of the state change.

    One round trip; nothing is sent, no channel needs to exist.

    Args:
        connection: The connection whose transaction changes the state.
        execution: The run as it is after the change.
        event: One of `settings.EVENTS`.
        facts: What the event itself knows, see `messages.compose`.
    """
    message = compose(execution, event, facts or {}, connection.info.dbname)
    connection.execute(
        sql.SQL(
            "INSERT INTO {} (execution_id, event, urgent, title, body) VALUES (%s, %s, %s, %s, %s)"
        ).format(OUTBOX),
        [
            execution.execution_id,
            message.event,
            message.urgent,
            storable(connection, message.title),
            storable(connection, message.body),
        ],
    )


@dataclass(frozen=True, slots=True)
class Claimed:
    """A message that this sender alone sends on a channel, until the claim ends."""

    #: Number of the message.
    message: int
    #: Name of the channel.
    channel: str
    #: What proves that it is ours.
    claim: UUID
    #: Which try this is, from 1 on.
    tries: int
    #: One line.
    title: str
    #: Facts and commands.
    body: str
    #: Whether somebody must look at once.
    urgent: bool


def take_open(connection: Connection, limit: int = 1000) -> list[OpenMessage]:
    """Read messages that are not over, and keep other senders from deciding about them.

    Args:
        connection: In a transaction; they are ours until it ends.
        limit: How many at most.

    Returns:
        The messages: new ones before others, so that none waits behind many that nobody takes.
    """
    rows = connection.execute(
        sql.SQL(
            "WITH mine AS (SELECT * FROM {outbox} WHERE closed_at IS NULL"
            " ORDER BY routed_at IS NOT NULL, urgent DESC, number LIMIT %s FOR UPDATE SKIP LOCKED)"
            " SELECT m.number, m.event, m.urgent,"
            " extract(epoch FROM clock_timestamp() - m.created_at)::float8,"
            " extract(epoch FROM clock_timestamp() - coalesce(m.escalated_at, m.created_at))::float8,"
            " coalesce(array_agg(d.channel) FILTER (WHERE d.channel IS NOT NULL), '{{}}'),"
            " coalesce(array_agg(d.channel) FILTER (WHERE d.delivered_at IS NOT NULL), '{{}}'),"
            " coalesce(array_agg(d.channel) FILTER (WHERE d.dead_at IS NOT NULL), '{{}}')"
            " FROM mine m LEFT JOIN {delivery} d ON d.message = m.number"
            " GROUP BY m.number, m.event, m.urgent, m.created_at, m.escalated_at"
        ).format(outbox=OUTBOX, delivery=DELIVERY),
        [limit],
    ).fetchall()
    return [OpenMessage(*row[:5], *map(tuple, row[5:])) for row in rows]


def apply_decision(connection: Connection, number: int, decision: Decision) -> None:
    """Give a message to channels, or close it.

    Args:
        connection: The transaction that took it.
        number: The message.
        decision: What becomes of it.
    """
    for channel in decision.give_to:
        connection.execute(
            sql.SQL("INSERT INTO {} (message, channel) VALUES (%s, %s) ON CONFLICT DO NOTHING").format(
                DELIVERY
            ),
            [number, channel],
        )
    if decision.escalated:
        connection.execute(
            sql.SQL("UPDATE {} SET escalated_at = clock_timestamp() WHERE number = %s").format(OUTBOX),
            [number],
        )
    if decision.close:
        connection.execute(
            sql.SQL("UPDATE {} SET closed_at = clock_timestamp() WHERE number = %s").format(OUTBOX), [number]
        )


def claim(connection: Connection, channel: str, lease_s: float) -> Claimed | None:
    """Take the next message that is due on a channel; nobody else gets it while the claim lasts.

    Args:
        connection: In autocommit: the claim is committed before anything is sent.
        channel: Name of the channel.
        lease_s: Seconds that the claim lasts, should this process die.

    Returns:
        The message, or None when nothing is due.
    """
    row = connection.execute(
        sql.SQL(
            "UPDATE {delivery} d SET claim = %(claim)s, tries = d.tries + 1,"
            " claimed_until = clock_timestamp() + make_interval(secs => %(lease)s)"
            " FROM {outbox} o WHERE o.number = d.message AND (d.message, d.channel) = ("
            "  SELECT w.message, w.channel FROM {delivery} w JOIN {outbox} p ON p.number = w.message"
            "  WHERE w.channel = %(channel)s AND w.delivered_at IS NULL AND w.dead_at IS NULL"
            "  AND p.closed_at IS NULL AND w.next_try_at <= clock_timestamp()"
            "  AND (w.claimed_until IS NULL OR w.claimed_until < clock_timestamp())"
            "  ORDER BY p.urgent DESC, w.message LIMIT 1 FOR UPDATE OF w SKIP LOCKED)"
            " RETURNING d.message, d.channel, d.claim, d.tries, o.title, o.body, o.urgent"
        ).format(delivery=DELIVERY, outbox=OUTBOX),
        {"claim": uuid4(), "lease": lease_s, "channel": channel},
    ).fetchone()
    return Claimed(*row) if row else None


def record(connection: Connection, claimed: Claimed, error: str, *, next_try_s: float, give_up: bool) -> None:
    """Write down what became of a message, if it is still ours.

    Args:
        connection: In autocommit.
        claimed: What was sent, or not.
        error: Why not; empty when it was delivered.
        next_try_s: Seconds until it may be tried again.
        give_up: True when it is not tried again.
    """
    connection.execute(
        sql.SQL(
            "UPDATE {} SET claim = NULL, claimed_until = NULL, last_error = %(error)s,"
            " delivered_at = CASE WHEN %(error)s = '' THEN clock_timestamp() END,"
            " dead_at = CASE WHEN %(error)s <> '' AND %(give_up)s THEN clock_timestamp() END,"
            " next_try_at = clock_timestamp() + make_interval(secs => %(wait)s)"
            " WHERE message = %(message)s AND channel = %(channel)s AND claim = %(claim)s"
        ).format(DELIVERY),
        {
            "error": error,
            "give_up": give_up,
            "wait": next_try_s,
            "message": claimed.message,
            "channel": claimed.channel,
            "claim": claimed.claim,
        },
    )


def waiting(connection: Connection) -> int:
    """Count the messages that are not over."""
    row = connection.execute(
        sql.SQL("SELECT count(*) FROM {} WHERE closed_at IS NULL").format(OUTBOX)
    ).fetchone()
    return int(row[0]) if row else 0
