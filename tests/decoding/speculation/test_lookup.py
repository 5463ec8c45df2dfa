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


def test_a_prediction_is_looked_up_and_never_read_past_its_end():
    assert after([1, 2, 3], prediction=(9, 1, 2, 3, 4, 5)) == [4, 5]
    lookup = Lookup((9, 1, 2))
    lookup.extend([7])
    assert lookup.draft(9) == ([9, 1, 2], True), "an answer may begin as predicted"
    lookup.extend([9])
    assert lookup.draft(9) == ([1, 2], True), "and go on so"
    lookup.extend([2])
    assert lookup.draft(9) == ([], False)


@given(
    st.lists(st.integers(0, 2), max_size=40),
    st.lists(st.integers(0, 2), max_size=12),
    st.integers(1, 9),
)
def test_equals_a_search_from_the_end_however_the_tokens_came(tokens, prediction, step):
    lookup = Lookup(prediction)
    lookup.extend([7])
    for i in range(0, len(tokens), step):
        lookup.extend(tokens[i : i + step])
        lookup.draft(4)
    wanted: list[int] = []
    if len(tokens) < NGRAM and tokens == prediction[: len(tokens)]:
        wanted = prediction[len(tokens) :][:MAX_DRAFT]
    if len(tokens) >= NGRAM:
        last = tokens[-NGRAM:]
        for text in (tokens, prediction):
            ends = [e for e in range(NGRAM, len(text)) if list(text[e - NGRAM : e]) == last]
            if ends:
                wanted = list(text[ends[-1] :][:MAX_DRAFT])
                break
    assert lookup.draft(MAX_DRAFT)[0] == wanted
