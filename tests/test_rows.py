"""Names that were probably meant."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trimode.rows import near_miss

KNOWN = ("n", "seed", "stop", "temperature", "block_length", "max_tokens")


@given(st.text(max_size=15), st.permutations(KNOWN))
@example("", KNOWN)
@example(" ", KNOWN)
@example("-", KNOWN)
def test_any_text_may_be_a_name(name, known):
    """Files and requests have names that their writers chose, also empty ones."""
    assert near_miss(name, known) in (None, *known)


@pytest.mark.parametrize("name", ["", " ", "\t\n", "-", "__", "\0", "\ud800"])
def test_a_name_without_letters_is_near_to_none(name):
    assert near_miss(name, KNOWN) is None


@given(st.sampled_from(KNOWN), st.data())
def test_a_letter_too_much_is_a_slip(name, data):
    at = data.draw(st.integers(1, len(name)))
    assert near_miss(f"{name[:at]}x{name[at:]}", KNOWN) == name


def test_the_nearest_name_wins_wherever_it_stands():
    assert near_miss("max_tokenss", ("max_token", "max_tokens")) == "max_tokens"
    assert near_miss("max_tokenss", ("max_tokens", "max_token")) == "max_tokens"
