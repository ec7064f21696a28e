"""`DatabaseURL`: which database, as whom; parsed once, printed without its password.

One parser only: libpq's own (`psycopg.conninfo`), after the dialect of
SQLAlchemy is taken off. Two parsers disagree about ``u:p@ss@host``, and then
a check sees another host than the connection (FAULTS 97).

What is not in the URL has a fixed default here. Inherited ``PG*`` variables
have no effect: `DatabaseURL.connect_arguments` sets every option that libpq
would take from the environment, and `inherited.inherited_settings_hidden` hides
the few that no option can override.
"""

from __future__ import annotations

import getpass
import os
import re
import sys
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from keikaku_snapshots.errors import InvalidNameError, InvalidURLError
from keikaku_snapshots.postgres.inherited import neutral_options
from keikaku_snapshots.postgres.redaction import secret_patterns
from keikaku_snapshots.postgres.url_text import DIALECTS, read_options, text_of_sqlalchemy

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "DatabaseURL",
    "check_database_name",
    "quote_identifier",
]

#: PostgreSQL cuts longer names silently, so that two names become one database (FAULTS 39).
NAME_LIMIT_BYTES = 63
#: Length of sun_path less the final NUL; a longer socket path cannot be connected to.
SOCKET_PATH_LIMIT_BYTES = 103 if sys.platform == "darwin" else 107
DEFAULT_PORT = 5432
#: Where servers put their socket, first one with a socket wins: Debian and Red Hat,
#: then the default of PostgreSQL as released. libpq has only one of them built in,
#: and psycopg's libpq and pg_dump's may differ.
SOCKET_DIRECTORIES = ("/var/run/postgresql", "/run/postgresql", "/tmp")  # noqa: S108 - read only
#: What is printed in place of a secret.
HIDDEN = "***"

#: Parameters whose values are secrets.
_SECRET_PARAMETERS = frozenset({"sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"})


def check_database_name(name: str) -> str:
    """Return the name of a database when PostgreSQL can hold it, whatever characters it has.

    Raises:
        InvalidNameError: It is empty, longer than 63 bytes of UTF-8 or holds a NUL.
    """
    if not name or "\0" in name:
        raise InvalidNameError(
            "a database name is empty or holds a NUL character",
            hint="Name the database at the end of the URL: postgresql://USER@HOST:PORT/DATABASE.",
        )
    size_bytes = len(name.encode("utf-8", errors="surrogatepass"))
    if size_bytes > NAME_LIMIT_BYTES:
        raise InvalidNameError(
            f"a database name has {size_bytes} bytes; PostgreSQL would cut it at {NAME_LIMIT_BYTES}",
            found=f"Name: {name!r}",
            hint="Use a shorter name; characters outside ASCII count as 2 to 4 bytes.",
        )
    return name


def quote_identifier(name: str) -> str:
    """Return a name as an SQL identifier, always in double quotes.

    Raises:
        InvalidNameError: It is empty or holds a NUL.
    """
    if not name or "\0" in name:
        raise InvalidNameError("an SQL identifier is empty or holds a NUL character")
    return '"' + name.replace('"', '""') + '"'


