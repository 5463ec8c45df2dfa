"""What decoders report: drafts as they change, tokens once they are final."""

import itertools

import pytest

from tests.reference.scripted import scripted, speculative
from tests.reference.tiny import MASK
from trimode.config import GenerationOptions
from trimode.decoding import Committed, Drafted
from trimode.engine import Engine, drain

PROMPT = [9, 8, 11]
MODES = {
    "linear": {"mode": "linear"},
    "linear-all-masks": {"mode": "linear", "seed_block": False},
    "linear-threshold": {"mode": "linear", "threshold": 0.9},
    "quadratic": {"mode": "quadratic"},
    "diffusion": {"mode": "diffusion"},
    "diffusion-all-masks": {"mode": "diffusion", "seed_block": False},
}
each_mode = pytest.mark.parametrize("options", MODES.values(), ids=MODES)


def drafts(events):
    """The snapshots among events, of which there must be some."""
    found = [event for event in events if isinstance(event, Drafted)]
    assert found
    return found


def run(options, **more):
    script = speculative(lambda position: position % 4 > 0)
    engine = Engine(scripted(script))
    asked = GenerationOptions(block_length=5, max_tokens=18, **options, **more)
    sequence = engine.add(PROMPT, asked)
    return sequence, [update.event for update in drain(engine)]


@each_mode
def test_showing_drafts_changes_neither_tokens_nor_passes(options):
    plain, events = run(options)
    shown, more = run(options, show_drafts=True)
    assert (shown.tokens, shown.stats.passes) == (plain.tokens, plain.stats.passes)
    assert not any(isinstance(event, Drafted) for event in events)
    assert drafts(more)


@each_mode
def test_committed_events_hold_the_answer_in_order(options):
    sequence, events = run(options, show_drafts=True)
    committed = [e.tokens for e in events if isinstance(e, Committed)]
    assert [token for tokens in committed for token in tokens] == sequence.tokens


@pytest.mark.parametrize("name", ["linear", "linear-threshold", "diffusion", "diffusion-all-masks"])
def test_there_is_one_snapshot_a_denoising_pass(name):
    sequence, events = run(MODES[name], show_drafts=True)
    passes = sequence.stats.passes["draft"] + sequence.stats.passes["denoise"]
    assert len(drafts(events)) == passes


@each_mode
def test_a_snapshot_starts_where_the_cache_of_final_tokens_ends(options):
    _, events = run(options, show_drafts=True)
    committed = [len(e.tokens) if isinstance(e, Committed) else 0 for e in events]
    final = itertools.accumulate(committed, initial=len(PROMPT))
    pending = 0 if options["mode"] == "diffusion" else 1  # the newest token heads the next block
    before = zip(events, final, strict=False)
    starts = [length - pending for event, length in before if isinstance(event, Drafted)]
    assert [draft.start for draft in drafts(events)] == starts
    assert starts[-1] > len(PROMPT)


@each_mode
def test_states_and_confidences_agree_with_the_masks(options):
    _, events = run(options, show_drafts=True)
    places = [
        place
        for draft in drafts(events)
        for place in zip(draft.tokens, draft.states, draft.confidences, strict=True)
    ]
    for token, state, confidence in places:
        assert (token == MASK) == (state == "mask") == (confidence == 0.0)
        assert 0.0 <= confidence <= 1.0
    assert any(token != MASK for token, _, _ in places)


@pytest.mark.parametrize("name", ["linear", "linear-threshold", "quadratic", "diffusion"])
def test_confidence_of_a_drafted_token_is_its_probability(name):
    """This model is 0.8 sure of every draft; the token that heads a block is given."""
    _, events = run(MODES[name], show_drafts=True)
    heads = [draft.confidences[0] for draft in drafts(events)]
    assert heads == [1.0] * len(heads)
    sure = [c for draft in drafts(events) for c in draft.confidences[1:] if c > 0]
    assert len(sure) >= len(heads)
    assert sure == pytest.approx([0.8] * len(sure))


def test_diffusion_commits_what_its_last_snapshot_shows():
    _, events = run(MODES["diffusion"], show_drafts=True)
    pairs = itertools.pairwise(events)
    shown = [(before, event) for before, event in pairs if isinstance(event, Committed)]
    assert len(shown) > 1
    for before, event in shown:
        assert isinstance(before, Drafted)
        assert before.tokens == event.tokens
        assert MASK not in before.tokens
