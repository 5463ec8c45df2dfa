"""Brings a scan into the form that the reader knows: lines 20 pixels apart, letters 9 pixels wide.

    python -m reproduce.documents.prepare scan.png --output lines.png

Programs that read print do this first: the page is turned upright, shadows are evened out, rules
are taken out, and each line of print is cut out, scaled, and put below the one before it. The print
must be dark on light paper. Columns side by side are taken for one line.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from reproduce.documents.pages import LETTER, PITCH

_X_HEIGHT = 7.5
"""Pixels of letters without ascenders, after scaling: the middle of what pages are drawn with."""
_ADVANCE = 1.03 * LETTER
"""Pixels from letter to letter, after scaling."""
_BELOW = 1.0
"""By how many pixels the middle of such letters is below the middle of their line."""
_MARGIN = 8
"""Pixels at the left and at the right, after scaling."""
_WIDEST = 440
"""Pixels of a line, about as in pages that the reader has seen. Wide gaps of wider ones are cut."""
_GAP = 3 * round(LETTER)
"""Pixels that are left of a gap."""
_PAPER = 240
_MOST_TURNED = 3.0
"""Degrees."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of print on a scan, in its pixels."""

    top: float
    """Of letters without ascenders."""
    base: float
    """Their lower end."""
    above: float
    """Where what belongs to the line begins,"""
    below: float
    """and where it ends."""


