"""Refusing databases that look like production, whatever the caller handed in."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from keikaku_snapshots.datasets.steps import Execute, Steps
from keikaku_snapshots.errors import ProtectedDatabaseError
from keikaku_snapshots.postgres.url import DatabaseURL

if TYPE_CHECKING:
    from collections.abc import Sequence


def check_allowed(db: Any, protected_words: Sequence[str], allowed_databases: Sequence[str]) -> Steps[None]:
    """Compare the names of database and host with the words and patterns.

    Args:
        db: What the caller handed in; asked for the host where it knows it.
        protected_words: Words that must not stand in either name.
        allowed_databases: Patterns (``*_test``) of which one must match; any name when empty.

    Raises:
        ProtectedDatabaseError: A word stands in a name, or no pattern matches.
    """
    rows = yield Execute("SELECT pg_catalog.current_database()::text")
    database: str = rows[0][0]
    place = DatabaseURL(host=_host(db), port=None, user="unnamed", password=None, database=database)
    word = place.protected_word(protected_words)
    if word is not None:
        found = f"Database: {database}\nHost: {place.host or 'local socket'}"
        raise ProtectedDatabaseError(
            f"The database looks like production: {word!r} is in its name or host", found=found
        )
    if allowed_databases and not any(fnmatchcase(database, pattern) for pattern in allowed_databases):
        raise ProtectedDatabaseError(
            f"Database {database!r} is not among those that data may be generated into",
            found=f"Allowed: {', '.join(allowed_databases)}",
            hint="Check the URL, or add the name to allowed_databases.",
        )


def _host(db: Any) -> str:
    """The host's name; empty when the driver does not tell it."""
    try:
        if isinstance(db, str | DatabaseURL) or hasattr(db, "drivername"):
            return DatabaseURL.parse(db).host
        if hasattr(db, "info") and hasattr(db.info, "host"):
            return str(db.info.host or "")
        bind = db.get_bind() if hasattr(db, "get_bind") else db
        engine = getattr(bind, "engine", None)
        return str(engine.url.host or "") if engine is not None else ""
    except (AttributeError, LookupError, ValueError):
        return ""
