"""`DataPatchExecutor`: runs patches, and everything one does with a run of one."""

from __future__ import annotations

import getpass
import threading
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from keikaku_snapshots.errors import PatchRefusedError, UsageError
from keikaku_snapshots.patches import auditing, records
from keikaku_snapshots.patches.backup_point import BackupPoint
from keikaku_snapshots.patches.definition import RowPatch, SqlPatch, StepPatch
from keikaku_snapshots.patches.drive import Asked, Drive, is_stale
from keikaku_snapshots.patches.ending import policy, roll_back
from keikaku_snapshots.patches.guards import check_source
from keikaku_snapshots.patches.lease import lock_keys
from keikaku_snapshots.patches.parameters import HIDDEN, check_secrets, read_parameters
from keikaku_snapshots.patches.reap import reap
from keikaku_snapshots.patches.registry import DataPatchRegistry
from keikaku_snapshots.patches.settings import EngineSettings, PatchSettings
from keikaku_snapshots.patches.source import source_hash
from keikaku_snapshots.patches.surroundings import Surroundings, utc_now
from keikaku_snapshots.patches.targets import read_targets
from keikaku_snapshots.patches.trial import Trial
from keikaku_snapshots.patches.undo import undo_tables
from keikaku_snapshots.patches.watchdog import Watchdog
from keikaku_snapshots.patches.worker import Worker
from keikaku_snapshots.postgres.connect import translated
from keikaku_snapshots.postgres.url import DatabaseURL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from datetime import datetime
    from uuid import UUID

    from keikaku_snapshots.patches.definition import Patch
    from keikaku_snapshots.patches.execution import Execution, Kind
    from keikaku_snapshots.patches.ports import Audit, Backup, Notify, Undo
    from keikaku_snapshots.patches.settings import Mode, OnConflict
    from keikaku_snapshots.patches.windows import Windows
    from keikaku_snapshots.postgres.connect import Connection

_MB = 1024 * 1024


