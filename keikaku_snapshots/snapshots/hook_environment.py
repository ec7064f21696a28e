"""The environment of an after-restore hook: the caller's own, pointed at the new database.

A hook is the user's own command, so it gets the user's environment. But every
way in which that environment names the live database is turned to the new one,
because a hook that reaches the live one would change what the restore promises
to leave alone: libpq's own variables, the usual URLs, every other variable that
holds a URL or a DSN of that database, and ``…_DB`` or ``…_DATABASE`` with its
bare name.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from keikaku_snapshots.errors import KeikakuError
from keikaku_snapshots.postgres.tool_environment import PreparedEnvironment, prepare_environment
from keikaku_snapshots.postgres.url import DatabaseURL

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Always there for a hook.
GIVEN = ("KEIKAKU_DB_URL", "DATABASE_URL")
#: Pointed at the new database where the caller has them, whatever they say.
_RELATED = ("TEST_DATABASE_URL", "PERFORMANCE_TEST_DATABASE_URL")
#: libpq's and psql's variables; PG_BIN and PG_COLOR are neither.
_LIBPQ = re.compile(r"PG[A-Z]+|PSQL[A-Z_]*")
#: Variables that hold the bare name of a database: POSTGRES_DB, DB_NAME, DJANGO_DATABASE, …
_HOLDS_NAME = re.compile(r"(?:.*_)?(?:DB|DATABASE|DBNAME)(?:_?NAME)?", re.IGNORECASE)
_SCHEME = r"postgres(?:ql)?(?:\+\w+)?://"
_IN_PATH = re.compile(
    rf"(?P<before>{_SCHEME}[^\s?]*?/)(?P<name>[^\s/?,;'\"]+)(?=$|[?\s,;'\"])", re.IGNORECASE
)
#: SQLAlchemy takes a question mark inside a password; then an "@" comes behind.
_BEHIND_PASSWORD = re.compile(
    rf"(?P<before>{_SCHEME}\S*\?\S*@[^\s/?]*/)(?P<name>[^\s/?,;'\"]+)(?=$|[?\s,;'\"])", re.IGNORECASE
)
_IN_QUERY = re.compile(
    rf"(?P<before>{_SCHEME}\S*?[?&](?:dbname|database)=)(?P<name>[^\s&'\"]*)", re.IGNORECASE
)
_IN_DSN = re.compile(r"(?P<before>(?<![\w?&])dbname\s*=\s*)(?P<name>'(?:[^'\\]|\\.)*'|[^\s'\"]+)")
_URL = re.compile(rf"{_SCHEME}[^\s'\"]+", re.IGNORECASE)


@dataclass(slots=True)
class HookEnvironment:
    """An environment, the private files that it refers to, and what must not be printed."""

    #: For the program.
    env: dict[str, str]
    #: Every database URL in it, for redaction.
    urls: list[DatabaseURL]
    #: Holds the password file.
    prepared: PreparedEnvironment

    def remove(self) -> None:
        """Remove the files; the program must have ended."""
        self.prepared.remove()


def hook_environment(
    live: DatabaseURL, beside: DatabaseURL, inherited: Mapping[str, str] | None = None
) -> HookEnvironment:
    """Make the environment of a hook; remove its files when the hook has ended.

    Args:
        live: The database that will be replaced.
        beside: The database that the hook shall work on.
        inherited: The caller's environment; the process's own when None.

    Returns:
        The environment.
    """
    inherited = os.environ if inherited is None else inherited
    env: dict[str, str] = {}
    urls = [live]
    for name, value in inherited.items():
        if not _LIBPQ.fullmatch(name):
            urls += _passwords(value)
            env[name] = _turned(name, value, live.database, beside.database)
    for name in (*GIVEN, *(name for name in _RELATED if name in inherited)):
        if not names_database(env.get(name, ""), beside.database):
            env[name] = beside.text
    # A hook that restores would begin with itself.
    env.pop("KEIKAKU_AFTER_RESTORE", None)
    prepared = prepare_environment(beside, application_name="keikaku_snapshots hook")
    env |= {name: value for name, value in prepared.env.items() if name.startswith("PG")}
    return HookEnvironment(env, urls, prepared)


def names_database(text: str, name: str) -> bool:
    """Tell whether a text holds a URL or DSN of a database of this name.

    Args:
        text: An argument or the value of a variable.
        name: The name.

    Returns:
        True if it does.
    """
    return _rewritten(text, name, "\0") != text


def _turned(variable: str, value: str, live: str, beside: str) -> str:
    if value == live and _HOLDS_NAME.fullmatch(variable):
        return beside
    return _rewritten(value, live, beside)


def _rewritten(text: str, live: str, beside: str) -> str:
    """Put the new name in place of the live one; user, host, driver and parameters stay as they are."""

    def in_url(match: re.Match[str]) -> str:
        return match["before"] + quote(beside, safe="") if unquote(match["name"]) == live else match[0]

    def in_dsn(match: re.Match[str]) -> str:
        given = match["name"]
        if given.startswith("'"):
            given = re.sub(r"\\(.)", r"\1", given[1:-1])
        if given != live:
            return match[0]
        escaped = re.sub(r"(['\\])", r"\\\1", beside)
        return f"{match['before']}'{escaped}'"

    for pattern in (_IN_PATH, _BEHIND_PASSWORD, _IN_QUERY):
        text = pattern.sub(in_url, text)
    return _IN_DSN.sub(in_dsn, text)


def _passwords(value: str) -> list[DatabaseURL]:
    found = []
    for match in _URL.finditer(value):
        try:
            found.append(DatabaseURL.parse(match[0]))
        except KeikakuError:
            continue
    return found
