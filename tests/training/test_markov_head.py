"""Training a Markov head: what it learns from, and that it learns."""

import pytest
import torch

from tests.decoding.modes.test_lossless import agreeable
from trimode.engine import generate
from trimode.errors import InputError
from trimode.model import KVCache, Segment
from trimode.testing.tiny import tiny_model
from trimode.training import markov_head
from trimode.training.markov_head import MarkovHeadTraining, Places, collect, fit

PROMPT = (3, 1, 4, 1, 5)


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


def test_places_are_those_of_drafts_along_the_answer(monkeypatch):
    """Each draft is made again alone: everything before it in the cache, then its masks."""
    monkeypatch.setattr(markov_head, "LEAST_PLACES", 1)
    monkeypatch.setattr(markov_head, "_TOKENS_AT_ONCE", 7)
    monkeypatch.setattr(markov_head, "_DRAFTS_AT_ONCE", 3)
    model = agreeable(0).model
    answer = generate(model, PROMPT, max_tokens=20).token_ids
    found = collect(model, [(PROMPT, answer)])
    text, masks = [*PROMPT, *answer], model.config.block_length - 1
    drafts = alone(model, text, masks)
    assert len(found) == sum(map(len, found.right))
    assert len(found.right) > 4
    for number, states in enumerate(found.states):
        end = min(drafts, key=lambda e: distance(drafts[e], states))
        assert distance(drafts[end], states) < 1e-3
        first = end + 1
        pairs = list(zip(text[first - 2 :], text[first - 1 :], strict=False))
        assert list(map(tuple, found.before[number].tolist())) == pairs[: len(states)]
        right = found.candidates[number].gather(1, found.right[number][:, None])[:, 0]
        assert right.tolist() == text[first:][: len(states)]
        logits = model.runner.logits(states.float())
        logits[:, model.config.mask_token_id] = -torch.inf
        best = found.candidates[number][:, 0]
        torch.testing.assert_close(
            logits.gather(1, best[:, None].long())[:, 0], logits.amax(-1), rtol=0.01, atol=0.01
        )


def distance(hidden, states):
    return float((hidden[: len(states)].float() - states.float()).abs().max())


def alone(model, text, masks):
    """Hidden states of all masks but the first of a draft after so many tokens."""
    config, runner, found = model.config, model.runner, {}
    for end in range(len(PROMPT) + 1, len(text) - 1):
        cache = KVCache(config, end + masks, dtype=runner.kv_dtype, device="cpu")
        with torch.inference_mode():
            runner.run(
                torch.tensor(text[:end]), torch.arange(end), [Segment(0, end, cache, "causal")]
            )
            cache.keep(range(end))
            tokens = torch.full((masks,), config.mask_token_id)
            places = torch.arange(end, end + masks)
            hidden = runner.run(tokens, places, [Segment(0, masks, cache, "block")], slice(None))
        found[end] = hidden[1:].half()
    return found


def chain(model, count):
    """Places at which the tokens before decide, and nothing else says what is right."""
    torch.manual_seed(1)
    follows, places = torch.randperm(40), Places()
    before = torch.randint(0, 20, (count, 6, 2))
    for pairs in before:
        logits = torch.zeros(6, model.config.vocab_size)
        logits[:, 40:] = -20
        right = follows[pairs[:, 0] // 10 * 20 + pairs[:, 1]]
        places.add(torch.randn(6, model.config.hidden_size), logits, pairs, right)
    return places


def test_it_learns_what_follows(model, monkeypatch):
    monkeypatch.setattr(markov_head, "CANDIDATES", 40)
    seen = []
    asked = MarkovHeadTraining(inner=64, rank=32, batch_size=64, epochs=40, dropout=0.0)
    net, last = fit(model, chain(model, 400), asked, report=seen.append)
    assert last.hits > 0.9
    assert last.hits_before < 0.2
    assert last.loss == min(one.loss for one in seen)
    assert not net.training


def test_too_little_text_is_refused(model):
    with pytest.raises(InputError, match="at least 1000"):
        collect(model, [((1, 2), (3, 4, 5, 6))])


@pytest.mark.parametrize("field", ["inner", "rank", "batch_size"])
def test_sizes_are_checked(field):
    with pytest.raises(InputError, match=field):
        MarkovHeadTraining(**{field: 0})