class DataPatchExecutor:
    """Runs data patches on one database.

    Args:
        db_url: The database.
        config: Settings of patches and engine as the configuration file gives them; has ``patches`` and
            ``engine``.
        registry: The patches; shipped ones and those of installed packages when None.
        settings: Settings by name of the patch; those of the configuration when None.
        engine: What all runs share; that of the configuration when None.
        undo: Capture and rollback; triggers in the database when None.
        backup: Dumps the target tables, for patches that ask for it.
        audit: Writes a line of the audit log.
        notify: Puts a message into the outbox.
        windows: Maintenance windows; None for none.
        clock: The time.
    """

    def __init__(
        self,
        db_url: Any,
        config: Any = None,
        *,
        registry: DataPatchRegistry | None = None,
        settings: Mapping[str, PatchSettings] | None = None,
        engine: EngineSettings | None = None,
        undo: Undo | None = None,
        backup: Backup | None = None,
        audit: Audit | None = None,
        notify: Notify | None = None,
        windows: Windows | None = None,
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        self._registry = registry or getattr(config, "registry", None) or DataPatchRegistry()
        self._settings = settings if settings is not None else getattr(config, "patches", {})
        shared = engine or getattr(config, "engine", None) or EngineSettings()
        self._around = Surroundings(
            url=DatabaseURL.parse(db_url),
            engine=shared,
            undo=undo if undo is not None else BackupPoint(),
            backup=backup,
            audit=audit,
            notify=notify,
            windows=windows if windows is not None else getattr(config, "windows", None),
            clock=clock or utc_now,
        )
        self._stop = threading.Event()
        self._drive = Drive(self._around, self._stop)

    def request_stop(self) -> None:
        """Stop after the present batch; the run is paused then. Safe in a signal handler."""
        self._stop.set()

    def execute(
        self,
        name: str,
        dry_run: bool = True,
        params: Mapping[str, Any] | None = None,
        actor: str | None = None,
        *,
        batch_size: int | None = None,
        memory_limit_mb: int | None = None,
        outside_window: str = "",
        again: bool = False,
        progress: Callable[[Execution], None] | None = None,
    ) -> Execution:
        """Run a patch, or tell what it would do.

        Args:
            name: The patch.
            dry_run: True changes nothing.
            params: Its parameters.
            actor: Who runs it; the account of this process when None.
            batch_size: Rows of a batch at the start; the setting's when None.
            memory_limit_mb: Most resident memory; the setting's when None.
            outside_window: Why it runs although no maintenance window is open.
            again: Whether it may run although it has run before.
            progress: Gets the run after each batch.

        Returns:
            The run, completed or paused.

        Raises:
            UsageError: Name, parameters or options are wrong; nothing was recorded.
            PatchRefusedError: A guard refused it.
            LockBusyError: It is being run.
            PatchFailedError: It failed; everything was taken back.
            PatchRollbackError: It failed, and not everything could be taken back.
        """
        patch = self._registry.find(name)
        settings = self._settings_of(name, batch_size, memory_limit_mb)
        parameters = read_parameters(patch, {**settings.parameters, **(params or {})})
        asked = Asked(patch=patch, parameters=parameters, settings=settings, progress=progress, again=again)
        kind: Kind = "dry_run" if dry_run else "run"
        findings = {"kind": _kind(patch), "secrets": parameters.secrets_among(params or {})}
        execution = self._insert(asked, kind, actor, outside_window_reason=outside_window, findings=findings)
        if dry_run:
            return Trial(self._around, asked, execution, self._stop).run()
        return self._drive.run(asked, execution)

    def rehearse(
        self,
        name: str,
        params: Mapping[str, Any] | None = None,
        actor: str | None = None,
        *,
        batches: int = 3,
        batch_size: int | None = None,
        memory_limit_mb: int | None = None,
    ) -> Execution:
        """Run some batches of a patch and roll them back.

        Args:
            name: The patch.
            params: Its parameters.
            actor: Who wants it.
            batches: How many batches; a `StepPatch` runs all its steps.
            batch_size: Rows of a batch; the setting's when None.
            memory_limit_mb: Most resident memory; the setting's when None.

        Returns:
            The rehearsal, completed.

        Raises:
            UsageError: Name, parameters or options are wrong.
            PatchFailedError: A batch failed.
        """
        if batches < 1:
            raise UsageError("a rehearsal has at least one batch", found=f"Given: {batches}")
        patch = self._registry.find(name)
        settings = self._settings_of(name, batch_size, memory_limit_mb)
        parameters = read_parameters(patch, {**settings.parameters, **(params or {})})
        asked = Asked(patch=patch, parameters=parameters, settings=settings)
        return Trial(self._around, asked, self._insert(asked, "rehearsal", actor), self._stop).run(batches)

    def resume(
        self,
        execution_id: UUID | str,
        *,
        params: Mapping[str, Any] | None = None,
        progress: Callable[[Execution], None] | None = None,
        outside_window: str = "",
    ) -> Execution:
        """Go on with a run that is paused or whose process has died.

        Args:
            execution_id: The run; its first characters are enough.
            params: Its secret parameters, which are not stored.
            progress: Gets the run after each batch.
            outside_window: Why it goes on although no maintenance window is open.

        Returns:
            The run, completed or paused again.

        Raises:
            PatchRefusedError: It has ended, or its patch was changed since.
            WindowClosedError: No maintenance window is open.
            LockBusyError: Its process is alive.
            PatchFailedError: It failed; everything was taken back.
        """
        execution = self._find(execution_id)
        if execution.status != "running" or execution.kind != "run":
            raise _not_open(execution, "resumed")
        windows = self._around.windows
        # A rollback that was interrupted goes on at any hour.
        is_free = outside_window or execution.outside_window_reason or execution.sub_state == "rolling_back"
        if windows is not None and not is_free:
            windows.check_open(self._around.clock())
        patch = self._registry.find(execution.patch_name)
        check_source(patch, execution)
        settings = replace(self._settings_of(patch.name), mode=_mode(execution))
        given = {name: value for name, value in execution.parameters.items() if value != HIDDEN}
        check_secrets(execution, params or {})
        parameters = read_parameters(patch, {**settings.parameters, **given, **(params or {})})
        if parameters.hash != execution.parameters_hash:
            raise UsageError("a run is resumed with the parameters that it began with")
        if outside_window:
            with self._connection() as control:
                execution = records.update(
                    control, execution.execution_id, outside_window_reason=outside_window
                )
        return self._drive.run(
            Asked(patch=patch, parameters=parameters, settings=settings, progress=progress, resumes=True),
            execution,
        )

    def pause(self, execution_id: UUID | str, actor: str | None = None) -> Execution:
        """Ask a run to stop after its present batch.

        Args:
            execution_id: The run.
            actor: Who asks.

        Returns:
            The run as it is now; it may still be at work.
        """
        return self._request(execution_id, "pause", actor)

    def cancel(self, execution_id: UUID | str, actor: str | None = None) -> Execution:
        """Have a run taken back: by its own process, or here when it has none.

        Args:
            execution_id: The run.
            actor: Who asks.

        Returns:
            The run as it is now.
        """
        with self._connection() as control:
            execution = records.find(control, execution_id)
            dead = not execution.is_over and is_stale(control, execution, self._around.engine.lease_s)
        if execution.kind == "run" and (dead or execution.sub_state in {"paused", "window_closed"}):
            return self.rollback(execution_id, actor=actor)
        return self._request(execution_id, "cancel", actor)

    def rollback(
        self, execution_id: UUID | str, on_conflict: OnConflict | None = None, actor: str | None = None
    ) -> Execution:
        """Take back what a run has changed, completed or not.

        Args:
            execution_id: The run.
            on_conflict: What happens to rows that somebody else has changed since; the setting's when None.
            actor: Who wants it.

        Returns:
            The run, rolled back.

        Raises:
            LockBusyError: It is being run.
            PatchRollbackError: Not everything could be taken back.
        """
        execution = self._find(execution_id)
        if execution.kind != "run":
            raise _not_open(execution, "rolled back")
        settings = self._settings_of(execution.patch_name)
        watch = Watchdog(memory_limit_bytes=2**62, time_limit_s=None, active_s=execution.active_s)
        worker = Worker(self._around, execution, watch)
        who = actor or getpass.getuser()
        try:
            keys = lock_keys(execution.patch_name, _target_oids(worker))
            worker.lock(keys, take_over=self._is_stale(worker))
            reason = worker.execution.error_message or f"Rolled back by {who}."
            auditing.requested(self._around, worker.execution, "rollback", who)
            roll_back(worker, on_conflict or policy(worker.execution, settings), reason)
            return worker.execution
        finally:
            worker.close()

    def reap(self) -> list[Execution]:
        """Look after runs whose process has died: resume them, take them back or leave them, by ``on_crash``.

        Returns:
            Those runs as they are afterwards.
        """
        with self._connection() as control:
            return reap(control, self, self._around.engine, lambda name: self._settings_of(name).on_crash)

    def _is_stale(self, worker: Worker) -> bool:
        return is_stale(worker.control, worker.execution, self._around.engine.lease_s)

    def status(self, execution_id: UUID | str | None = None) -> list[Execution]:
        """Tell of one run, or of the latest ones.

        Args:
            execution_id: The run; all when None.

        Returns:
            Runs, the newest first.
        """
        with self._connection() as control:
            if execution_id is not None:
                return [records.find(control, execution_id)]
            return records.recent(control)

    def _insert(self, asked: Asked, kind: Kind, actor: str | None, **more: Any) -> Execution:
        patch, settings = asked.patch, asked.settings
        values = {
            "execution_id": uuid4(),
            "patch_name": patch.name,
            "patch_version": patch.version,
            "kind": kind,
            "status": "pending",
            "sub_state": "pending",
            "dry_run": kind != "run",
            "actor": actor or getpass.getuser(),
            "parameters": asked.parameters.shown,
            "parameters_hash": asked.parameters.hash,
            "source_hash": source_hash(patch),
            "target_tables": (*patch.tables(), *settings.target_tables),
            "mode": settings.mode,
            "batch_size": settings.batch_size,
            "findings": {"kind": _kind(patch)},
        }
        with self._connection() as control:
            records.ensure_schema(control)
            return records.insert(control, values | more)

    def _settings_of(
        self, name: str, batch_size: int | None = None, memory_limit_mb: int | None = None
    ) -> PatchSettings:
        settings = self._settings.get(name, PatchSettings())
        for what, value in (("batch_size", batch_size), ("memory_limit_mb", memory_limit_mb)):
            if value is not None and value < 1:
                raise UsageError(f"{what} must be a number from 1 on", found=f"Given: {value}")
        return replace(
            settings,
            batch_size=settings.batch_size if batch_size is None else batch_size,
            memory_limit_mb=settings.memory_limit_mb if memory_limit_mb is None else memory_limit_mb,
        )

    def _find(self, execution_id: UUID | str) -> Execution:
        with self._connection() as control:
            return records.find(control, execution_id)

    def _request(self, execution_id: UUID | str, what: str, actor: str | None) -> Execution:
        with self._connection() as control:
            execution = records.find(control, execution_id)
            if execution.is_over:
                raise _not_open(execution, f"asked to {what}")
            if what == "pause" and execution.sub_state in {"paused", "window_closed"}:
                return execution
            records.request(control, execution.execution_id, what, actor or getpass.getuser())
        auditing.requested(self._around, execution, what, actor or getpass.getuser())
        return execution

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        connection = self._around.connect("control")
        try:
            with translated(self._around.url, "reading the records of data patches"):
                yield connection
        finally:
            connection.close()


def _kind(patch: Patch) -> str:
    return next(kind.__name__ for kind in (SqlPatch, RowPatch, StepPatch) if isinstance(patch, kind))


def _target_oids(worker: Worker) -> list[int]:
    """The tables of a run: what was kept of them knows them under whatever name they have now."""
    known = undo_tables(worker.control, worker.execution.execution_id)
    if known:
        return [undo.table.oid for undo in known]
    return [target.oid for target in read_targets(worker.control, worker.execution.target_tables)]


def _mode(execution: Execution) -> Mode:
    return "single_transaction" if execution.mode == "single_transaction" else "batched"


def _not_open(execution: Execution, what: str) -> PatchRefusedError:
    return PatchRefusedError(
        f"this execution cannot be {what}",
        found=f"Execution: {execution.execution_id}, {execution.kind}, {execution.sub_state}",
        hint="`keikaku patch status` shows which executions there are and where they are.",
        hint_ja="`keikaku patch status` で実行の一覧と状態を確認してください。",
    )
