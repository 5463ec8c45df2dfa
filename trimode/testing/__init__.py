"""A tiny random model with a byte tokenizer, for tests here and in programs that use trimode."""

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
    "tiny_config",
    "tiny_model",
    "tiny_tensors",
    "write_tiny_checkpoint",
]
