"""Connections: settings, limits, errors in our words, and when to try again."""

from __future__ import annotations

import logging
import random
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import psycopg

from keikaku_snapshots.errors import KeikakuError
from keikaku_snapshots.postgres.failures import ServerReport, is_transient, report_of, translate
from keikaku_snapshots.postgres.inherited import inherited_settings_hidden

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import tenacity

    from keikaku_snapshots.postgres.url import DatabaseURL

__all__ = [
    "RetryPolicy",
    "ServerInfo",
    "ServerReport",
    "connect",
    "is_transient",
    "report_of",
    "retrying",
    "server_info",
    "translate",
    "translated",
]

_log = logging.getLogger("keikaku_snapshots.postgres")

#: A connection as this package uses it: rows are tuples.
Connection: TypeAlias = "psycopg.Connection[tuple[Any, ...]]"

#: Notice a dead peer within about a minute (FAULTS 99; libpq has no environment variables for these).
KEEPALIVES: dict[str, int] = {
    "keepalives": 1,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
#: Limits of a role or database that would end our own session while it waits for rows, a program or a
#: person; what we do has limits of its own. The number is the first server version that knows the name.
_SESSION_LIMITS = {
    "idle_in_transaction_session_timeout": 0,
    "idle_session_timeout": 140_000,
    "transaction_timeout": 170_000,
}


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently something transient is tried again."""

    #: Tries in all, the first one included.
    attempts: int = 3
    #: Seconds before the second try.
    wait_min_s: float = 2.0
    #: Most seconds between two tries.
    wait_max_s: float = 10.0
    #: Seconds in all after which no further try is begun; None for no limit.
    deadline_s: float | None = None


def retrying(
    policy: RetryPolicy | None = None,
    should_retry: Callable[[BaseException], bool] = is_transient,
    on_retry: Callable[[int, BaseException, float], None] | None = None,
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> tenacity.Retrying:
    """Make the loop that tries a call again: ``retrying(policy)(call, argument)``.

    Args:
        policy: How often and how patiently; the default policy if None.
        should_retry: Whether an error may pass; asked for `Exception` only, so
            that KeyboardInterrupt ends the loop.
        on_retry: Called before each wait with the number of the failed try, its
            error and the seconds to wait.
        sleep: What waits; tests put their own.

    Returns:
        A tenacity loop that raises the last error itself.
    """
    import tenacity

    limits = policy or RetryPolicy()

    def report(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        wait_s = state.next_action.sleep if state.next_action else 0.0
        if error is None:
            return
        _log.warning(
            "try %d of %d failed (%s), next in %.1f s",
            state.attempt_number, limits.attempts, type(error).__name__, wait_s,
        )  # fmt: skip
        if on_retry:
            on_retry(state.attempt_number, error, wait_s)

    def tell_tries(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if state.attempt_number > 1 and isinstance(error, KeikakuError):
            error.found = f"{error.found}\nTried {state.attempt_number} times.".lstrip()

    stop: Any = tenacity.stop_after_attempt(limits.attempts)
    if limits.deadline_s is not None:
        # stop_after_delay would sleep past the deadline (FAULTS 96).
        stop = stop | tenacity.stop_before_delay(limits.deadline_s)
    return tenacity.Retrying(
        sleep=sleep,
        stop=stop,
        # Not wait_exponential_jitter: its parameter for the first wait has another name in each version.
        wait=lambda state: min(
            limits.wait_max_s,
            limits.wait_min_s * (2 ** (state.attempt_number - 1) + random.uniform(0, 0.5)),
        ),
        retry=tenacity.retry_if_exception(lambda error: isinstance(error, Exception) and should_retry(error)),
        after=tell_tries,
        before_sleep=report,
        reraise=True,
    )


@contextmanager
def translated(url: DatabaseURL | None = None, doing: str = "") -> Iterator[None]:
    """Raise the driver's errors of this block as errors of this library.

    Args:
        url: The connection, for its name and for redaction.
        doing: What the block does, such as "counting rows".

    Raises:
        KeikakuError: In place of any `psycopg.Error`.
    """
    try:
        yield
    except psycopg.Error as error:
        raise translate(error, url=url, doing=doing) from error


def connect(
    url: DatabaseURL,
    *,
    database: str | None = None,
    autocommit: bool = False,
    application_name: str = "keikaku_snapshots",
    connect_timeout_s: float = 10,
    statement_timeout_s: float | None = None,
    lock_timeout_s: float | None = None,
    row_security: bool | None = None,
    prepare_threshold: int | None = None,
    retry: RetryPolicy | None = None,
) -> Connection:
    """Open a connection that depends on nothing but its arguments.

    Inherited ``PG*`` variables have no effect; text is UTF-8; a peer that has
    gone is noticed; the server does not end the session for being idle.

    Args:
        url: Where to.
        database: Another database of the same server.
        autocommit: Whether each statement is its own transaction.
        application_name: What the server shows in pg_stat_activity.
        connect_timeout_s: Seconds for each address of the host, at least 2.
        statement_timeout_s: Seconds a statement may take; the server's setting
            when None, no limit for 0.
        lock_timeout_s: Seconds a statement may wait for a lock; as above.
        row_security: False makes a query that row security would filter fail
            in place of answering with fewer rows.
        prepare_threshold: Runs after which psycopg prepares a statement; None
            never does, which connection poolers and schema changes need.
        retry: Tries when the server refuses or drops the connection; one try if None.

    Returns:
        The connection.

    Raises:
        ConnectError: The server cannot be reached or has no such database.
        AuthenticationError: It refuses the role or password.
        AccessDeniedError: The role may not connect to this database.
    """
    if database is not None:
        url = url.with_database(database)
    arguments: dict[str, Any] = dict(url.connect_arguments())
    given = dict(url.parameters)
    arguments.update({name: value for name, value in KEEPALIVES.items() if name not in given})
    if "connect_timeout" not in given:
        arguments["connect_timeout"] = max(2, round(connect_timeout_s))
    arguments["application_name"] = application_name
    arguments["client_encoding"] = "UTF8"
    settings = _session_settings(statement_timeout_s, lock_timeout_s, row_security)

    def attempt() -> Connection:
        connection = _open(arguments, prepare_threshold)
        version = connection.info.server_version
        unlimited = {name: "0" for name, since in _SESSION_LIMITS.items() if version >= since}
        try:
            _apply(connection, unlimited | settings)
            connection.autocommit = autocommit
        except BaseException:
            connection.close()
            raise
        return connection

    try:
        return retrying(retry)(attempt) if retry is not None else attempt()
    except (psycopg.Error, OSError) as error:
        raise translate(error, url=url, doing="connecting") from error


def open_again(conninfo: str) -> Connection:
    """Open a connection like one that was lost, in autocommit.

    Args:
        conninfo: All that `connect` had given it, with the password.

    Returns:
        The connection.

    Raises:
        psycopg.Error: It cannot be opened.
    """
    with inherited_settings_hidden():
        return psycopg.connect(conninfo, autocommit=True)


def _session_settings(
    statement_timeout_s: float | None, lock_timeout_s: float | None, row_security: bool | None
) -> dict[str, str]:
    settings: dict[str, str] = {}
    if statement_timeout_s is not None:
        settings["statement_timeout"] = str(round(statement_timeout_s * 1000))
    if lock_timeout_s is not None:
        settings["lock_timeout"] = str(round(lock_timeout_s * 1000))
    if row_security is not None:
        settings["row_security"] = "on" if row_security else "off"
    return settings


def _apply(connection: Connection, settings: dict[str, str]) -> None:
    # After connecting and not in the startup packet: poolers refuse `options`.
    calls = ", ".join("pg_catalog.set_config(%s, %s, false)" for _ in settings)
    values = [text for pair in settings.items() for text in pair]
    connection.execute(f"SELECT {calls}", values)


def _open(arguments: dict[str, Any], prepare_threshold: int | None) -> Connection:
    with inherited_settings_hidden():
        return psycopg.connect(autocommit=True, prepare_threshold=prepare_threshold, **arguments)


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a server says of itself when a session begins."""

    #: Version as a number, such as 150018.
    version_num: int
    #: Major version, such as 15.
    major: int
    #: Version in words, such as "15.18".
    version: str
    #: Host or socket directory of this connection.
    host: str
    #: Port of this connection.
    port: int
    #: Database of this connection.
    database: str
    #: Role of this connection.
    user: str
    #: Encoding of the database, such as "UTF8".
    encoding: str
    #: True for a role without limits.
    is_superuser: bool


def server_info(connection: Connection) -> ServerInfo:
    """Tell what the server said when the session began; asks nothing again.

    Args:
        connection: An open connection.

    Returns:
        Version, names and encoding.
    """
    info = connection.info
    number = info.server_version
    version = (info.parameter_status("server_version") or "").partition(" ")[0]
    return ServerInfo(
        version_num=number,
        major=number // 10_000,
        version=version,
        host=info.host,
        port=info.port,
        database=info.dbname,
        user=info.user,
        encoding=info.parameter_status("server_encoding") or "",
        is_superuser=info.parameter_status("is_superuser") == "on",
    )
