"""Charts as inline SVG. Colours are CSS classes (`charts.css`), so that one drawing serves light and dark pages."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from lowrank_rlhf.reports.svg.axes import Range, Scale, fitted, tick_label, ticks
from lowrank_rlhf.reports.svg.readouts import Point, Series, csv_text, readouts

CHART_CSS = (Path(__file__).parents[1] / "templates" / "charts.css").read_text(encoding="utf-8")
"""Style of the charts; the page around them may define `--soft`, `--line` and the colours `--one`, `--two`."""
COLOURS = 8
"""Number of colour classes, `c0` to `c7`."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 22, 36
_RIGHT_AXIS = 46
_MAX_POINTS = 400
_MARK_EACH = 12
_LEGEND_LINE = 16


@dataclass(frozen=True)
class Line:
    """Points to join or, with `dots`, to mark."""

    name: str
    points: Sequence[Point]
    colour: int = 0
    """From `COLOURS` on, the colours are repeated with dashes."""
    dots: bool = False
    right: bool = False
    """On the scale at the right."""
    thin: bool = False


class ChartBar(NamedTuple):
    """A bar from 0 to `height`, with an interval around the height where there is one."""

    name: str
    start: float
    end: float
    height: float
    colour: int = 0
    interval: Range | None = None


class Guide(NamedTuple):
    """A dotted line for reference, such as chance; None is the end of the chart."""

    x: tuple[float | None, float | None]
    y: tuple[float | None, float | None]
    label: str = ""


@dataclass(frozen=True)
class Chart:
    """Contents of a chart; `label` describes it to a screen reader."""

    label: str
    x_label: str
    y_label: str = ""
    right_label: str = ""
    lines: Sequence[Line] = ()
    bars: Sequence[ChartBar] = ()
    guides: Sequence[Guide] = ()
    x_range: Range | None = None
    y_range: Range | None = None
    x_names: bool = False
    """Name the bars below the axis instead of its numbers."""
    legend: bool = False
    size: tuple[int, int] = (360, 220)


@dataclass(frozen=True)
class _Frame:
    """Positions of the axes, in pixels, and the scales along them."""

    x: Scale
    y: Scale | None
    right: Scale | None
    base: float
    counted: bool
    """The horizontal axis counts, such as steps."""

    def scale(self, line: Line) -> Scale:
        found = self.right if line.right else self.y
        assert found is not None  # noqa: S101 - made from these lines
        return found


def draw(chart: Chart, standalone: bool = False) -> str:
    """Return an `<svg>` of the finite points; empty text where there is none.

    A standalone one includes its style, to be saved as a file.
    """
    finite = _finite(chart)
    lines = [(line, _thinned(points)) for line, points in finite]
    if not lines and not chart.bars:
        return ""
    frame = _frame(chart, lines)
    parts = [
        *_x_axis(chart, frame),
        *_y_axes(chart, frame, lines),
        *(_bar(bar, frame) for bar in chart.bars),
        *(_guide(guide, frame) for guide in chart.guides),
        *(_line(line, points, frame) for line, points in lines),
        *readouts(chart.x_label, _series(finite), frame.x, (_TOP, frame.base)),
    ]
    width, height = chart.size
    if chart.legend:
        parts += ['<g class="legend">', *_legend([line for line, _ in lines if not line.thin], height), "</g>"]
        height += _LEGEND_LINE * sum(not line.thin for line, _ in lines)
    opening = f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(chart.label)}"'
    if standalone:
        opening += f' xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
        parts = [f"<style>{CHART_CSS}</style>", f'<rect class="page" width="{width}" height="{height}"/>', *parts]
    elif not chart.bars and not any(line.thin for line, _ in lines):
        opening += f' data-chart="{escape(json.dumps(_about(chart, frame, lines), ensure_ascii=False))}"'
    return f"{opening}>{''.join(parts)}</svg>"


def _about(chart: Chart, frame: _Frame, lines: "Drawn") -> dict[str, Any]:
    """Return what the page's script needs, besides the figures, to draw the curves again (`curves.js`)."""
    return {
        "width": chart.size[0],
        "height": chart.size[1],
        "left": frame.x.start,
        "right": frame.x.end,
        "top": _TOP,
        "base": frame.base,
        "x": (frame.x.low, frame.x.high),
        "y": chart.y_range,
        "labels": (chart.x_label, chart.y_label, chart.right_label),
        "lines": [
            {"name": line.name, "colour": _colour(line), "dots": line.dots, "right": line.right} for line, _ in lines
        ],
        "guides": chart.guides,
    }


def figures_csv(chart: Chart) -> str:
    """Return all finite points of the chart's curves as CSV; empty for a chart of bars."""
    return csv_text(chart.x_label, _series(_finite(chart)))


def _finite(chart: Chart) -> "Drawn":
    """Return the lines that have finite points, with these."""
    found = [(line, [point for point in line.points if all(map(math.isfinite, point))]) for line in chart.lines]
    return [(line, points) for line, points in found if points]


def _series(lines: "Drawn") -> list[Series]:
    return [Series(line.name, points, f"c{line.colour % COLOURS}") for line, points in lines if not line.thin]


def _thinned(points: Sequence[Point]) -> Sequence[Point]:
    """Return at most `_MAX_POINTS` points and the last one."""
    stride = math.ceil(len(points) / _MAX_POINTS)
    return points if stride <= 1 else [*points[:-1][::stride], points[-1]]


