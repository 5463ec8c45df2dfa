"""What the files beside a `tokenizer.json` say of special tokens, read as transformers does."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from trimode.errors import CheckpointError
from trimode.files import read_json_object_if_there

NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
"""Names of single tokens, as config files and chat templates use them."""
_LISTS = ("extra_special_tokens", "additional_special_tokens")
_FLAGS = {"single_word", "lstrip", "rstrip", "normalized", "special"}


@dataclass(frozen=True, slots=True)
class TokenNames:
    """Special tokens as the config files name them."""

    named: Mapping[str, str] | None
    """Text of a token by its name: `eos_token` and the like. Chat templates read these. None if
    there is no file that names tokens."""
    added: tuple[AddedToken, ...]
    """Tokens that the vocabulary must have, in the order in which new ones get their ids."""
    add_bos: bool | None
    """Whether a text begins with BOS; None if the files do not say."""


def read_token_names(directory: Path) -> TokenNames:
    """Read `tokenizer_config.json` and `special_tokens_map.json`, either of which may be missing.

    A name of the first file wins. The second is not read if the first lists `added_tokens_decoder`,
    since newer files repeat there what counts.

    Raises:
        CheckpointError: a file is damaged, or a field is of another type.
    """
    path = directory / "tokenizer_config.json"
    config = read_json_object_if_there(path)
    tokens = [_token(v, f"{path}: {n}") for n, v in _decoder(config, path)]
    sources = [(path, config)]
    if not config.get("added_tokens_decoder"):
        older = directory / "special_tokens_map.json"
        sources.append((older, read_json_object_if_there(older)))
    named: dict[str, AddedToken] = {}
    more: list[AddedToken] = []
    for source, fields in sources:
        for name in NAMES:
            if fields.get(name) and name not in named:
                named[name] = _token(fields[name], f"{source}: {name}")
        for name in _LISTS:
            value = fields.get(name) or []
            items = value.items() if isinstance(value, dict) else enumerate(value)
            for key, item in items:
                token = _token(item, f"{source}: {name}")
                more.append(token)
                if isinstance(key, str):  # a model's own name, such as image_token
                    named.setdefault(key, token)
    explicit = config.get("add_bos_token")
    listed = {token.content for token in tokens}
    fresh = [t for t in (*named.values(), *more) if t.content not in listed]
    return TokenNames(
        {name: token.content for name, token in named.items()}
        if any(source.exists() for source, _ in sources)
        else None,
        (*tokens, *fresh),
        explicit if isinstance(explicit, bool) else None,
    )


def add_tokens(backend: tokenizers.Tokenizer, tokens: tuple[AddedToken, ...]) -> None:
    """Put tokens into a vocabulary, or change them into special ones if it has them as plain."""
    for token in tokens:
        known = backend.get_added_tokens_decoder()
        token_id = backend.token_to_id(token.content)
        if token_id is not None and token_id in known and known[token_id].special >= token.special:
            continue
        (backend.add_special_tokens if token.special else backend.add_tokens)([token])


def _decoder(config: dict[str, Any], path: Path) -> list[tuple[str, Any]]:
    """Entries of `added_tokens_decoder` by id."""
    entries = config.get("added_tokens_decoder") or {}
    try:
        return sorted(entries.items(), key=lambda entry: int(entry[0]))
    except (AttributeError, ValueError):
        allowed = "an object of token ids"
        raise CheckpointError(f"{path}: added_tokens_decoder", repr(entries), allowed) from None


def _token(value: Any, where: str) -> AddedToken:
    """A token from its text or from its fields; one that is given as text is special."""
    if isinstance(value, str) and value:
        return AddedToken(value, special=True, normalized=False)
    if isinstance(value, dict) and isinstance(value.get("content"), str) and value["content"]:
        flags = {name: bool(value[name]) for name in _FLAGS & value.keys()}
        return AddedToken(value["content"], **{"special": True, "normalized": False, **flags})
    raise CheckpointError(where, repr(value), "the text of a token, or an object with its content")
