"""A unit of work as a whole: one transaction, its settings, and what is tried again.

Whose transaction it is decides everything:

============================  ====================  =================  ======================
the caller hands in           transaction           after a failure    tried again
============================  ====================  =================  ======================
a URL                         the library's         rolled back        yes, on a new connection
an idle autocommit            the library's         rolled back        yes, while it lives
connection
a connection or session       a savepoint in the    rolled back to     no (fresh values only,
with its own transaction      caller's              the savepoint      inside the savepoint)
============================  ====================  =================  ======================

Nothing is tried again once COMMIT was sent and its answer is unknown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

import tenacity

from keikaku_snapshots.datasets.parameters import check_seconds
from keikaku_snapshots.datasets.steps import Begin, Commit, Execute, Rollback, Sleep, Steps
from keikaku_snapshots.errors import KeikakuError, OutcomeUnknownError, UniqueError, UsageError
from keikaku_snapshots.postgres.connect import RetryPolicy, retrying
from keikaku_snapshots.postgres.failures import is_transient, report_of, translate

ResultT = TypeVar("ResultT")

#: What is said of a transaction that takes no statement any more.
FAILED_TRANSACTION = "the transaction of this connection has failed before"
#: How often values that were drawn without a seed are drawn anew after a collision.
FRESH_TRIES = 3

# What makes the same text mean the same thing in every session (A5), and a row that row
# security would hide an error instead of a gap (FAULTS 18).
_FIXED_SETTINGS = {
    "row_security": "off",
    "TimeZone": "UTC",
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    # Rows may take their time to be made; until the first one the session waits inside its transaction.
    "idle_in_transaction_session_timeout": "0",
}
#: A limit for the whole is the caller's to set, where the transaction is the caller's (PostgreSQL 17).
_OWN_TRANSACTION = (
    "SELECT pg_catalog.set_config(name, '0', true) FROM pg_catalog.pg_settings "
    "WHERE name = 'transaction_timeout'"
)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long each kind of waiting may take, in seconds; None waits for ever."""

    #: Opening a connection.
    connect_s: float = 10.0
    #: One statement on the server.
    statement_s: float | None = 600.0
    #: Waiting for a lock that another session holds.
    lock_s: float | None = 10.0
    #: A COPY that takes no more rows.
    stall_s: float | None = 60.0

    def __post_init__(self) -> None:
        for name in ("connect_s", "statement_s", "lock_s", "stall_s"):
            value: object = getattr(self, name)
            if value is not None or name == "connect_s":
                check_seconds(name, value)


@dataclass(frozen=True, slots=True)
class Attempt:
    """Which try of a unit of work this is."""

    #: True when the transaction is the library's own.
    owned: bool
    #: How often a unique collision has made the unit draw fresh values.
    fresh: int = 0


Unit: TypeAlias = Callable[[Attempt], Steps[ResultT]]


@dataclass(slots=True)
class _State:
    #: True when the transaction of the try that failed was the library's own.
    owned: bool = False
    #: True when the connection still works, or a new one can be opened.
    usable: bool = True
    #: The collisions so far.
    fresh: int = 0
    #: What the settings were before; empty in the library's own transaction.
    settings: dict[str, str] = field(default_factory=dict)


def attempts(
    unit: Unit[ResultT],
    *,
    reconnects: bool,
    policy: RetryPolicy | None = None,
    timeouts: Timeouts | None = None,
    unseeded: bool = False,
    schema: str | None = None,
) -> Steps[ResultT]:
    """Do a unit of work in one transaction, as often as the rules allow.

    Args:
        unit: Makes the steps of one try.
        reconnects: True when the target opens its own connection.
        policy: How often and how patiently.
        timeouts: How long waiting may take.
        unseeded: True when a unique collision may be answered with fresh values.
        schema: Put before the search path for this unit.

    Returns:
        What the unit returned; it is committed, or its savepoint released.

    Raises:
        OutcomeUnknownError: The connection was lost after COMMIT was sent.
        KeikakuError: The driver's error in the library's words; all is undone.
    """
    state = _State()
    settings = _settings(timeouts or Timeouts(), schema)

    def may_retry(error: BaseException) -> bool:
        again = state.usable and (state.owned or reconnects)
        return again and is_transient(error, single_call=True)

    loop = retrying(policy, may_retry)
    loop.begin()
    call = tenacity.RetryCallState(loop, fn=None, args=(), kwargs={})
    while True:
        action = loop.iter(retry_state=call)
        if isinstance(action, tenacity.DoAttempt):
            try:
                result = yield from _with_fresh_values(unit, settings, state, unseeded=unseeded)
            except Exception as error:  # noqa: BLE001 - the loop decides, and raises it again
                # As the library's own error, so that the last one that tenacity raises is one too.
                translated = _translated(error)
                if isinstance(translated, KeikakuError) and may_retry(translated):
                    translated.found = f"{translated.found}\nNothing was written.".lstrip()
                call.set_exception((type(translated), translated, translated.__traceback__))
            else:
                return result
        elif isinstance(action, tenacity.DoSleep):
            call.prepare_for_next_attempt()
            yield Sleep(float(action))
        else:  # pragma: no cover - a loop that reraises gives nothing else
            raise AssertionError(action)  # noqa: TRY004