def prepared(scan: Image.Image) -> Image.Image:
    """The print of a scan, line below line.

    Raises:
        ValueError: no print is found.
    """
    image = _upright(_evened(scan))
    ink = _ink(image)
    rules = (
        _long_runs(ink, max(40, image.width // 6))
        | _long_runs(ink.T, max(100, image.height // 4)).T
    )
    ink &= ~rules
    image = Image.fromarray(np.where(_thicker(rules), 255, np.asarray(image)).astype(np.uint8))
    lines = list(_lines(ink))
    if not lines:
        raise ValueError("no print is found: the picture must have dark letters on light paper")
    advance = _advance(ink, lines)
    columns = np.flatnonzero(ink.any(0))
    left, right = float(columns[0]), float(columns[-1] + 1)
    parts = [_closer(_scaled(image, line, left, right, advance)) for line in lines]
    width = -(-max(part.width for part in parts) // PITCH) * PITCH
    page = Image.new("L", (width, PITCH * len(parts)), _PAPER)
    for number, part in enumerate(parts):
        page.paste(part, (0, PITCH * number))
    return page.convert("RGB")


def _evened(scan: Image.Image) -> Image.Image:
    """In grey, with the same white everywhere."""
    grey = ImageOps.exif_transpose(scan).convert("L")
    small = grey.reduce(max(1, min(grey.size) // 200))
    paper = small.filter(ImageFilter.MaxFilter(9)).filter(ImageFilter.BoxBlur(6))
    white = np.asarray(paper.resize(grey.size, Image.Resampling.BILINEAR), dtype=np.float32)
    values = np.asarray(grey, dtype=np.float32) / np.maximum(white, 1) * 255
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def _ink(image: Image.Image) -> np.ndarray:
    """Which pixels are print, bool `[height, width]`."""
    values = np.asarray(image, dtype=np.float32)
    dark = np.percentile(values, 1)
    return values < (255 + min(dark, 200)) / 2


def _upright(image: Image.Image) -> Image.Image:
    """Turned so that lines lie level: there the sums of rows differ most from row to row."""
    small = image.reduce(max(1, max(image.size) // 700))
    mask = Image.fromarray((_ink(small) * 255).astype(np.uint8))

    def sharpness(angle: float) -> float:
        rows = np.asarray(mask.rotate(angle, Image.Resampling.BILINEAR), dtype=np.float32).sum(1)
        return float(np.square(np.diff(rows)).sum())

    angles = np.arange(-_MOST_TURNED, _MOST_TURNED + 0.1, 0.25)
    best = max(angles, key=sharpness)
    best = max(np.arange(best - 0.2, best + 0.21, 0.05), key=sharpness)
    return image.rotate(float(best), Image.Resampling.BICUBIC, fillcolor=255)


def _long_runs(mask: np.ndarray, length: int) -> np.ndarray:
    """Pixels in a row of so many or more that are set, side by side."""
    if length > mask.shape[1]:
        return np.zeros_like(mask)
    sums = np.cumsum(np.pad(mask.astype(np.int32), ((0, 0), (1, 0))), axis=1)
    begins = (sums[:, length:] - sums[:, :-length]) == length
    steps = np.zeros((mask.shape[0], mask.shape[1] + 1), dtype=np.int32)
    steps[:, : begins.shape[1]] += begins
    steps[:, length:] -= begins
    return np.cumsum(steps, axis=1)[:, :-1] > 0


def _thicker(mask: np.ndarray) -> np.ndarray:
    """With the pixels around: the edges of a rule are grey."""
    image = Image.fromarray((mask * 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.MaxFilter(3))) > 0


def _runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """First and last + 1 of each run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], flags.astype(np.int8), [0]))))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _lines(ink: np.ndarray) -> Iterator[Line]:
    """Lines from top to bottom, each with a height of its letters that suits its neighbours."""
    rows = ink.sum(1).astype(np.float32)
    bands = []
    for start, end in _runs(rows > 0.02 * rows.max()):
        full = rows[start:end] > 0.4 * rows[start:end].max()
        bands += [(start + a, start + b) for a, b in _runs(full)]
    heights = [end - start for start, end in bands]
    if not bands:
        return
    # Bars of capital letters and dirt make thin bands: they belong to the band beside them.
    usual = float(np.median([height for height in heights if height > 0.4 * max(heights)]))
    merged: list[tuple[int, int]] = []
    for start, end in bands:
        if merged and start - merged[-1][1] < 0.35 * usual:
            merged[-1] = (merged[-1][0], end)
        elif end - start > 0.35 * usual:
            merged.append((start, end))
    for number, (start, end) in enumerate(merged):
        height = end - start
        if 0.7 * usual < height < 1.6 * usual:  # capital letters and figures are higher
            start = end - usual
        above = (merged[number - 1][1] + start) / 2 if number else 0.0
        last = number + 1 == len(merged)
        below = float(len(rows)) if last else (end + merged[number + 1][0]) / 2
        yield Line(float(start), float(end), above, below)


def _advance(ink: np.ndarray, lines: list[Line]) -> float:
    """From letter to letter, on average, in heights of letters without ascenders."""
    found = []
    for line in lines:
        height = line.base - line.top
        rows = ink[max(0, round(line.top - 0.5 * height)) : round(line.base + 0.3 * height)]
        letters = _runs(rows.any(0))
        steps = [
            (c + d - a - b) / 2 for (a, b), (c, d) in pairwise(letters) if c - b < 0.5 * height
        ]
        if len(steps) < 5:
            continue
        usual = float(np.median(steps))
        count = sum(max(1, round(step / usual)) for step in steps)
        found.append(sum(steps) / count / height)
    return float(np.median(found)) if found else 1.05


def _scaled(
    image: Image.Image, line: Line, left: float, right: float, advance: float
) -> Image.Image:
    """A line in a row of the page."""
    height = line.base - line.top
    down, across = _X_HEIGHT / height, _ADVANCE / (advance * height)
    middle = (line.top + line.base) / 2
    top = middle - (PITCH / 2 + _BELOW) / down
    bottom = top + PITCH / down
    own = Image.new("L", image.size, 255)
    box = (0, round(max(0, line.above)), image.width, round(min(image.height, line.below)))
    own.paste(image.crop(box), box[:2])
    canvas = ImageOps.expand(own, round(PITCH / down) + 1, 255)
    shift = round(PITCH / down) + 1
    width = round((right - left) * across)
    part = canvas.resize(
        (width, PITCH), Image.Resampling.BICUBIC,
        box=(left + shift, top + shift, right + shift, bottom + shift),
    )  # fmt: skip
    row = Image.new("L", (width + 2 * _MARGIN, PITCH), 255)
    row.paste(part, (_MARGIN, 0))
    return row.point([round(value * _PAPER / 255) for value in range(256)])


def _closer(row: Image.Image) -> Image.Image:
    """A row without so much of its wide gaps as makes it wider than pages are."""
    surplus = row.width - _WIDEST
    if surplus <= 0:
        return row
    empty = ~(np.asarray(row) < _PAPER * 0.8).any(0)
    kept = np.ones(row.width, dtype=bool)
    for start, end in sorted(_runs(empty), key=lambda run: run[0] - run[1]):
        cut = min(surplus, end - start - _GAP)
        if cut <= 0:
            break
        middle = (start + end - cut) // 2
        kept[middle : middle + cut] = False
        surplus -= cut
    return Image.fromarray(np.asarray(row)[:, kept])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scan", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        with Image.open(arguments.scan) as scan:
            page = prepared(scan)
    except (OSError, ValueError) as error:
        raise SystemExit(f"{arguments.scan}: {error}") from error
    page.save(arguments.output)
    print(f"{page.height // PITCH} lines, {page.width} x {page.height} pixels")


if __name__ == "__main__":
    main()
