"""The tokenizer: a thin class over `tokenizers`, made from `tokenizer.json` or GGUF metadata."""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, processors

from trimode.errors import CheckpointError, InputError
from trimode.files import LARGEST_TOKENIZER, check_file
from trimode.text.byte_bpe import BYTE_OF, byte_bpe
from trimode.text.sentencepiece import PieceType, SentencePieceVocabulary, sentencepiece
from trimode.text.sentencepiece_file import read_sentencepiece
from trimode.text.token_names import add_tokens, read_token_names

_LONG = 10_000
"""Characters from which tokenising takes so long that other threads should run beside it."""
_FALLBACK_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")
"""How SentencePiece vocabularies spell a single byte."""


class Tokenizer:
    """Text to token ids and back.

    Args:
        backend: the tokenizer of the `tokenizers` library.
        bos_token_id: the token that begins a text, if there is one.
        eos_token_id: the token that ends a text, if there is one.
        add_bos: whether `encode` begins with BOS unless told otherwise.
        named_tokens: texts of special tokens by the names that chat templates use (`eos_token`);
            None if nothing names them.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        bos_token_id: int | None = None,
        eos_token_id: int | None = None,
        add_bos: bool = False,
        named_tokens: Mapping[str, str] | None = None,
    ) -> None:
        self.backend = backend
        self.named_tokens = named_tokens
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self.add_bos = add_bos and bos_token_id is not None

    @classmethod
    def from_file(cls, path: Path) -> "Tokenizer":
        """Read a `tokenizer.json`, and what the config files beside it say of special tokens.

        `tokenizer_config.json` and then `special_tokens_map.json` name them. Tokens that are not in
        the vocabulary are added to it, as transformers does.

        Raises:
            CheckpointError: the file is missing, or one of the three is damaged.
        """
        check_file(path, LARGEST_TOKENIZER)
        names = read_token_names(path.parent)
        with _damage_named(str(path), "a tokenizer.json"):
            backend = tokenizers.Tokenizer.from_file(str(path))
            backend.no_padding()
            backend.no_truncation()
            add_tokens(backend, names.added)
            built_in = _leading_special(backend)
        named = names.named or {}
        bos, eos = (
            backend.token_to_id(named[name]) if name in named else None
            for name in ("bos_token", "eos_token")
        )
        if names.add_bos is None:
            bos, add_bos = (bos if built_in is None else built_in), built_in is not None
        else:
            bos, add_bos = (built_in if bos is None else bos), names.add_bos
        return cls(
            backend, bos_token_id=bos, eos_token_id=eos, add_bos=add_bos, named_tokens=names.named
        )

    @classmethod
    def from_directory(cls, directory: Path) -> "Tokenizer":
        """The tokenizer of a checkpoint: `tokenizer.json`, or SentencePiece's `tokenizer.model`.

        Raises:
            CheckpointError: there is neither, or a file is damaged.
        """
        whole, bare = directory / "tokenizer.json", directory / "tokenizer.model"
        if whole.exists() or not bare.exists():
            return cls.from_file(whole)
        vocabulary, names = read_sentencepiece(bare), read_token_names(directory)
        with _damage_named(str(bare), "SentencePiece's file"):
            backend = sentencepiece(vocabulary)
            add_tokens(backend, names.added)
        usual = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        named = names.named or {n: t for n, t in usual.items() if t in vocabulary.pieces}
        bos, eos = (
            backend.token_to_id(named[name]) if name in named else None
            for name in ("bos_token", "eos_token")
        )
        add_bos = names.add_bos is not False and bos is not None
        if add_bos and bos is not None:
            _begin_with(backend, bos)
        return cls(backend, bos_token_id=bos, eos_token_id=eos, add_bos=add_bos, named_tokens=named)

    @classmethod
    def from_gguf(
        cls,
        tokens: Sequence[str],
        token_types: Sequence[int],
        merges: Sequence[str],
        pre: str,
        *,
        bos_token_id: int | None = None,
        eos_token_id: int | None = None,
        add_bos: bool = False,
        named_tokens: Mapping[str, str] | None = None,
    ) -> "Tokenizer":
        """Build byte-level BPE from GGUF metadata (`tokenizer.ggml.*`).

        Args:
            tokens: the vocabulary, in GPT-2's byte alphabet, by id.
            token_types: one for each token. Control tokens are special. User-defined ones are
                matched whole in a text, but are not special.
            merges: pairs joined by a space, best first.
            pre: the pre-tokenizer's name.
            bos_token_id: the token that begins a text.
            eos_token_id: the token that ends one.
            add_bos: whether `encode` begins with BOS unless told otherwise.
            named_tokens: see the class.

        Raises:
            CheckpointError: the pre-tokenizer is not supported, or the lists contradict each other.
        """
        if len(tokens) != len(token_types):
            found = f"{len(token_types)} types for {len(tokens)} tokens"
            raise CheckpointError("tokenizer.ggml.token_type", found, "one type a token")
        _check_ids("tokenizer.ggml.", len(tokens), bos=bos_token_id, eos=eos_token_id)
        with _damage_named("tokenizer.ggml", "a byte-level BPE vocabulary"):
            backend = byte_bpe(tokens, merges, pre)
        typed = list(zip(tokens, token_types, strict=True))
        backend.add_special_tokens(
            [_added(t, special=True) for t, k in typed if k == PieceType.CONTROL]
        )
        backend.add_tokens(
            [_added(t, special=False) for t, k in typed if k == PieceType.USER_DEFINED]
        )
        if add_bos and bos_token_id is not None:
            _begin_with(backend, bos_token_id)
        return cls(
            backend,
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            add_bos=add_bos,
            named_tokens=named_tokens,
        )

    @classmethod
    def from_sentencepiece(
        cls,
        vocabulary: SentencePieceVocabulary,
        *,
        bos_token_id: int | None = None,
        eos_token_id: int | None = None,
        add_bos: bool = False,
        named_tokens: Mapping[str, str] | None = None,
    ) -> "Tokenizer":
        """Build a tokenizer of a SentencePiece vocabulary; see the class for the other arguments.

        Raises:
            CheckpointError: the vocabulary contradicts itself.
        """
        _check_ids("", len(vocabulary.pieces), bos=bos_token_id, eos=eos_token_id)
        with _damage_named("tokenizer", "a SentencePiece vocabulary"):
            backend = sentencepiece(vocabulary)
        if add_bos and bos_token_id is not None:
            _begin_with(backend, bos_token_id)
        return cls(
            backend,
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            add_bos=add_bos,
            named_tokens=named_tokens,
        )

    def save(self, path: Path) -> None:
        """Write `tokenizer.json`, whole or not at all."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(self.backend.to_str(pretty=True))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def encode(self, text: str, *, add_bos: bool | None = None) -> list[int]:
        """Token ids of a text; special tokens written in it are recognised.

        Nothing but BOS is ever added, and not even BOS if the text begins with it.

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
        with _panics_named("prompt"):
            if len(text) < _LONG:
                ids = self.backend.encode(text, add_special_tokens=False).ids
            else:  # other threads run meanwhile, which `encode` does not let them
                ids = self.backend.encode_batch([text], add_special_tokens=False)[0].ids
        wanted = self.add_bos if add_bos is None else add_bos
        bos = self.bos_token_id
        if wanted and bos is not None and ids[:1] != [bos]:
            return [bos, *ids]
        return ids

    def encode_letters(self, text: str) -> list[int]:
        """Token ids of a text whose special tokens are only the letters that spell them."""
        return self._letters_backend.encode(text, add_special_tokens=False).ids

    @cached_property
    def _letters_backend(self) -> tokenizers.Tokenizer:
        copy = tokenizers.Tokenizer.from_str(self.backend.to_str())
        copy.encode_special_tokens = True
        return copy

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of token ids; bytes that are not UTF-8 become U+FFFD, unknown ids are left out."""
        return self.backend.decode(list(ids), skip_special_tokens=skip_special)

    def token_id(self, token: str) -> int | None:
        """Id of a token by its exact text in the vocabulary."""
        return self.backend.token_to_id(token)

    def token_text(self, token_id: int) -> str:
        """Text of one token as it reads inside a text (spaces kept, special tokens spelled out).

        A token that is a piece of a character reads U+FFFD; `token_bytes` gives its bytes.
        """
        return self.token_bytes(token_id).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Raw bytes of one token, which may be a piece of a UTF-8 character."""
        spelled = self.backend.id_to_token(token_id)
        if spelled is None:
            return b""
        if self.byte_level:
            # The decoder does the same with added tokens. So one with a letter such as "é" beside
            # ASCII comes out as a bare byte, which is exact but hardly what its author meant.
            known = [BYTE_OF.get(character) for character in spelled]
            return spelled.encode() if None in known else bytes(b for b in known if b is not None)
        if token_id in self.special_ids:
            return spelled.encode()
        byte = self.fallback_byte(token_id)
        return self._text_inside(token_id).encode() if byte is None else bytes([byte])

    def fallback_byte(self, token_id: int) -> int | None:
        """The byte that a token such as `<0x0A>` stands for, if the vocabulary has such tokens.

        Neighbouring byte tokens decode together: the whole run is text, or each one is U+FFFD.
        """
        if not self._has_byte_fallback:
            return None
        match = _FALLBACK_BYTE.fullmatch(self.backend.id_to_token(token_id) or "")
        return None if match is None else int(match[1], 16)

    def is_unknown(self, token_id: int) -> bool:
        """Whether the id is not in the vocabulary (models pad theirs); decoding leaves it out."""
        return self.backend.id_to_token(token_id) is None

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that decoding skips."""
        added = self.backend.get_added_tokens_decoder()
        return frozenset(i for i, token in added.items() if token.special)

    def special_tokens_in(self, texts: Sequence[str]) -> dict[int, str]:
        """Special tokens that are spelled somewhere in the texts, by id."""
        if not texts:
            return {}
        spelled = {i: self.backend.id_to_token(i) for i in self.special_ids}
        return {i: s for i, s in spelled.items() if s and any(s in text for text in texts)}

    @cached_property
    def byte_level(self) -> bool:
        """Whether every token is a run of bytes in GPT-2's byte alphabet."""
        return {"ByteLevel"} <= self._decoding_steps <= {"ByteLevel", "Fuse"}

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return self.backend.get_vocab_size()

    @cached_property
    def _has_byte_fallback(self) -> bool:
        return "ByteFallback" in self._decoding_steps

    @cached_property
    def _decoding_steps(self) -> set[str | None]:
        decoder = _decoder(self.backend)
        return {step.get("type") for step in decoder.get("decoders", [decoder])}

    @cached_property
    def _anchor(self) -> list[int]:
        """A token with visible text. After it, decoders keep the leading space of a token."""
        for token in sorted(self.backend.get_vocab().values()):
            plain = token not in self.special_ids and self.fallback_byte(token) is None
            if plain and self.decode([token]).strip("\ufffd "):
                return [token]
        return []

    def _text_inside(self, token_id: int) -> str:
        before = self.decode(self._anchor)
        return self.decode([*self._anchor, token_id])[len(before) :]