def _with_fresh_values(
    unit: Unit[ResultT], settings: dict[str, str], state: _State, *, unseeded: bool
) -> Steps[ResultT]:
    while True:
        try:
            return (yield from _in_transaction(unit, settings, state))
        except UniqueError:
            if not unseeded or state.fresh >= FRESH_TRIES or not state.usable:
                raise
            state.fresh += 1


def _in_transaction(unit: Unit[ResultT], settings: dict[str, str], state: _State) -> Steps[ResultT]:
    state.owned, state.usable = False, True
    state.owned = yield Begin()
    try:
        before = yield from _apply(settings)
        if state.owned:
            yield Execute(_OWN_TRANSACTION)
        result = yield from unit(Attempt(state.owned, state.fresh))
        if state.owned:
            # Deferred constraints speak here and not at COMMIT, where nobody knows any more what was copied.
            yield Execute("SET CONSTRAINTS ALL IMMEDIATE")
        else:
            yield from _apply(before)
    except BaseException:
        state.usable = yield Rollback()
        raise
    try:
        yield Commit()
    except BaseException as error:
        state.usable = yield Rollback()
        if state.owned and not _is_answer(error):
            state.usable = False
            what = "the connection was lost after COMMIT was sent; the rows may or may not be there"
            raise OutcomeUnknownError(what) from error
        raise
    return result


def _settings(timeouts: Timeouts, schema: str | None) -> dict[str, str]:
    settings = dict(_FIXED_SETTINGS)
    for name, seconds in (("statement_timeout", timeouts.statement_s), ("lock_timeout", timeouts.lock_s)):
        # 0 would switch the limit off.
        settings[name] = "0" if seconds is None else str(max(1, round(seconds * 1000)))
    if schema is not None:
        settings["search_path"] = '"' + schema.replace('"', '""') + '", public'
    return settings


def _apply(settings: dict[str, str]) -> Steps[dict[str, str]]:
    """Change settings up to the end of the transaction; returns what they were."""
    names = list(settings)
    read = ", ".join(f"pg_catalog.current_setting('{name}')" for name in names)
    rows = yield Execute(f"SELECT {read}")
    write = ", ".join(
        f"pg_catalog.set_config('{name}', ${number}::text, true)"
        for number, name in enumerate(names, start=1)
    )
    yield Execute(f"SELECT {write}", tuple(settings.values()))
    return dict(zip(names, rows[0], strict=True))


def _is_answer(error: BaseException) -> bool:
    # Only an ordinary error of the server proves that COMMIT did not happen: a session
    # that is terminated (57P0x) may have committed before it said so.
    state = report_of(error).sqlstate
    return bool(state) and not state.startswith(("08", "57P"))


def _translated(error: Exception) -> Exception:
    """A driver's error in the library's words; what a row generator raised as it is."""
    if isinstance(error, KeikakuError):
        return error
    if report_of(error).sqlstate == "25P02" or type(error).__name__ == "PendingRollbackError":
        # The other error of the transaction is the caller's own, and older.
        return _caused(UsageError(FAILED_TRANSACTION, hint="Roll it back, then call again."), error)
    if type(error).__name__ == "UnboundExecutionError":
        hint = "Bind the session to one engine or connection: Session(engine)."
        return _caused(UsageError("the session does not say which database it writes to", hint=hint), error)
    module = type(error).__module__.partition(".")[0]
    if module not in {"psycopg", "psycopg_pool", "asyncpg", "sqlalchemy"} and not isinstance(
        error, ConnectionError
    ):
        return error
    return _caused(translate(error), error)


def _caused(translated: KeikakuError, cause: Exception) -> KeikakuError:
    translated.__cause__ = cause
    return translated
