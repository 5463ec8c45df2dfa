"""SentencePiece vocabularies against their definition."""

import struct
from importlib.util import find_spec

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.reference import spm
from trimode.errors import CheckpointError
from trimode.text import Tokenizer
from trimode.text.sentencepiece import PieceType, SentencePieceVocabulary
from trimode.text.sentencepiece_file import read_sentencepiece

SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
WORDS = ["th", "▁t", "he", "▁th", "▁the", "the", "▁▁", "▁▁▁", "cat", "ca", "at", "▁c", "▁ca"]
LETTERS = [*"thecas", "▁", "é"]
PIECES = [*SPECIAL, *BYTES, *WORDS, *LETTERS, "[own]"]
SCORES = [0.0] * 259 + [-float(i) for i in range(len(WORDS) + len(LETTERS))] + [0.0]
TYPES = [
    PieceType.UNKNOWN, *[PieceType.CONTROL] * 2, *[PieceType.BYTE] * 256,
    *[PieceType.NORMAL] * (len(WORDS) + len(LETTERS)), PieceType.USER_DEFINED,
]  # fmt: skip


def tokenizer(**fields):
    values = {"pieces": PIECES, "scores": SCORES, "types": TYPES, **fields}
    return Tokenizer.from_sentencepiece(
        SentencePieceVocabulary(**values), bos_token_id=1, eos_token_id=2, add_bos=True
    )


texts = st.text(alphabet="the cas\u00e9日🎉\n", max_size=20)


@given(texts, st.booleans())
def test_ids_are_those_of_the_definition(text, prefix):
    ours = tokenizer(add_space_prefix=prefix).encode(text, add_bos=False)
    assert ours == spm.encode(text, PIECES, SCORES, add_space_prefix=prefix)


@given(texts, st.booleans())
def test_decoding_gives_the_text_back(text, prefix):
    ours = tokenizer(add_space_prefix=prefix)
    assert ours.decode(ours.encode(text)) == text


def test_special_and_user_defined_pieces_are_matched_whole():
    ours = tokenizer()
    ids = ours.encode("the[own]</s>")
    assert ids == [1, ours.token_id("▁the"), ours.token_id("[own]"), 2]
    assert ours.special_ids == {0, 1, 2}
    assert ours.decode(ids) == "the[own]"


def test_a_saved_vocabulary_reads_the_same(tmp_path):
    tokenizer().save(tmp_path / "tokenizer.json")
    again = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert again.encode("the cat é日") == tokenizer().encode("the cat é日")


def test_unigram_takes_the_likeliest_split():
    pieces = ["<unk>", "▁", "a", "b", "ab", "▁ab", "▁a"]
    scores = [0.0, -5.0, -3.0, -3.0, -4.0, -9.5, -2.0]
    ours = tokenizer(
        pieces=pieces, scores=scores, types=[PieceType.UNKNOWN, *[1] * 6], unigram=True
    )
    # "▁a" + "b" is -5, "▁ab" -9.5, "▁" + "ab" -9
    assert [pieces[i] for i in ours.encode("ab", add_bos=False)] == ["▁a", "b"]


def varint(value):
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def field(number, value):
    """One field of a protobuf message: a number, a float, or bytes."""
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def model_file(model_type=2, *, prefix=1, spaces=0):
    """A tokenizer.model, as sentencepiece_model.proto describes it."""
    pieces = b"".join(
        field(1, field(1, piece.encode()) + field(2, score) + field(3, int(kind)))
        for piece, score, kind in zip(PIECES, SCORES, TYPES, strict=True)
    )
    normalizer = field(1, b"identity") + field(3, prefix) + field(4, spaces)
    return pieces + field(2, field(3, model_type)) + field(3, normalizer)


@given(texts)
def test_a_tokenizer_model_is_read(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("m")
    (path / "tokenizer.model").write_bytes(model_file())
    ours = Tokenizer.from_directory(path)
    assert ours.encode(text) == [1, *spm.encode(text, PIECES, SCORES)]
    assert (ours.bos_token_id, ours.eos_token_id) == (1, 2)


@pytest.mark.skipif(find_spec("google.protobuf") is None, reason="the oracle needs protobuf")
def test_the_file_is_what_others_read(tmp_path):
    from transformers.convert_slow_tokenizer import import_protobuf

    proto = import_protobuf().ModelProto()
    proto.ParseFromString(model_file())
    (tmp_path / "tokenizer.model").write_bytes(proto.SerializeToString())
    found = read_sentencepiece(tmp_path / "tokenizer.model")
    assert list(found.pieces) == [piece.piece for piece in proto.pieces] == PIECES
    assert list(found.scores) == [piece.score for piece in proto.pieces]
    assert list(found.types) == [piece.type for piece in proto.pieces]


def test_tokenizer_json_comes_before_tokenizer_model(tmp_path):
    tokenizer(add_space_prefix=False).save(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.model").write_bytes(model_file())
    assert Tokenizer.from_directory(tmp_path).decode([264]) == PIECES[264].replace("▁", " ")


@pytest.mark.parametrize("size", [0, 1, 7, 100, 2000])
def test_a_damaged_tokenizer_model_is_named(tmp_path, size):
    (tmp_path / "tokenizer.model").write_bytes(model_file()[:size])
    with pytest.raises(CheckpointError, match=r"tokenizer\.model"):
        Tokenizer.from_directory(tmp_path)


def test_a_model_of_words_is_refused_by_name(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(model_file(3))
    with pytest.raises(CheckpointError, match="a model of type word; supported: unigram, bpe"):
        Tokenizer.from_directory(tmp_path)


@pytest.mark.parametrize(
    "fields",
    [
        {"scores": SCORES[:-1]},
        {"types": TYPES[:-1]},
        {"pieces": [*PIECES[:-1], "the"]},
        {"types": [PieceType.NORMAL, *TYPES[1:]]},
    ],
)
def test_lists_that_contradict_each_other_are_refused(fields):
    with pytest.raises(CheckpointError, match="tokenizer vocabulary"):
        tokenizer(**fields)
