"""The open block as text: dots for masks, shades for confidence, a line under what changed."""

import pytest

from trimode.cli.render import shaded
from trimode.decoding import Drafted
from trimode.testing.tiny import byte_tokenizer
from trimode.text import TextStream

TOKENIZER = byte_tokenizer()
MASK = TOKENIZER.token_id("<|mask|>")
EOS = TOKENIZER.token_id("<|im_end|>")


def block(text, *, start=10, confidences=None, states=None):
    """A snapshot whose dots are masks."""
    tokens = []
    for character in text:
        tokens += [MASK] if character == "·" else TOKENIZER.encode(character)
    return Drafted(
        start=start,
        tokens=tuple(tokens),
        confidences=tuple(confidences or [0.5] * len(tokens)),
        states=tuple(states or ["mask" if token == MASK else "new" for token in tokens]),
    )


def shown(event, committed=10, stream=None):
    return shaded(event, committed, stream or TextStream(TOKENIZER), MASK)


def styles(text):
    return [str(span.style) for span in text.spans]


def test_masks_are_dim_dots_wherever_they_stand():
    text = shown(block("·a·b·"))
    assert text.plain == "·a·b·"
    assert [style == "dim" for style in styles(text)] == [True, False, True, False, True]


@pytest.mark.parametrize(
    ("confidence", "shade"),
    [
        (0.0, "grey35"),
        (0.19, "grey35"),
        (0.21, "grey50"),
        (0.5, "grey66"),
        (0.7, "grey82"),
        (0.81, "white"),
        (1.0, "white"),
    ],
)
def test_the_more_confident_the_brighter(confidence, shade):
    assert styles(shown(block("a", confidences=[confidence]))) == [shade]


@pytest.mark.parametrize(("state", "underlined"), [("new", 0), ("kept", 0), ("revised", 1)])
def test_only_a_revised_token_is_underlined(state, underlined):
    (style,) = styles(shown(block("a", states=[state])))
    assert ("underline" in style) == underlined


@pytest.mark.parametrize(
    ("committed", "plain"), [(8, "a·bc"), (10, "a·bc"), (11, "·bc"), (13, "c"), (14, ""), (99, "")]
)
def test_what_is_committed_is_not_shown_again(committed, plain):
    assert shown(block("a·bc"), committed).plain == plain


def test_confidences_stay_with_their_tokens_when_some_are_skipped():
    event = block("abc", confidences=[0.0, 0.5, 1.0])
    assert styles(shown(event, committed=11)) == ["grey66", "white"]


def test_a_character_of_several_tokens_appears_when_it_is_whole():
    first, second = TOKENIZER.encode("é")
    event = block("ab")
    whole = Drafted(
        start=10, tokens=(first, second), confidences=event.confidences, states=event.states
    )
    half = Drafted(start=10, tokens=(first, MASK), confidences=(0.5, 0.0), states=("new", "mask"))
    assert shown(whole).plain == "é"
    assert shown(half).plain == "·"


def test_a_character_begun_in_the_committed_text_is_completed():
    first, second = TOKENIZER.encode("é")
    stream = TextStream(TOKENIZER)
    assert stream.push(first) == ""
    event = Drafted(start=11, tokens=(second,), confidences=(0.5,), states=("new",))
    assert shown(event, 11, stream).plain == "é"


def test_special_tokens_are_not_shown():
    event = Drafted(start=10, tokens=(EOS,), confidences=(0.9,), states=("new",))
    assert shown(event).plain == ""


def test_a_preview_changes_nothing_in_the_answer():
    stream = TextStream(TOKENIZER)
    first, second = TOKENIZER.encode("é")
    stream.push(first)
    before = shown(block("abc"), 10, stream).plain
    assert shown(block("abc"), 10, stream).plain == before
    assert stream.push(second) == "é"
    assert stream.text == "é"


def test_markup_in_a_draft_is_text():
    assert shown(block("[bold]x[/bold]")).plain == "[bold]x[/bold]"


def test_a_block_without_tokens_is_empty_text():
    assert shown(block("")).plain == ""


def test_a_draft_shows_masks_as_dots_confidence_as_shade_and_revision_underlined():
    tokens = (*TOKENIZER.encode("ab"), MASK, *TOKENIZER.encode("c"))
    states = ("kept", "new", "mask", "revised")
    event = Drafted(start=5, tokens=tokens, confidences=(1.0, 0.1, 0.0, 0.99), states=states)
    text = shaded(event, 6, TextStream(TOKENIZER), MASK)
    assert text.plain == "b·c"
    styles = [str(span.style) for span in text.spans]
    assert styles == ["grey35", "dim", "white underline"]
