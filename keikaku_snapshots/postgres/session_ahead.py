"""A session of the maintenance database that is opened while something else goes on."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Self

from keikaku_snapshots.postgres.locks import MAINTENANCE_DATABASE, connect_maintenance

if TYPE_CHECKING:
    from types import TracebackType

    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.postgres.url import DatabaseURL


class SessionAhead:
    """Opens a session when work begins after which it is needed at once; closes it in the end.

    One thread opens and closes it, so that an interruption of whoever asks cannot come in between.
    """

    def __init__(
        self, url: DatabaseURL, application_name: str, *, maintenance: str = MAINTENANCE_DATABASE
    ) -> None:
        """Prepare; nothing is opened yet.

        Args:
            url: Any database of the server.
            application_name: What the server shows in pg_stat_activity.
            maintenance: Name of the maintenance database.
        """
        self._url = url
        self._application_name = application_name
        self._maintenance = maintenance
        self._worker = ThreadPoolExecutor(1, "keikaku-session")
        self._connection: Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._worker.shutdown()
        self._close()

    def open(self) -> None:
        """Begin to open it; whether that works is asked by `take`."""
        self._worker.submit(self._opened)

    def take(self) -> Connection:
        """Return the session; one that could not be opened or was lost is opened now.

        Raises:
            KeikakuError: It cannot be opened.
        """
        return self._worker.submit(self._opened).result()

    def close(self) -> None:
        """Close it; `take` opens it anew."""
        self._worker.submit(self._close).result()

    def _opened(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = connect_maintenance(
                self._url, maintenance=self._maintenance, application_name=self._application_name
            )
        return self._connection

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
