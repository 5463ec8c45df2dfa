"""Log-likelihoods of many texts at once, against one plain pass of transformers' model each."""

import random

import pytest
import torch

from tests.reference.tiny import tiny
from trimode.evaluation.likelihood import log_likelihoods


@torch.inference_mode()
def plain(oracle, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    tokens = torch.tensor([context + continuation])
    logits = oracle(tokens, use_cache=False).logits[0, len(context) - 1 : -1]
    wanted = torch.tensor(continuation)
    chosen = logits.log_softmax(-1).gather(-1, wanted[:, None])
    return float(chosen.sum()), bool((logits.argmax(-1) == wanted).all())


def pairs_of(seed: int) -> list[tuple[list[int], list[int]]]:
    rng = random.Random(seed)

    def tokens(n: int) -> list[int]:
        return [rng.randrange(31) for _ in range(n)]

    shared, lengths = tokens(20), ((1, 1), (1, 40), (70, 2), (33, 17))
    found = [(shared, tokens(n)) for n in (1, 3, 9, 1)]
    return found + [(tokens(context), tokens(n)) for context, n in lengths]


@pytest.mark.parametrize("rows", [512, 16, 1])
@pytest.mark.parametrize("kv_cache_bytes", [2**30, 1])
def test_many_are_what_one_is(rows, kv_cache_bytes):
    model = tiny()
    pairs = pairs_of(0)
    found = dict(log_likelihoods(model.model, pairs, rows=rows, kv_cache_bytes=kv_cache_bytes))
    assert sorted(found) == list(range(len(pairs)))
    for i, pair in enumerate(pairs):
        total, greedy = plain(model.oracle, *pair)
        assert found[i].log_probability == pytest.approx(total, abs=1e-4)
        assert found[i].greedy == greedy


def test_greedy_is_the_models_own_answer():
    model = tiny()
    answer = model.generate([3, 4, 5], max_tokens=6, ignore_eos=True).tokens
    wrong = [*answer[:-1], (answer[-1] + 1) % 31]
    found = dict(log_likelihoods(model.model, [([3, 4, 5], answer), ([3, 4, 5], wrong)]))
    assert found[0].greedy
    assert not found[1].greedy


def test_a_context_too_long_loses_its_beginning():
    model = tiny(limit=32)
    long, continuation = pairs_of(1)[6]
    found = dict(log_likelihoods(model.model, [(long, continuation)]))
    kept = (long + continuation)[-33:]
    assert found[0].log_probability == pytest.approx(
        plain(model.oracle, kept[:-2], continuation)[0], abs=1e-4
    )
