"""Axes of a chart: scale, ticks and their labels."""

import math
from collections.abc import Sequence
from typing import NamedTuple

_TICKS = 4
_MARGIN = 0.06
_NOISE = 1e-9
"""Values that differ by less than this share of their size are one value, up to rounding."""

Range = tuple[float, float]


class Scale(NamedTuple):
    """Linear scale from values to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def fitted(values: Sequence[float], start: float, end: float, margin: float = _MARGIN) -> Scale:
    """Return a scale with a margin around the values; it does not cross 0 if they do not.

    Values that are all 0 are at the bottom of an axis from 0 to 1; others that are all equal have a tenth above and
    below.
    """
    low, high = min(values), max(values)
    if low == high == 0:
        return Scale(0.0, 1.0, start, end)
    size = max(abs(low), abs(high))
    padding = margin * (high - low) if high - low > _NOISE * size else size * 0.1
    bottom, top = low - padding, high + padding
    return Scale(max(0.0, bottom) if low >= 0 else bottom, min(0.0, top) if high <= 0 else top, start, end)


def ticks(low: float, high: float, count: int = _TICKS, whole: bool = False) -> list[float]:
    """Return about `count` round numbers (1, 2 or 5 times a power of ten apart) from `low` to `high`.

    `whole`: of a quantity that is counted, such as steps.
    """
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    step = max(1.0, step) if whole else step
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_label(value: float) -> str:
    """Format `0.25`, `1.5`, `12`, `3.4k`: as short as can be read."""
    size = abs(value)
    if size >= 10_000:
        return f"{value / 1000:.3g}k"
    if size and size < 0.001:
        return f"{value:.1e}".replace("e-0", "e-")
    return f"{round(value, 6):.4g}"
