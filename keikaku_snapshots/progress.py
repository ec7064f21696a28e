"""What long work tells its caller: one frozen value and one callback type.

The library never prints. Rooms call a `ProgressCallback`; the command line
turns the values into a bar or into lines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one step of the work has come."""

    #: The step in words, such as "copy staffs" or "dump".
    step: str
    #: Units done so far in this step.
    done: int
    #: Units in this step when they are known beforehand.
    total: int | None
    #: What is counted.
    unit: Literal["rows", "bytes", "steps"]
    #: Seconds since the step began.
    seconds: float
    #: True for the last value of the step.
    finished: bool = False


ProgressCallback: TypeAlias = Callable[[Progress], None]
