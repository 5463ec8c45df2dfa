"""Log-probabilities are AR's in every mode."""

import pytest
import torch

from tests.reference.tiny import MASK, tiny

PROMPT = [3, 1, 4, 1, 5, 9]
MODES = {
    "ar": {"mode": "ar"},
    "linear": {"mode": "linear", "block_length": 5},
    "linear-all-masks": {"mode": "linear", "block_length": 5, "seed_block": False},
    "quadratic": {"mode": "quadratic", "block_length": 5},
    "diffusion": {"mode": "diffusion", "block_length": 5, "threshold": 0.6},
    "diffusion-all-masks": {"mode": "diffusion", "block_length": 5, "seed_block": False},
}
SAMPLING = {"greedy": {}, "sampled": {"temperature": 0.9, "top_k": 6, "repetition_penalty": 1.3}}


def ar_log_probabilities(model, prompt, tokens):
    """What an ordinary causal pass of transformers' model says of each token, mask excluded."""
    everything = prompt + tokens
    n = len(everything)
    causal = torch.ones(n, n, dtype=torch.bool).tril()
    logits = model.forward(everything, list(range(n)), causal, set()).clone()
    logits[:, MASK] = -torch.inf
    return logits.log_softmax(-1)[len(prompt) - 1 : -1]


@pytest.mark.parametrize("sampling", SAMPLING.values(), ids=SAMPLING)
@pytest.mark.parametrize("options", MODES.values(), ids=MODES)
def test_logprobs_are_those_of_an_ar_pass_over_the_answer(options, sampling):
    model = tiny("ministral3", 4, common=0.05, sharpness=2.0, eos=())
    sequence = model.generate(PROMPT, max_tokens=17, logprobs=3, **options, **sampling)
    rows = ar_log_probabilities(model, PROMPT, sequence.tokens)
    assert len(sequence.logprobs) == len(sequence.tokens) == 17
    for token, entry, row in zip(sequence.tokens, sequence.logprobs, rows, strict=True):
        assert entry.logprob == pytest.approx(float(row[token]), abs=2e-4)
        values, ids = row.topk(3)
        assert [i for i, _ in entry.top] == ids.tolist()
        assert [v for _, v in entry.top] == pytest.approx(values.tolist(), abs=2e-4)


@pytest.mark.parametrize("options", MODES.values(), ids=MODES)
def test_asking_for_logprobs_changes_no_token(options):
    model = tiny("llama", 4, common=0.05, eos=())
    plain = model.generate(PROMPT, max_tokens=17, **options)
    asked = model.generate(PROMPT, max_tokens=17, logprobs=0, **options)
    assert (asked.tokens, asked.stats.nfe) == (plain.tokens, plain.stats.nfe)
    assert plain.logprobs == []


@pytest.mark.parametrize("options", MODES.values(), ids=MODES)
def test_an_answer_cut_short_has_one_logprob_a_token(options):
    model = tiny("llama", 4, common=0.05, eos=())
    whole = model.generate(PROMPT, max_tokens=17, **options).tokens
    cut = model.generate(PROMPT, max_tokens=17, stop_token_ids=(whole[8],), logprobs=1, **options)
    assert len(cut.tokens) <= 9
    assert len(cut.logprobs) == len(cut.tokens)
    assert cut.logprobs[-1].logprob == pytest.approx(
        float(ar_log_probabilities(model, PROMPT, cut.tokens)[-1, cut.tokens[-1]]), abs=2e-4
    )
