"""What the tower is taught directly: which letters stand where on a page.

The renderer knows the place of every character. So each square of the page (one token of the
language model) gets a token that spells what stands in it:

- A square has the token of its letter, with a space before it if it begins a word. If the square
  to the left is empty, that one has the space: so the squares of a line are its text without gaps,
  which is easiest to copy. A space before a digit is a token of its own, since the tokenizer has no
  such pairs.
- Two narrow letters in a square are one token if the tokenizer has it. Otherwise the second one
  moves into the square beside it.
- Gaps within a line are spaces, and what follows a line's end are line breaks.
- A line is twice as high as a square. The upper squares have its letters, the lower ones line
  breaks.

So the squares read like text that is spelled, which a language model nearly knows how to read. The
tower need not know which letters make a token of a word: with such targets it must learn the whole
vocabulary by heart.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reproduce.documents.pages import PITCH, Page
from trimode.text import Tokenizer
from trimode.vision import ProcessedImage, VisionConfig

_SPELLED = re.compile(" ?[!-~]{1,2}|[ \n]")


@dataclass(frozen=True, slots=True)
class Targets:
    """Of one page."""

    tokens: Tensor
    """Token ids `[squares]`."""
    filled: Tensor
    """Whether something stands in a square, bool `[squares]`."""


def spellings(tokenizer: Tokenizer) -> Tensor:
    """The ids of all tokens that a square may have, rising."""
    vocabulary = tokenizer.backend.get_vocab().values()
    texts = {token: tokenizer.decode([token]) for token in vocabulary}
    return torch.tensor(sorted(token for token, text in texts.items() if _SPELLED.fullmatch(text)))


@dataclass(frozen=True, slots=True)
class _Letter:
    """Of the transcript, with a space before it if there is one, and where its middle is."""

    spelled: str
    middle: np.ndarray


def targets(
    page: Page, image: ProcessedImage, config: VisionConfig, tokenizer: Tokenizer
) -> Targets:
    """What stands in each square of a page.

    Squares have letters where they stood before the page was turned, so the tower learns to turn it
    back.
    """
    side = config.merged_patch
    scale = np.array([image.width / page.image.width, image.height / page.image.height])
    rows: list[list[_Letter]] = [[] for _ in range(image.rows)]
    for letter in _letters(page.text, page.centres * scale, tokenizer):
        row = int(letter.middle[1] // PITCH) * (PITCH // side)
        rows[min(max(row, 0), image.rows - 1)].append(letter)
    filled = [_row(row, image.columns, side, tokenizer) for row in rows]
    return Targets(
        torch.tensor([token for row in filled for token, _ in row]),
        torch.tensor([stands for row in filled for _, stands in row]),
    )


def _row(
    letters: list[_Letter], columns: int, side: int, tokenizer: Tokenizer
) -> list[tuple[int, bool]]:
    """The token of each square of a row, and whether something stands there."""
    texts: list[str] = []
    wanted: list[int] = []
    for letter in letters:
        place = min(max(int(letter.middle[0] // side), 0), columns - 1)
        if wanted and place <= wanted[-1] and one_token(texts[-1] + letter.spelled, tokenizer):
            texts[-1] += letter.spelled
            continue
        texts.append(letter.spelled)
        wanted.append(max(place, wanted[-1]) if wanted else place)
    squares = _with_own_spaces(texts, spread(wanted, columns), tokenizer)
    space, line_break = (tokenizer.encode(text)[0] for text in " \n")
    last = squares[-1][1] if squares else 0
    found = [(space if i < last else line_break, False) for i in range(columns)]
    for text, place in squares:
        found[place] = tokenizer.encode(text)[0], True
    return found


def _with_own_spaces(
    texts: list[str], places: list[int], tokenizer: Tokenizer
) -> list[tuple[str, int]]:
    """Squares with letters or a space; a space is to the left of its word if there is room."""
    found: list[tuple[str, int]] = []
    for text, place in zip(texts, places, strict=False):
        free = bool(found) and place > found[-1][1] + 1
        if free and found[-1][0] == " ":
            found[-1] = (" ", place - 1)
        elif free and text[0] == " " and one_token(text[1:], tokenizer):
            found.append((" ", place - 1))
            text = text[1:]
        found.append((text, place))
    return found


def one_token(text: str, tokenizer: Tokenizer) -> bool:
    """Whether a square may have these letters."""
    return bool(_SPELLED.fullmatch(text)) and len(tokenizer.encode(text)) == 1


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


def _letters(text: str, middles: np.ndarray, tokenizer: Tokenizer) -> Iterator[_Letter]:
    """The letters of a text in ASCII; lines begin without a space."""
    for at, character in enumerate(text):
        before = text[at - 1] if at else "\n"
        if character in " \n":
            continue
        if before == " " and one_token(" " + character, tokenizer):
            yield _Letter(" " + character, middles[at])
            continue
        if before == " ":
            yield _Letter(" ", middles[at - 1])
        yield _Letter(character, middles[at])
