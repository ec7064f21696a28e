"""Reading the pools of values that rows are drawn from: tab-separated files in ``data/``."""

from __future__ import annotations

from importlib import resources


def read_pool(file_name: str) -> list[list[str]]:
    """The lines of a pool, split at tabs; lines that begin with ``#`` are comments.

    Args:
        file_name: A file in ``data/``.

    Returns:
        The fields of every line, in the order of the file.
    """
    text = resources.files(__package__).joinpath("data", file_name).read_text(encoding="utf-8")
    return [line.split("\t") for line in text.splitlines() if not line.startswith("#")]
