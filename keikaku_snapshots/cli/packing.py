"""The options that say how a snapshot is compressed: the same for every command that makes one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from keikaku_snapshots.config import Settings

#: Says that the configured compression is not wanted this time.
NONE = "none"


def packing_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--compression`` and ``--level`` to a command."""
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
    """Take both options out of all of them, with what the configuration says where they are left out.

    Args:
        settings: The configuration.
        options: The options of the command; both are removed.
        format_name: Format of the snapshot; what is configured is for plain and json.

    Returns:
        ``compression`` and ``level`` as the manager takes them.
    """
    compression: str | None = options.pop("compression")
    level: int | None = options.pop("level")
    if compression is None and format_name in {"plain", "json"}:
        compression = settings.compression
        level = settings.compression_level if level is None and compression else level
    return {"compression": None if compression == NONE else compression, "level": level}
