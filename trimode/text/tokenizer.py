"""Tokens: a thin class over `tokenizers`, from a `tokenizer.json` or from GGUF metadata."""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from trimode.errors import CheckpointError, InputError

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

# Values of GGUF's `tokenizer.ggml.pre` -> (digits split one by one, regex)
_PRE_TOKENIZERS = {
    "smollm": (True, _GPT2),
    "default": (False, _GPT2),
    "gpt-2": (False, _GPT2),
    "llama-bpe": (False, _LLAMA3),
    "qwen2": (False, _QWEN2),
}
_CONTROL, _USER_DEFINED = 3, 4
"""GGUF token types."""


class Tokenizer:
    """Text to token ids and back."""

    def __init__(self, backend: tokenizers.Tokenizer, *, add_bos_id: int | None = None) -> None:
        self.backend = backend
        self.add_bos_id = add_bos_id
        """Put before every encoded text unless told otherwise."""

    @classmethod
    def from_file(cls, path: Path) -> "Tokenizer":
        """Read a `tokenizer.json`.

        Raises:
            CheckpointError: the file is missing or damaged.
        """
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # noqa: BLE001 - the library raises bare Exception
            raise CheckpointError(
                str(path), f"not readable ({error})", "a tokenizer.json"
            ) from None
        backend.no_padding()
        backend.no_truncation()
        return cls(backend)

    @classmethod
    def from_gguf(
        cls,
        tokens: Sequence[str],
        token_types: Sequence[int],
        merges: Sequence[str],
        pre: str,
        *,
        add_bos_id: int | None = None,
    ) -> "Tokenizer":
        """Build byte-level BPE from GGUF metadata (`tokenizer.ggml.*`).

        Raises:
            CheckpointError: the pre-tokenizer is not one of those supported.
        """
        if pre not in _PRE_TOKENIZERS:
            supported = ", ".join(_PRE_TOKENIZERS)
            raise CheckpointError("tokenizer.ggml.pre", repr(pre), f"supported: {supported}")
        single_digits, pattern = _PRE_TOKENIZERS[pre]
        pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
        vocabulary = {token: i for i, token in enumerate(tokens)}
        try:
            backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
        except Exception as error:  # noqa: BLE001 - the library raises bare Exception
            allowed = "each merge must join two tokens into a third"
            raise CheckpointError("tokenizer.ggml.merges", str(error), allowed) from None
        steps: list[pre_tokenizers.PreTokenizer] = []
        if single_digits:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        steps.append(pre_tokenizers.Split(Regex(pattern), behavior="isolated"))
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
        backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
        backend.decoder = decoders.ByteLevel()
        typed = list(zip(tokens, token_types, strict=True))
        backend.add_special_tokens(
            [_added(t, special=True) for t, kind in typed if kind == _CONTROL]
        )
        backend.add_tokens([_added(t, special=False) for t, kind in typed if kind == _USER_DEFINED])
        return cls(backend, add_bos_id=add_bos_id)

    def save(self, path: Path) -> None:
        """Write `tokenizer.json`, whole or not at all."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        self.backend.save(str(temporary))
        temporary.replace(path)

    def encode(self, text: str, *, add_bos: bool | None = None) -> list[int]:
        """Token ids of a text; special tokens written in it are recognised.

        Args:
            text: any string that UTF-8 can hold.
            add_bos: whether to begin with the BOS token; default as the checkpoint says.

        Raises:
            InputError: the text holds a lone surrogate.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            found = f"character {error.start} is a lone surrogate"
            raise InputError("prompt", found, "must be text that UTF-8 can hold") from None
        ids = self.backend.encode(text, add_special_tokens=add_bos is not False).ids
        bos = self.add_bos_id
        if bos is not None and add_bos is not False and ids[:1] != [bos]:
            ids.insert(0, bos)
        return ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of token ids; bytes that are no UTF-8 become U+FFFD."""
        return self.backend.decode(list(ids), skip_special_tokens=skip_special)

    def token_id(self, token: str) -> int | None:
        """Id of a token by its exact text in the vocabulary."""
        return self.backend.token_to_id(token)

    def token_text(self, token_id: int) -> str:
        """Text of one token, special tokens included."""
        if token_id in self.special_ids:
            return self.backend.id_to_token(token_id) or ""
        return self.decode([token_id], skip_special=False)

    def token_bytes(self, token_id: int) -> bytes:
        """Raw bytes of one token, which may be a piece of a UTF-8 character."""
        text = self.backend.id_to_token(token_id)
        if text is None:
            return b""
        if self.byte_level and token_id not in self._added_ids:
            return bytes(_BYTE_OF.get(c, 0xFF) for c in text)
        return self.token_text(token_id).encode()

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that decoding skips."""
        added = self.backend.get_added_tokens_decoder()
        return frozenset(i for i, token in added.items() if token.special)

    @cached_property
    def byte_level(self) -> bool:
        """Whether every token is a run of bytes in GPT-2's byte alphabet."""
        return type(self.backend.decoder).__name__ == "ByteLevel"

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return self.backend.get_vocab_size()

    @cached_property
    def _added_ids(self) -> frozenset[int]:
        return frozenset(self.backend.get_added_tokens_decoder())


def _added(text: str, *, special: bool) -> AddedToken:
    return AddedToken(text, special=special, normalized=False)


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character for each byte, inverted."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
