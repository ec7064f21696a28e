"""What the manager's parameters may be; checked before anything is done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keikaku_snapshots.errors import ParameterTypeError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Formats that can be made now.
FORMATS = ("plain", "custom")
#: Names of the strategies of a restore.
STRATEGIES = ("auto", "in_place", "swap")
_ON_MISMATCH = ("warn", "error", "ignore")
#: Highest level of zlib, which the custom format uses.
_HIGHEST_LEVEL = 9


def check_create(
    format_name: str, compression: str | None, level: int | None, scope: str, jobs: int, *, clean: bool
) -> None:
    """Check the options of ``create_snapshot``.

    Args:
        format_name: ``plain`` or ``custom``.
        compression: None; nothing else is available.
        level: 0 to 9, for ``custom``.
        scope: ``database``.
        jobs: 1.
        clean: For ``plain`` only.

    Raises:
        UsageError: One of them is not available.
    """
    if format_name not in FORMATS:
        raise UsageError(f"format {format_name!r} is not available", found=f"available: {', '.join(FORMATS)}")
    if scope != "database":
        raise UsageError(f"scope {scope!r} is not available", found="available: database")
    if compression is not None:
        raise UsageError(
            f"compression {compression!r} is not available",
            hint="Use format='custom', which compresses by itself; level=0..9 sets how much.",
        )
    if jobs != 1:
        raise UsageError(f"jobs={jobs} is not available", found="available: 1")
    if level is not None:
        if format_name != "custom":
            raise UsageError("level needs format='custom'", found=f"format={format_name!r}")
        if type(level) is not int or not 0 <= level <= _HIGHEST_LEVEL:
            raise UsageError(f"level must be a whole number from 0 to 9, not {level!r}")
    if clean and format_name == "custom":
        raise UsageError(
            "clean needs format='plain'", hint="pg_restore --clean does the same for an archive."
        )


def check_restore(
    strategy: str, on_schema_mismatch: str, after_restore: Sequence[Any], *, clean_existing: bool
) -> None:
    """Check the options of ``restore_snapshot``.

    Args:
        strategy: One of `STRATEGIES`.
        on_schema_mismatch: ``warn``, ``error`` or ``ignore``.
        after_restore: Empty; nothing else is available.
        clean_existing: True.

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
    if after_restore:
        raise UsageError(
            "after_restore is not available", hint="Run it yourself when restore_snapshot has returned."
        )
    if not clean_existing:
        raise UsageError("clean_existing=False is for test-data snapshots, which are not available")


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
