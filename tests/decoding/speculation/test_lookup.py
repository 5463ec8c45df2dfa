"""Drafts from text already seen."""

from hypothesis import given
from hypothesis import strategies as st

from trimode.decoding.speculation.lookup import MAX_DRAFT, NGRAM, Lookup


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
    assert after_answer([1, 2, 3, 4, 0, 1, 2, 3], text) == (text[7:], True), "the next place"
    assert after_answer([*text[:9], 0, 1, 2, 3], text) == ([6], True)
    assert after_answer([0, 5, 8, 9], text) == (text[10:], True)
    assert after_answer([*text[:13], 0, 1, 2, 3], text) == ([6], True), "or the last one"


@given(
    st.lists(st.integers(0, 2), max_size=40),
    st.lists(st.integers(0, 2), max_size=12),
    st.integers(1, 9),
)
def test_equals_a_plain_search_however_the_tokens_came(answer, prediction, step):
    lookup = Lookup(prediction)
    lookup.extend([7])
    for i in range(0, len(answer), step):
        lookup.extend(answer[i : i + step])
        lookup.draft(4)
    place, along = 0, bool(prediction)
    for length in range(1, len(answer) + 1):
        if along and place < len(prediction) and prediction[place] == answer[length - 1]:
            place += 1
            continue
        ends = [
            e
            for e in range(NGRAM, len(prediction))
            if length >= NGRAM and prediction[e - NGRAM : e] == answer[length - NGRAM : length]
        ]
        along = bool(ends)
        if ends:
            place = next((e for e in ends if e >= place), ends[-1])
    wanted, predicted = (prediction[place:][:MAX_DRAFT], True) if along else ([], False)
    if not wanted:
        predicted, last = False, answer[-NGRAM:]
        ends = [e for e in range(NGRAM, len(answer)) if answer[e - NGRAM : e] == last]
        wanted = answer[ends[-1] :][:MAX_DRAFT] if ends else []
    assert lookup.draft(MAX_DRAFT) == (wanted, predicted)
