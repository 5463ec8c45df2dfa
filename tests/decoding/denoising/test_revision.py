"""Revision: committed tokens whose probability collapses are replaced or reopened, once each."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference.scripted import peaked, scripted, word
from tests.reference.tiny import MASK, run_alone
from trimode.config import GenerationOptions
from trimode.decoding import Drafted
from trimode.engine import Engine, drain

PROMPT = [9, 8, 11]
START = len(PROMPT)


def blockwise(denoised):
    """A model whose AR tokens are all 10; `denoised(offset, {offset: token})` gives (token, p)
    of a block position, given what the block shows; a committed one is asked about too."""

    def script(row):
        block = {i - START: t for i, t in row.visible.items() if i >= START}
        if row.token != MASK and max(row.visible) == row.position:
            return peaked(10, 0.95)  # causal: nothing after it
        return peaked(*denoised(row.position - START, block))

    return scripted(script)


def misled(offset, block):
    """Offset 1 looks like 14 until offset 3 is known to be 17; then it is plainly 15."""
    if offset == 1:
        return (15, 0.97) if block.get(3) == 17 else (14, 0.92)
    if offset == 3:
        return 17, 0.6
    return 12, 0.4 - offset / 100


def decode(model, **options):
    return run_alone(
        model,
        PROMPT,
        mode="diffusion",
        block_length=6,
        max_tokens=6,
        seed_block=False,
        **options,
    )


def test_revision_repairs_an_answer_that_no_revision_gets_wrong():
    model = blockwise(misled)
    assert decode(model).tokens == [12, 14, 12, 17, 12, 12]
    assert decode(model, revision_threshold=0.2).tokens == [12, 15, 12, 17, 12, 12]


def test_a_token_that_keeps_its_probability_is_not_revised():
    def steady(offset, block):
        return 11 + offset, 0.95 - offset / 10

    plain, revising = decode(blockwise(steady)), decode(blockwise(steady), revision_threshold=0.4)
    assert revising.tokens == plain.tokens == [11, 12, 13, 14, 15, 16]
    assert revising.stats.nfe == plain.stats.nfe


def test_a_collapsed_token_without_a_sure_replacement_becomes_a_mask_again():
    """Offset 1 collapses when offset 3 is known, to a guess below the bar; later it is sure."""

    def reopened(offset, block):
        if offset == 1:
            if block.get(4, MASK) != MASK:
                return 16, 0.8
            return (15, 0.35) if block.get(3) == 17 else (14, 0.92)
        return (17, 0.6) if offset == 3 else (12, 0.5 - offset / 100)

    events = drafts(blockwise(reopened), revision_threshold=0.2)
    assert any(e.tokens[1] == 14 for e in events), "it was committed first"
    first = next(i for i, e in enumerate(events) if e.tokens[1] == 14)
    assert any(e.tokens[1] == MASK for e in events[first:]), "and reopened later"
    assert events[-1].tokens[1] == 16


def drafts(model, **options):
    engine = Engine(model)
    engine.add(
        PROMPT,
        GenerationOptions(
            mode="diffusion",
            block_length=6,
            max_tokens=6,
            seed_block=False,
            show_drafts=True,
            **options,
        ),
    )
    return [u.event for u in drain(engine) if isinstance(u.event, Drafted)]


def changes(events, offset):
    """How often a committed offset took another value, a mask included."""
    seen = [e.tokens[offset] for e in events]
    return sum(a not in (MASK, b) for a, b in itertools.pairwise(seen))


@given(salt=st.integers(0, 10**6), floor=st.floats(0.05, 0.6), bar=st.floats(0.3, 0.95))
@settings(max_examples=60)
def test_each_position_is_revised_at_most_once_and_decoding_ends(salt, floor, bar):
    """The model changes its mind about everything whenever anything changes."""

    def fickle(offset, block):
        key = (salt, offset, tuple(sorted(block.items())))
        return word(key), 0.15 + word("p", key) / 25

    events = drafts(blockwise(fickle), revision_threshold=floor, threshold=bar)
    assert len(events) <= 6
    assert MASK not in events[-1].tokens
    for offset in range(6):
        assert changes(events, offset) <= 1


def test_the_fickle_model_does_get_revised():
    def fickle(offset, block):
        key = (5, offset, tuple(sorted(block.items())))
        return word(key), 0.15 + word("p", key) / 25

    events = drafts(blockwise(fickle), revision_threshold=0.3, threshold=0.7)
    assert sum(changes(events, offset) for offset in range(6)) >= 2


def test_the_seed_of_a_block_is_never_revised():
    def contrary(offset, block):
        return (13, 0.95) if offset == 0 else (12, 0.5 - offset / 50)

    sequence = run_alone(
        blockwise(contrary),
        PROMPT,
        mode="diffusion",
        block_length=6,
        max_tokens=6,
        revision_threshold=0.9,
    )
    assert sequence.tokens[0] == 10


@pytest.mark.parametrize("passes", [1, 2])
def test_the_last_allowed_pass_reopens_nothing(passes):
    sequence = decode(blockwise(misled), revision_threshold=0.5, max_denoising_steps=passes)
    assert MASK not in sequence.tokens
    assert sequence.stats.passes["denoise"] == passes


def test_drafts_say_which_positions_are_masked_new_kept_and_revised():
    states = [e.states[1] for e in drafts(blockwise(misled), revision_threshold=0.2)]
    first = states.index("revised")
    assert states[0] == "new"
    assert set(states[1:first]) <= {"kept"}
    assert set(states[first + 1 :]) == {"kept"}
    every = [e.states for e in drafts(blockwise(misled), revision_threshold=0.2)]
    assert every[0].count("mask") > every[1].count("mask")


def test_revisions_are_counted_where_drafts_are_shown():
    sequence = decode(blockwise(misled), revision_threshold=0.2, show_drafts=True)
    assert sequence.stats.revisions == 1


def test_revisions_are_counted_where_drafts_are_not_shown():
    sequence = decode(blockwise(misled), revision_threshold=0.2)
    assert sequence.stats.revisions == 1


def test_a_token_that_is_still_the_best_is_not_reported_as_revised():
    """The floor above the bar: 14 at 0.6 is replaced by 14 at 0.6."""

    def steady(offset, block):
        return 11 + offset, 0.6 - offset / 20

    events = drafts(blockwise(steady), revision_threshold=0.7, threshold=0.5)
    assert all("revised" not in e.states for e in events)
