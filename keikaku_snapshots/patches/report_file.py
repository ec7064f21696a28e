"""The file of a report: whole or not at all, readable for its owner alone."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

from keikaku_snapshots.errors import AccessDeniedError, DiskFullError
from keikaku_snapshots.patches.report_page import write_page

if TYPE_CHECKING:
    from keikaku_snapshots.errors import KeikakuError
    from keikaku_snapshots.patches.report import PatchReport

#: Where reports lie, in the working directory.
DIRECTORY = Path("patch-reports")


def write_report(report: PatchReport, path: Path | None = None) -> Path:
    """Write the page; one of the same name is replaced.

    Args:
        report: What it shows.
        path: Where; ``patch-reports/NAME_ID.html`` when None.

    Returns:
        The file.

    Raises:
        DiskFullError: There is no room.
        AccessDeniedError: The directory may not be written to.
    """
    execution = report.execution
    file = path or DIRECTORY / f"{execution.patch_name}_{str(execution.execution_id)[:8]}.html"
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            # It shows values of rows, so only its owner may read it.
            temporary.touch(mode=0o600, exist_ok=False)
            temporary.write_text(write_page(report), encoding="utf-8")
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise _cannot_write(error, file) from error
    return file


def _cannot_write(error: OSError, file: Path) -> KeikakuError:
    found = f"{error.filename or file}: {error.strerror or error}"
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return DiskFullError("no room for the report of the patch", found=found)
    return AccessDeniedError(
        "the report of the patch cannot be written",
        found=found,
        hint="Name a file that this account may write: --output FILE.",
        hint_ja="このアカウントが書き込めるファイルを --output FILE で指定してください。",
    )
