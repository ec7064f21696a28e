"""What libpq would take from the environment, and how to keep it out.

Under cron, in CI or in a developer's shell an inherited ``PG*`` variable is how
a test restore reaches the wrong database (FAULTS 8 and 11).
"""

from __future__ import annotations

import contextlib
import os
import threading
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from psycopg import pq

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Seconds to connect when the URL says nothing; libpq's own default is for ever.
DEFAULT_CONNECT_TIMEOUT_S = 10
#: Read by libpq at connect time and not overridable by any option.
_UNOVERRIDABLE_VARIABLES = (
    "PGSERVICE",
    "PGTZ",
    "PGDATESTYLE",
    "PGGEQO",
    "PGSSLCERTMODE",
    "PGREQUIREAUTH",
    "PGMINPROTOCOLVERSION",
    "PGMAXPROTOCOLVERSION",
)
#: Options that libpq refuses when they are empty, and that have no value for "not given".
_WITHOUT_NEUTRAL_VALUE = (
    "service",
    "sslcertmode",
    "require_auth",
    "min_protocol_version",
    "max_protocol_version",
)
_environment_lock = threading.Lock()
#: What is hidden now, and by how many connections that are being opened.
_hidden: dict[str, str] = {}
_hiders = 0


@lru_cache(maxsize=1)
def neutral_options() -> tuple[tuple[str, Any], ...]:
    """Return every libpq option that has an environment variable, with its built-in default."""
    options: dict[str, Any] = {}
    for option in pq.Conninfo.get_defaults():
        if option.envvar and option.keyword.decode() not in _WITHOUT_NEUTRAL_VALUE:
            options[option.keyword.decode()] = (option.compiled or b"").decode()
    options["connect_timeout"] = DEFAULT_CONNECT_TIMEOUT_S
    options["client_encoding"] = "UTF8"
    return tuple(options.items())


@contextlib.contextmanager
def inherited_settings_hidden() -> Iterator[None]:
    """Hide the ``PG*`` variables that no libpq option can override, while a connection begins.

    ``PGSERVICE`` makes libpq read a file; ``PGTZ``, ``PGDATESTYLE`` and ``PGGEQO`` change the
    session. Threads may be inside at the same time: the first one hides, the last one brings back.
    """
    global _hiders  # noqa: PLW0603 - the environment is the process's too
    with _environment_lock:
        _hiders += 1
        for name in _UNOVERRIDABLE_VARIABLES:
            if name in os.environ:
                _hidden[name] = os.environ.pop(name)
    try:
        yield
    finally:
        with _environment_lock:
            _hiders -= 1
            if _hiders == 0:
                os.environ.update(_hidden)
                _hidden.clear()
