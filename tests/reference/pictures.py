"""Random pictures, and prompts that hold them."""

import numpy as np
from PIL import Image

from trimode.checkpoints import LoadedModel
from trimode.engine.pictures import PromptImage
from trimode.vision import ProcessedImage


def picture(seed: int = 0, size: tuple[int, int] = (24, 16)) -> Image.Image:
    """A picture of random pixels; `size` is width and height."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def processed(
    model: LoadedModel, seed: int = 0, size: tuple[int, int] = (24, 16)
) -> ProcessedImage:
    return model.require_vision("image").process(picture(seed, size))


def prompt(
    model: LoadedModel, *parts: str | ProcessedImage
) -> tuple[tuple[int, ...], list[PromptImage]]:
    """Token ids of texts and pictures one after the other, and where the pictures are."""
    vision = model.require_vision("image")
    tokens: list[int] = []
    images: list[PromptImage] = []
    for part in parts:
        if isinstance(part, str):
            tokens += model.tokenizer.encode(part)
        else:
            images.append(PromptImage(part, len(tokens)))
            tokens += vision.prompt_tokens(part)
    return tuple(tokens), images