def _check_ids(prefix: str, size: int, **ids: int | None) -> None:
    """Raise CheckpointError if a token is outside a vocabulary of `size`; names its field."""
    for name, token in ids.items():
        if token is not None and not 0 <= token < size:
            raise CheckpointError(f"{prefix}{name}_token_id", str(token), f"0 to {size - 1}")


def _begin_with(backend: tokenizers.Tokenizer, token_id: int) -> None:
    """Have texts begin with BOS, for other readers of a saved file; `encode` ignores it."""
    bos = backend.id_to_token(token_id)
    assert bos is not None
    backend.post_processor = processors.TemplateProcessing(
        single=[bos, "$A"],
        pair=[bos, "$A", f"{bos}:1", "$B:1"],
        special_tokens=[(bos, token_id)],
    )


def _added(text: str, *, special: bool) -> AddedToken:
    return AddedToken(text, special=special, normalized=False)


def _decoder(backend: tokenizers.Tokenizer) -> dict[str, Any]:
    return {} if backend.decoder is None else json.loads(backend.decoder.__getstate__())


def _leading_special(backend: tokenizers.Tokenizer) -> int | None:
    """The special token that the post-processor writes before a text."""
    with_special = backend.encode("a").ids
    plain = backend.encode("a", add_special_tokens=False).ids
    if with_special[: len(plain)] == plain:
        return None
    return with_special[0] if with_special[1 : 1 + len(plain)] == plain else None


@contextmanager
def _panics_named(field: str) -> Iterator[None]:
    """Turn a panic of the library, which is no `Exception`, into an InputError."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        allowed = "must be text that this model's tokenizer takes"
        raise InputError(field, f"the tokenizer failed ({error})", allowed) from None


@contextmanager
def _damage_named(field: str, allowed: str) -> Iterator[None]:
    """Turn what the library raises into a CheckpointError: bare exceptions, and Rust panics."""
    try:
        yield
    except CheckpointError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(field, f"not readable ({error})", allowed) from None
