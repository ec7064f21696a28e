"""Time spans and sizes as people write them in a crontab."""

from __future__ import annotations

import re

from keikaku_snapshots.errors import UsageError

_AMOUNT = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", re.ASCII)
_SECONDS = {"s": 1, "min": 60, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_BYTES = {
    "": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip


def parse_duration(text: str) -> float:
    """Read a time span such as ``26h``.

    Args:
        text: A number and one of s, m (min), h, d, w; the unit must be said.

    Returns:
        Seconds.

    Raises:
        UsageError: It is none.
    """
    match = _AMOUNT.fullmatch(text)
    if match is None or match[2].lower() not in _SECONDS:
        raise UsageError(
            f"{text!r} is not a time span", hint="Write a number and a unit: 90s, 45m, 26h, 2d or 1w."
        )
    return float(match[1]) * _SECONDS[match[2].lower()]


def parse_size(text: str) -> int:
    """Read a size such as ``1MB``.

    Args:
        text: A number and B, kB, MB, GB, TB (powers of ten) or KiB, MiB, GiB, TiB; bytes without.

    Returns:
        Bytes.

    Raises:
        UsageError: It is none.
    """
    match = _AMOUNT.fullmatch(text)
    if match is None or match[2].lower() not in _BYTES:
        raise UsageError(
            f"{text!r} is not a size", hint="Write a number and a unit: 500kB, 1MB, 2.5GB or 1GiB."
        )
    return int(float(match[1]) * _BYTES[match[2].lower()])


def span(seconds: float) -> str:
    """Write a time span in its largest fitting unit.

    Args:
        seconds: The span.

    Returns:
        Such as ``26.0 h`` or ``3.5 d``.
    """
    for unit, length, limit in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 3 * 86400)):
        if abs(seconds) < limit:
            return f"{seconds / length:.0f} {unit}" if unit == "s" else f"{seconds / length:.1f} {unit}"
    return f"{seconds / 86400:.1f} d"
