"""Revision: a filled token that AR finds improbable falls when its block is closed."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference.scripted import peaked, scripted, word
from tests.reference.tiny import MASK, run_alone
from trimode.config import GenerationOptions
from trimode.decoding import Committed, Drafted
from trimode.engine import Engine, drain

PROMPT = [9, 8, 11]
START = len(PROMPT)
RIGHT = [12, 15, 13, 17, 14, 16]
"""What AR says, whatever it sees."""
WRONG = 10


def mistaken(*wrong):
    """A model whose masks say what AR says, but at some places of the answer."""

    def script(row):
        if row.token == MASK:
            place = row.position - START
            return peaked(WRONG if place in wrong else RIGHT[place % len(RIGHT)], 0.95)
        return peaked(RIGHT[(row.position + 1 - START) % len(RIGHT)], 0.9)

    return scripted(script)


FORMS = {
    "seeded": {"seed_block": True},
    "all masks": {"seed_block": False},
    "rolling": {"rolling_block": True},
}
forms = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
ASKED = {"mode": "diffusion", "block_length": 6, "max_tokens": 6, "threshold": 0.9}


def decode(model, **options):
    return run_alone(model, PROMPT, **{**ASKED, **options})


@forms
@pytest.mark.parametrize("wrong", [(1,), (3,), (5,), (1, 4), (2, 3)])
def test_revision_repairs_an_answer_that_no_revision_gets_wrong(form, wrong):
    plain = decode(mistaken(*wrong), **form, revision_threshold=0)
    assert plain.tokens == [WRONG if i in wrong else token for i, token in enumerate(RIGHT)]
    assert plain.stats.revisions == 0
    revised = decode(mistaken(*wrong), **form, revision_threshold=0.2)
    assert revised.tokens == RIGHT
    assert revised.stats.revisions >= 1


def test_a_first_token_that_is_not_ar_s_falls_too():
    asked = {"seed_block": False, "revision_threshold": 0.2}
    assert decode(mistaken(0), **asked).tokens == RIGHT


@forms
def test_a_token_that_ar_finds_likely_enough_stands(form):
    """AR gives every other token an equal share of a tenth."""
    assert decode(mistaken(2), **form, revision_threshold=0.0001).tokens[2] == WRONG


def test_what_stood_after_a_token_that_fell_is_filled_again():
    plain, revised = (
        decode(mistaken(*wrong), seed_block=True, revision_threshold=0.2) for wrong in ((), (2,))
    )
    assert revised.tokens == plain.tokens
    assert (plain.stats.passes["close"], revised.stats.passes["close"]) == (1, 2)
    assert revised.stats.passes["denoise"] > plain.stats.passes["denoise"]


@forms
def test_drafts_show_what_ar_put_in_place_of_a_token_that_fell(form):
    engine = Engine(mistaken(2))
    options = GenerationOptions(**ASKED, **form, show_drafts=True, revision_threshold=0.2)
    engine.add(PROMPT, options)
    shown = [update.event for update in drain(engine) if isinstance(update.event, Drafted)]
    revised = [event for event in shown if "revised" in event.states]
    assert len(revised) == 1
    assert revised[0].start == START + 2
    assert revised[0].tokens == (RIGHT[2], *[MASK] * 3)
    assert revised[0].states == ("revised", *["mask"] * 3)


@settings(max_examples=60, deadline=None)
@given(
    salt=st.integers(0, 10**6),
    floor=st.floats(0.05, 1.0),
    bar=st.floats(0.3, 0.95),
    form=st.sampled_from([*FORMS.values()]),
    temperature=st.sampled_from([0.0, 1.0]),
)
def test_decoding_ends_whatever_falls(salt, floor, bar, form, temperature):
    """The model changes its mind about everything whenever anything changes."""

    def script(row):
        key = (salt, row.position, row.token, tuple(sorted(row.visible.items())))
        return peaked(word(key), 0.15 + word("p", key) / 25)

    engine = Engine(scripted(script))
    asked = {**ASKED, "max_tokens": 12, "threshold": bar, "temperature": temperature}
    sequence = engine.add(PROMPT, GenerationOptions(**asked, **form, revision_threshold=floor))
    events = [update.event for update in drain(engine)]
    assert all(event.tokens for event in events if isinstance(event, Committed))
    assert len(sequence.tokens) == 12
    assert MASK not in sequence.tokens
