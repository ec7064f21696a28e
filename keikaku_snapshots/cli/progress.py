"""Progress on the screen: a bar with rows, rate and time left, or plain lines."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.progress import ProgressColumn, TaskID

    from keikaku_snapshots.progress import Progress, ProgressCallback

#: Longest silence without a terminal, in seconds (A11); a log without a line
#: for longer looks like a hang.
LINE_INTERVAL_S = 10.0

#: Below this width there is no room for bar and rate beside the longest step.
NARROW_CELLS = 80


@contextmanager
def lines(say: Callable[[str], None], interval_s: float = LINE_INTERVAL_S) -> Iterator[ProgressCallback]:
    """One line for each finished step, and one at least every few seconds.

    Args:
        say: Writes a line.
        interval_s: Longest silence in seconds.

    Yields:
        The callback for the library.
    """
    printer = _Lines(say, interval_s)
    stop = threading.Event()
    ticker = threading.Thread(target=printer.tick, args=(stop,), name="keikaku-progress", daemon=True)
    ticker.start()
    try:
        yield printer
    finally:
        stop.set()
        ticker.join(timeout=1)


class _Lines:
    """Remembers the last value, so that a silent library still gives a line."""

    def __init__(self, say: Callable[[str], None], interval_s: float) -> None:
        self._say = say
        self._interval_s = interval_s
        self._last: Progress | None = None
        self._last_at = time.monotonic()
        self._printed_at = time.monotonic()
        self._lock = threading.Lock()

    def __call__(self, progress: Progress) -> None:
        with self._lock:
            self._last, self._last_at = progress, time.monotonic()
            if progress.finished:
                self._print(sentence(progress))

    def tick(self, stop: threading.Event) -> None:
        """Print the last value again whenever nothing was printed for too long."""
        while not stop.wait(max(0.01, min(1.0, self._interval_s / 10))):
            with self._lock:
                if time.monotonic() - self._printed_at < self._interval_s:
                    continue
                if self._last is None or self._last.finished:
                    self._print("working …")
                else:
                    self._print(sentence(self._last, waited_s=time.monotonic() - self._last_at))

    def _print(self, text: str) -> None:
        self._printed_at = time.monotonic()
        self._say(text)


def sentence(progress: Progress, waited_s: float = 0.0) -> str:
    """Write one value as a line.

    Args:
        progress: The value.
        waited_s: Seconds that have passed since it was reported.

    Returns:
        Such as ``copy staffs: 1,001 rows, 0.05 s, 20,020 rows/s``.
    """
    seconds = progress.seconds + waited_s
    amount = _amount(progress.done, progress.unit)
    if progress.total is not None and not progress.finished:
        amount = f"{_amount(progress.done, progress.unit)} of {_amount(progress.total, progress.unit)}"
    parts = [amount, f"{seconds:.2f} s" if seconds < LINE_INTERVAL_S else f"{seconds:.0f} s"]
    if progress.seconds > 0 and progress.unit != "steps" and progress.done:
        rate = progress.done / progress.seconds
        parts.append(_amount(int(rate), progress.unit) + "/s")
        if progress.total and not progress.finished:
            parts.append(f"{max(0.0, (progress.total - progress.done) / rate - waited_s):.0f} s left")
    return f"{progress.step}: {', '.join(parts)}"


def amount_and_rate(progress: Progress) -> str:
    """Write how much is done and how fast.

    Args:
        progress: The value.

    Returns:
        Such as ``1,001 rows  20,020 rows/s``.
    """
    text = _amount(progress.done, progress.unit)
    if progress.seconds <= 0 or progress.unit == "steps" or not progress.done:
        return text
    return f"{text}  {_amount(int(progress.done / progress.seconds), progress.unit)}/s"


def _amount(count: int, unit: str) -> str:
    if unit == "bytes":
        from keikaku_snapshots.cli.output import size

        return size(count)
    return f"{count:,} {unit}"


def bar_columns(width_cells: int) -> list[ProgressColumn]:
    """Choose what a line of progress shows.

    Args:
        width_cells: Width of the terminal.

    Returns:
        On a narrow one neither bar nor rate, so that the numbers stay whole.
    """
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
    from rich.table import Column

    narrow = width_cells < NARROW_CELLS
    amount = "{task.fields[count]}" if narrow else "{task.fields[amount]}"
    columns: list[ProgressColumn] = [SpinnerColumn(finished_text="✓"), TextColumn("{task.description}")]
    if not narrow:
        columns.append(BarColumn(bar_width=16))
    columns.append(TextColumn(amount, style="cyan", table_column=Column(no_wrap=True)))
    columns.append(TimeRemainingColumn(compact=True, elapsed_when_finished=True))
    return columns


@contextmanager
def bars() -> Iterator[ProgressCallback]:
    """One bar for each step, on stderr.

    Yields:
        The callback for the library.
    """
    from rich.console import Console
    from rich.progress import Progress as RichProgress

    console = Console(stderr=True)
    tasks: dict[str, TaskID] = {}
    with RichProgress(*bar_columns(console.width), console=console, transient=False) as display:

        def show(progress: Progress) -> None:
            # A step that had nothing to do is finished all the same.
            done = max(progress.done, 1) if progress.finished else progress.done
            total = done if progress.finished else progress.total
            words: dict[str, Any] = {
                "amount": amount_and_rate(progress),
                "count": _amount(progress.done, progress.unit),
            }
            if progress.step not in tasks:
                tasks[progress.step] = display.add_task(progress.step, total=total, **words)
            display.update(tasks[progress.step], completed=done, total=total, **words)

        yield show
