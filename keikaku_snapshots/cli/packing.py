"""The options that say how a snapshot is compressed and dumped: the same for every command that makes one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from keikaku_snapshots.config import Settings

#: Says that the configured compression is not wanted this time.
NONE = "none"


def packing_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--compression``, ``--level`` and ``--jobs`` to a command."""
    command = click.option(
        "--jobs",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        metavar="N",
        help="Tables that the format directory dumps at once.",
    )(command)
    command = click.option(
        "--level",
        type=int,
        metavar="N",
        help="gzip 1-9, zstd 1-19; of the formats custom and directory 0-9.  [default: a fast one]",
    )(command)
    return click.option(
        "--compression",
        type=click.Choice(["gzip", "zstd", NONE]),
        help="Compression of plain and json.  [default: as configured, else none]",
    )(command)


def take_packing(settings: Settings, options: dict[str, Any], format_name: str) -> dict[str, Any]:
    """Take these options out of all of them, with what the configuration says where they are left out.

    Args:
        settings: The configuration.
        options: The options of the command; these are removed.
        format_name: Format of the snapshot; what is configured is for plain and json.

    Returns:
        ``compression``, ``level`` and ``jobs`` as the manager takes them.
    """
    compression: str | None = options.pop("compression")
    level: int | None = options.pop("level")
    if compression is None and format_name in {"plain", "json"}:
        compression = settings.compression
        level = settings.compression_level if level is None and compression else level
    return {
        "compression": None if compression == NONE else compression,
        "level": level,
        "jobs": options.pop("jobs"),
    }
