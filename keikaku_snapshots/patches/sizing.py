"""How many rows the next batch gets: pure arithmetic on how long the last ones took."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

#: How much a batch may grow at once; one that is too long holds locks that others wait for.
GROWTH_MAX: Final = 1.2
#: How much it may shrink at once, unless a timeout halves it.
SHRINK_MAX: Final = 0.5
#: Weight of the newest batch in the average.
_NEWEST: Final = 0.3
#: Most rows of a batch: their memory, and what one transaction locks.
SIZE_MAX: Final = 50_000


@dataclass(frozen=True, slots=True)
class Sizing:
    """The size of the next batch, and what is known of the speed."""

    #: Rows of the next batch.
    size: int
    #: Seconds that a batch should take.
    target_s: float
    #: False keeps the size as it is, whatever happens.
    adaptive: bool = True
    #: Average seconds for a row of the size asked for; None before the first batch.
    row_s: float | None = None

    def after(self, seconds: float) -> Sizing:
        """Return the sizing after a batch of the present size.

        Args:
            seconds: What it took.

        Returns:
            Closer to the target: at most a fifth more rows, at least half of them.
        """
        measured = seconds / self.size
        average = measured if self.row_s is None else _NEWEST * measured + (1 - _NEWEST) * self.row_s
        if not self.adaptive:
            return replace(self, row_s=average)
        wanted = self.target_s / average if average > 0 else float(SIZE_MAX)
        most = max(self.size * GROWTH_MAX, self.size + 1)
        size = max(1, min(int(min(max(wanted, self.size * SHRINK_MAX), most)), max(SIZE_MAX, self.size)))
        return replace(self, size=size, row_s=average)

    def halved(self) -> Sizing:
        """Return the sizing after a timeout, a deadlock or a lock that was not granted."""
        return replace(self, size=max(1, self.size // 2)) if self.adaptive else self
