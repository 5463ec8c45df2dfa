"""What the tower is taught directly: which tokens and characters stand where on a page.

The renderer knows the place of every character. So each square of the page (one token of the
language model) gets a token of the transcript, and each patch up to `GLYPHS` characters:

- A square has the token that begins in it. If several do, as digits may, the others move into the
  squares beside it.
- A token that covers more squares is repeated in them.
- Gaps within a line are spaces, and what follows a line's end are line breaks.

So the squares read like text in which tokens are repeated, which a language model nearly knows how
to read. Squares left empty are much harder for it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reproduce.documents.pages import Page
from trimode.text import Tokenizer
from trimode.vision import ProcessedImage, VisionConfig

GLYPHS = 2
NONE = -1
CHARACTERS = 95
"""Printable characters of ASCII; a character's class is its code less 32."""


@dataclass(frozen=True, slots=True)
class Targets:
    """Of one page."""

    tokens: Tensor
    """Token ids `[squares]`."""
    begins: Tensor
    """Whether a token begins in a square, and is not repeated or filled in, bool `[squares]`."""
    glyphs: Tensor
    """Classes of characters `[patches, GLYPHS]`, from left to right, `NONE` where there is none."""


@dataclass(frozen=True, slots=True)
class _Placed:
    """A token of the transcript: from the middle of its first character to that of its last."""

    token: int
    first: np.ndarray
    last: np.ndarray


def targets(
    page: Page, image: ProcessedImage, config: VisionConfig, tokenizer: Tokenizer
) -> Targets:
    """What stands in each square and patch of a page.

    Squares have tokens where they stood before the page was turned, so the tower learns to turn it
    back. Patches have characters where they are seen.
    """
    scale = np.array([image.width / page.image.width, image.height / page.image.height])
    straight, seen = page.centres * scale, _turned(page) * scale
    ink = [i for i, character in enumerate(page.text) if character not in " \n"]
    classes = np.array([ord(page.text[i]) - 32 for i in ink])
    patches = _cells(seen[ink], config.patch_size, image)
    space, line_break = (tokenizer.encode(text)[0] for text in " \n")
    rows: list[list[_Placed]] = [[] for _ in range(image.rows)]
    for placed in _placed(page.text, straight, tokenizer):
        row = int(placed.first[1] // config.merged_patch)
        rows[min(max(row, 0), image.rows - 1)].append(placed)
    filled = [_row(row, image.columns, config.merged_patch, space, line_break) for row in rows]
    return Targets(
        torch.tensor([token for row in filled for token, _ in row]),
        torch.tensor([begins for row in filled for _, begins in row]),
        _glyphs(classes, patches, image.tokens * config.merge_size**2),
    )


def _row(
    placed: list[_Placed], columns: int, side: int, space: int, line_break: int
) -> list[tuple[int, bool]]:
    """The token of each square of a row, and whether it begins there."""
    wanted = [min(max(int(p.first[0] // side), 0), columns - 1) for p in placed]
    places = spread(list(np.maximum.accumulate(wanted)) if wanted else [], columns)
    found = [(space if placed and i < places[-1] else line_break, False) for i in range(columns)]
    for p in placed:
        middles = (np.arange(columns) + 0.5) * side
        covered = np.flatnonzero((middles > p.first[0]) & (middles < p.last[0] + side / 4))
        for column in covered:
            found[column] = p.token, False
    for p, place in zip(placed, places, strict=False):
        found[place] = p.token, True
    return found


def spread(wanted: list[int], count: int) -> list[int]:
    """A place of its own for each of those that want one, in their order.

    Each moves to the right as far as it must, and to the left if there is no room. If there are
    more than `count`, the last ones get none.

    Args:
        wanted: places, none lower than the one before.
        count: places in all.
    """
    found: list[int] = []
    for place in wanted[:count]:
        found.append(max(place, found[-1] + 1) if found else place)
    room = count
    for i in range(len(found) - 1, -1, -1):
        room = found[i] = min(found[i], room - 1)
    return found


def _turned(page: Page) -> np.ndarray:
    """Where the characters are on the picture."""
    angle = np.deg2rad(page.angle)
    middle = np.array([page.image.width / 2, page.image.height / 2])
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return (page.centres - middle) @ turn.T + middle


def _placed(text: str, centres: np.ndarray, tokenizer: Tokenizer) -> Iterator[_Placed]:
    """The tokens of a text in ASCII, by their characters with ink, or by all if none has."""
    start = 0
    for token in tokenizer.encode(text):
        part = tokenizer.decode([token])
        bare = part.lstrip()
        first = start + (len(part) - len(bare) if bare else 0)
        start += len(part)
        yield _Placed(token, centres[first], centres[start - 1] if bare else centres[first])
    assert start == len(text), text


def _cells(points: np.ndarray, side: int, image: ProcessedImage) -> np.ndarray:
    """Number of the cell of each point `[n, 2]`."""
    columns, rows = image.width // side, image.height // side
    x = (points[:, 0] // side).clip(0, columns - 1).astype(int)
    y = (points[:, 1] // side).clip(0, rows - 1).astype(int)
    return y * columns + x


def _glyphs(values: np.ndarray, cells: np.ndarray, count: int) -> Tensor:
    """Values by cell `[count, GLYPHS]`, in their order; what does not fit is left out."""
    found = np.full((count, GLYPHS), NONE, dtype=np.int64)
    used = np.zeros(count, dtype=int)
    for value, cell in zip(values, cells, strict=True):
        if used[cell] < GLYPHS:
            found[cell, used[cell]] = value
            used[cell] += 1
    return torch.from_numpy(found)
