"""Statements that the server gets in one piece: it does all of them, whether or not we live to see it."""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

import psycopg
from psycopg.pq import ExecStatus

from keikaku_snapshots.postgres.connect import translate

if TYPE_CHECKING:
    from psycopg import sql
    from psycopg.pq.abc import PGconn, PGresult

    from keikaku_snapshots.postgres.connect import Connection


def execute_together(connection: Connection, statements: list[sql.Composed], done: list[PGresult]) -> None:
    """Send statements in one piece, each committed by itself; `done` gets the answers of those that were.

    The server has read the second before it begins the first, so a client
    killed in between leaves no database without the mark by which we find it
    again. psycopg's own pipeline sends them in two pieces, and the server
    throws the second away when it cannot deliver the answer to the first.
    """
    pgconn = connection.pgconn
    try:
        send_together(connection, statements)
        error = _answers(pgconn, done)
        pgconn.exit_pipeline_mode()
    except BaseException:
        connection.close()  # also after Ctrl-C: the session is of no use in the middle of an answer
        raise
    if error is not None:
        raise error


def send_together(connection: Connection, statements: list[sql.Composed]) -> None:
    """Send statements in one piece and do not wait for the answers."""
    pgconn = connection.pgconn
    pgconn.enter_pipeline_mode()
    for statement in statements:
        pgconn.send_query_params(statement.as_bytes(connection), None)
    pgconn.pipeline_sync()
    while pgconn.flush():
        pass


def _answers(pgconn: PGconn, done: list[PGresult]) -> psycopg.Error | None:
    """Read until the end of the pipeline; give the first error, and fill `done`."""
    first: psycopg.Error | None = None
    # Not select.select, which takes no descriptor above 1023.
    answer = select.poll()
    answer.register(pgconn.socket, select.POLLIN)
    while True:
        pgconn.flush()
        while pgconn.is_busy():
            answer.poll()
            pgconn.consume_input()
        result = pgconn.get_result()
        if result is None:
            continue
        if result.status == ExecStatus.PIPELINE_SYNC:
            return first
        if result.status == ExecStatus.COMMAND_OK:
            done.append(result)
        elif result.status == ExecStatus.FATAL_ERROR and first is None:
            first = psycopg.errors.error_from_result(result)


class WorkLeftToServer:
    """Statements that were sent; the server ends them whether or not we stay."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def wait(self) -> None:
        """Wait for the end.

        Raises:
            KeikakuError: The server refused it.
        """
        try:
            error = _answers(self._connection.pgconn, [])
        finally:
            self._connection.close()
        if error is not None:
            raise translate(error)

    def abandon(self) -> None:
        """Close the connection; the server goes on."""
        self._connection.close()
