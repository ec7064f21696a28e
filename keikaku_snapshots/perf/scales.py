"""How much data a performance test may use: ``PERF_TEST_SCALE``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from keikaku_snapshots.errors import UnknownScaleError

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The scales of performance tests, smaller ones first.
SCALES = ("small", "medium", "large")
#: Names the largest scale that is measured.
SCALE_VARIABLE = "PERF_TEST_SCALE"


def performance_test_scale(environment: Mapping[str, str] | None = None) -> str:
    """The largest scale that performance tests may use.

    Args:
        environment: Where ``PERF_TEST_SCALE`` is looked up; the process's own if None.

    Returns:
        ``small``, ``medium`` or ``large``; ``small`` when nothing is said.

    Raises:
        UnknownScaleError: The variable names none of these (a `ValueError`).
    """
    environment = os.environ if environment is None else environment
    return check_scale(environment.get(SCALE_VARIABLE, "").strip() or "small", SCALE_VARIABLE)


def check_scale(name: str, where: str) -> str:
    """The name of a scale of performance tests, as it was given.

    Raises:
        UnknownScaleError: There is none of this name.
    """
    if name not in SCALES:
        raise UnknownScaleError(
            f"there is no scale {name!r} of performance tests",
            found=f"{where} is {name!r}; known scales: {', '.join(SCALES)}",
            hint=f"Use one of {', '.join(SCALES)}.",
        )
    return name


def scales_up_to(largest: str) -> tuple[str, ...]:
    """The scales from the smallest to this one."""
    return SCALES[: SCALES.index(largest) + 1]


def reason_to_skip(wanted: str, environment: Mapping[str, str] | None = None) -> str:
    """Why a test of a scale is skipped; empty when it is not.

    Args:
        wanted: The scale that the test needs.
        environment: Where ``PERF_TEST_SCALE`` is looked up; the process's own if None.

    Raises:
        UnknownScaleError: `wanted` or the variable names no scale.
    """
    allowed = performance_test_scale(environment)
    if SCALES.index(check_scale(wanted, "the test's scale")) <= SCALES.index(allowed):
        return ""
    return f"needs scale {wanted}, {SCALE_VARIABLE} is {allowed}: run with {SCALE_VARIABLE}={wanted}"
