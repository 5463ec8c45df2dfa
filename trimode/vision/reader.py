"""What a loaded model reads pictures with."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from trimode.vision.config import VisionConfig
from trimode.vision.images import ProcessedImage, normalised, process
from trimode.vision.model import VisionModel
from trimode.vision.tokens import ImageTokens

NO_VISION = "it has no vision part"
"""Why most models read no pictures."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PictureFormat:
    """How a model's prompts hold pictures. No weights are needed for it."""

    config: VisionConfig
    tokens: ImageTokens
    layout: str
    """`model_type` of the checkpoint: how tower, projector and language model are saved."""

    def process(self, image: Image.Image, *, longest: int | None = None) -> ProcessedImage:
        """See `trimode.vision.process`."""
        return process(image, self.config, longest=longest)

    def prompt_tokens(self, image: ProcessedImage) -> list[int]:
        """The tokens that stand for a picture in a prompt."""
        return self.tokens.layout(image.rows, image.columns)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Vision(PictureFormat):
    """The vision part of a model."""

    model: VisionModel

    def encode(self, image: ProcessedImage) -> Generator[None, None, Tensor]:
        """The embeddings `[tokens, text]` of a picture; see `VisionModel.encode`."""
        return self.model.encode(self._bands(image))

    def _bands(self, image: ProcessedImage) -> Iterator[Tensor]:
        """A picture in bands of about as many patches as a slice has rows."""
        weight = self.model.vision_tower.patch_conv.weight
        side = self.config.patch_size
        height = max(1, self.model.slice_rows // (image.width // side)) * side
        pixels = image.read()
        for top in range(0, image.height, height):
            yield normalised(pixels[top : top + height], self.config).to(weight.device)