@dataclass(frozen=True)
class DatabaseURL:
    """One database on one server, and who we are there. Its ``str`` and ``repr`` hide the password."""

    #: Name or address; a socket directory when it begins with "/"; empty: the local socket.
    host: str
    #: None: 5432.
    port: int | None
    #: The role; the operating-system account's name when the URL has none.
    user: str
    #: None when there is none (peer authentication, certificate, ~/.pgpass).
    password: str | None = field(repr=False)
    #: Name of the database, never empty.
    database: str
    #: Further libpq parameters, sorted by name.
    parameters: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        check_database_name(self.database)
        _check_host(self.host)
        if self.port is not None and not 1 <= self.port <= 65535:
            raise InvalidURLError("the port of a database URL is not between 1 and 65535")
        if not self.user:
            raise InvalidURLError("a database URL has an empty user")
        if self.host.startswith("/") or not self.host:
            _check_socket_path(self.socket_directory, self.effective_port)

    @classmethod
    def parse(cls, url: Any) -> DatabaseURL:
        """Read a URL.

        Args:
            url: ``postgresql://…`` or ``postgres://…``, also with ``+psycopg``,
                ``+psycopg2``, ``+asyncpg`` or ``+psycopg_async``; a SQLAlchemy ``URL``;
                or a `DatabaseURL`, which is returned as it is.

        Returns:
            The parsed value.

        Raises:
            InvalidURLError: It cannot be understood. The text never repeats the URL.
            InvalidNameError: The database name is too long.
        """
        if isinstance(url, DatabaseURL):
            return url
        if hasattr(url, "render_as_string") and hasattr(url, "drivername"):
            url = text_of_sqlalchemy(url)
        if not isinstance(url, str):
            raise InvalidURLError(f"a database URL must be a text, not {type(url).__name__}")
        return _from_options(read_options(url.strip()))

    @property
    def effective_port(self) -> int:
        """The port that is connected to."""
        return DEFAULT_PORT if self.port is None else self.port

    @cached_property
    def socket_directory(self) -> str:
        """Directory of the Unix socket; empty when the connection is TCP."""
        if self.host:
            return self.host if self.host.startswith("/") else ""
        for directory in SOCKET_DIRECTORIES:
            if Path(directory, f".s.PGSQL.{self.effective_port}").exists():
                return directory
        return SOCKET_DIRECTORIES[0]

    @property
    def effective_host(self) -> str:
        """Host or socket directory that is connected to; never empty."""
        return self.host or self.socket_directory

    @property
    def location(self) -> str:
        """Where the database is, for messages: ``host:port/database``."""
        host = f"[{self.host}]" if ":" in self.host else self.effective_host
        return f"{host}:{self.effective_port}/{self.database}"

    @property
    def text(self) -> str:
        """The URL **with** the password, for drivers only; never for messages."""
        return self._render("postgresql", self.password)

    def for_sqlalchemy(self, driver: str = "psycopg") -> str:
        """Return the URL **with** the password for ``create_engine``, with the driver named.

        Args:
            driver: ``psycopg``, ``psycopg_async``, ``psycopg2`` or ``asyncpg``. For asyncpg
                ``sslmode`` becomes ``ssl``.

        Raises:
            InvalidURLError: The driver is unknown, or cannot be given a parameter of this URL.
        """
        if driver not in DIALECTS:
            raise InvalidURLError(f"the driver {driver!r} is not one of {', '.join(DIALECTS)}")
        parameters = dict(self.parameters)
        if driver == "asyncpg":
            parameters = _parameters_for_asyncpg(parameters)
        if not self.host:
            parameters["host"] = self.effective_host
        return self._render(f"postgresql+{driver}", self.password, parameters)

    def with_database(self, name: str) -> DatabaseURL:
        """Return the same place and role with another database.

        Raises:
            InvalidNameError: The name is empty, too long or holds a NUL.
        """
        return replace(self, database=check_database_name(name))

    def redact(self, text: str) -> str:
        """Return the text with every secret of this URL replaced by ``***``.

        Secrets are found by value: raw, percent-encoded, and as quoted in JSON,
        Python, SQL and password files. A password of up to 3 characters, or one
        that equals user, database or host (shown anyway), is replaced only where
        a password stands: ``:pw@``, ``password=pw``, ``PGPASSWORD=pw``.
        """
        for pattern in self._secret_patterns:
            text = pattern.sub(HIDDEN, text)
        return text

    def connect_arguments(self) -> dict[str, Any]:
        """Return the arguments for ``psycopg.connect`` (**with** the password).

        Every option that libpq would read from the environment is set, to the
        value of this URL or to libpq's built-in default.
        """
        arguments: dict[str, Any] = dict(neutral_options())
        arguments.update(self.parameters)
        arguments.update(
            host=self.effective_host,
            port=self.effective_port,
            user=self.user,
            password=self.password or "",
            dbname=self.database,
        )
        return arguments

    def protected_word(self, words: Iterable[str]) -> str | None:
        """Return the first word that stands as a whole word in database name or host.

        A word ends at anything that is no letter or digit: ``prod`` is in
        ``app_prod`` and ``prod.example.com``, not in ``product`` or ``prod2``.
        """
        for word in words:
            if not word:
                continue
            pattern = re.compile(rf"(?<![^\W_]){re.escape(word)}(?![^\W_])", re.IGNORECASE)
            if pattern.search(self.database) or pattern.search(self.host):
                return word
        return None

    def __str__(self) -> str:
        hidden = tuple(
            (name, HIDDEN if name in _SECRET_PARAMETERS else value) for name, value in self.parameters
        )
        return self._render("postgresql", None if self.password is None else HIDDEN, dict(hidden))

    def __repr__(self) -> str:
        return f"DatabaseURL({str(self)!r})"

    def _render(self, scheme: str, password: str | None, parameters: dict[str, str] | None = None) -> str:
        query = dict(self.parameters) if parameters is None else dict(parameters)
        authority = quote(self.user, safe="")
        if password is not None:
            authority += ":" + (password if password == HIDDEN else quote(password, safe=""))
        authority += "@"
        if self.host.startswith("/") or "host" in query:
            # SQLAlchemy and asyncpg know a socket directory only as a parameter.
            query = {"host": query.get("host", self.host), **query}
            if self.port is not None:
                query["port"] = str(self.port)
        else:
            host = quote(self.host, safe=":")
            authority += f"[{host}]" if ":" in host else host
            if self.port is not None:
                authority += f":{self.port}"
        path = quote(self.database, safe="")
        if path != self.database and "+" in scheme:
            # SQLAlchemy 2.0 does not decode the path; every version decodes parameters.
            name = "database" if scheme.endswith("asyncpg") else "dbname"
            query, path = {name: self.database, **query}, ""
        pairs = "&".join(f"{name}={quote(value, safe='*')}" for name, value in query.items())
        return f"{scheme}://{authority}/{path}" + (f"?{pairs}" if pairs else "")

    @cached_property
    def _secret_patterns(self) -> tuple[re.Pattern[str], ...]:
        secrets = [value for name, value in self.parameters if name in _SECRET_PARAMETERS]
        shown = {self.user.lower(), self.database.lower(), self.host.lower()}
        return secret_patterns([*filter(None, [self.password, *secrets])], shown)


