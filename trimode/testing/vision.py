"""A tiny random model that reads pictures."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from trimode.checkpoints import LoadedModel, save_checkpoint
from trimode.config import ModelConfig
from trimode.model import AdapterWeights
from trimode.testing.tiny import (
    CHAT_TEMPLATE,
    byte_tokenizer,
    tiny_config,
    tiny_model,
    tiny_tensors,
)
from trimode.text import ChatTemplate, Tokenizer
from trimode.vision import ImageTokens, Vision, VisionConfig, VisionModel

IMAGE_TOKENS = ("[IMG]", "[IMG_BREAK]", "[IMG_END]")
"""Ids 261 to 263 of the byte tokenizer."""


def picture_tokenizer() -> Tokenizer:
    """The byte tokenizer with the tokens of pictures: 264 ids."""
    return byte_tokenizer(IMAGE_TOKENS)


def tiny_vision(
    text: ModelConfig, *, seed: int = 0, layout: str = "nemotron_labs_diffusion_vlm", **sizes: Any
) -> Vision:
    """A random tower and projector for a language model with `picture_tokenizer`.

    Args:
        text: the language model's config.
        seed: of the weights.
        layout: how it is saved: `mistral3` or NVIDIA's.
        sizes: fields of `VisionConfig`. By default squares have 8 pixels a side and pictures at
            most 64, so a picture is at most 64 tokens and their breaks.
    """
    small = {"hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "num_heads": 2,
             "patch_size": 4, "image_size": 64}  # fmt: skip
    eps = text.rms_norm_eps
    config = VisionConfig(text_size=text.hidden_size, projector_norm_eps=eps, **{**small, **sizes})
    model = VisionModel(config).requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() == 1:
            parameter.copy_(1 + 0.1 * noise)
        else:
            parameter.copy_(noise * 1.5 * parameter[0].numel() ** -0.5)
    tokenizer = picture_tokenizer()
    image, row_break, end = (tokenizer.token_id(name) for name in IMAGE_TOKENS)
    assert image is not None
    tokens = ImageTokens(image, row_break, end)
    return Vision(config=config, tokens=tokens, layout=layout, model=model)


def tiny_vision_model(
    family: str = "nemotron_labs_diffusion",
    *,
    seed: int = 0,
    adapter: AdapterWeights | None = None,
    **overrides: Any,
) -> LoadedModel:
    """`tiny_model` with a tower; the same arguments."""
    tokenizer = picture_tokenizer()
    overrides = {"vocab_size": tokenizer.vocab_size, **overrides}
    model = tiny_model(family, seed=seed, adapter=adapter, **overrides)
    layout = "nemotron_labs_diffusion_vlm" if family == "nemotron_labs_diffusion" else "mistral3"
    vision = tiny_vision(model.config, seed=seed, layout=layout)
    return replace(model, name=f"{model.name}-vision", tokenizer=tokenizer, vision=vision)


def write_tiny_vision_checkpoint(
    directory: Path, family: str = "nemotron_labs_diffusion", *, seed: int = 0, **overrides: Any
) -> Path:
    """Save a random model that reads pictures; returns the directory."""
    tokenizer = picture_tokenizer()
    config = tiny_config(family, **{"vocab_size": tokenizer.vocab_size, **overrides})
    layout = "nemotron_labs_diffusion_vlm" if family == "nemotron_labs_diffusion" else "mistral3"
    save_checkpoint(
        directory,
        config,
        tiny_tensors(config, seed).items(),
        tokenizer=tokenizer,
        chat_template=ChatTemplate(CHAT_TEMPLATE),
        vision=tiny_vision(config, seed=seed, layout=layout),
    )
    return directory
