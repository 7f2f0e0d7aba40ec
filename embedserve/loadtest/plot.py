"""A plot of latencies as SVG: for each run, latency against the percentage of calls that are not slower.

Both axes are logarithmic, the horizontal one in the share of slower calls, so that the slowest percent has as much room
as the tenth before it: there users wait, and there servers differ. The plot follows the reader's light or dark scheme.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 860, 480
_LEFT, _RIGHT, _TOP, _BOTTOM = 90, 150, 58, 52
_POINTS = 160
# Wong, Points of view: color blindness (Nature Methods 2011), without black and yellow; dashed from the seventh on.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_STYLE = """
  svg { background: #fff; color: #1f2328; font: 13px system-ui, sans-serif }
  text { fill: currentColor } .faint { fill: #656d76 } .title { font-size: 16px; font-weight: 600 }
  .grid { stroke: #d1d9e0; stroke-width: 1 } .run { fill: none; stroke-width: 2.2; stroke-linejoin: round }
  @media (prefers-color-scheme: dark) {
    svg { background: #0d1117; color: #e6edf3 } .faint { fill: #8d96a0 } .grid { stroke: #30363d }
  }
"""


def latency_svg(runs: Sequence[tuple[str, NDArray[np.float64]]], title: str, subtitle: str = "") -> str:
    """The plot of some runs, each a name and the latencies of its calls in milliseconds, as an SVG document."""
    lines = [(name, _curve(values_ms)) for name, values_ms in runs if len(values_ms)]
    points = [point for _, curve in lines for point in curve]
    ticks = _ticks([ms for _, ms in points])
    low, high = ticks[0], ticks[-1]
    nines = max([2.0, *(nine for nine, _ in points)])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
        f' role="img" aria-label="{_quoted(title)}">',
        f"<style>{_STYLE}</style>",
        f'<text class="title" x="{_LEFT}" y="26">{escape(title)}</text>',
        f'<text class="faint" x="{_LEFT}" y="45">{escape(subtitle)}</text>',
        *_grid(ticks, nines),
    ]
    ends = _apart([_y(curve[-1][1], low, high) for _, curve in lines])
    for number, ((name, curve), label_y) in enumerate(zip(lines, ends, strict=True)):
        colour = _COLOURS[number % len(_COLOURS)]
        dash = ' stroke-dasharray="6 4"' if number >= len(_COLOURS) else ""
        path = " ".join(f"{_x(nine, nines):.1f},{_y(ms, low, high):.1f}" for nine, ms in curve)
        end_x, end_y = _x(curve[-1][0], nines), _y(curve[-1][1], low, high)
        parts += [
            f'<polyline class="run" stroke="{colour}"{dash} points="{path}"><title>{escape(name)}</title></polyline>',
            f'<circle cx="{end_x:.1f}" cy="{end_y:.1f}" r="3" fill="{colour}"/>',
            f'<text x="{WIDTH - _RIGHT + 22}" y="{label_y + 4:.1f}">{escape(name)}</text>',
            f'<rect x="{WIDTH - _RIGHT + 9}" y="{label_y - 4:.1f}" width="9" height="9" rx="2" fill="{colour}"/>',
        ]
    if not lines:
        parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT / 2}" text-anchor="middle">no call was answered</text>')
    return "\n".join([*parts, "</svg>", ""])


def latency_html(svg: str, title: str, rows: Sequence[Sequence[str]], sentences: Sequence[str]) -> str:
    """A page with the plot, a table whose first row is its head, and sentences below."""
    head, *body = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    return "\n".join(
        [
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>',
            ":root { color-scheme: light dark } body { font: 14px system-ui, sans-serif; margin: 2rem auto;",
            f"max-width: {WIDTH}px }} td {{ padding: .2rem .7rem .2rem 0; text-align: right }}",
            "td:first-child { text-align: left } thead { font-weight: 600 } svg { max-width: 100%; height: auto }",
            f"</style>{svg}<table><thead><tr>{head}</tr></thead><tbody>",
            *(f"<tr>{row}</tr>" for row in body),
            f"</tbody></table>{''.join(f'<p>{escape(sentence)}</p>' for sentence in sentences)}</html>",
            "",
        ]
    )


def _curve(values_ms: NDArray[np.float64]) -> list[tuple[float, float]]:
    """Points (nines, latency): at 2 nines, 99 % of the calls are not slower. The last point is the slowest call."""
    ordered = np.sort(values_ms)
    last = math.log10(len(ordered))
    found = []
    for nine in np.linspace(0, last, _POINTS):
        rank = min(len(ordered) - 1, math.floor(len(ordered) * (1 - 10**-nine)))
        found.append((float(nine), max(float(ordered[rank]), 1e-3)))
    return found


def _grid(ticks: Sequence[float], nines: float) -> Iterator[str]:
    for tick in ticks:
        y = _y(tick, ticks[0], ticks[-1])
        yield f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text class="faint" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:,.10g} ms</text>'
    for percent in ("0", "50", "90", "99", "99.9", "99.99", "99.999"):
        nine = -math.log10(1 - float(percent) / 100)
        if nine <= nines + 1e-9:
            x = _x(nine, nines)
            yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>'
            yield f'<text class="faint" x="{x:.1f}" y="{HEIGHT - _BOTTOM + 18}" text-anchor="middle">{percent} %</text>'
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    yield f'<text class="faint" x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">calls that are not slower</text>'


def _ticks(values_ms: Sequence[float]) -> list[float]:
    """1, 2, 5, 10, 20, … from below the smallest value to above the largest."""
    least, most = min(values_ms, default=1.0), max(values_ms, default=1.0)
    powers = range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 2)
    steps = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    below = [step for step in steps if step <= least * (1 + 1e-9)]
    return [step for step in steps if below[-1] <= step <= next(step for step in steps if step > most)]


def _x(nine: float, nines: float) -> float:
    return _LEFT + (WIDTH - _LEFT - _RIGHT) * nine / nines


def _y(ms: float, low: float, high: float) -> float:
    return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * math.log(ms / low) / math.log(high / low)


def _apart(heights: Sequence[float], least: float = 16) -> list[float]:
    """The heights, moved so that labels do not overlap, in the same order."""
    placed = [0.0] * len(heights)
    above = -math.inf
    for number in sorted(range(len(heights)), key=lambda number: heights[number]):
        placed[number] = above = max(heights[number], above + least)
    overhang = max(0.0, above - (HEIGHT - _BOTTOM))
    return [height - overhang for height in placed]


def _quoted(text: str) -> str:
    return escape(text, {'"': "&quot;"})
