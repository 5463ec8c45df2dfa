"""Drafts from text already seen."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimode.decoding.speculation.lookup import MAX_DRAFT, Lookup


def after(tokens, most=MAX_DRAFT, prediction=()):
    lookup = Lookup(prediction)
    lookup.extend(tokens)
    return lookup.draft(most)[0]


def test_what_followed_the_last_time():
    assert after([1, 2, 3, 4, 5, 9, 1, 2, 3]) == [4, 5, 9, 1, 2, 3]
    assert after([1, 2, 3, 4, 7, 1, 2, 3, 5, 8, 1, 2, 3], 2) == [5, 8]
    assert after([1, 2, 3, 4, 1, 2]) == []
    assert after([1, 2]) == []


def after_answer(answer, prediction, prompt=(7,)):
    lookup = Lookup(prediction)
    lookup.extend(prompt)
    lookup.extend(answer)
    return lookup.draft(MAX_DRAFT)


def test_a_prediction_is_followed_from_where_the_answer_stands():
    """Also if its last tokens occur again later, or in the prompt."""
    text = [1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3, 6]
    assert after_answer([], text) == (text, True), "an answer may begin as predicted"
    for length in range(len(text)):
        assert after_answer(text[:length], text, prompt=text) == (text[length:], True)
    assert after_answer(text, text) == ([], False), "and is never read past its end"


def test_an_answer_that_left_its_prediction_is_found_again():
    text = [1, 2, 3, 4, 1, 2, 3, 5, 8, 9, 1, 2, 3, 6]
    assert after_answer([1, 2, 3, 4, 0], text) == ([], False)
    assert after_answer([1, 2, 3, 4, 0, 1, 2, 3], text)[0] == text[7:], "the next place"
    assert after_answer([*text[:9], 0, 1, 2, 3], text)[0] == [6]
    assert after_answer([*text[:13], 0, 1, 2, 3], text)[0] == [6], "or the last one"


LONG = list(range(100, 140))


@pytest.mark.parametrize(
    ("answer", "place"),
    [
        ([*LONG[:10], 7, 8, *LONG[10:13]], 13),  # inserted
        ([*LONG[:10], *LONG[15:17]], 17),  # left out
        ([*LONG[:10], 7, *LONG[11:13]], 13),  # replaced
        ([*LONG[:10], 7, 8, 9, *LONG[12:16]], 16),
        ([*LONG[:10], 7, *LONG[11:20], 8, *LONG[20:22]], 22),  # twice
        ([7, *LONG[:4]], 4),  # at the beginning
        ([7, 8, *LONG[1:5]], 5),
    ],
)
@pytest.mark.parametrize("source", ["prediction", "prompt"])
def test_edits_are_followed(answer, place, source):
    lookup = Lookup(LONG if source == "prediction" else ())
    # A prompt begins to be followed where three of its tokens stand in a row.
    lookup.extend([5] if source == "prediction" else [*LONG, 5, *LONG[:3]])
    lookup.extend(answer if source == "prediction" or answer[0] == 7 else answer[3:])
    found, predicted = lookup.draft(MAX_DRAFT)
    assert found
    assert LONG[place : place + len(found)] == found[: len(LONG) - place]
    assert predicted == (source == "prediction")


def test_one_matching_token_is_worth_a_short_draft():
    found, _ = after_answer([*LONG[:10], 7, 8, LONG[10]], LONG)
    assert found == LONG[11:13]
    assert after_answer([*LONG[:10], 7, 8, *LONG[10:16]], LONG)[0] == LONG[16:48]


def test_the_place_with_most_before_it_is_followed():
    """The last three tokens stand twice; what is before them says which place it is."""
    text = [9, 1, 2, 3, 4, 8, 1, 2, 3, 5, 0, 0]
    assert after([*text, 9, 1, 2, 3], 1) == [4]
    assert after([*text, 8, 1, 2, 3], 1) == [5]


def test_it_stays_where_it_is_although_a_later_place_matches():
    first, second = [1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 7]
    lookup = Lookup()
    lookup.extend([*first, 9, *second, 8, 9, 9])
    lookup.extend([1, 2, 3])
    place = lookup.draft(9)[0]
    lookup.extend([4, 5])
    assert lookup.draft(7)[0] == place[2:]


@given(
    st.lists(st.integers(0, 3), max_size=40),
    st.lists(st.integers(0, 3), max_size=12),
    st.lists(st.integers(0, 3), min_size=1, max_size=12),
    st.integers(1, 9),
    st.integers(0, 40),
)
def test_however_the_tokens_come_a_draft_is_a_piece_of_what_is_known(
    answer, prediction, prompt, step, most
):
    at_once, in_steps = Lookup(prediction), Lookup(prediction)
    for lookup in (at_once, in_steps):
        lookup.extend(prompt)
    at_once.extend(answer)
    for i in range(0, len(answer), step):
        in_steps.extend(answer[i : i + step])
        in_steps.draft(4)
    found, predicted = at_once.draft(most)
    assert in_steps.draft(most) == (found, predicted)
    assert len(found) <= min(most, MAX_DRAFT)
    source = prediction if predicted else [*prompt, *answer]
    pieces = [source[i : i + len(found)] for i in range(len(source) + 1)]
    assert found in pieces
