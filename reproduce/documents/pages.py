"""Draws a page line by line, and remembers where each character of its text stands."""

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from PIL.ImageFont import FreeTypeFont

from reproduce.documents.fonts import font


@dataclass(frozen=True, slots=True)
class Page:
    """A drawn document."""

    image: Image.Image
    text: str
    """What it says: lines from top to bottom, the columns of a line joined by a space."""
    centres: np.ndarray
    """Of each character of `text`, `[characters, 2]`: x and y in pixels, before the page was
    turned. A space is between its neighbours, a line's end after its last character."""
    angle: float
    """By which the page was turned about its middle, in degrees against the clock."""
    questions: tuple[tuple[str, str], ...]
    """With their answers."""
    fields: dict[str, str]
    """What the document states, by name."""
    kind: str
    face: str
    """Name of the font."""


PITCH = 20
"""Pixels from line to line; a page is a multiple of it. A document is scaled to that before it is
read, as programs that read print do with each line: it need not be learned in many sizes."""
LETTER = 9.0
"""Pixels that letters are wide on average, or more. A document in a narrow font is widened: a
square of 10 pixels holds one letter, or two that the tokenizer has as a token. If there were more
letters than squares, they would move far from their places."""

Column = tuple[float, str]
"""Where a text begins, in pixels, and the text."""


@dataclass
class Sheet:
    """A page that is being drawn."""

    width: int
    face: str
    size: float
    """Of letters, in pixels across."""
    margin: int
    """At the left and at the right."""
    rng: random.Random
    slack: float = 1.5
    """By how many pixels all lines may be higher or lower than the middles of their places."""
    lines: list[tuple[list[Column], str, int]] = field(default_factory=list)
    """Columns, face and y of the middle."""
    spread: list[tuple[list[Column], float]] = field(default_factory=list)
    """Letters by the middle of each, and y of the middle."""
    rules: list[tuple[int, int, int, int]] = field(default_factory=list)
    """Straight lines: x, y, x, y."""
    y: float = 0
    squash: float = 1.0
    """By how much less high than `size` letters are."""

    def __post_init__(self) -> None:
        self.y = PITCH / 2 + self.rng.uniform(-self.slack, self.slack)

    @property
    def right(self) -> int:
        """Where text must end."""
        return self.width - self.margin

    def length(self, text: str, face: str | None = None) -> float:
        """Pixels of a text."""
        return font(face or self.face, self.size).getlength(text)

    def line(self, *columns: Column, face: str | None = None) -> None:
        """Add a line."""
        self.lines.append(([c for c in columns if c[1]], face or self.face, round(self.y)))
        self.y += PITCH

    def left(self, text: str, face: str | None = None) -> None:
        """Add a line at the left margin."""
        self.line((self.margin, text), face=face)

    def centred(self, text: str, face: str | None = None) -> None:
        """Add a line in the middle."""
        self.line(((self.width - self.length(text, face)) / 2, text), face=face)

    def sides(self, left: str, right: str) -> None:
        """Add a line with a text at each margin."""
        self.line((self.margin, left), (self.right - self.length(right), right))

    def rule(self) -> None:
        """Draw a straight line between this line and the next one."""
        y = round(self.y - PITCH / 2)
        self.rules.append((self.margin, y, self.right, y))

    def fits(self, text: str, room: float) -> bool:
        """Whether a text is at most so many pixels long."""
        return self.length(text) <= room

    def wrapped(self, text: str, room: float) -> list[str]:
        """A text in lines of at most so many pixels."""
        lines, line = [], ""
        for word in text.split():
            longer = f"{line} {word}".strip()
            if line and not self.fits(longer, room):
                lines.append(line)
                line = word
            else:
                line = longer
        return [*lines, line] if line else lines

    def finish(
        self,
        kind: str,
        fields: dict[str, str] | None = None,
        questions: Sequence[tuple[str, str]] = (),
        *,
        clean: bool = False,
    ) -> Page:
        """The page, worn unless `clean`."""
        width = -(-self.width // PITCH) * PITCH
        height = round((self.y - PITCH / 2) / PITCH) * PITCH
        paper = self.rng.randrange(225, 256)
        ink = self.rng.randrange(0, 70)
        high = self.squash  # the page is drawn so many times as high, then made lower
        image = Image.new("L", (width, round(height * high)), paper)
        draw = ImageDraw.Draw(image)
        for left, y, right, below in self.rules:
            draw.line((left, round(y * high), right, round(below * high)), fill=(ink + paper) // 2)
        texts, centres = [], []
        for columns, face, y in self.lines:
            drawn = font(face, self.size)
            parts, places = [], []
            for x, text in columns:
                if parts:
                    parts.append(" ")
                    places.append((places[-1] + x) / 2)
                draw.text((x, y * high), text, font=drawn, fill=ink, anchor="lm")
                parts.append(text)
                places += _centres(drawn, text, x)
            parts.append("\n")
            places.append(places[-1] + self.size * 0.6 if places else self.margin)
            texts.append("".join(parts))
            centres += [(place, y) for place in places]
        for letters, y in self.spread:
            drawn = font(self.face, self.size)
            for x, letter in letters:
                draw.text((x, y * high), letter, font=drawn, fill=ink, anchor="mm")
            texts.append("".join(letter for _, letter in letters) + "\n")
            centres += [(x, y) for x, _ in letters]
            centres.append((letters[-1][0] + self.size * 0.6, y))
        text = "".join(texts)
        if image.height != height:
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        image, angle = (image, 0.0) if clean else worn(image, paper, self.rng)
        points = np.array(centres, dtype=np.float32)
        said = text.rstrip("\n")
        return Page(image.convert("RGB"), said, points[: len(said)], angle,
                    tuple(questions), dict(fields or {}), kind, self.face)  # fmt: skip


def _centres(drawn: FreeTypeFont, text: str, x: float) -> list[float]:
    """Where the middle of each character is, from the left."""
    ends = [drawn.getlength(text[:count]) for count in range(len(text) + 1)]
    return [x + (a + b) / 2 for a, b in pairwise(ends)]


def worn(image: Image.Image, paper: int, rng: random.Random) -> tuple[Image.Image, float]:
    """A page as a scanner may have seen it: turned, blurred, noisy, compressed; and the angle."""
    angle = 0.0
    if rng.random() < 0.5:
        angle = rng.uniform(-2, 2) * rng.random()
        image = image.rotate(angle, Image.Resampling.BICUBIC, fillcolor=paper)
    if rng.random() < 0.4:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.8)))
    if rng.random() < 0.5:
        pixels = np.asarray(image, dtype=np.float32)
        noise = np.random.default_rng(rng.randrange(2**32)).normal(size=pixels.shape)
        pixels = pixels + noise * rng.uniform(2, 14)
        if rng.random() < 0.3:  # a shadow from one side to the other
            pixels *= np.linspace(1, rng.uniform(0.75, 1), image.width)[None]
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    if rng.random() < 0.4:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=rng.randrange(40, 96))
        image = Image.open(buffer)
        image.load()
    return image, angle
