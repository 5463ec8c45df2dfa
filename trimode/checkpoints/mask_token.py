"""The mask token of a checkpoint that names none: an existing token that no text holds."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimode.config import ModelConfig
from trimode.errors import InputError
from trimode.text import ChatTemplate, Tokenizer
from trimode.text.byte_bpe import BYTE_OF

_MASKS = ("<|mask|>", "<mask>", "[MASK]", "<MASK>", "<|MASK|>", "<|mask_token|>", "<|mdm_mask|>")
_RESERVED = re.compile(
    r"(?:<[|｜]?|\[)"
    r"(?:reserved|unused|extra|control|special|dummy|placeholder|place▁holder▁no|pad)"
    r"[a-z_▁ ]*(\d+)(?:[|｜]?>|\])",
    re.IGNORECASE,
)
"""Numbered tokens that vocabularies keep for later: `<|reserved_special_token_0|>` (Llama 3),
`<unused0>` (Gemma), `[control_8]` and `<SPECIAL_20>` (Mistral), `<|extra_0|>` (Qwen 1),
`<｜place▁holder▁no▁0｜>` (DeepSeek), `[PAD151935]` (rows of padding in GGUF files), ..."""
_SPARE = (
    *("<|fim_pad|>", "<fim_pad>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
    *("<empty_output>", "<jupyter_script>", "<gh_stars>", "<issue_closed>"),
    *("<|finetune_right_pad_id|>", "<|pad|>", "<|padding|>", "<pad>", "[PAD]", "<PAD>"),
)
"""Tokens with a purpose that conversations do not have: padding, images, files of code."""
_UNKNOWN = ("<unk>", "[UNK]", "<|unk|>", "<UNK>")
_NEVER_IN_UTF8 = (*range(0xFF, 0xF4, -1), 0xC1, 0xC0)
_ALLOWED = "the text of one token of the vocabulary, or its id"


@dataclass(frozen=True, slots=True)
class MaskToken:
    """The token that stands for "not yet decided"."""

    id: int
    text: str | None
    """As the vocabulary spells it; None for an id beyond the vocabulary."""
    why: str
    """Where it comes from, in words."""
    chosen: bool
    """Whether this program chose it: neither the checkpoint nor the user named one."""

    def __str__(self) -> str:
        """The token and why it is the one, for people."""
        shown = "" if self.text is None else f"{self.text} "
        return f"{shown}(id {self.id}), {self.why}"


def find_mask_token(
    config: ModelConfig,
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    *,
    asked: str | int | None = None,
    directory: Path | None = None,
) -> MaskToken:
    """The mask token: the one asked for, else the checkpoint's own, else an unused token.

    An unused token is, in this order: one that is named as a mask; the last of the numbered
    reserved tokens; the last row of an embedding that has more rows than the vocabulary has
    tokens; a token for padding, images or files; the unknown token of a vocabulary that can spell
    every text; a byte that UTF-8 never has. It is never a token that ends or begins a text, nor
    one that the chat template writes.

    Args:
        config: the model.
        tokenizer: the model's.
        template: the model's chat template.
        asked: text or id of a token. Digits are an id.
        directory: of the checkpoint; its `tokenizer_config.json` may name a mask token.

    Raises:
        InputError: the token asked for is not in the vocabulary or is in use, or none is unused.
    """
    in_use = _in_use(config, tokenizer, template)
    if asked is not None:
        token = _asked(asked, config, tokenizer)
        if token in in_use:
            raise InputError("mask_token", f"{asked}, {in_use[token]}", "a token that is not used")
        return MaskToken(token, _text(tokenizer, token), "as asked for", chosen=False)
    if config.mask_token_id is not None:
        token = config.mask_token_id
        return MaskToken(token, _text(tokenizer, token), "the checkpoint's own", chosen=False)
    source = "" if template is None else template.source
    for token, why in _candidates(config, tokenizer, directory):
        text = _text(tokenizer, token)
        written = text is not None and text in source
        if 0 <= token < config.vocab_size and token not in in_use and not written:
            return MaskToken(token, text, why, chosen=True)
    found = "none, and no token of the vocabulary is unused"
    raise InputError("mask_token", found, f"give --mask-token: {_ALLOWED}")


def _candidates(
    config: ModelConfig, tokenizer: Tokenizer, directory: Path | None
) -> Iterator[tuple[int, str]]:
    """Unused tokens, best first, and what each of them is."""

    def known(*names: str) -> Iterator[int]:
        return (token for name in names if (token := tokenizer.token_id(name)) is not None)

    named = _named_in_tokenizer_config(directory)
    if named is not None:
        yield from ((token, "named by tokenizer_config.json") for token in known(named))
    yield from ((token, "named as a mask in the vocabulary") for token in known(*_MASKS))
    numbered = [
        (int(match[1]), token)
        for text, token in tokenizer.backend.get_vocab().items()
        if text[:1] in "<[" and (match := _RESERVED.fullmatch(text))
    ]
    # The last ones first: a fine-tune takes reserved tokens from the first one on.
    for _, token in sorted(numbered, reverse=True):
        yield token, "a reserved token that no text uses"
    if tokenizer.is_unknown(config.vocab_size - 1):
        yield config.vocab_size - 1, "a row of the embedding that belongs to no token"
    yield from ((token, "a token that conversations do not use") for token in known(*_SPARE))
    spells_everything = tokenizer.byte_level or tokenizer.token_id("<0xFF>") is not None
    if spells_everything:
        yield from ((token, "which no text needs: bytes spell all") for token in known(*_UNKNOWN))
    for byte in _NEVER_IN_UTF8:
        yield from ((token, "a byte that no text has") for token in _byte_token(tokenizer, byte))


def _byte_token(tokenizer: Tokenizer, byte: int) -> Iterator[int]:
    """The token of a single byte, if the vocabulary has one."""
    spelled = f"<0x{byte:02X}>"
    if tokenizer.byte_level:
        spelled = next(character for character, value in BYTE_OF.items() if value == byte)
    token = tokenizer.token_id(spelled)
    if token is not None and tokenizer.token_bytes(token) == bytes([byte]):
        yield token


def _in_use(
    config: ModelConfig, tokenizer: Tokenizer, template: ChatTemplate | None
) -> dict[int, str]:
    """Tokens that must not be the mask, and what each is used for."""
    used: dict[int, str] = {}
    source = "" if template is None else template.source
    for token, added in tokenizer.backend.get_added_tokens_decoder().items():
        if added.content in source:
            used[token] = "which the chat template writes"
    for token in (tokenizer.bos_token_id, config.bos_token_id):
        if token is not None:
            used[token] = "which begins a text"
    for token in (tokenizer.eos_token_id, *config.eos_token_ids):
        if token is not None:
            used[token] = "which ends a text or a turn"
    return used


def _asked(asked: str | int, config: ModelConfig, tokenizer: Tokenizer) -> int:
    if isinstance(asked, int) or asked.isdecimal():
        token = int(asked)
        if not 0 <= token < config.vocab_size:
            raise InputError("mask_token", str(asked), f"ids are 0..{config.vocab_size - 1}")
        return token
    token = tokenizer.token_id(asked)
    if token is None or token >= config.vocab_size:
        raise InputError("mask_token", repr(asked), f"must be {_ALLOWED}")
    return token


def _named_in_tokenizer_config(directory: Path | None) -> str | None:
    if directory is None or not (path := directory / "tokenizer_config.json").is_file():
        return None
    fields: Any = json.loads(path.read_text(encoding="utf-8"))
    token = fields.get("mask_token") if isinstance(fields, dict) else None
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _text(tokenizer: Tokenizer, token: int) -> str | None:
    return tokenizer.backend.id_to_token(token)
