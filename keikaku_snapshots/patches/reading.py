"""Transactions in which a patch may read and cannot write."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import psycopg
from psycopg.pq import TransactionStatus

from keikaku_snapshots.errors import PatchDefinitionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from keikaku_snapshots.postgres.connect import Connection

#: The first query fixes the mode: SET TRANSACTION READ WRITE is refused after it.
_BEGIN = "BEGIN ISOLATION LEVEL {} READ ONLY; SELECT 1"


@contextmanager
def read_only(connection: Connection, isolation: str = "REPEATABLE READ") -> Iterator[Connection]:
    """Hold a transaction that cannot write; it is always rolled back.

    Args:
        connection: In autocommit.
        isolation: Of the transaction.

    Yields:
        The same connection.

    Raises:
        PatchDefinitionError: A patch ended the transaction.
    """
    connection.execute(_BEGIN.format(isolation).encode())
    try:
        yield connection
        _still_in_transaction(connection)
    finally:
        if not connection.broken and connection.info.transaction_status is not TransactionStatus.IDLE:
            connection.execute("ROLLBACK")


@contextmanager
def read_only_inside(connection: Connection) -> Iterator[Connection]:
    """Make a transaction that has written read-only for a while.

    Args:
        connection: In a transaction.

    Yields:
        The same connection.

    Raises:
        PatchDefinitionError: A patch ended the transaction.
    """
    connection.execute("SAVEPOINT keikaku_reading; SET LOCAL transaction_read_only = on")
    try:
        yield connection
        _still_in_transaction(connection)
    finally:
        if connection.info.transaction_status in {TransactionStatus.INTRANS, TransactionStatus.INERROR}:
            connection.execute("ROLLBACK TO SAVEPOINT keikaku_reading; RELEASE SAVEPOINT keikaku_reading")


def _still_in_transaction(connection: Connection) -> None:
    if connection.info.transaction_status is TransactionStatus.IDLE:
        raise PatchDefinitionError("a data patch ended the transaction that it was only to read in")


class OtherReader:
    """Reads for `transform` over a connection of its own, so that a batch's own one is never handed out.

    Args:
        open_connection: Opens it, when it is first needed.
    """

    def __init__(self, open_connection: Callable[[], Connection]) -> None:
        self._open = open_connection
        self._connection: Connection | None = None

    def __call__(self) -> AbstractContextManager[Connection]:
        """Hold a transaction that cannot write."""
        if self._connection is None or self._connection.closed:
            self._connection = self._open()
        return read_only(self._connection, "READ COMMITTED")

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()


def is_read_only_error(error: BaseException) -> bool:
    """Tell whether somebody tried to write in a read-only transaction.

    Args:
        error: What was raised.
    """
    return isinstance(error, psycopg.errors.ReadOnlySqlTransaction)
