"""Pictures in training rows: from a conversation to the embeddings of a pass.

The clean copy holds them as a prompt does. The noisy copy leaves their tokens out, as NLD does: it
has the length of the text (`masks.text_runs`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from trimode.engine import read_part
from trimode.errors import InputError
from trimode.model import GivenRows
from trimode.text import Tokenizer, take_images, with_images
from trimode.training.conversations import Conversation
from trimode.vision import PictureFormat, ProcessedImage, Vision


@dataclass(frozen=True, slots=True, eq=False)
class DocumentImage:
    """A picture in a document or in a batch."""

    image: ProcessedImage
    start: int
    """Where its tokens begin in the row."""
    layout: NDArray[np.int64]
    """Its tokens."""
    embedded: NDArray[np.int64]
    """Which of them its embeddings stand for."""
    row: int = 0

    @property
    def span(self) -> slice:
        """Its tokens' places in the row."""
        return slice(self.start, self.start + len(self.layout))

    def moved(self, row: int, by: int) -> "DocumentImage":
        """The same in a row of a batch."""
        return replace(self, row=row, start=self.start + by)


@dataclass(frozen=True, slots=True)
class Pictures:
    """The pictures of a conversation, by the characters that stand for them in its texts."""

    images: Mapping[str, ProcessedImage] = field(default_factory=dict)
    vision: PictureFormat | None = None
    image_token: str = ""
    """How a text spells the token of a picture."""

    def marks_in(self, messages: Sequence[Mapping[str, object]]) -> tuple[str, ...]:
        """Characters of pictures that stand in some messages."""
        text = "".join(_text(message.get("content")) for message in messages) if self.images else ""
        return tuple(mark for mark in self.images if mark in text)

    def placed(self, mark: str, start: int) -> DocumentImage:
        """A picture whose tokens begin at a place."""
        assert self.vision is not None
        image = self.images[mark]
        layout = np.asarray(self.vision.prompt_tokens(image), dtype=np.int64)
        embedded = np.flatnonzero(layout == self.vision.tokens.image)
        return DocumentImage(image, start, layout, embedded)


def _text(content: object) -> str:
    if isinstance(content, list | tuple):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return str(content)


def take_pictures(
    conversation: Conversation, tokenizer: Tokenizer, vision: PictureFormat | str
) -> tuple[Conversation, Pictures]:
    """A conversation with characters in place of its pictures, and the pictures.

    Args:
        conversation: of a row.
        tokenizer: the model's.
        vision: what the model reads pictures with, or the reason why it reads none.

    Raises:
        InputError: a picture cannot be read, or the model reads none.
    """
    messages = list(conversation.messages)
    if conversation.images:
        messages = with_images(messages, conversation.images)
    taken, parts = take_images(messages)
    if not parts:
        return conversation, Pictures()
    if isinstance(vision, str):
        raise InputError(parts[0].where, "a picture", f"the model reads none: {vision}")
    images = {part.mark: read_part(vision, part) for part in parts}
    spelled = tokenizer.token_text(vision.tokens.image)
    return replace(conversation, messages=tuple(taken)), Pictures(images, vision, spelled)


def given_rows(
    images: Sequence[DocumentImage],
    vision: Vision,
    length: int,
    device: str,
    *,
    recompute: bool = False,
) -> GivenRows:
    """What pictures become, at their rows of a pass over whole batches.

    Gradients flow into the weights of tower and projector that require them.

    Args:
        images: of the batch.
        vision: the model's.
        length: tokens of a row.
        device: where the pass runs.
        recompute: keep only the inputs of the tower's layers for the backward pass.
    """
    pixels = [part.image.normalised(vision.config).to(device) for part in images]
    embeddings = vision.model(pixels, recompute=recompute)
    rows = [part.row * length + part.start + part.embedded for part in images]
    return GivenRows(torch.from_numpy(np.concatenate(rows)).to(device), torch.cat(embeddings))
