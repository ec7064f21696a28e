"""What the manager's parameters may be; checked before anything is done."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from keikaku_snapshots.errors import ParameterTypeError, UsageError
from keikaku_snapshots.snapshots.compression import CUSTOM_LEVELS, LEVELS, check_level, require

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Formats that can be made now.
FORMATS = ("plain", "custom", "directory", "json")
#: What a snapshot can hold.
SCOPES = ("database", "test_data")
#: Names of the strategies of a restore.
STRATEGIES = ("auto", "in_place", "swap", "template")
#: Seconds to wait for other sessions; long enough for a running query of a test, short enough for a person.
LOCK_TIMEOUT_S = 3.0
#: Seconds for one hook: longer than a migration of test data, but nothing that waits for an answer
#: may hold the lock of the database for ever.
HOOK_TIMEOUT_S = 3600.0
_ON_MISMATCH = ("warn", "error", "ignore")


def check_create(
    format_name: str, compression: str | None, level: int | None, scope: str, jobs: int, *, clean: bool
) -> None:
    """Check the options of ``create_snapshot``.

    Args:
        format_name: ``plain``, ``custom``, ``directory`` or ``json``.
        compression: ``gzip`` or ``zstd``, for ``plain`` and ``json``; None.
        level: Of the compression, or 0 to 9 for ``custom`` and ``directory``.
        scope: ``database``, or ``test_data`` with ``json``.
        jobs: 1 or more; more than one for ``directory``.
        clean: For ``plain`` only.

    Raises:
        UsageError: One of them is not available.
        ToolMissingError: The library for the compression is not installed.
    """
    if format_name not in FORMATS:
        raise UsageError(f"format {format_name!r} is not available", found=f"available: {', '.join(FORMATS)}")
    if scope not in SCOPES:
        raise UsageError(f"scope {scope!r} is not available", found=f"available: {', '.join(SCOPES)}")
    if (format_name == "json") != (scope == "test_data"):
        raise UsageError(
            "format='json' and scope='test_data' go together",
            found=f"format={format_name!r}, scope={scope!r}",
        )
    if format_name == "json":
        _check_create_rows(compression, level, jobs, clean=clean)
        return
    is_archive = format_name in {"custom", "directory"}
    if is_archive and compression is not None:
        raise UsageError(
            f"compression {compression!r} is not available for format={format_name!r}",
            hint="Leave it out: an archive is compressed by itself; level=0..9 sets how much.",
        )
    check_jobs(jobs)
    if jobs > 1 and format_name != "directory":
        raise UsageError("jobs needs format='directory'", found=f"jobs={jobs}, format={format_name!r}")
    if is_archive:
        check_level(level, CUSTOM_LEVELS, f"format={format_name!r}")
    else:
        _check_compression(compression, level)
    if clean and is_archive:
        raise UsageError(
            "clean needs format='plain'", hint="pg_restore --clean does the same for an archive."
        )


def _check_compression(compression: str | None, level: int | None) -> None:
    if compression is None:
        if level is not None:
            raise UsageError("level needs a compression, or format='custom'", found=f"level={level!r}")
        return
    if compression not in LEVELS:
        raise UsageError(
            f"compression {compression!r} is not available", found=f"available: {', '.join(LEVELS)}"
        )
    check_level(level, LEVELS[compression], f"compression={compression!r}")
    require(compression)


def _check_create_rows(compression: str | None, level: int | None, jobs: int, *, clean: bool) -> None:
    _check_compression(compression, level)
    if jobs != 1:
        raise UsageError(f"jobs={jobs} is not available for format='json'", found="available: 1")
    if clean:
        raise UsageError("clean needs format='plain'", hint="A restore of test data deletes by itself.")


def check_marker(marker: str | None, predicates: Mapping[str, str] | None, format_name: str) -> None:
    """Check what says which rows are test data.

    Args:
        marker: Name of a column.
        predicates: SQL conditions by table.
        format_name: Format of the snapshot.

    Raises:
        ParameterTypeError: One of them has another type.
        UsageError: They are for test data only, or empty.
    """
    if marker is None and predicates is None:
        return
    if format_name != "json":
        raise UsageError("marker and predicates are for test data (scope='test_data')")
    if marker is not None and not isinstance(marker, str):
        raise ParameterTypeError(f"marker must be text, not {type(marker).__name__}")
    if marker == "":
        raise UsageError("marker is empty")
    given: dict[Any, Any] = dict(predicates or {})
    for key, text in given.items():
        if not isinstance(key, str) or not isinstance(text, str):
            raise ParameterTypeError("predicates must be SQL conditions (text) by table name (text)")
        if not text.strip():
            raise UsageError(f"the condition for table {key!r} is empty")


def check_clean_existing(format_name: str, *, clean_existing: bool) -> None:
    """Refuse to leave rows in place where all of the database is replaced.

    Args:
        format_name: Format of the snapshot.
        clean_existing: What the caller asked for.

    Raises:
        UsageError: It is for test data only.
    """
    if not clean_existing and format_name != "json":
        raise UsageError(
            "clean_existing=False is for test-data snapshots", found=f"format of the snapshot: {format_name}"
        )


def check_restore(strategy: str, on_schema_mismatch: str) -> None:
    """Check the options of ``restore_snapshot``.

    Args:
        strategy: One of `STRATEGIES`.
        on_schema_mismatch: ``warn``, ``error`` or ``ignore``.

    Raises:
        UsageError: One of them is not available.
    """
    if strategy not in STRATEGIES:
        raise UsageError(
            f"strategy {strategy!r} is not available", found=f"available: {', '.join(STRATEGIES)}"
        )
    if on_schema_mismatch not in _ON_MISMATCH:
        raise UsageError(
            f"on_schema_mismatch {on_schema_mismatch!r} is not known",
            found=f"known: {', '.join(_ON_MISMATCH)}",
        )


def check_spare(spare: object, *, templates: bool) -> None:
    """Check how many spares shall be left.

    Args:
        spare: 0 or more.
        templates: Whether the manager uses templates, of which spares are copies.

    Raises:
        ParameterTypeError: It is no whole number.
        UsageError: It is negative, or there are no templates.
    """
    if type(spare) is not int:
        raise ParameterTypeError(f"spare must be a whole number, not {type(spare).__name__}")
    if spare < 0:
        raise UsageError(f"spare must not be negative, but is {spare}")
    if spare and not templates:
        raise UsageError(
            "spares are copies of templates, which are switched off",
            hint="Leave out --no-templates (templates=False), or --spare.",
        )


def check_templates(strategy: str, *, templates: bool) -> None:
    """Refuse to restore from a template where none may be used.

    Args:
        strategy: What the caller asked for.
        templates: Whether the manager uses templates.

    Raises:
        UsageError: They contradict each other.
    """
    if strategy == "template" and not templates:
        raise UsageError(
            "strategy='template' needs templates, which are switched off",
            hint="Leave out --no-templates (templates=False), or use strategy='swap'.",
        )


def check_jobs(jobs: int | None) -> None:
    """Check how many connections may work at once.

    Args:
        jobs: 1 or more; None for the default.

    Raises:
        ParameterTypeError: It is no whole number.
        UsageError: It is not positive.
    """
    if jobs is None:
        return
    if type(jobs) is not int:
        raise ParameterTypeError(f"jobs must be a whole number, not {type(jobs).__name__}")
    if jobs < 1:
        raise UsageError(f"jobs must be 1 or more, but is {jobs}")


def check_directory(directory: object) -> None:
    """Check what names the snapshot directory.

    Args:
        directory: Text or a path.

    Raises:
        ParameterTypeError: It is something else.
        UsageError: It is empty.
    """
    if not isinstance(directory, str | os.PathLike):
        raise ParameterTypeError(f"snapshot_dir must be a path, not {type(directory).__name__}")
    if not os.fspath(directory):
        raise UsageError("snapshot_dir is empty", hint="Name a directory, such as 'snapshots'.")


def check_number(label: str, value: object) -> None:
    """Check that an option is a number, 0 or more.

    Args:
        label: Name of the option.
        value: Its value.

    Raises:
        ParameterTypeError: It is no number.
        UsageError: It is negative.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ParameterTypeError(f"{label} must be a number, not {type(value).__name__}")
    if value < 0:
        raise UsageError(f"{label} must not be negative, but is {value}")


def check_hook_timeout(timeout_s: object) -> None:
    """Check the time limit of hooks.

    Args:
        timeout_s: Seconds, or None.

    Raises:
        ParameterTypeError: It is no number.
        UsageError: It is not above 0.
    """
    if timeout_s is not None:
        check_number("hook_timeout_s", timeout_s)
        if timeout_s == 0:
            raise UsageError("hook_timeout_s is 0", hint="Give seconds, or None for no limit.")
