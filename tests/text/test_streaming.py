"""Detokenizer, stop strings and text stream: whatever the split, the same text."""

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers

from trimode.testing import byte_tokenizer
from trimode.text import Detokenizer, StopStrings, TextStream, Tokenizer

BYTES = byte_tokenizer()


def spaced_tokenizer():
    """SentencePiece style: a word marker for spaces and bytes as a fallback."""
    words = ["<unk>", "▁", "▁the", "▁cat", "s", "a"] + [f"<0x{b:02X}>" for b in range(256)]
    backend = tokenizers.Tokenizer(
        models.BPE({w: i for i, w in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True)
    )
    backend.normalizer = normalizers.Prepend("▁")
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    return Tokenizer(backend)


SPACED = spaced_tokenizer()


@given(st.lists(st.integers(0, BYTES.vocab_size - 1), max_size=40))
def test_byte_level_pushes_join_to_the_decoded_text(ids):
    detokenizer = Detokenizer(BYTES)
    text = "".join(detokenizer.push([token]) for token in ids) + detokenizer.flush()
    assert text == BYTES.decode(ids)


whole_characters = st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd")


@given(st.text(whole_characters, max_size=30), st.integers(1, 5))
def test_no_push_shows_half_a_character(text, size):
    ids = BYTES.encode(text)
    detokenizer = Detokenizer(BYTES)
    pieces = [detokenizer.push(ids[start : start + size]) for start in range(0, len(ids), size)]
    assert not any("\ufffd" in piece for piece in pieces)


words = st.lists(st.sampled_from(["▁the", "▁cat", "s", "a"]), max_size=30)


@given(words, st.text(alphabet="é日🎉", max_size=3))
def test_spaced_pushes_join_to_the_decoded_text(pieces, tail):
    ids = [SPACED.token_id(piece) for piece in pieces]
    ids += [SPACED.token_id(f"<0x{byte:02X}>") for byte in tail.encode()]
    detokenizer = Detokenizer(SPACED)
    text = "".join(detokenizer.push([token]) for token in ids) + detokenizer.flush()
    assert text == SPACED.decode(ids)


@given(words, words)
def test_an_answer_is_what_it_adds_to_the_text_of_its_prompt(prompt, answer):
    before = [SPACED.token_id(piece) for piece in prompt]
    ids = [SPACED.token_id(piece) for piece in answer]
    detokenizer = Detokenizer(SPACED, before)
    text = "".join(detokenizer.push([token]) for token in ids) + detokenizer.flush()
    assert SPACED.decode(before) + text == SPACED.decode([*before, *ids])


def test_the_space_before_an_answers_first_word_is_kept():
    prompt = [SPACED.token_id("▁cat")]
    ids = [SPACED.token_id(piece) for piece in ("▁the", "▁cat")]
    stream = TextStream(SPACED, (), prompt)
    assert "".join(map(stream.push, ids)) + stream.finish() == " the cat"
    far = TextStream(SPACED, (), [*prompt, *[SPACED.token_id("▁")] * 100])
    assert "".join(map(far.push, ids)) + far.finish() == " the cat"
    alone = TextStream(SPACED)
    assert "".join(map(alone.push, ids)) + alone.finish() == "the cat"


def test_a_character_that_a_prompt_cuts_is_not_completed_by_the_answer():
    first, *rest = (SPACED.token_id(f"<0x{byte:02X}>") for byte in "é".encode())
    detokenizer = Detokenizer(SPACED, [SPACED.token_id("a"), first])
    assert detokenizer.push(rest) + detokenizer.flush() == "\ufffd"


@pytest.mark.parametrize("steps", [["ByteLevel"], ["ByteLevel", "Fuse"]])
def test_byte_level_decoders_in_a_sequence_are_byte_level(steps):
    backend = byte_tokenizer().backend
    backend.decoder = decoders.Sequence([getattr(decoders, step)() for step in steps])
    tokenizer = Tokenizer(backend)
    ids = tokenizer.encode("é日")
    assert [tokenizer.token_bytes(token) for token in ids] == [
        bytes([byte]) for byte in "é日".encode()
    ]


@given(st.text(max_size=12), st.text(max_size=12))
def test_a_preview_is_what_pushing_would_give_and_changes_nothing(before, after):
    seen, ahead = BYTES.encode(before), BYTES.encode(after)
    detokenizer = Detokenizer(BYTES)
    detokenizer.push(seen)
    preview = detokenizer.preview(ahead)
    assert preview == detokenizer.preview(ahead)
    assert preview == [detokenizer.push([token]) for token in ahead]


stops = st.lists(st.text(alphabet="ab", min_size=1, max_size=4), min_size=1, max_size=3)


def cut(text, stop_strings):
    """The definition: as text grows by a character, what stands before the first completed stop."""
    for end in range(len(text) + 1):
        starts = [text[:end].find(stop) for stop in stop_strings if stop in text[:end]]
        if starts:
            return text[: min(starts)], True
    return text, False


@given(st.text(alphabet="abc", max_size=20), stops)
def test_stop_strings_cut_where_the_definition_does(text, stop_strings):
    matcher = StopStrings(tuple(stop_strings))
    shown, stopped = "", False
    for character in text:
        piece, stopped = matcher.push(character)
        shown += piece
        if stopped:
            break
    shown += "" if stopped else matcher.flush()
    assert (shown, stopped) == cut(text, stop_strings)


@given(st.text(alphabet="abc", max_size=20), stops, st.integers(1, 6))
def test_no_stop_string_is_ever_shown(text, stop_strings, size):
    matcher = StopStrings(tuple(stop_strings))
    shown = ""
    for start in range(0, len(text), size):
        piece, stopped = matcher.push(text[start : start + size])
        shown += piece
        if stopped:
            break
    assert not any(stop in shown for stop in stop_strings)


def test_a_possible_beginning_is_held_back_and_shown_at_the_end():
    stream = TextStream(BYTES, ("END",))
    shown = [stream.push(token) for token in BYTES.encode("abEN")]
    assert "".join(shown) == "ab"
    assert stream.finish() == "EN"
    assert stream.text == "abEN"


def test_nothing_is_shown_after_a_stop_string():
    stream = TextStream(BYTES, ("END",))
    for token in BYTES.encode("abENDcd"):
        stream.push(token)
    assert stream.stopped
    assert stream.finish() == ""
    assert stream.text == "ab"


def test_a_stop_string_of_a_multi_byte_character_is_found():
    stream = TextStream(BYTES, ("日",))
    for token in BYTES.encode("a日b"):
        stream.push(token)
    assert stream.text == "a"
