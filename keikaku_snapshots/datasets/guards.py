"""Refusing databases that look like production, whatever the caller handed in."""

from __future__ import annotations

from contextlib import suppress
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, Any

from keikaku_snapshots.datasets.parameters import check_flag, check_words
from keikaku_snapshots.datasets.steps import Execute, Steps
from keikaku_snapshots.errors import ProtectedDatabaseError
from keikaku_snapshots.postgres.url import DatabaseURL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


#: Words that mark a database or host as one that nobody works on by mistake.
PROTECTED_WORDS = ("prod", "production", "live")


def check_allowed(
    db: Any,
    *,
    allow_protected: bool = False,
    protected_words: Sequence[str] = PROTECTED_WORDS,
    allowed_databases: Sequence[str] = (),
) -> Callable[[], Steps[None]]:
    """Check the parameters now; the steps compare the names of database and host with them.

    Args:
        db: What the caller handed in; asked for the host where it knows it.
        allow_protected: Skip the protected words; the list still holds.
        protected_words: Words that must not stand in either name.
        allowed_databases: Patterns (``*_test``) of which one must match; any name when empty.

    Returns:
        Makes the steps, which raise `ProtectedDatabaseError` when a word stands in a name or
        no pattern matches.

    Raises:
        ParameterTypeError: A parameter has the wrong type.
    """
    words = check_words("protected_words", protected_words)
    patterns = check_words("allowed_databases", allowed_databases)
    if check_flag("allow_protected", allow_protected):
        words = ()
    return partial(_compare, db, words, patterns)


def _compare(db: Any, protected_words: Sequence[str], allowed_databases: Sequence[str]) -> Steps[None]:
    if not protected_words and not allowed_databases:
        return
    rows = yield Execute("SELECT pg_catalog.current_database()::text")
    database: str = rows[0][0]
    for host in _hosts(db):
        place = DatabaseURL(host=host, port=None, user="unnamed", password=None, database=database)
        word = place.protected_word(protected_words)
        if word is not None:
            raise ProtectedDatabaseError(
                f"the database looks like production: {word!r} is in its name or host",
                found=f"Database: {database}\nHost: {host or 'local socket'}",
            )
    if allowed_databases and not any(fnmatchcase(database, pattern) for pattern in allowed_databases):
        raise ProtectedDatabaseError(
            f"database {database!r} is not among those that data may be generated into",
            found=f"Allowed: {', '.join(allowed_databases)}",
            hint="Check the URL, or add the name to allowed_databases.",
        )


def _hosts(db: Any) -> list[str]:
    """The host by every name that is known; one empty name when the driver tells none."""
    found = [str(host or "") for host in _names(db)]
    # A socket's directory is no name of a host.
    return list(dict.fromkeys("" if host.startswith("/") else host for host in found)) or [""]


def _names(db: Any) -> Iterator[Any]:
    if isinstance(db, str | DatabaseURL) or hasattr(db, "drivername"):
        yield DatabaseURL.parse(db).host
        return
    # The work has begun, so that a session has a connection and the engine's options are resolved.
    with suppress(Exception):
        yield db.info.host  # psycopg
    with suppress(Exception):
        yield db._addr[0]  # noqa: SLF001 - asyncpg tells it nowhere else; a name for TCP, a path for a socket
    with suppress(Exception):
        bind = db.get_bind() if hasattr(db, "get_bind") else db
        url = bind.engine.url
        yield url.host
        query = url.query.get("host", "")
        yield from [query] if isinstance(query, str) else query
