"""Plots of a report, drawn as SVG that follows the page's colours and needs nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH = 420
_ROW = 30
_CHARACTER = 6.6
"""About how wide a character of a label is."""


@dataclass(frozen=True, slots=True)
class Point:
    """One setting in a plot."""

    label: str
    mode: str
    """Its colour."""
    x: float
    low: float | None = None
    high: float | None = None
    y: float = 0.0
    marked: bool = False
    """On the frontier: drawn full."""


def intervals(points: Sequence[Point], *, unit: str, line_at: float | None = None) -> str:
    """A row for each setting: a dot, and its interval."""
    if not points:
        return ""
    values = [v for p in points for v in (p.x, p.low, p.high, line_at) if v is not None]
    left = min(190.0, 12 + _CHARACTER * max(len(p.label) for p in points))
    scale = _Scale(values, left, _WIDTH - 48)
    height = _ROW * len(points) + 34
    parts = [scale.axis(height - 28, unit)]
    if line_at is not None:
        x = scale(line_at)
        parts.append(f'<line class="base" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{height - 28}"/>')
    for i, point in enumerate(points):
        y = _ROW * i + _ROW / 2 + 2
        parts.append(f'<text x="0" y="{y + 4:.1f}">{escape(_short(point.label, left))}</text>')
        if point.low is not None and point.high is not None:
            parts.append(
                f'<line class="range m-{escape(point.mode)}" x1="{scale(point.low):.1f}" '
                f'x2="{scale(point.high):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
            )
        parts.append(_dot(scale(point.x), y, point))
        right = scale(max(point.x, point.high or point.x)) + 8
        parts.append(f'<text class="value" x="{right:.1f}" y="{y + 4:.1f}">{point.x:.2f}</text>')
    return _svg(height, parts, "speed of each setting with its interval")


def scatter(points: Sequence[Point], *, x_unit: str, y_unit: str) -> str:
    """Speed to the right, quality upwards."""
    if not points:
        return ""
    height, bottom = 280, 240
    across = _Scale([p.x for p in points], 44, _WIDTH - 70)
    up = _Scale([p.y for p in points], bottom, 24)
    parts = [across.axis(bottom, x_unit)]
    for tick in up.ticks:
        y = up(tick)
        parts.append(f'<line class="grid" x1="44" x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick end" x="40" y="{y + 4:.1f}">{tick:g}</text>')
    parts.append(f'<text class="tick" x="0" y="12">{escape(y_unit)}</text>')
    taken: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda p: (-p.marked, p.x)):
        x, y = across(point.x), up(point.y)
        parts.append(_dot(x, y, point))
        # A label that would cover another is left to the table.
        if all(abs(x - a) > 90 or abs(y - b) > 14 for a, b in taken):
            taken.append((x, y))
            end = x > _WIDTH - 120
            at, anchor = (x - 9, " end") if end else (x + 9, "")
            label = escape(_short(point.label, 150))
            parts.append(f'<text class="value{anchor}" x="{at:.1f}" y="{y - 7:.1f}">{label}</text>')
    return _svg(height, parts, "speed against quality")


def lines(series: Sequence[tuple[str, str, Sequence[tuple[int, float]]]], *, y_unit: str) -> str:
    """A line for each way: (label, mode, points of load and speed)."""
    if not series:
        return ""
    loads = sorted({load for _, _, points in series for load, _ in points})
    height, bottom = 270, 215
    up = _Scale([0.0, *(y for _, _, points in series for _, y in points)], bottom, 24)
    step = (_WIDTH - 44 - 130) / max(1, len(loads) - 1)
    place = {load: 54 + i * step for i, load in enumerate(loads)}
    parts = [f'<text class="tick" x="0" y="12">{escape(y_unit)}</text>']
    for tick in up.ticks:
        y = up(tick)
        parts.append(f'<line class="grid" x1="44" x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick end" x="40" y="{y + 4:.1f}">{tick:g}</text>')
    for load, x in place.items():
        parts.append(f'<text class="tick middle" x="{x:.1f}" y="{bottom + 18}">{load}</text>')
    parts.append(f'<text class="tick" x="54" y="{bottom + 38}">requests at a time</text>')
    ends: list[float] = []
    for label, mode, points in sorted(series, key=lambda s: -s[2][-1][1]):
        route = " ".join(f"{place[load]:.1f},{up(y):.1f}" for load, y in points)
        parts.append(f'<polyline class="path m-{escape(mode)}" points="{route}"/>')
        for load, y in points:
            parts.append(_dot(place[load], up(y), Point(label, mode, y, marked=True)))
        wanted = up(points[-1][1]) + 4
        at = wanted if not ends else max(wanted, ends[-1] + 15)
        ends.append(at)
        x = place[points[-1][0]] + 10
        text = escape(_short(label, 120))
        parts.append(f'<text class="value" x="{x:.1f}" y="{at:.1f}">{text}</text>')
    return _svg(max(height, int(max(ends)) + 20), parts, "speed by load")


def bars(rows: Sequence[tuple[str, str, Sequence[float]]], *, unit: str) -> str:
    """A bar for each setting: (label, mode, lengths of its parts)."""
    if not rows:
        return ""
    left = min(190.0, 12 + _CHARACTER * max(len(label) for label, _, _ in rows))
    scale = _Scale([0.0, *(sum(parts) for _, _, parts in rows)], left, _WIDTH - 48)
    height = _ROW * len(rows) + 34
    drawn = [scale.axis(height - 28, unit)]
    for i, (label, mode, parts) in enumerate(rows):
        y, at = _ROW * i + 5, 0.0
        text = escape(_short(label, left))
        drawn.append(f'<text x="0" y="{y + 16:.1f}">{text}</text>')
        for k, part in enumerate(parts):
            x, end = scale(at), scale(at + part)
            drawn.append(
                f'<rect class="bar m-{escape(mode)} part{k}" x="{x:.1f}" y="{y}" '
                f'width="{max(0.0, end - x):.1f}" height="20"/>'
            )
            at += part
        drawn.append(
            f'<text class="value" x="{scale(at) + 6:.1f}" y="{y + 15:.1f}">{at:.2f}</text>'
        )
    return _svg(height, drawn, "where time goes")


class _Scale:
    """Maps values to places, with round ticks."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        low, high = min(values), max(values)
        room = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
        self._low = low if low == 0 else low - room
        self._high = high + room
        self._start, self._end = start, end
        self.ticks = _ticks(self._low, self._high)

    def __call__(self, value: float) -> float:
        share = (value - self._low) / (self._high - self._low)
        return self._start + share * (self._end - self._start)

    def axis(self, y: float, unit: str) -> str:
        """Ticks below the plot, and what they count."""
        parts = []
        for tick in self.ticks:
            x = self(tick)
            parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{y}"/>')
            parts.append(f'<text class="tick middle" x="{x:.1f}" y="{y + 15}">{tick:g}</text>')
        parts.append(f'<text class="tick" x="0" y="{y + 15}">{escape(unit)}</text>')
        return "".join(parts)


def _ticks(low: float, high: float) -> list[float]:
    """About four round values."""
    span = (high - low) / 4
    power = 10.0 ** _floor_log10(span)
    step = next((power * k for k in (1, 2, 2.5, 5) if power * k >= span), power * 10)
    first = -(-low // step) * step
    count = int((high - first) // step) + 1
    return [round(first + i * step, 10) for i in range(max(0, count))]


def _floor_log10(value: float) -> int:
    from math import floor, log10

    return floor(log10(value))


def _dot(x: float, y: float, point: Point) -> str:
    full = " full" if point.marked else ""
    mode = escape(point.mode)
    return f'<circle class="dot m-{mode}{full}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'


def _short(label: str, width: float) -> str:
    most = int(width / _CHARACTER)
    return label if len(label) <= most else label[: most - 1] + "…"


def _svg(height: float, parts: Sequence[str], title: str) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )
