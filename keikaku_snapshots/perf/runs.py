"""A performance run: generate, snapshot, restore and the workload, measured scale by scale."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import tempfile
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy

from keikaku_snapshots.datasets import generate, get_scale
from keikaku_snapshots.datasets.dataset import check_count
from keikaku_snapshots.errors import KeikakuError, OperationTimeoutError
from keikaku_snapshots.perf.database import (
    create_performance_test_engine,
    create_performance_test_session,
    driver_of,
    get_performance_test_db_url,
)
from keikaku_snapshots.perf.environment import describe_environment
from keikaku_snapshots.perf.files import cannot_write
from keikaku_snapshots.perf.measuring import measured
from keikaku_snapshots.perf.report import Failure, Measurement, PerformanceReport
from keikaku_snapshots.perf.scales import check_scale, performance_test_scale, scales_up_to
from keikaku_snapshots.perf.workload import send_deadline_alert_emails
from keikaku_snapshots.postgres import databases
from keikaku_snapshots.postgres.connect import RetryPolicy, translated
from keikaku_snapshots.postgres.url import DatabaseURL
from keikaku_snapshots.progress import Progress
from keikaku_snapshots.snapshots.guards import PROTECTED_WORDS, check_protected
from keikaku_snapshots.snapshots.lock import FileLock
from keikaku_snapshots.snapshots.manager import SnapshotManager

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping

    from keikaku_snapshots.datasets import Scale
    from keikaku_snapshots.perf.workload import DeadlineResult
    from keikaku_snapshots.progress import ProgressCallback

_log = logging.getLogger("keikaku_snapshots.perf")

#: Runs of each step: with five of each, the test of a comparison can tell a slow-down at the 1 % level.
USUAL_RUNS = 7
_LOCK_NOT_AVAILABLE = "55P03"
#: The one version of the snapshot; it is replaced by each run.
_VERSION = "performance-run"


def run_performance_tests(
    db_url: str | DatabaseURL | sqlalchemy.URL | None = None,
    *,
    scale: str | None = None,
    runs: int = USUAL_RUNS,
    seed: int = 0,
    reference_date: date | None = None,
    directory: str | os.PathLike[str] | None = None,
    allow_protected: bool = False,
    manager_options: Mapping[str, Any] | None = None,
    progress: ProgressCallback | None = None,
) -> PerformanceReport:
    """Measure generation, snapshot, restore and the deadline notification.

    The test rows of the database are replaced by generated ones; all other rows stay, and are in the
    snapshot that is restored. Every step is run once before it is measured. A step that fails is
    in the report, and the steps that need it are left out.

    Args:
        db_url: The database; `get_performance_test_db_url` if None. The workload uses asyncpg where the
            URL says so (``postgresql+asyncpg://…``), as an application would, else psycopg.
        scale: The largest scale; smaller ones are measured too. ``PERF_TEST_SCALE`` if None.
        runs: How often each step is measured.
        seed: The same seed and reference date give the same data.
        reference_date: The day that the data hang on, and "today" of the workload; today (UTC) if None.
        directory: Where the snapshot of the run is written, in a directory of its own that is removed
            at the end; the system's directory for temporary files if None.
        allow_protected: Also work on a database that looks like production.
        manager_options: Further options of `SnapshotManager`.
        progress: Told which step is run how often.

    Returns:
        The report.

    Raises:
        NoDatabaseError: No database is named (a `ValueError`).
        UsageError: `runs` is not above 0 (a `ValueError`).
        UnknownScaleError: There is no such scale (a `ValueError`).
        ProtectedDatabaseError: The database looks like production; nothing was touched.
        ConnectError: The server cannot be reached.
        AccessDeniedError: `directory` may not be written to.
        LockBusyError: Another performance run works in `directory`.
    """
    check_count("runs", runs)
    given = get_performance_test_db_url() if db_url is None else db_url
    url, driver = DatabaseURL.parse(given), driver_of(given)
    largest = performance_test_scale() if scale is None else check_scale(scale, "scale")
    day = reference_date or datetime.now(UTC).date()
    begun, moment = time.monotonic(), datetime.now(UTC)
    guards = _guards(manager_options or {}, allow_protected=allow_protected)
    check_protected(url, **guards)
    facts = {**describe_environment(url), "workload_driver": driver}
    measurements: list[Measurement] = []
    with (
        _temporary(directory) as folder,
        _managers(url, folder, {**(manager_options or {}), **guards}) as (cold, warm),
    ):
        options = {"seed": seed, "reference_date": day, **guards}
        for name in scales_up_to(largest):
            one = _ScaleRun(cold, warm, driver, get_scale(name), runs, options, progress)
            measurements += one.measure()
    return PerformanceReport(
        created_at=moment,
        environment=facts,
        scale=largest,
        runs=runs,
        seed=seed,
        reference_date=day,
        measurements=tuple(measurements),
        total_s=time.monotonic() - begun,
    )


def _guards(options: Mapping[str, Any], *, allow_protected: bool) -> dict[str, Any]:
    """Which databases are refused, by every step alike."""
    words = options.get("protected_words")
    return {
        "allow_protected": allow_protected,
        "protected_words": PROTECTED_WORDS if words is None else words,
        "allowed_databases": options.get("allowed_databases") or (),
    }


@contextlib.contextmanager
def _temporary(directory: str | os.PathLike[str] | None) -> Iterator[Path]:
    """A directory of our own; what a killed run left is removed by the next one that works here."""
    if directory is None:
        with tempfile.TemporaryDirectory(prefix="keikaku-perf-") as folder:
            yield Path(folder)
        return
    place = Path(directory)
    ours = place / ".keikaku-perf"
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(error, place) from error
    lock = FileLock(
        place / ".keikaku-perf.lock", subject=f"the report directory {place}", operation="perf run"
    )
    with lock:
        shutil.rmtree(ours, ignore_errors=True)
        try:
            ours.mkdir(mode=0o700)
        except OSError as error:
            raise cannot_write(error, place) from error
        try:
            yield ours
        finally:
            shutil.rmtree(ours, ignore_errors=True)


@contextlib.contextmanager
def _managers(
    url: DatabaseURL, folder: Path, options: Mapping[str, Any]
) -> Iterator[tuple[SnapshotManager, SnapshotManager]]:
    """One that reads the file at every restore, and one that keeps templates, dropped at the end."""
    with (
        SnapshotManager(url, snapshot_dir=folder, **{**options, "templates": False}) as cold,
        SnapshotManager(url, snapshot_dir=folder, **{**options, "templates": True}) as warm,
    ):
        try:
            yield cold, warm
        finally:
            _drop_templates(warm)


def _drop_templates(manager: SnapshotManager) -> None:
    """Drop the templates of this run, and of runs that were killed: nobody has their snapshots."""
    with contextlib.suppress(KeikakuError):
        ours = [
            template.database
            for template in manager.list_templates()
            if template.target == manager.url.database and template.snapshot.endswith(f" {_VERSION}")
        ]
        with databases.connect_maintenance(manager.url) as admin, translated(manager.url):
            for name in ours:
                databases.drop(admin, name)


class _StepFailed(Exception):  # noqa: N818 - never leaves this module
    """A step has failed; the steps that need it are left out."""


@dataclass
class _ScaleRun:
    """All steps at one scale."""

    manager: SnapshotManager
    warm: SnapshotManager
    driver: str
    scale: Scale
    runs: int
    options: dict[str, Any]
    progress: ProgressCallback | None
    rows: int = 0
    began: float = 0.0
    measurements: list[Measurement] = field(default_factory=list)

    def measure(self) -> list[Measurement]:
        with contextlib.suppress(_StepFailed):
            self._repeat("generate", self._generate)
            self._repeat("create", self._create)
            self._repeat("restore", lambda: self._restore(self.manager))
            if self.measurements[-1].note.startswith("swap"):  # else nothing is cloned either
                self._repeat("restore_warm", lambda: self._restore(self.warm))
            self._guarded("workload", lambda: asyncio.run(self._workload()))
        return self.measurements

    def _generate(self) -> str:
        # One try: a retry would be measured as a slow run.
        once = RetryPolicy(attempts=1)
        url = self.manager.url
        done = generate("keikaku", self.scale, url, create_tables=True, retry=once, **self.options)
        self.rows = sum(done.rows.values())
        self.measurements[-1] = replace(self.measurements[-1], rows=self.rows)
        return ""

    def _create(self) -> str:
        made = self.manager.create_snapshot(self.scale.name, version=_VERSION, overwrite=True)
        return f"{made.size_bytes / 1e6:.1f} MB"

    def _restore(self, manager: SnapshotManager) -> str:
        done = manager.restore_snapshot(self.scale.name, version=_VERSION)
        return f"{done.strategy}: {done.reason}"

    async def _workload(self) -> None:
        engine = create_performance_test_engine(self.manager.url, driver=self.driver)
        try:
            for number in range(self.runs + 1):
                self._tell("workload", number)
                with measured() as work:
                    async with create_performance_test_session(engine) as session:
                        result: DeadlineResult = await send_deadline_alert_emails(
                            db=session, dry_run=True, reference_date=self.options["reference_date"]
                        )
                if number:
                    self._add(work, f"{result['email_sent']:,} mails", result["queries"])
        finally:
            await engine.dispose()

    def _repeat(self, step: str, work: Callable[[], str]) -> None:
        def all_runs() -> None:
            for number in range(self.runs + 1):
                self._tell(step, number)
                with measured() as one:
                    note = work()
                # The first run pays for imports, new tables and cold caches.
                if number:
                    self._add(one, note)

        self._guarded(step, all_runs)

    def _guarded(self, step: str, work: Callable[[], None]) -> None:
        """Do all runs of a step; an error of the library or of a driver goes into the report."""
        name, units = self.scale.name, self.scale.units
        self.measurements.append(Measurement(step=step, scale=name, units=units, rows=self.rows))
        try:
            work()
            self._tell(step, self.runs + 1)
        except (KeikakuError, sqlalchemy.exc.SQLAlchemyError) as error:
            headline = error.headline if isinstance(error, KeikakuError) else str(error).splitlines()[0]
            failure = Failure(type(error).__name__, self.manager.url.redact(headline), _is_timeout(error))
            self.measurements[-1] = replace(self.measurements[-1], failures=(failure,))
            _log.warning("%s %s failed: %s", step, name, failure.message)
            raise _StepFailed from error

    def _add(self, work: Any, note: str, queries: int | None = None) -> None:
        now = self.measurements[-1]
        self.measurements[-1] = replace(
            now,
            seconds=(*now.seconds, work.seconds),
            memory_peak_mb=(*now.memory_peak_mb, round(work.memory_peak_mb, 1)),
            queries=now.queries if queries is None else (*now.queries, queries),
            note=note,
        )

    def _tell(self, step: str, done: int) -> None:
        if self.progress is not None:
            if not done:
                self.began = time.monotonic()
            title, total = f"{step} {self.scale.name}", self.runs + 1
            seconds = time.monotonic() - self.began
            self.progress(Progress(title, done, total, "steps", seconds, finished=done == total))


def _is_timeout(error: Exception) -> bool:
    """Whether the server stopped a statement or a wait for a lock, or no connection was free in time."""
    if isinstance(error, OperationTimeoutError | sqlalchemy.exc.TimeoutError):
        return True
    return isinstance(error, KeikakuError) and error.details.get("sqlstate") == _LOCK_NOT_AVAILABLE
