"""Pictures in a prompt: where their embeddings stand, and by what caches know them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trimode.errors import InputError
from trimode.vision import ImageTokens, ProcessedImage


@dataclass(frozen=True, slots=True, eq=False)
class PromptImage:
    """A picture, and where its tokens begin in the prompt."""

    image: ProcessedImage
    start: int


@dataclass(slots=True, eq=False)
class PlacedImage:
    """A picture of a sequence."""

    image: ProcessedImage
    positions: np.ndarray
    """Of its embeddings in the prompt, int64 `[tokens]`, ascending."""
    embeddings: Tensor | None = None
    """`[tokens, D]`; None until the tower has run, and after the sequence has ended."""

    def rows_among(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of rows at some positions: which are the picture's, and which of its tokens they are."""
        tokens = np.searchsorted(self.positions, positions).clip(max=len(self.positions) - 1)
        rows = np.flatnonzero(self.positions[tokens] == positions)
        return rows, tokens[rows]


def place(
    prompt: Sequence[int], images: Sequence[PromptImage], tokens: ImageTokens
) -> tuple[PlacedImage, ...]:
    """Where the embeddings of a prompt's pictures stand.

    Args:
        prompt: token ids.
        images: its pictures, in order.
        tokens: by which the model's prompts hold pictures.

    Raises:
        InputError: the prompt does not hold a picture's tokens where it should begin.
    """
    placed: list[PlacedImage] = []
    ids = np.asarray(prompt, dtype=np.int64)
    free = 0
    for i, part in enumerate(images):
        layout = np.asarray(tokens.layout(part.image.rows, part.image.columns))
        stop = part.start + len(layout)
        if part.start < free or not np.array_equal(ids[part.start : stop], layout):
            found = f"no {len(layout)} tokens of a picture at position {part.start} of the prompt"
            raise InputError(f"images[{i}]", found, "a prompt as `read_prompt` makes it")
        placed.append(PlacedImage(part.image, part.start + np.flatnonzero(layout == tokens.image)))
        free = stop
    return tuple(placed)


def cache_keys(prompt: tuple[int, ...], images: Sequence[PlacedImage]) -> tuple[int, ...]:
    """What caches know the rows of a prompt by: tokens, and below 0 the pictures at their places.

    All places of a picture have one number. Prompts are compared from their beginning, so which
    of its tokens stands at a place follows from what is before it.
    """
    if not images:
        return prompt
    keys = np.asarray(prompt, dtype=np.int64)
    for placed in images:
        keys[placed.positions] = -1 - placed.image.key
    return tuple(keys.tolist())


def embeddings_at(
    images: Sequence[PlacedImage], positions: Sequence[int]
) -> tuple[Tensor, Tensor] | None:
    """Rows at some positions that stand for pictures, int64 `[m]`, and embeddings `[m, D]`."""
    if not images or min(positions) > images[-1].positions[-1]:
        return None
    where = np.asarray(positions, dtype=np.int64)
    rows: list[np.ndarray] = []
    made: list[Tensor] = []
    for placed in images:
        found, tokens = placed.rows_among(where)
        if len(found):
            assert placed.embeddings is not None, "a sequence starts once its pictures are read"
            rows.append(found)
            made.append(placed.embeddings[torch.from_numpy(tokens)])
    if not rows:
        return None
    return torch.from_numpy(np.concatenate(rows)), torch.cat(made)
