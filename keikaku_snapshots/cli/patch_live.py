"""`keikaku patch status` while a run goes: a bar that lives on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from keikaku_snapshots.cli.patch_words import (
    is_resting,
    left_s,
    progress_line,
    progress_parts,
    share_done,
    short,
    state_text,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rich.console import RenderableType

    from keikaku_snapshots.cli.output import Output
    from keikaku_snapshots.patches.execution import Execution

#: Seconds between two looks at the records.
LOOK_S = 0.5
#: Longest silence without a terminal, in seconds.
LINE_S = 10.0


class Seen(NamedTuple):
    """A run at one look."""

    #: The run.
    execution: Execution
    #: Resident memory of its process; 0 when not known.
    memory_bytes: int = 0
    #: True when its process gave no sign of life for too long.
    is_dead: bool = False


def follow(
    output: Output,
    look: Callable[[], Sequence[Seen]],
) -> Sequence[Execution]:
    """Show runs until each of them is over, rests, or is dead.

    Args:
        output: Where to.
        look: Reads them anew.

    Returns:
        The runs as they were at the last look.
    """
    if not output.draws:
        return _follow_in_lines(output, look)
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), refresh_per_second=8, transient=True) as live:
        while True:
            seen = look()
            live.update(picture(seen))
            if not any(_works(one) for one in seen):
                break
            time.sleep(LOOK_S)
    return [one.execution for one in seen]


@contextmanager
def watched(output: Output) -> Iterator[Callable[[Execution], None] | None]:
    """Show a run of this process while the block goes: a bar on a terminal, else lines, nothing with -q.

    Args:
        output: Where to.

    Yields:
        What gets the run after each batch.
    """
    if output.quiet:
        yield None
        return
    if not output.draws:
        yield _Lines(output)
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), refresh_per_second=8, transient=True) as live:
        yield lambda execution: live.update(picture([Seen(execution)]))


class _Lines:
    """A line when the state changes, and one at least every few seconds."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._state = ""
        self._at = 0.0

    def __call__(self, execution: Execution) -> None:
        now = time.monotonic()
        if state_text(execution) != self._state or now - self._at >= LINE_S:
            self._state, self._at = state_text(execution), now
            self._output.say(progress_line(execution))


def _works(one: Seen) -> bool:
    return not one.is_dead and not one.execution.is_over and not is_resting(one.execution)


def _follow_in_lines(output: Output, look: Callable[[], Sequence[Seen]]) -> Sequence[Execution]:
    said: dict[Any, tuple[str, float]] = {}
    while True:
        seen = look()
        for one in seen:
            execution = one.execution
            state, at = said.get(execution.execution_id, ("", 0.0))
            now = time.monotonic()
            if state_text(execution) != state or now - at >= LINE_S:
                said[execution.execution_id] = (state_text(execution), now)
                output.data(progress_line(execution, one.memory_bytes))
        if not any(_works(one) for one in seen):
            return [one.execution for one in seen]
        time.sleep(LOOK_S)


def picture(seen: Sequence[Seen]) -> RenderableType:
    """Draw a bar with what belongs to it for each run.

    Args:
        seen: Runs.

    Returns:
        What rich prints.
    """
    from rich.console import Group

    return Group(*(part for one in seen for part in _bar(one)))


def _bar(one: Seen) -> list[RenderableType]:
    from rich.progress_bar import ProgressBar
    from rich.spinner import Spinner
    from rich.table import Table
    from rich.text import Text

    execution = one.execution
    share, left = share_done(execution), left_s(execution)
    head = Table.grid(padding=(0, 1))
    bar = ProgressBar(
        total=None if share is None else 1.0, completed=share or 0.0, width=24, pulse=share is None
    )
    head.add_row(
        Spinner("dots") if _works(one) else Text("•"),
        Text(f"{execution.patch_name} {short(execution)}", style="bold"),
        bar,
        Text("" if share is None else f"{share:4.0%}", style="cyan"),
        Text("" if left is None else f"{_clock(left)} left"),
    )
    words = " · ".join([state_text(execution), *progress_parts(execution, one.memory_bytes)])
    bad = execution.inconsistent_records > 0
    return [head, Text("  " + words, style="yellow" if bad else "")]


def _clock(seconds: float) -> str:
    whole = int(seconds + 0.5)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"
