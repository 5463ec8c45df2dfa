"""A plot of accuracy over speed as SVG: readable in the light, in the dark and on paper."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT, _GAP = 420, 300, 20
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 16, 34, 44
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's: told apart by people who are colour-blind."""
_SHAPES = ("circle", "square", "diamond", "triangle")
_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #222 }
.title { font-weight: 600; font-size: 13px } .small { font-size: 10px }
.frame { stroke: #999; fill: none } .grid { stroke: #ddd }
@media (prefers-color-scheme: dark) {
  svg { background: #1b1b1b } text { fill: #ddd } .frame { stroke: #777 } .grid { stroke: #333 }
}
"""


@dataclass(frozen=True, slots=True)
class Point:
    """One setting."""

    series: str
    label: str
    """What tells it from others of its series; the legend names the series."""
    x: float
    y: float
    low: float
    high: float
    """Ends of the interval of `y`."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One coordinate system."""

    title: str
    x_name: str
    y_name: str
    points: Sequence[Point]


def plot(panels: Sequence[Panel]) -> str:
    """Panels side by side, two in a row; points of a series are joined in order of x."""
    names = list(dict.fromkeys(p.series for panel in panels for p in panel.points))
    columns = min(2, max(1, len(panels)))
    lines = math.ceil(len(panels) / columns)
    width = columns * (_WIDTH + _GAP) - _GAP
    height = lines * (_HEIGHT + _GAP) + 24
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<style>{_STYLE}</style>",
    ]
    for i, panel in enumerate(panels):
        x, y = (i % columns) * (_WIDTH + _GAP), (i // columns) * (_HEIGHT + _GAP)
        parts.append(f'<g transform="translate({x} {y})">{_panel(panel, names)}</g>')
    place = _LEFT
    for i, name in enumerate(names):
        parts.append(_mark(i, place, height - 12))
        parts.append(f'<text x="{place + 10}" y="{height - 8}">{escape(name)}</text>')
        place += 34 + 7 * len(name)
    return "\n".join([*parts, "</svg>\n"])


def _panel(panel: Panel, names: Sequence[str]) -> str:
    left, right = 0.0, _round_up(max([p.x for p in panel.points], default=1.0) * 1.1)
    low, high = 0.0, _round_up(max([p.high for p in panel.points], default=1.0))

    def across(x: float) -> float:
        return _LEFT + (x - left) / (right - left) * (_WIDTH - _LEFT - _RIGHT)

    def up(y: float) -> float:
        return _HEIGHT - _BOTTOM - (y - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    floor, ceiling = up(low), up(high)
    parts = [f'<text class="title" x="{_LEFT}" y="20">{escape(panel.title)}</text>']
    for k in range(5):
        x, y = across(right * k / 4), up(high * k / 4)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text class="small" x="{_LEFT - 6}" y="{y + 3:.1f}" text-anchor="end">'
                     f"{high * k / 4:g}</text>")  # fmt: skip
        parts.append(f'<text class="small" x="{x:.1f}" y="{floor + 14:.1f}" text-anchor="middle">'
                     f"{right * k / 4:g}</text>")  # fmt: skip
    parts.append(f'<path class="frame" d="M{_LEFT} {ceiling:.1f}V{floor:.1f}H{_WIDTH - _RIGHT}"/>')
    parts.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 12}" text-anchor="middle">'
                 f"{escape(panel.x_name)}</text>")  # fmt: skip
    parts.append(f'<text transform="translate(13 {_HEIGHT / 2}) rotate(-90)" text-anchor="middle">'
                 f"{escape(panel.y_name)}</text>")  # fmt: skip
    for i, name in enumerate(names):
        own = sorted((p for p in panel.points if p.series == name), key=lambda p: p.x)
        colour = _COLOURS[i % len(_COLOURS)]
        if len(own) > 1:
            path = " ".join(f"{across(p.x):.1f},{up(p.y):.1f}" for p in own)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}"/>')
        for p in own:
            x, y = across(p.x), up(p.y)
            parts.append(f'<path d="M{x:.1f} {up(p.low):.1f}V{up(p.high):.1f}" stroke="{colour}"/>')
            name = f"{p.series} {p.label}".strip()
            hint = f"{name}: {p.x:.3g}, {p.y:.3g} ({p.low:.3g} to {p.high:.3g})"
            parts.append(f"<g><title>{escape(hint)}</title>{_mark(i, x, y)}</g>")
            parts.append(f'<text class="small" x="{x + 7:.1f}" y="{y - 6:.1f}">'
                         f"{escape(p.label)}</text>")  # fmt: skip
    return "".join(parts)


def _mark(number: int, x: float, y: float) -> str:
    """The sign of a series; colour is not all that tells it apart."""
    colour = _COLOURS[number % len(_COLOURS)]
    shape = _SHAPES[number % len(_SHAPES)]
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>'
    paths = {
        "square": "M-4-4H4V4H-4Z",
        "diamond": "M0-5L5 0L0 5L-5 0Z",
        "triangle": "M0-5L5 4H-5Z",
    }
    place = f"translate({x:.1f} {y:.1f})"
    return f'<path transform="{place}" d="{paths[shape]}" fill="{colour}"/>'


def _round_up(value: float) -> float:
    """The next number whose quarters are short."""
    if value <= 0:
        return 1.0
    power = 10 ** math.floor(math.log10(value))
    return next(
        step * power for step in (1, 1.2, 1.6, 2, 3, 4, 5, 6, 8, 10) if value <= step * power
    )
