"""Figures behind a chart's curves: read out under the pointer, by CSS alone, and as CSV."""

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from html import escape
from itertools import pairwise
from typing import NamedTuple

from lowrank_rlhf.reports.svg.axes import Range, Scale

_MAX_POINTS = 100
"""Points of a curve that are read out; the CSV has all."""
_MAX_CURVES = 12
_LONGEST = 18
"""Characters of a curve's name beside the pointer."""
_LINE = 12
_GAP = 6

Point = tuple[float, float]


class Series(NamedTuple):
    """A curve's name, its finite points in order, and its CSS class."""

    name: str
    points: Sequence[Point]
    colour: str = ""


def readouts(x_label: str, series: Sequence[Series], across: Scale, up_to_down: Range) -> Iterator[str]:
    """Yield a transparent strip for each x, with the curves' values there as text that shows while it is hovered.

    Args:
        x_label: name of the horizontal axis.
        series: the curves.
        across: the horizontal scale.
        up_to_down: top and bottom of the strips, in pixels.
    """
    values = [(each, dict(each.points)) for each in series]
    places = sorted({x for each in series for x in _thinned([x for x, _ in each.points])})
    middles = [(across(one) + across(other)) / 2 for one, other in pairwise(places)]
    top, bottom = up_to_down
    edges = [across.start, *middles, across.end]
    for x, left, right in zip(places, edges, edges[1:], strict=False):
        here = [(each, found[x]) for each, found in values if x in found]
        at, text_left = across(x), across(x) < (across.start + across.end) / 2
        text_x, anchor = (at + _GAP, "start") if text_left else (at - _GAP, "end")
        lines = [("", f"{x_label}: {_shown(x)}")]
        lines += [(each.colour, f"{_short(each.name)}: {_shown(y)}") for each, y in here[:_MAX_CURVES]]
        spans = "".join(
            f'<tspan class="{colour}" x="{text_x:.1f}" y="{top + _LINE * row}">{escape(line)}</tspan>'
            for row, (colour, line) in enumerate(lines, 1)
        )
        yield (
            f'<g class="at"><rect x="{left:.1f}" y="{top}" width="{right - left:.1f}" height="{bottom - top}"/>'
            f'<line x1="{at:.1f}" y1="{top}" x2="{at:.1f}" y2="{bottom}"/>'
            f'<text text-anchor="{anchor}">{spans}</text></g>'
        )


def csv_text(x_label: str, series: Sequence[Series]) -> str:
    """Return a CSV table with a row for each x and a column for each curve; empty without curves."""
    if not series:
        return ""
    rows: dict[tuple[float, int], list[float | None]] = {}
    for column, each in enumerate(series):
        seen: Counter[float] = Counter()
        for x, y in each.points:
            rows.setdefault((x, seen[x]), [None] * len(series))[column] = y
            seen[x] += 1
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([x_label, *(each.name for each in series)])
    writer.writerows([x, *rows[x, nth]] for x, nth in sorted(rows))
    return file.getvalue()


def _thinned(places: Sequence[float]) -> Sequence[float]:
    stride = -(-len(places) // _MAX_POINTS)
    return places if stride <= 1 else [*places[:-1][::stride], places[-1]]


def _shown(value: float) -> str:
    return f"{value:.0f}" if value == int(value) and abs(value) < 1e9 else f"{value:.4g}"


def _short(name: str) -> str:
    """Return the end of a long name, in which names of a sweep's runs differ."""
    return name if len(name) <= _LONGEST else f"…{name[-_LONGEST:]}"
