"""What the commands of `keikaku patch` share: patches, their configuration, the engine, signals."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
from functools import cached_property
from typing import TYPE_CHECKING, Any

import click

from keikaku_snapshots.cli.output import plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from uuid import UUID

    from keikaku_snapshots.cli.session import Session
    from keikaku_snapshots.patches.definition import Patch
    from keikaku_snapshots.patches.execution import Execution
    from keikaku_snapshots.patches.registry import DataPatchRegistry
    from keikaku_snapshots.patches.report import PatchReport
    from keikaku_snapshots.patches.settings import EngineSettings, PatchSettings
    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.postgres.url import DatabaseURL


class Door:
    """One command about patches."""

    def __init__(self, session: Session, patches: str | None = None) -> None:
        self.session = session
        self._file = patches

    @cached_property
    def registry(self) -> DataPatchRegistry:
        """The patches there are."""
        from keikaku_snapshots.patches.registry import DataPatchRegistry

        return DataPatchRegistry()

    @property
    def engine(self) -> EngineSettings:
        """What all runs share."""
        from keikaku_snapshots.patches.settings import EngineSettings

        return EngineSettings()

    def settings_of(self, name: str) -> PatchSettings:
        """How a patch is run."""
        from keikaku_snapshots.patches.settings import PatchSettings

        del name
        return PatchSettings()

    def description(self, patch: Patch) -> str:
        """What a patch is for: as configured, else as its class says."""
        return self.settings_of(patch.name).description or patch.description

    # The database

    def require_database(self) -> None:
        """Refuse to fall back to the embedded server."""
        self.session.require_database(
            "a data patch is meant for one database, so an unset variable must never mean another one"
        )

    @property
    def url(self) -> DatabaseURL:
        """The database that was named."""
        return self.session.url

    @contextlib.contextmanager
    def connection(self) -> Iterator[Connection]:
        """A connection in autocommit, for reading the records."""
        from keikaku_snapshots.postgres.connect import connect, translated

        with connect(self.url, autocommit=True) as connection, translated(self.url):
            yield connection

    def find(self, execution_id: str) -> Execution:
        """Return a run by its number or the first characters of it."""
        from keikaku_snapshots.patches import records

        with self.connection() as connection:
            return records.find(connection, execution_id)

    def recent(self, name: str | None, limit: int) -> Sequence[Execution]:
        """Return the last runs, newest first."""
        from keikaku_snapshots.patches import records

        if name:
            self.registry.find(name)
        with self.connection() as connection:
            return records.recent(connection, patch_name=name, limit=limit)

    def look(self, numbers: Sequence[UUID]) -> list[tuple[Execution, int]]:
        """Return runs as they are now, each with the resident memory of its process."""
        from keikaku_snapshots.patches import records, report_read

        with self.connection() as connection:
            return [
                (records.find(connection, number), report_read.memory_bytes(connection, number))
                for number in numbers
            ]

    def silent_s(self, number: UUID) -> float | None:
        """Return the seconds since a run's process gave a sign of life."""
        from keikaku_snapshots.patches import report_read

        with self.connection() as connection:
            return report_read.silent_s(connection, number)

    def read_report(self, execution_id: str) -> PatchReport:
        """Read what the page of a run shows."""
        from keikaku_snapshots.patches.report_read import read_report

        with self.connection() as connection:
            from keikaku_snapshots.patches import records

            name = records.find(connection, execution_id).patch_name
            return read_report(
                connection,
                execution_id,
                location=self.url.location,
                settings=self.settings_of(name),
                engine=self.engine,
            )

    def document(self, execution: Execution) -> dict[str, Any]:
        """What --json shows of a run."""
        return {**plain(execution), "execution_id": str(execution.execution_id), "is_over": execution.is_over}


def default_actor() -> str:
    """The operating system's user; its number where it has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


patches_file = click.option(
    "--patches",
    metavar="FILE",
    help="Configuration of the patches.  [default: config/data_patches.yml]",
)
param_option = click.option(
    "--param", multiple=True, metavar="NAME=VALUE", help="A parameter; can be said several times."
)
actor_option = click.option(
    "--actor",
    metavar="WHO",
    default=default_actor,
    help="Who does this, for the records.  [default: the user of the operating system]",
)


def read_params(given: Sequence[str]) -> dict[str, Any]:
    """Take apart what --param gave.

    Args:
        given: ``name=value``; a value that is a JSON list or object becomes one.

    Returns:
        Values by name, else as texts.

    Raises:
        click.UsageError: One has no ``=``, or a name comes twice.
    """
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name:
            # The text may be a secret that lost its name.
            raise click.UsageError("--param takes NAME=VALUE, such as --param percent=8")
        if name in found:
            raise click.UsageError(f"--param {name} was given twice")
        found[name] = _value(value)
    return found


def _value(text: str) -> Any:
    if text[:1] in {"[", "{"}:
        with contextlib.suppress(ValueError):
            return json.loads(text)
    return text


def complete_patch_name(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Offer the names of the patches for shell completion; none when they cannot be loaded."""
    try:
        from keikaku_snapshots.patches.registry import DataPatchRegistry

        return [one.name for one in DataPatchRegistry().list() if one.name.startswith(incomplete)]
    except Exception:  # noqa: BLE001 - a shell that waits for TAB has no use for a message
        return []
