"""SentencePiece vocabularies as tokenizers of the `tokenizers` library."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from trimode.errors import CheckpointError

SPACE = "\u2581"
"""How pieces spell a space."""


class PieceType(IntEnum):
    """What a piece is. GGUF's `tokenizer.ggml.token_type` has the same numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class SentencePieceVocabulary:
    """A vocabulary, by id."""

    pieces: Sequence[str]
    scores: Sequence[float]
    types: Sequence[int]
    unigram: bool = False
    """Whether the likeliest split is taken (Unigram), or pairs are merged, best first (BPE)."""
    add_space_prefix: bool = True
    remove_extra_spaces: bool = False
    charsmap: bytes = b""
    """The normalisation table of the model; empty if it changes no character."""

    def __post_init__(self) -> None:
        if not len(self.pieces) == len(self.scores) == len(self.types):
            found = f"{len(self.pieces)}, {len(self.scores)} and {len(self.types)} values"
            allowed = "as many scores and types as tokens"
            raise CheckpointError("tokenizer vocabulary", found, allowed)
        if len(set(self.pieces)) != len(self.pieces):
            raise CheckpointError("tokenizer vocabulary", "a token twice", "each token once")

    def of_type(self, kind: PieceType) -> list[str]:
        """Pieces of a type."""
        return [piece for piece, t in zip(self.pieces, self.types, strict=True) if t == kind]


def sentencepiece(vocabulary: SentencePieceVocabulary) -> tokenizers.Tokenizer:
    """A tokenizer with the vocabulary's control and user-defined pieces as added tokens.

    Raises:
        CheckpointError: the vocabulary has no piece for unknown text, or one is there twice.
    """
    unknown = vocabulary.of_type(PieceType.UNKNOWN)
    if len(unknown) != 1:
        found = f"{len(unknown)} unknown tokens"
        raise CheckpointError("tokenizer vocabulary", found, "must have one")
    bytes_too = bool(vocabulary.of_type(PieceType.BYTE))
    backend = tokenizers.Tokenizer(_model(vocabulary, unknown[0], bytes_too))
    steps: list[normalizers.Normalizer] = []
    if vocabulary.charsmap:
        steps.append(normalizers.Precompiled(vocabulary.charsmap))
    if vocabulary.remove_extra_spaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if vocabulary.add_space_prefix:
        steps.append(normalizers.Prepend(SPACE))
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    if vocabulary.unigram:  # no piece goes on after a space
        backend.pre_tokenizer = pre_tokenizers.Split(SPACE, behavior="merged_with_next")
    decoding: list[decoders.Decoder] = [
        decoders.Replace(SPACE, " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
    ]
    if vocabulary.add_space_prefix:
        decoding.append(decoders.Strip(content=" ", left=1))
    backend.decoder = decoders.Sequence(decoding)
    special = [*unknown, *vocabulary.of_type(PieceType.CONTROL)]
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    own = vocabulary.of_type(PieceType.USER_DEFINED)
    backend.add_tokens([AddedToken(t, special=False, normalized=False) for t in own])
    return backend


def _model(
    vocabulary: SentencePieceVocabulary, unknown: str, bytes_too: bool
) -> models.Unigram | models.BPE:
    ids = {piece: i for i, piece in enumerate(vocabulary.pieces)}
    if vocabulary.unigram:
        scored = list(zip(vocabulary.pieces, map(float, vocabulary.scores), strict=True))
        return models.Unigram(scored, ids[unknown], bytes_too)
    return models.BPE(
        vocab=ids,
        merges=_merges(vocabulary, ids),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=bytes_too,
    )


def _merges(vocabulary: SentencePieceVocabulary, ids: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, the pieces of best score first."""
    found = []
    made = (PieceType.NORMAL, PieceType.USER_DEFINED, PieceType.UNUSED)
    for piece, score, kind in zip(
        vocabulary.pieces, vocabulary.scores, vocabulary.types, strict=True
    ):
        if kind not in made:
            continue
        splits = ((piece[:at], piece[at:]) for at in range(1, len(piece)))
        pairs = [(left, right) for left, right in splits if left in ids and right in ids]
        pairs.sort(key=lambda pair: (ids[pair[0]], ids[pair[1]]))
        found += [(-score, pair) for pair in pairs]
    found.sort(key=lambda entry: entry[0])
    return [pair for _, pair in found]
