"""Tiny models, random ones and one that says a text: for tests here and in other programs."""

from trimode.testing.saying import saying_model
from trimode.testing.tiny import (
    CHAT_TEMPLATE,
    byte_tokenizer,
    tiny_config,
    tiny_model,
    tiny_tensors,
    write_tiny_checkpoint,
)
from trimode.testing.vision import (
    IMAGE_TOKENS,
    picture_tokenizer,
    tiny_vision,
    tiny_vision_model,
    write_tiny_vision_checkpoint,
)

__all__ = [
    "CHAT_TEMPLATE",
    "IMAGE_TOKENS",
    "byte_tokenizer",
    "picture_tokenizer",
    "saying_model",
    "tiny_config",
    "tiny_model",
    "tiny_tensors",
    "tiny_vision",
    "tiny_vision_model",
    "write_tiny_checkpoint",
    "write_tiny_vision_checkpoint",
]
