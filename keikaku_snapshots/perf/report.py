"""What a performance run saw: frozen values, written as JSON and read back."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keikaku_snapshots.errors import UsageError

if TYPE_CHECKING:
    import os

__all__ = ["STEPS", "Failure", "Measurement", "PerformanceReport", "read_report"]

#: What is measured, in the order in which it is done; the texts stand in the report.
STEPS = {
    "generate": "rows made, copied and analyzed, earlier test rows deleted first",
    "create": "a snapshot of the database, in plain format",
    "restore": "the database brought back to that snapshot, from its file",
    "restore_warm": "the same from the template that an earlier restore has left on the server",
    "workload": "deadline notification of all staff, mails built but not sent",
}
#: Raised when an older reader could misread the newer layout.
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Failure:
    """A run of a step that ended with an error."""

    #: Class of the error.
    kind: str
    #: What happened, in one line, without secrets.
    message: str
    #: Whether the database, or waiting for a connection to it, took too long.
    is_timeout: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """All runs of one step at one scale."""

    #: A key of `STEPS`.
    step: str
    #: ``small``, ``medium`` or ``large``.
    scale: str
    #: Offices of the scale.
    units: int
    #: Rows of the scale.
    rows: int
    #: Seconds of each run, in their order.
    seconds: tuple[float, ...] = ()
    #: Highest resident memory of this process in each run, in megabytes (1,000,000 bytes).
    memory_peak_mb: tuple[float, ...] = ()
    #: Queries of each run, where they are counted.
    queries: tuple[int, ...] = ()
    #: What a reader should know of it, such as the way of the restore.
    note: str = ""
    #: Runs that failed; the step is not repeated after one.
    failures: tuple[Failure, ...] = ()

    @property
    def title(self) -> str:
        """Step and scale."""
        return f"{self.step} {self.scale}"

    @property
    def median_s(self) -> float | None:
        """Median of the seconds; None when nothing was measured."""
        return statistics.median(self.seconds) if self.seconds else None

    @property
    def office_s(self) -> float | None:
        """Median of the seconds for each office; None when nothing was measured."""
        return None if self.median_s is None else self.median_s / self.units


@dataclass(frozen=True, slots=True, kw_only=True)
class PerformanceReport:
    """A performance run."""

    #: When it began; aware UTC.
    created_at: datetime
    #: What the numbers depend on: versions, machine, server settings.
    environment: dict[str, Any] = field(hash=False)
    #: The largest scale that was asked for.
    scale: str
    #: Runs of each step, after one that does not count.
    runs: int
    #: What the data depend on.
    seed: int
    #: The day that the data hang on.
    reference_date: date
    #: Every step of every scale.
    measurements: tuple[Measurement, ...]
    #: Seconds of the whole run.
    total_s: float

    def find(self, step: str, scale: str) -> Measurement | None:
        """The measurement of a step at a scale; None when there is none."""
        found = (item for item in self.measurements if (item.step, item.scale) == (step, scale))
        return next(found, None)

    @property
    def scales(self) -> tuple[str, ...]:
        """The scales that were measured, smaller ones first."""
        return tuple(dict.fromkeys(item.scale for item in self.measurements))

    def to_document(self) -> dict[str, Any]:
        """The report as JSON holds it, with floors and findings for readers that have no library."""
        from keikaku_snapshots.perf.findings import findings
        from keikaku_snapshots.perf.floors import floors

        return {
            "format_version": FORMAT_VERSION,
            "created_at": self.created_at.isoformat(),
            "environment": self.environment,
            "scale": self.scale,
            "runs": self.runs,
            "seed": self.seed,
            "reference_date": self.reference_date.isoformat(),
            "total_s": self.total_s,
            "floors": [dataclasses.asdict(floor) for floor in floors(self)],
            "measurements": [
                {**dataclasses.asdict(item), "median_s": item.median_s, "office_s": item.office_s}
                for item in self.measurements
            ],
            "findings": [dataclasses.asdict(finding) for finding in findings(self)],
        }


def read_report(path: str | os.PathLike[str]) -> PerformanceReport:
    """Read a report that `keikaku perf run` has written.

    Args:
        path: The JSON file.

    Returns:
        The report; floors and findings are worked out anew.

    Raises:
        UsageError: There is no such file, or it is no report of this version.
    """
    file = Path(path)
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        _check_version(document)
        return PerformanceReport(
            created_at=datetime.fromisoformat(document["created_at"]),
            environment=dict(document["environment"]),
            scale=str(document["scale"]),
            runs=int(document["runs"]),
            seed=int(document["seed"]),
            reference_date=date.fromisoformat(document["reference_date"]),
            total_s=float(document["total_s"]),
            measurements=tuple(map(_measurement, document["measurements"])),
        )
    except OSError as error:
        raise UsageError(
            "the performance report cannot be read", found=f"{file}: {error.strerror}"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            "the file is no performance report",
            found=f"{file}: {type(error).__name__}: {error}",
            hint="Name a JSON file that `keikaku perf run` has written.",
        ) from error


def _check_version(document: dict[str, Any]) -> None:
    if document["format_version"] != FORMAT_VERSION:
        raise ValueError(f"format_version is {document['format_version']}, known is {FORMAT_VERSION}")


def _measurement(given: dict[str, Any]) -> Measurement:
    found = Measurement(
        step=str(given["step"]),
        scale=str(given["scale"]),
        units=int(given["units"]),
        rows=int(given["rows"]),
        seconds=tuple(map(float, given["seconds"])),
        memory_peak_mb=tuple(map(float, given["memory_peak_mb"])),
        queries=tuple(map(int, given["queries"])),
        note=str(given["note"]),
        failures=tuple(Failure(**failure) for failure in given["failures"]),
    )
    if found.units < 1 or not all(0 < value < math.inf for value in found.seconds):
        raise ValueError(f"{found.title} has {found.units} units and takes {found.seconds} seconds")
    return found
