"""Which tokens end an answer, and which texts a chat template sees: one rule for all files.

Several files of a checkpoint speak of special tokens, and they often disagree.

- An answer ends at every token that any of them calls an end: `eos_token_id` of config.json and of
  generation_config.json, the tokenizer's own `eos_token`; in a GGUF file the tokens eos, eot and
  eom. Besides, it ends at the tokens of `END_TOKENS` that the vocabulary has as special ones. So a
  chat model ends its turn although its files name only the end of a document, and the reverse.
- A chat template sees the tokenizer's own names (`tokenizer_config.json`, then
  `special_tokens_map.json`), as in transformers. Ids of config.json stand in only if the
  tokenizer has neither file.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from trimode.config import ModelConfig
from trimode.errors import CheckpointError
from trimode.files import read_json_object_if_there
from trimode.text import Tokenizer

END_TOKENS = (
    "<|im_end|>",  # ChatML
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eot_id|>",  # Llama 3
    "<|eom_id|>",
    "<|eot|>",
    "<end_of_turn>",  # Gemma
    "<|end|>",  # Phi
    "<|return|>",  # Harmony
    "<|call|>",
    "<|end_of_turn|>",
    "<|END_OF_TURN_TOKEN|>",
    "<end_of_utterance>",
    "[|endofturn|]",
    "<｜end▁of▁sentence｜>",
    "</s>",
    "<eos>",
    "[EOS]",
    "[EOT]",
    "<EOT>",
    "< EOT >",
)
"""Tokens by which chat formats end a turn or a text, or hand over to a tool.

Tokens that an answer goes on after are not among them: `<|python_tag|>` begins a tool call,
`<|end_header_id|>` and `<|end_of_role|>` end the header of a turn.
"""
_HARMONY_RETURN, _HARMONY_END = "<|return|>", "<|end|>"


def end_token_ids(
    tokenizer: Tokenizer, config: ModelConfig, more: Iterable[int] = ()
) -> tuple[int, ...]:
    """Ids that end an answer, those that the checkpoint declares first.

    Args:
        tokenizer: the checkpoint's.
        config: the model; its `eos_token_ids` come first.
        more: further ids that a file declares.
    """
    ids = {text: tokenizer.token_id(text) for text in END_TOKENS}
    if ids[_HARMONY_RETURN] is not None:  # there it ends one message, and the answer goes on
        del ids[_HARMONY_END]
    known = [i for i in ids.values() if i in tokenizer.special_ids and i != config.mask_token_id]
    # A tokenizer may have tokens that the model has no row for: it never makes them.
    own = [i for i in (tokenizer.eos_token_id, *known) if i is not None and i < config.vocab_size]
    return tuple(dict.fromkeys((*config.eos_token_ids, *more, *own)))


def template_tokens(tokenizer: Tokenizer, config: ModelConfig) -> dict[str, str]:
    """Texts of special tokens by the names that chat templates use."""
    if tokenizer.named_tokens is not None:
        return dict(tokenizer.named_tokens)
    ids = {"bos_token": config.bos_token_id, "eos_token": next(iter(config.eos_token_ids), None)}
    return {name: tokenizer.token_text(i) for name, i in ids.items() if i is not None}


def generation_config_ends(directory: Path) -> tuple[int, ...]:
    """End tokens of `generation_config.json`, if there is one.

    Raises:
        CheckpointError: the file is damaged, or its `eos_token_id` is no id.
    """
    path = directory / "generation_config.json"
    return token_ids(read_json_object_if_there(path), "eos_token_id", str(path))


def token_ids(fields: dict[str, Any], name: str, where: str) -> tuple[int, ...]:
    """Token ids of a config's field, which holds one, several or none.

    Raises:
        CheckpointError: it holds something else.
    """
    value = fields.get(name)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(i) is int and i >= 0 for i in ids):
        field = f"{where}: {name}" if where else name
        raise CheckpointError(field, repr(value), "a token id, a list of them, or null")
    return tuple(ids)
