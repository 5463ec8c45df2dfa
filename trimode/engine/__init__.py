"""The step loop that runs any number of sequences, and the public API on top of it."""

from trimode.engine.engine import (
    DEFAULT_KV_CACHE_BYTES,
    DEFAULT_MAX_SEQUENCES,
    Engine,
    Update,
    drain,
)
from trimode.engine.generate import generate, generate_batch, stream
from trimode.engine.pictures import PromptImage
from trimode.engine.prompts import (
    EncodedPrompt,
    Prompt,
    encode_pictures,
    encode_prompt,
    image_text,
    read_part,
    read_prompt,
)
from trimode.engine.request import check_mode, check_prompt, resolve, settings_in_force
from trimode.engine.result import GenerationResult
from trimode.engine.sequence import FinishReason, Sequence

__all__ = [
    "DEFAULT_KV_CACHE_BYTES",
    "DEFAULT_MAX_SEQUENCES",
    "EncodedPrompt",
    "Engine",
    "FinishReason",
    "GenerationResult",
    "Prompt",
    "PromptImage",
    "Sequence",
    "Update",
    "check_mode",
    "check_prompt",
    "drain",
    "encode_pictures",
    "encode_prompt",
    "generate",
    "generate_batch",
    "image_text",
    "read_part",
    "read_prompt",
    "resolve",
    "settings_in_force",
    "stream",
]
