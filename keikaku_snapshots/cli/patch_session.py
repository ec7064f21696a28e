"""What the commands of `keikaku patch` share: patches, their configuration, the engine, signals."""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import json
import os
import signal
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import click

from keikaku_snapshots.cli.output import plain
from keikaku_snapshots.cli.patch_live import Seen
from keikaku_snapshots.cli.patch_words import state_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType
    from uuid import UUID

    from keikaku_snapshots.cli.session import Session
    from keikaku_snapshots.config_patches import PatchConfiguration
    from keikaku_snapshots.patches.audit import AuditLog
    from keikaku_snapshots.patches.definition import Patch
    from keikaku_snapshots.patches.execution import Execution
    from keikaku_snapshots.patches.executor import DataPatchExecutor
    from keikaku_snapshots.patches.registry import DataPatchRegistry
    from keikaku_snapshots.patches.report import PatchReport
    from keikaku_snapshots.patches.settings import EngineSettings, PatchSettings
    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.postgres.url import DatabaseURL


#: What a shell reports for a program that a signal ended is 128 and its number.
_SIGNAL_BASE = 128
#: What lets the batch finish and pauses the run.
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stoppable(Protocol):
    """What works in batches."""

    def request_stop(self) -> None:
        """Stop after the present batch."""


class Door:
    """One command about patches.

    Args:
        session: The command's common options.
        file: Configuration of the patches, where one was named.
        with_patches: False when no patch is needed: a run can be paused or taken back while a module of
            patches is broken.
    """

    def __init__(self, session: Session, file: str | None = None, *, with_patches: bool = True) -> None:
        self.session = session
        self._file = file
        self._with_patches = with_patches

    @cached_property
    def configuration(self) -> PatchConfiguration:
        """Settings of the patches, windows, channels, keys."""
        from keikaku_snapshots.config_patches import load_patch_configuration

        return load_patch_configuration(self._file, with_patches=self._with_patches)

    @property
    def registry(self) -> DataPatchRegistry:
        """The patches there are."""
        registry = self.configuration.registry
        if registry is None:
            raise RuntimeError("the patches were not asked for")
        return registry

    @property
    def engine(self) -> EngineSettings:
        """What all runs share."""
        return self.configuration.engine

    def settings_of(self, name: str) -> PatchSettings:
        """How a patch is run."""
        return self.configuration.settings_of(name)

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

    @contextlib.contextmanager
    def executor(self, name: str = "", **changes: Any) -> Iterator[DataPatchExecutor]:
        """Hold the engine with everything around it.

        Args:
            name: The patch that is run, if it is known.
            changes: Settings of it that the command line overrides; None leaves one as it is.
        """
        from keikaku_snapshots.cli.patch_backup import backup_of
        from keikaku_snapshots.patches.executor import DataPatchExecutor
        from keikaku_snapshots.patches.notify import Sender
        from keikaku_snapshots.patches.outbox import enqueue

        configuration = self.configuration
        settings = dict(configuration.patches)
        given = {key: value for key, value in changes.items() if value is not None}
        if name and given:
            settings[name] = dataclasses.replace(self.settings_of(name), **given)
        sender = Sender(self.url, configuration.notify)
        with self.audit_log() as audit, sender.in_background() as background:

            def notify(
                connection: Connection, execution: Execution, event: str, facts: dict[str, Any]
            ) -> None:
                enqueue(connection, execution, event, facts)
                background.wake()

            yield DataPatchExecutor(
                self.url,
                registry=configuration.registry,
                settings=settings,
                engine=configuration.engine,
                backup=backup_of(self.session, name),
                audit=audit.append,
                notify=notify,
                windows=configuration.windows,
            )

    def audit_log(self) -> AuditLog:
        """Return the audit log of the database."""
        from keikaku_snapshots.patches.audit import AuditLog

        return AuditLog(self.url, self.configuration.audit)

    @contextlib.contextmanager
    def until_stopped(self, executor: Stoppable | None, *, rolls_back: bool = False) -> Iterator[Stopped]:
        """Turn the first SIGINT, SIGTERM or SIGHUP into a pause after the present batch.

        The second one interrupts the batch, which is rolled back then.

        Args:
            executor: Which run is paused; None for a dry run, which is simply interrupted.
            rolls_back: True for a rollback, which goes on to its end: half of one helps nobody.

        Yields:
            Which signal came, if one did.
        """
        stopped = Stopped()
        if executor is None:
            yield stopped
            return

        def stop(number: int, _frame: FrameType | None) -> None:
            if stopped.number:
                raise KeyboardInterrupt
            stopped.number = number
            first = "the rollback goes on to its end" if rolls_back else "the batch is finished first"
            if not rolls_back:
                executor.request_stop()
            self.session.output.warn(f"{stopped.name}: {first}; once more stops at once")

        # `nohup keikaku …` has SIGHUP ignored and means it.
        heeded = (one for one in _STOPPING if signal.getsignal(one) is not signal.SIG_IGN)
        before = {number: signal.signal(number, stop) for number in heeded}
        try:
            yield stopped
        except KeyboardInterrupt:
            again = "rollback" if rolls_back else "resume"
            self.session.output.warn(
                "stopped inside a batch, which was rolled back; those before it are committed. "
                f"`keikaku patch status` shows the run, `keikaku patch {again} ID` goes on"
            )
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def show_run(self, execution: Execution) -> None:
        """Say on the terminal which run is meant, before a question about it."""
        output = self.session.output
        output.raw(f"  database  {self.url.location}")
        output.raw(f"  patch     {execution.patch_name} version {execution.patch_version}")
        output.raw(f"  run       {execution.execution_id}, {state_text(execution)}, by {execution.actor}")
        output.raw(f"  changed   {execution.changed_records:,} rows of {', '.join(execution.target_tables)}")

    def find(self, named: str, *, runs_only: bool = False) -> Execution:
        """Return a run.

        Args:
            named: Its number, the first characters of it, or a patch's name for the newest of that patch.
            runs_only: For a name, leave out dry runs, rehearsals and runs that were refused.

        Returns:
            The run.

        Raises:
            UnknownPatchError: There is none.
        """
        from keikaku_snapshots.patches import records

        with self.connection() as connection:
            of_patch = records.recent(connection, patch_name=named, limit=1000)
            newest = _meant([one for one in of_patch if one.kind == "run" or not runs_only])
            return newest or records.find(connection, named)

    def recent(self, name: str | None, limit: int) -> Sequence[Execution]:
        """Return the last runs, newest first."""
        from keikaku_snapshots.patches import records

        if name:
            self.registry.find(name)
        with self.connection() as connection:
            return records.recent(connection, patch_name=name, limit=limit)

    def look(self, numbers: Sequence[UUID]) -> list[Seen]:
        """Return runs as they are now, with the memory and the life of their processes."""
        from keikaku_snapshots.patches import records, report_read

        with self.connection() as connection:
            found = []
            for number in numbers:
                silent_s = report_read.silent_s(connection, number)
                is_dead = silent_s is not None and silent_s > self.engine.lease_s
                memory_bytes = report_read.memory_bytes(connection, number)
                found.append(Seen(records.find(connection, number), memory_bytes, is_dead))
            return found

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


@dataclasses.dataclass
class Stopped:
    """Whether a signal asked the run to stop."""

    #: The signal; 0 when none came.
    number: int = 0

    @property
    def name(self) -> str:
        """Such as ``SIGTERM``; empty when none came."""
        return signal.Signals(self.number).name if self.number else ""

    @property
    def exit_code(self) -> int:
        """What a shell reports of a program that the signal ended; 0 when none came."""
        return _SIGNAL_BASE + self.number if self.number else 0


def _meant(of_patch: Sequence[Execution]) -> Execution | None:
    """What is meant by a patch's name: the run that is open, else the last one that was not refused."""
    open_ones = (one for one in of_patch if one.kind == "run" and not one.is_over)
    begun = (one for one in of_patch if one.started_at is not None)
    return next(open_ones, None) or next(begun, None) or next(iter(of_patch), None)


def default_actor() -> str:
    """The operating system's user; its number where it has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


patch_config_option = click.option(
    "--patch-config",
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
        from keikaku_snapshots.config_patches import load_patch_configuration

        registry = load_patch_configuration().registry
        return [one.name for one in registry.list() if one.name.startswith(incomplete)] if registry else []
    except Exception:  # noqa: BLE001 - a shell that waits for TAB has no use for a message
        return []
