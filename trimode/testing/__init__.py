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

__all__ = [
    "CHAT_TEMPLATE",
    "byte_tokenizer",
    "saying_model",
    "tiny_config",
    "tiny_model",
    "tiny_tensors",
    "write_tiny_checkpoint",
]