Drawn = Sequence[tuple[Line, Sequence[Point]]]


def _frame(chart: Chart, lines: Drawn) -> _Frame:
    width, height = chart.size
    base, end = height - _BOTTOM, width - (_RIGHT_AXIS if any(line.right for line, _ in lines) else _RIGHT)
    across = [x for _, points in lines for x, _ in points] + [x for bar in chart.bars for x in (bar.start, bar.end)]
    left, right = ([y for line, points in lines if line.right == side for _, y in points] for side in (False, True))
    left += [y for bar in chart.bars for y in (0.0, bar.height)]
    return _Frame(
        x=Scale(*chart.x_range, _LEFT, end) if chart.x_range else fitted(across, _LEFT, end, margin=0.0),
        y=Scale(*chart.y_range, base, _TOP) if left and chart.y_range else fitted(left, base, _TOP) if left else None,
        right=fitted(right, base, _TOP) if right else None,
        base=base,
        counted=bool(lines) and all(x == int(x) for x in across),
    )


def _text(x: float, y: float, text: str, anchor: str, colour: str = "") -> str:
    kind = f' class="{colour}"' if colour else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _x_axis(chart: Chart, frame: _Frame) -> Iterator[str]:
    across, base = frame.x, frame.base
    yield f'<line class="axis" x1="{across.start}" y1="{base}" x2="{across.end}" y2="{base}"/>'
    if chart.x_names:
        yield from (_text(across((bar.start + bar.end) / 2), base + 14, bar.name, "middle") for bar in chart.bars)
    else:
        for value in ticks(across.low, across.high, 5, whole=frame.counted):
            yield _text(across(value), base + 14, tick_label(value), "middle")
    yield _text((across.start + across.end) / 2, chart.size[1] - 4, chart.x_label, "middle")


def _y_axes(chart: Chart, frame: _Frame, lines: Drawn) -> Iterator[str]:
    both = frame.y is not None and frame.right is not None
    for scale, right, label in ((frame.y, False, chart.y_label), (frame.right, True, chart.right_label)):
        if scale is None:
            continue
        colour = next((f"c{line.colour}" for line, _ in lines if line.right == right), "") if both else ""
        x, anchor = (frame.x.end + 6, "start") if right else (_LEFT - 6, "end")
        for value in ticks(scale.low, scale.high):
            y = scale(value)
            if not right:
                yield f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{frame.x.end}" y2="{y:.1f}"/>'
            yield _text(x, y + 4, tick_label(value), anchor, colour)
        if label:
            edge = chart.size[0] - 4 if right else 4
            yield _text(edge, 11, label, "end" if right else "start", colour)


def _line(line: Line, points: Sequence[Point], frame: _Frame) -> str:
    up = frame.scale(line)
    drawn = [(frame.x(x), up(y)) for x, y in points]
    last_x, last_y = points[-1]
    title = f"<title>{escape(line.name)}: {tick_label(last_y)} ({tick_label(last_x)})</title>"
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in drawn)
    kind = f"{_colour(line)}{' thin' if line.thin else ''}"
    joined = "" if line.dots else f'<polyline class="{kind}" points="{path}"/>'
    marked = drawn if line.dots or line.right or len(drawn) <= _MARK_EACH else drawn[-1:]
    dots = "".join(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in marked)
    return f"<g>{title}{joined}{'' if line.thin else dots}</g>"


def _colour(line: Line) -> str:
    repeat, colour = divmod(line.colour, COLOURS)
    return f"c{colour}{' dashed' if repeat % 2 else ''}"


def _bar(bar: ChartBar, frame: _Frame) -> str:
    assert frame.y is not None  # noqa: S101 - made from the bars
    left, right, top, bottom = frame.x(bar.start), frame.x(bar.end), frame.y(bar.height), frame.y(max(0.0, frame.y.low))
    title = f"<title>{escape(bar.name)}: {tick_label(bar.height)}</title>"
    rectangle = (
        f'<rect class="c{bar.colour}" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
        f'height="{bottom - top:.1f}"/>'
    )
    if bar.interval is None:
        return f"<g>{title}{rectangle}</g>"
    middle, low, high = (left + right) / 2, frame.y(bar.interval[0]), frame.y(bar.interval[1])
    error = f'<line class="axis" x1="{middle:.1f}" y1="{low:.1f}" x2="{middle:.1f}" y2="{high:.1f}"/>'
    return f"<g>{title}{rectangle}{error}</g>"


def _guide(guide: Guide, frame: _Frame) -> str:
    scale = frame.y or frame.right
    assert scale is not None  # noqa: S101 - a chart has one of them
    x1, x2 = (
        end if value is None else frame.x(value)
        for value, end in zip(guide.x, (frame.x.start, frame.x.end), strict=True)
    )
    y1, y2 = (end if value is None else scale(value) for value, end in zip(guide.y, (frame.base, _TOP), strict=True))
    label = _text(x2 - 4, _TOP + 9, guide.label, "end") if guide.label else ""
    return f'<line class="guide" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>{label}'


def _legend(lines: Sequence[Line], top: float) -> Iterator[str]:
    for row, line in enumerate(lines):
        y = top + _LEGEND_LINE * row + 6
        yield f'<polyline class="{_colour(line)}" points="{_LEFT},{y} {_LEFT + 18},{y}"/>'
        yield _text(_LEFT + 24, y + 4, line.name, "start")
