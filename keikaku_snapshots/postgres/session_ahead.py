"""A session of the maintenance database that is opened while something else goes on."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Self

from keikaku_snapshots.postgres.locks import MAINTENANCE_DATABASE, connect_maintenance

if TYPE_CHECKING:
    from types import TracebackType

    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.postgres.url import DatabaseURL


class SessionAhead:
    """Opens a session when work begins after which it is needed at once; closes it in the end."""

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
        self._opening: Future[Connection] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def open(self) -> None:
        """Begin to open it; a second call does nothing."""
        if self._opening is None:
            pool = ThreadPoolExecutor(1, "keikaku-session")
            self._opening = pool.submit(self._connect)
            pool.shutdown(wait=False)

    def take(self) -> Connection:
        """Return the session; one that could not be opened or was lost is opened now.

        Raises:
            KeikakuError: It cannot be opened.
        """
        opening = self._opening
        if opening is None or opening.exception() is not None or opening.result().closed:
            self._opening = opening = Future()
            opening.set_result(self._connect())
        return opening.result()

    def close(self) -> None:
        """Close it; `take` opens it anew."""
        opening, self._opening = self._opening, None
        if opening is not None and opening.exception() is None:
            opening.result().close()

    def _connect(self) -> Connection:
        return connect_maintenance(
            self._url, maintenance=self._maintenance, application_name=self._application_name
        )
