"""What charts are drawn with: axes, lines and texts as inline SVG, for screens, print and screen readers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

#: Width of every chart in its own units; the page scales it.
WIDTH = 760


@dataclass(frozen=True, slots=True)
class LogScale:
    """Places values on a logarithmic axis."""

    #: Least value of the axis.
    low: float
    #: Greatest value of the axis.
    high: float
    #: Place of the least value.
    left: float
    #: Place of the greatest value.
    right: float

    @classmethod
    def over(cls, values: Iterable[float], left: float, right: float) -> LogScale:
        """An axis with a margin around all values, at least a factor of three long."""
        given = list(values)
        low, high = min(given) / 1.25, max(given) * 1.25
        stretch = max(1.0, math.sqrt(3 / (high / low)))
        return cls(low / stretch, high * stretch, left, right)

    def at(self, value: float) -> float:
        """The place of a value."""
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.left + share * (self.right - self.left)

    def ticks(self) -> list[float]:
        """Round values along the axis: 1, 2, 5 of each decade, on a long one 1 and 3."""
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        steps = (1, 3) if math.log10(self.high / self.low) > 2.2 else (1, 2, 5)
        found = (step * 10.0**power for power in range(first, last + 1) for step in steps)
        return [value for value in found if self.low <= value <= self.high]


@dataclass(frozen=True, slots=True)
class LinearScale:
    """Places values on an axis that begins with zero."""

    #: Greatest value of the axis.
    high: float
    #: Place of zero.
    left: float
    #: Place of the greatest value.
    right: float

    @classmethod
    def over(cls, values: Iterable[float], left: float, right: float) -> LinearScale:
        """An axis with a margin above all values."""
        high = max(values, default=0.0)
        return cls(high * 1.12 if high > 0 else 1.0, left, right)

    def at(self, value: float) -> float:
        """The place of a value."""
        return self.left + value / self.high * (self.right - self.left)

    def ticks(self, wanted: int = 4) -> list[float]:
        """About so many round values along the axis, zero the first."""
        raw = self.high / max(wanted, 1)
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
        return [step * number for number in range(int(self.high / step) + 1)]


def seconds_text(seconds: float) -> str:
    """Seconds with three digits that count, in ms below a second."""
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 1000 else f"{seconds:,.0f} s"


def axis(scale: LogScale, top: float, bottom: float, words: Callable[[float], str]) -> list[str]:
    """Upright grid lines from top to bottom, with what they stand for below."""
    parts = []
    for value in scale.ticks():
        x = scale.at(value)
        parts.append(line(x, top, x, bottom, "grid"))
        parts.append(text(x, bottom + 20, words(value), "tick middle"))
    return parts


def apart(places: dict[str, float], distance: float) -> dict[str, float]:
    """Move labels so far down that none covers another."""
    moved: dict[str, float] = {}
    lowest = -math.inf
    for name, place in sorted(places.items(), key=lambda item: item[1]):
        lowest = max(place, lowest + distance)
        moved[name] = lowest
    return moved


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """A straight line of a class of the style."""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def text(x: float, y: float, words: str, kind: str) -> str:
    """Words of a class of the style."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, kind: str, *, words: str = "") -> str:
    """A box of a class of the style; its words are shown where the mouse rests on it."""
    tooltip = f"<title>{escape(words)}</title>" if words else ""
    place = f'x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{max(height, 0):.1f}"'
    return (
        f'<rect class="{kind}" {place} rx="3">{tooltip}</rect>'
        if tooltip
        else f'<rect class="{kind}" {place} rx="3"/>'
    )


def svg(height: float, title: str, description: str, parts: Sequence[str]) -> str:
    """The whole chart; title and description are for who cannot see it."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" xmlns="http://www.w3.org/2000/svg">'
        f"<title>{escape(title)}</title><desc>{escape(description)}</desc>{''.join(parts)}</svg>"
    )
