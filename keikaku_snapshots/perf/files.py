"""The two files of a report: JSON for comparisons, HTML for people."""

from __future__ import annotations

import errno
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from keikaku_snapshots.errors import AccessDeniedError, DiskFullError, InvalidNameError
from keikaku_snapshots.perf.page import write_page

if TYPE_CHECKING:
    from keikaku_snapshots.errors import KeikakuError
    from keikaku_snapshots.perf.report import PerformanceReport

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}", re.ASCII)


@dataclass(frozen=True, slots=True)
class ReportFiles:
    """Where a report is."""

    #: For `keikaku perf compare`.
    json: Path
    #: For people.
    html: Path


def check_report_name(name: str) -> str:
    """The name, when files can be called so.

    Raises:
        InvalidNameError: It has other characters than letters, digits, ``.``, ``_`` and ``-``.
    """
    if not _NAME.fullmatch(name):
        raise InvalidNameError(
            f"no report can be called {name!r}",
            hint="Use letters, digits, '.', '_' and '-', such as before_index.",
        )
    return name


def write_report(
    report: PerformanceReport, directory: str | os.PathLike[str], name: str | None = None
) -> ReportFiles:
    """Write both files, each whole or not at all; a report of the same name is replaced.

    Args:
        report: The report.
        directory: Where; made when it is missing.
        name: Name of the files without suffix; ``performance_`` and the time if None.

    Returns:
        The files.

    Raises:
        InvalidNameError: No file can have this name.
        DiskFullError: There is no room.
        AccessDeniedError: The directory may not be written to.
    """
    stem = check_report_name(name) if name else f"performance_{report.created_at:%Y%m%d_%H%M%S}"
    folder = Path(directory)
    files = ReportFiles(folder / f"{stem}.json", folder / f"{stem}.html")
    text = json.dumps(report.to_document(), ensure_ascii=False, indent=2) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replace(files.html, write_page(report, files.json.name))
        # Last: whoever finds the numbers finds the page too.
        _replace(files.json, text)
    except OSError as error:
        raise cannot_write(error, folder) from error
    return files


def cannot_write(error: OSError, folder: Path) -> KeikakuError:
    """The library's error for what the system said of the directory of the reports.

    Args:
        error: What the system said.
        folder: The directory.

    Returns:
        The error to raise ``from`` the other.
    """
    found = f"{error.filename or folder}: {error.strerror or error}"
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return DiskFullError("no room for the performance report", found=found)
    hint = "Name a directory that this account may write to: --output DIR."
    return AccessDeniedError("the performance report cannot be written", found=found, hint=hint)


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