def _from_options(options: dict[str, str]) -> DatabaseURL:
    port = options.pop("port", "")
    return DatabaseURL(
        host=options.pop("host", ""),
        port=int(port) if port else None,
        user=options.pop("user", "") or _account_name(),
        password=options.pop("password", None) or None,
        database=options.pop("dbname"),
        parameters=tuple(sorted(options.items())),
    )


def _check_host(host: str) -> None:
    if "@" in host:
        # Either a piece of a password or an abstract socket; the text must not show it.
        raise InvalidURLError("the host of a database URL holds an '@'; in a password it must be written %40")
    if not host.startswith("/") and any(character.isspace() for character in host):
        raise InvalidURLError("the host of a database URL holds a space")


def _check_socket_path(directory: str, port: int) -> None:
    size_bytes = len(os.fsencode(f"{directory}/.s.PGSQL.{port}"))
    if size_bytes > SOCKET_PATH_LIMIT_BYTES:
        raise InvalidURLError(
            f"the socket path of a database URL has {size_bytes} bytes, more than {SOCKET_PATH_LIMIT_BYTES}",
            found=f"Socket directory: {directory}",
            hint="Use a shorter socket directory (a temporary one under /tmp), or connect by 127.0.0.1.",
        )


def _account_name() -> str:
    """Name of the operating-system account, as libpq takes it: not from $USER or $PGUSER."""
    try:
        import pwd

        return pwd.getpwuid(os.geteuid()).pw_name
    except ImportError:
        return getpass.getuser()
    except KeyError:
        raise InvalidURLError(
            "a database URL names no user, and this operating-system account has no name",
            found=f"User id: {os.geteuid()}",
        ) from None


def _parameters_for_asyncpg(parameters: dict[str, str]) -> dict[str, str]:
    """Translate libpq parameters into asyncpg's; one without a counterpart is refused, not dropped."""
    renamed = {"sslmode": "ssl", "connect_timeout": "timeout"}
    ignorable = {
        "keepalives",
        "keepalives_idle",
        "keepalives_interval",
        "keepalives_count",
        "tcp_user_timeout",
    }
    result = {}
    for name, value in parameters.items():
        if name in renamed:
            result[renamed[name]] = value
        elif name not in ignorable | {"client_encoding", "application_name", "fallback_application_name"}:
            raise InvalidURLError(f"the parameter {name!r} has no counterpart in asyncpg")
    return result
