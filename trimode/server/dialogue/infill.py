"""Prompts for models that fill in what stands between a prefix and a suffix."""

from trimode.checkpoints import LoadedModel
from trimode.errors import InputError

_TOKENS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),
)
"""Tokens before the prefix, before the suffix and before the middle, which is the answer, as Qwen
Coder, StarCoder, DeepSeek Coder and CodeLlama have them."""


def infill(model: LoadedModel, prefix: str | list[int], suffix: str) -> tuple[int, ...]:
    """The tokens of a prompt whose answer fits between a prefix and a suffix.

    Raises:
        InputError: the vocabulary has no tokens for that.
    """
    encode = model.tokenizer.encode
    for spelled in _TOKENS:
        ids = [model.tokenizer.token_id(token) for token in spelled]
        if None in ids:
            continue
        before, after, middle = (i for i in ids if i is not None)
        head = encode(prefix, add_bos=False) if isinstance(prefix, str) else prefix
        return (before, *head, after, *encode(suffix, add_bos=False), middle)
    raise InputError("suffix", "given", f"{model.name} has no fill-in-the-middle tokens")
