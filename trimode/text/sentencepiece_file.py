"""Reads `tokenizer.model`: SentencePiece's protobuf, of which few fields matter here.

Source of the field numbers: sentencepiece_model.proto of google/sentencepiece.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

from trimode.errors import CheckpointError
from trimode.files import LARGEST_TOKENIZER, check_file
from trimode.text.sentencepiece import PieceType, SentencePieceVocabulary

_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_MODEL_TYPE = 3
_MODEL_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
_CHARSMAP, _ADD_PREFIX, _REMOVE_SPACES = 2, 3, 4

Value = int | float | bytes


def read_sentencepiece(path: Path) -> SentencePieceVocabulary:
    """The vocabulary of a `tokenizer.model`.

    Raises:
        CheckpointError: the file is missing or damaged, or of a kind that is not supported.
    """
    check_file(path, LARGEST_TOKENIZER)
    try:
        fields = list(_fields(path.read_bytes()))
        pieces = [dict(_fields(_bytes(v))) for number, v in fields if number == _PIECES]
        trainer = _one(fields, _TRAINER)
        normalizer = _one(fields, _NORMALIZER)
        vocabulary = SentencePieceVocabulary(
            pieces=[_bytes(piece[1]).decode() for piece in pieces],
            scores=[float(piece.get(2, 0.0)) for piece in pieces],
            types=[int(piece.get(3, PieceType.NORMAL)) for piece in pieces],
            unigram=_model_type(trainer, path) == "unigram",
            add_space_prefix=bool(normalizer.get(_ADD_PREFIX, 1)),
            remove_extra_spaces=bool(normalizer.get(_REMOVE_SPACES, 1)),
            charsmap=_bytes(normalizer.get(_CHARSMAP, b"")),
        )
    except (ValueError, KeyError, TypeError, struct.error, OSError) as error:
        if isinstance(error, CheckpointError):
            raise CheckpointError(f"{path}: {error.field}", error.found, error.allowed) from None
        raise CheckpointError(
            str(path), f"not readable ({error})", "SentencePiece's file"
        ) from None
    if not vocabulary.pieces:
        raise CheckpointError(str(path), "not readable (no pieces)", "SentencePiece's file")
    return vocabulary


def _model_type(trainer: dict[int, Value], path: Path) -> str:
    kind = _MODEL_TYPES.get(int(trainer.get(_MODEL_TYPE, 1)), "unknown")
    if kind not in ("unigram", "bpe"):
        raise CheckpointError(str(path), f"a model of type {kind}", "supported: unigram, bpe")
    return kind


def _one(fields: list[tuple[int, Value]], number: int) -> dict[int, Value]:
    """A message that every file has."""
    found = next((v for n, v in fields if n == number), None)
    if found is None:
        raise ValueError("it ends before its settings")
    return dict(_fields(_bytes(found)))


def _bytes(value: Value) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number in place of a message")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, Value]]:
    """Field numbers and values of a protobuf message."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield number, value
        elif kind == 1:
            yield number, struct.unpack_from("<d", data, at)[0]
            at += 8
        elif kind == 2:
            size, at = _varint(data, at)
            if at + size > len(data):
                raise ValueError("it ends inside a field")
            yield number, data[at : at + size]
            at += size
        elif kind == 5:
            yield number, struct.unpack_from("<f", data, at)[0]
            at += 4
        else:
            raise ValueError(f"a field of wire type {kind}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("it ends inside a number")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
