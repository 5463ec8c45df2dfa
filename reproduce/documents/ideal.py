"""A tower that makes no mistakes, since it is told what is on the page.

The language model can learn to read from it before there is a real one, and what it reaches is the
most that a real one lets it reach.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from reproduce.documents.pages import Page
from reproduce.documents.reader import Base, image_tokens
from reproduce.documents.targets import targets
from reproduce.documents.teach import CONFIG
from trimode.model import as_floats
from trimode.vision import ProcessedImage, Vision, VisionConfig, VisionModel, process

_NOISE = 0.02
"""Added to each number of an embedding; a real tower is not exact either."""


@dataclass(frozen=True, slots=True, eq=False)
class IdealPicture(ProcessedImage):
    """A page that is already read."""

    written: Tensor
    """Embeddings `[squares, text]`."""

    def normalised(self, config: VisionConfig) -> Tensor:
        """The embeddings in place of pixels."""
        del config
        return self.written


class _Written(VisionModel):
    """Takes embeddings in place of pixels."""

    def forward(self, images: Sequence[Tensor], *, recompute: bool = False) -> list[Tensor]:
        """The embeddings as they are."""
        del recompute
        return list(images)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class IdealVision(Vision):
    """Reads pages that were shown to it before."""

    base: Base
    embedding: Tensor
    shown: dict[bytes, Page] = field(default_factory=dict)

    def show(self, page: Page) -> None:
        """Tell what is on a page that will be read."""
        self.shown[page.image.tobytes()] = page

    def process(self, image: Image.Image, *, longest: int | None = None) -> ProcessedImage:
        """A page as it is read; see `show`."""
        del longest
        read = process(image, CONFIG)
        tokens = targets(self.shown.pop(image.tobytes()), read, CONFIG, self.base.tokenizer).tokens
        written = self.embedding[tokens]
        written = written + torch.randn_like(written) * _NOISE
        return IdealPicture(
            read.height, read.width, read.read, read.merged_patch, read.key, written
        )

    def encode(self, image: ProcessedImage) -> Generator[None, None, Tensor]:
        """The embeddings of a page."""
        yield
        return image.normalised(self.config)


def ideal(base: Base) -> IdealVision:
    """An ideal tower for a language model."""
    embedding = as_floats(base.checkpoint.read("embed_tokens.weight")).float()
    return IdealVision(
        config=CONFIG,
        tokens=image_tokens(base),
        layout="mistral3",
        model=_Written(CONFIG).requires_grad_(False),
        base=base,
        embedding=embedding,
    )
