"""Rolling diffusion: what follows from its two bars, events, and the engine around it."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference.tiny import MASK, run_alone, tiny
from trimode.config import GenerationOptions
from trimode.decoding import Committed, Drafted
from trimode.decoding.denoising.led import _likely_ends
from trimode.engine import Engine, drain

PROMPT = [9, 8, 11, 10]


def decode(model, **options):
    options = {"mode": "diffusion", "rolling_block": True, "max_tokens": 24, **options}
    return run_alone(model.model, PROMPT, **options)


def test_a_bar_nothing_reaches_is_ar_decoding_pass_by_pass():
    model = tiny("llama", 1)
    sequence = decode(model, threshold=2.0)
    assert sequence.tokens == run_alone(model.model, PROMPT, max_tokens=24).tokens
    assert sequence.stats.nfe == len(sequence.tokens)


def test_without_revision_every_pass_fills_a_whole_block():
    model = tiny("llama", 1, eos=())
    sequence = decode(model, threshold=0.0, revision_threshold=0.0, block_length=6)
    assert sequence.stats.nfe == 24 / 6 + 1
    assert sequence.stats.revisions == 0


def test_revisions_are_counted_and_end_ones_text_as_ar_would():
    model = tiny("llama", 1, eos=())
    sequence = decode(model, threshold=0.0, revision_threshold=0.9999)
    assert sequence.stats.revisions > 0
    assert sequence.tokens == run_alone(model.model, PROMPT, max_tokens=24).tokens


def test_with_all_spare_drafts_no_pass_follows_a_revision_with_nothing_filled():
    model = tiny("llama", 1, eos=())
    options = {"threshold": 0.0, "revision_threshold": 0.1, "block_length": 6}
    plain, spared = decode(model, **options), decode(model, **options, spare_drafts=6)
    assert plain.stats.revisions > 0
    assert spared.stats.revisions > 0
    assert spared.stats.nfe < plain.stats.nfe


def test_spare_drafts_stand_after_the_places_that_a_revision_is_likeliest_to_end():
    # chances of the first revision there: 0.1, 0.9 * 0.5, 0.9 * 0.5 * 0.2
    assert _likely_ends([0.9, 0.5, 0.8], 1) == (2,)
    assert _likely_ends([0.9, 0.5, 0.8], 2) == (1, 2)
    assert _likely_ends([0.9, 0.5, 0.8], 9) == (1, 2, 3)
    assert _likely_ends([0.9], 0) == _likely_ends([], 3) == ()


def test_logprobs_are_those_of_ar_for_the_same_text():
    model = tiny("llama", 1, eos=())
    sequence = decode(model, threshold=2.0, logprobs=2)
    plain = run_alone(model.model, PROMPT, max_tokens=24, logprobs=2)
    ours = [round(entry.logprob, 4) for entry in sequence.logprobs]
    assert ours == [round(entry.logprob, 4) for entry in plain.logprobs]


def test_drafts_show_known_tokens_then_masks():
    model = tiny("llama", 1, eos=())
    engine = Engine(model.model)
    options = GenerationOptions(
        mode="diffusion", rolling_block=True, show_drafts=True, threshold=0.3, max_tokens=24,
        block_length=6, revision_threshold=0.3,
    )  # fmt: skip
    sequence = engine.add(PROMPT, options)
    final, states = list(PROMPT), set()
    for update in drain(engine):
        if isinstance(update.event, Committed):
            final += update.event.tokens
        elif isinstance(update.event, Drafted):
            draft = update.event
            assert draft.start == len(final) - 1
            assert draft.tokens[0] == final[-1]
            for token, state in zip(draft.tokens, draft.states, strict=True):
                assert (token == MASK) == (state == "mask")
            states.update(draft.states)
    assert states >= {"mask", "kept"}
    assert final[len(PROMPT) :] == sequence.tokens


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 50),
    threshold=st.sampled_from([0.0, 0.1, 0.5]),
    revision=st.sampled_from([0.0, 0.1, 0.5]),
    spare=st.integers(0, 9),
    block_length=st.integers(1, 9),
    max_tokens=st.integers(1, 20),
)
def test_budget_and_sampling_hold_for_any_bars(
    seed, threshold, revision, spare, block_length, max_tokens
):
    model = tiny("llama", 2, eos=())
    options = {
        "mode": "diffusion", "rolling_block": True, "temperature": 1.0, "seed": seed,
        "threshold": threshold, "revision_threshold": revision, "block_length": block_length,
        "max_tokens": max_tokens,
    }  # fmt: skip
    if revision:
        options["spare_drafts"] = spare
    first, again = (run_alone(model.model, PROMPT, **options) for _ in range(2))
    assert first.tokens == again.tokens
    assert len(first.tokens) == max_tokens
    assert MASK not in first.tokens
