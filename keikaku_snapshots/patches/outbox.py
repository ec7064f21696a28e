"""The outbox: messages are rows, written in the transaction of what they tell of.

So a message exists exactly when what it says was committed, whatever becomes
of the process, the network or the service that takes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from psycopg import sql

from keikaku_snapshots.patches.messages import compose
from keikaku_snapshots.patches.records_schema import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keikaku_snapshots.patches.execution import Execution
    from keikaku_snapshots.postgres.connect import Connection

OUTBOX = sql.Identifier(SCHEMA, "outbox")


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
        [execution.execution_id, message.event, message.urgent, message.title, message.body],
    )
