"""Small line charts as inline SVG: drawn in a millisecond, coloured by the page's own CSS, light and dark."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 360, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 12, 36
_RIGHT_AXIS = 46
_MOST_POINTS = 400
_TICKS = 4

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """Points to join or, with `dots`, to mark. `colour` is a class of the page's CSS: `one` or `two`."""

    name: str
    points: Sequence[Point]
    colour: str = "one"
    dots: bool = False
    right: bool = False
    """On a scale of its own, at the right."""


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def chart(lines: Sequence[Line], x_label: str, label: str) -> str:
    """An `<svg>` of all finite points; empty text where there is none. `label` is read out to those who listen."""
    drawn = [(line, _thinned([point for point in line.points if all(map(math.isfinite, point))])) for line in lines]
    drawn = [(line, points) for line, points in drawn if points]
    if not drawn:
        return ""
    both = any(line.right for line, _ in drawn)
    end = _WIDTH - (_RIGHT_AXIS if both else _RIGHT)
    across = _scale([x for _, points in drawn for x, _ in points], _LEFT, end, snug=True)
    parts = [_x_axis(across, x_label)]
    for right in (False, True):
        own = [(line, points) for line, points in drawn if line.right == right]
        if own:
            up = _scale([y for _, points in own for _, y in points], _HEIGHT - _BOTTOM, _TOP)
            parts.append(_y_axis(up, end, own[0][0].colour if both else "", right))
            parts += [_line(line, points, across, up) for line, points in own]
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def ticks(low: float, high: float, count: int = _TICKS) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from `low` to `high`, about so many."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """`0.25`, `1.5`, `12`, `3.4k`: as short as it can be read."""
    size = abs(value)
    if size >= 10_000:
        return f"{value / 1000:.3g}k"
    if size and size < 0.001:
        return f"{value:.1e}".replace("e-0", "e-")
    return f"{round(value, 6):.4g}"


def _thinned(points: Sequence[Point]) -> Sequence[Point]:
    """At most so many points, the last one among them."""
    stride = math.ceil(len(points) / _MOST_POINTS)
    return points if stride <= 1 else [*points[:-1][::stride], points[-1]]


def _scale(values: Sequence[float], start: float, end: float, snug: bool = False) -> _Scale:
    low, high = min(values), max(values)
    if low == high:
        room = abs(low) * 0.1 or 0.5
        low, high = low - room, high + room
    elif not snug:
        room = 0.06 * (high - low)
        low, high = low - room, high + room
    return _Scale(low, high, start, end)


def _x_axis(across: _Scale, label: str) -> str:
    base = _HEIGHT - _BOTTOM
    marks = "".join(
        f'<text x="{across(value):.1f}" y="{base + 14}" text-anchor="middle">{number(value)}</text>'
        for value in ticks(across.low, across.high, 5)
    )
    middle = (across.start + across.end) / 2
    return (
        f'<line class="axis" x1="{across.start}" y1="{base}" x2="{across.end}" y2="{base}"/>{marks}'
        f'<text x="{middle}" y="{_HEIGHT - 4}" text-anchor="middle">{escape(label)}</text>'
    )


def _y_axis(up: _Scale, end: float, colour: str, right: bool) -> str:
    x, anchor = (end + 6, "start") if right else (_LEFT - 6, "end")
    marks = []
    for value in ticks(up.low, up.high):
        y = up(value)
        if not right:
            marks.append(f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{end}" y2="{y:.1f}"/>')
        marks.append(f'<text class="{colour}" x="{x}" y="{y + 4:.1f}" text-anchor="{anchor}">{number(value)}</text>')
    return "".join(marks)


def _line(line: Line, points: Sequence[Point], across: _Scale, up: _Scale) -> str:
    places = [(across(x), up(y)) for x, y in points]
    last_x, last_y = points[-1]
    title = f"<title>{escape(line.name)}: {number(last_y)} ({number(last_x)})</title>"
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    joined = "" if line.dots else f'<polyline class="{line.colour}" points="{path}"/>'
    marked = places if line.dots or line.right or len(places) <= 12 else places[-1:]
    dots = "".join(f'<circle class="{line.colour}" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in marked)
    return f"<g>{title}{joined}{dots}</g>"
