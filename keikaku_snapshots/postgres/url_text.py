"""The text of a database URL, read by libpq's own parser and checked for what it cannot mean here."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote, unquote

import psycopg
from psycopg import conninfo, pq

from keikaku_snapshots.errors import InvalidURLError

#: SQLAlchemy's names of drivers that a URL may have behind ``postgresql+``.
DIALECTS = ("psycopg", "psycopg2", "asyncpg", "psycopg_async")
_SCHEME = re.compile(r"(?P<name>postgres(?:ql)?)(?:\+(?P<driver>[a-z0-9_]+))?://", re.IGNORECASE)
#: Known to libpq, but they would send us to a place that the URL does not show.
_REFUSED_PARAMETERS = {
    "service": "it names a file that decides about host and database",
    "servicefile": "it names a file that decides about host and database",
    "replication": "a replication connection cannot run SQL",
    "load_balance_hosts": "one host only is supported",
}
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")


def text_of_sqlalchemy(url: Any) -> str:
    """Write a SQLAlchemy URL with everything percent-encoded; its own rendering leaves spaces."""
    pairs: list[str] = []
    for name, value in url.query.items():
        values = [value] if isinstance(value, str) else list(value)
        pairs.extend(f"{quote(name, safe='')}={quote(item, safe='')}" for item in values)
    authority = "" if url.username is None else quote(url.username, safe="")
    if url.password is not None:
        authority += ":" + quote(str(url.password), safe="")
    host = url.host or ""
    host = f"[{host}]" if ":" in host else quote(host, safe=",")
    port = f":{url.port}" if url.port is not None else ""
    at = "@" if authority else ""
    query = f"?{'&'.join(pairs)}" if pairs else ""
    return f"{url.drivername}://{authority}{at}{host}{port}/{quote(url.database or '', safe='')}{query}"


def read_options(text: str) -> dict[str, str]:
    """Read a URL into libpq's options.

    Args:
        text: ``postgresql://…``, also with SQLAlchemy's ``+driver``.

    Returns:
        Options by libpq's names; checked one by one, not together.

    Raises:
        InvalidURLError: It cannot be understood. The text never repeats the URL.
    """
    match = _SCHEME.match(text)
    if match is None:
        raise InvalidURLError("a database URL does not begin with postgresql:// or postgres://")
    if match["driver"] and match["driver"].lower() not in DIALECTS:
        raise InvalidURLError(
            "a database URL names a driver that is not supported",
            hint=f"Write postgresql://…, or postgresql+DRIVER://… with one of {', '.join(DIALECTS)}.",
        )
    rest = text[match.end() :]
    if any(ord(character) < 32 for character in unquote(rest)):
        raise InvalidURLError("a database URL holds a control character, such as a line break")
    _check_at_signs(rest)
    options = _parse_with_libpq("postgresql://" + _map_ssl(rest))
    _check_options(options)
    return options


def _check_at_signs(rest: str) -> None:
    """Refuse what libpq reads otherwise than a person does: part of a password taken for host or name."""
    authority, _, tail = rest.partition("/")
    path = tail.partition("?")[0]
    if "@" in path or authority.count("@") > 1:
        raise InvalidURLError(
            "a database URL has an '@' or '/' in user or password that is not percent-encoded"
        )


def _map_ssl(rest: str) -> str:
    """Rename asyncpg's ``ssl`` to ``sslmode``; dropping it would drop the encryption (FAULTS 41)."""
    head, mark, query = rest.partition("?")
    if not mark or ("@" in query.partition("/")[0] and "/" not in head):
        return rest  # a "?" inside the password
    pairs = []
    for pair in query.split("&"):
        name, equals, value = pair.partition("=")
        if name == "ssl":
            name, value = "sslmode", {"true": "require", "false": "disable"}.get(value.lower(), value)
        pairs.append(f"{name}{equals}{value}")
    return f"{head}?{'&'.join(pairs)}"


def _parse_with_libpq(text: str) -> dict[str, str]:
    reason = ""
    try:
        parsed = conninfo.conninfo_to_dict(text)
    except psycopg.Error as error:
        reason = str(error)
    else:
        return {name: str(value) for name, value in parsed.items() if value is not None}
    # libpq's message repeats pieces of the URL (FAULTS 31), so it is neither shown nor chained.
    if "invalid URI query parameter" in reason:
        names = ", ".join(sorted(_known_parameters()))
        raise InvalidURLError(
            "a database URL has an unknown parameter after '?'", hint=f"libpq's parameters are: {names}."
        )
    if "percent-encoded" in reason:
        raise InvalidURLError("a database URL has a '%' or a space that is not percent-encoded")
    if "key/value separator" in reason:
        raise InvalidURLError(
            "a parameter of a database URL has no '=', or a second one",
            hint="Write an '=' inside a value as %3D: ?options=-c%20search_path%3Dapp.",
        )
    raise InvalidURLError("a database URL cannot be parsed")


def _known_parameters() -> set[str]:
    return {option.keyword.decode() for option in pq.Conninfo.get_defaults()} - set(_REFUSED_PARAMETERS)


def _check_options(options: dict[str, str]) -> None:
    if any("," in options.get(name, "") for name in ("host", "port", "hostaddr")):
        raise InvalidURLError("a database URL names several hosts; one only is supported")
    for name, reason in _REFUSED_PARAMETERS.items():
        if name in options:
            raise InvalidURLError(f"the parameter {name!r} is not supported in a database URL: {reason}")
    if options.get("sslmode", "prefer") not in _SSL_MODES:
        raise InvalidURLError(f"the value of sslmode is not one of {', '.join(_SSL_MODES)}")
    port = options.get("port", "")
    if port and not (port.isascii() and port.isdigit()):
        raise InvalidURLError(
            "the port of a database URL is no number (a '/' or ':' in a password must be percent-encoded)"
        )
    if not options.get("dbname"):
        raise InvalidURLError(
            "a database URL names no database",
            hint="Add its name at the end: postgresql://USER@HOST:PORT/DATABASE.",
        )
