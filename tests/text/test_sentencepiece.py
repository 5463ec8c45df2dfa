"""SentencePiece vocabularies against their definition."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.reference import spm
from trimode.errors import CheckpointError
from trimode.text import Tokenizer
from trimode.text.sentencepiece import PieceType, SentencePieceVocabulary

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
