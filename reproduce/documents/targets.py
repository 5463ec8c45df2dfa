"""What the tower is taught directly: which tokens and characters stand where on a page.

The renderer knows the place of every character. So each square of the page (one token of the
language model) has up to `SLOTS` tokens of the transcript that begin in it, and each patch up to
`GLYPHS` characters.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reproduce.documents.pages import Page
from trimode.text import Tokenizer
from trimode.vision import ProcessedImage, VisionConfig

SLOTS = 3
GLYPHS = 2
NONE = -1
CHARACTERS = 95
"""Printable characters of ASCII; a character's class is its code less 32."""


@dataclass(frozen=True, slots=True)
class Targets:
    """Of one page."""

    tokens: Tensor
    """Token ids `[squares, SLOTS]`, `NONE` where there is none."""
    glyphs: Tensor
    """Classes of characters `[patches, GLYPHS]`, from left to right, `NONE` where there is none."""


def targets(
    page: Page, image: ProcessedImage, config: VisionConfig, tokenizer: Tokenizer
) -> Targets:
    """What stands in each square and patch of a page.

    Squares have tokens where they stood before the page was turned, so the tower learns to turn it
    back. Patches have characters where they are seen.
    """
    scale = np.array([image.width / page.image.width, image.height / page.image.height])
    straight, seen = page.centres * scale, _turned(page) * scale
    tokens, begins = _first_characters(page.text, tokenizer)
    squares = _cells(straight[begins], config.merged_patch, image)
    ink = [i for i, character in enumerate(page.text) if character not in " \n"]
    classes = np.array([ord(page.text[i]) - 32 for i in ink])
    patches = _cells(seen[ink], config.patch_size, image)
    count = image.rows * image.columns
    return Targets(
        _slots(np.array(tokens), squares, count, SLOTS),
        _slots(classes, patches, count * config.merge_size**2, GLYPHS),
    )


def _turned(page: Page) -> np.ndarray:
    """Where the characters are on the picture."""
    angle = np.deg2rad(page.angle)
    middle = np.array([page.image.width / 2, page.image.height / 2])
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return (page.centres - middle) @ turn.T + middle


def _first_characters(text: str, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The tokens of a text in ASCII, and the character by which each is placed.

    It is the first one with ink, or the first one if there is none.
    """
    tokens, begins, start = tokenizer.encode(text), [], 0
    for token in tokens:
        part = tokenizer.decode([token])
        bare = part.lstrip()
        begins.append(start + (len(part) - len(bare) if bare else 0))
        start += len(part)
    assert start == len(text), text
    return tokens, begins


def _cells(points: np.ndarray, side: int, image: ProcessedImage) -> np.ndarray:
    """Number of the cell of each point `[n, 2]`."""
    columns, rows = image.width // side, image.height // side
    x = (points[:, 0] // side).clip(0, columns - 1).astype(int)
    y = (points[:, 1] // side).clip(0, rows - 1).astype(int)
    return y * columns + x


def _slots(values: np.ndarray, cells: np.ndarray, count: int, slots: int) -> Tensor:
    """Values by cell `[count, slots]`, in their order; what does not fit is left out."""
    found = np.full((count, slots), NONE, dtype=np.int64)
    used = np.zeros(count, dtype=int)
    for value, cell in zip(values, cells, strict=True):
        if used[cell] < slots:
            found[cell, used[cell]] = value
            used[cell] += 1
    return torch.from_numpy(found)
