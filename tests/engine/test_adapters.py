"""The draft adapter is on in draft and mask rows, and nowhere else."""

import pytest
import torch

from tests.reference import families, nld
from tests.reference.options import readable
from tests.reference.tiny import MASK, random_adapter, tiny
from trimode.config import LED_REVISION_THRESHOLD, ROLLING_THRESHOLD, GenerationOptions
from trimode.engine import drain
from trimode.model import CachedAttention, KVCache, Segment

PROMPT = [3, 1, 4, 1, 5, 9]
FAMILIES = tuple(families.FAMILIES)


def adapted(family, seed=1, *, scope="draft", scale=1.0, trained=True):
    config = tiny(family, seed).config
    adapter = random_adapter(config, seed, scale=scale, scope=scope)
    return tiny(family, seed, common=0.05, eos=(), adapter=adapter, trained=trained)


def plain(family, seed=1):
    return tiny(family, seed, common=0.05, eos=())


def request(model, *, on, block_length=6):
    return nld.Request(model.forward, PROMPT, 20, MASK, block_length=block_length, draft_adapter=on)


def result(sequence):
    return sequence.tokens, sequence.stats.nfe


@pytest.mark.parametrize("scope", ["draft", "denoise"])
@pytest.mark.parametrize("threshold", [pytest.param(0.0, marks=pytest.mark.slow), 0.6])
@pytest.mark.parametrize("family", FAMILIES)
def test_linear_drafts_with_the_adapter_and_verifies_without(family, threshold, scope):
    model = adapted(family, scope=scope)
    oracle = request(model, on=True)
    expected = nld.linear(oracle, threshold=threshold)
    assert min(oracle.margins) > 1e-4
    asked = {"max_tokens": 20, "block_length": 6, "threshold": threshold}
    got = model.generate(PROMPT, mode="linear", seed_block=True, **asked)
    assert result(got) == expected


@pytest.mark.parametrize("block_length", [1, pytest.param(2, marks=pytest.mark.slow), 6])
@pytest.mark.parametrize("threshold", [0.0, 0.6])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_denoising_adapter_drafts_ahead_of_the_seed(family, threshold, block_length):
    model = adapted(family, scope="denoise")
    oracle = request(model, on=True, block_length=block_length)
    expected = nld.linear_led(oracle, threshold=threshold)
    assert min(oracle.margins) > 1e-4
    asked = {"max_tokens": 20, "block_length": block_length, "threshold": threshold}
    got = model.generate(PROMPT, mode="linear", draft_tree=False, **asked)
    assert result(got) == expected
    tree = model.generate(PROMPT, mode="linear", **asked)
    assert tree.tokens == got.tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_quadratic_has_the_adapter_on_in_mask_rows_only(family):
    model = adapted(family)
    oracle = request(model, on=True)
    expected = nld.quadratic(oracle)
    assert min(oracle.margins) > 1e-4
    got = model.generate(PROMPT, mode="quadratic", max_tokens=20, block_length=6)
    assert result(got) == expected


@pytest.mark.parametrize("scope", ["draft", "denoise"])
@pytest.mark.parametrize("family", FAMILIES)
def test_diffusion_denoises_with_the_adapter_only_where_its_scope_says_so(family, scope):
    model = adapted(family, scope=scope)
    with_it = nld.diffusion(on := request(model, on=True), threshold=0.5)
    without = nld.diffusion(off := request(model, on=False), threshold=0.5)
    assert with_it != without, "the adapter must matter here"
    assert min(on.margins + off.margins) > 1e-4
    options = {"max_tokens": 20, "block_length": 6, "threshold": 0.5, "seed_block": True}
    got = model.generate(PROMPT, mode="diffusion", **options)
    assert result(got) == (with_it if scope == "denoise" else without)


@pytest.mark.parametrize("family", FAMILIES)
def test_diffusion_with_an_adapter_that_denoises_rolls_its_block(family):
    asked = request(model := adapted(family, scope="denoise"), on=True)
    expected = nld.rolling(asked, threshold=ROLLING_THRESHOLD, revision=LED_REVISION_THRESHOLD)
    assert min(asked.margins) > 1e-4
    got = model.generate(PROMPT, mode="diffusion", max_tokens=20, block_length=6)
    assert result(got) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fixed_block_closes_the_one_before_without_the_adapter(family):
    asked = request(model := adapted(family, scope="denoise"), on=True)
    expected = nld.fixed_led(asked, threshold=0.5, revision=LED_REVISION_THRESHOLD)
    assert min(asked.margins) > 1e-4
    options = {"max_tokens": 20, "block_length": 6, "threshold": 0.5, "rolling_block": False}
    assert result(model.generate(PROMPT, mode="diffusion", **options)) == expected


@pytest.mark.parametrize("mode", ["linear", "quadratic"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_that_wrecks_drafts_changes_no_emitted_token(family, mode):
    model = adapted(family, scale=100.0)
    expected = plain(family).generate(PROMPT, max_tokens=30)
    got = model.generate(PROMPT, mode=mode, max_tokens=30, block_length=6)
    assert got.tokens == expected.tokens


@torch.inference_mode()
def causal_logits(model):
    transformer = model.model.transformer
    attend = CachedAttention(
        [Segment(0, len(PROMPT), KVCache(model.config, 9), "causal")], transformer.dtype, "cpu"
    )
    hidden = transformer(torch.tensor(PROMPT), torch.arange(len(PROMPT)), attend)
    return transformer.logits(hidden)


@pytest.mark.parametrize("family", FAMILIES)
def test_causal_logits_are_bit_identical_with_and_without_an_adapter_loaded(family):
    assert torch.equal(causal_logits(adapted(family)), causal_logits(plain(family)))


@pytest.mark.parametrize("family", FAMILIES)
def test_ar_tokens_and_logprobs_are_identical_with_and_without_an_adapter_loaded(family):
    options = {"max_tokens": 20, "logprobs": 4, "temperature": 0.7}
    with_it = adapted(family).generate(PROMPT, **options)
    without = plain(family).generate(PROMPT, **options)
    assert with_it.tokens == without.tokens
    assert with_it.logprobs == without.logprobs


@pytest.mark.parametrize("family", FAMILIES)
def test_adapter_rows_of_one_sequence_leave_its_neighbours_alone(family):
    model = adapted(family, scope="denoise")
    modes = ("diffusion", "ar", "linear", "quadratic", "ar")
    engine = model.engine()
    sequences = [
        engine.add(PROMPT[i:], GenerationOptions(**readable(mode, max_tokens=15, block_length=4)))
        for i, mode in enumerate(modes)
    ]
    for _ in drain(engine):
        pass
    for i, (sequence, mode) in enumerate(zip(sequences, modes, strict=True)):
        alone = model.generate(PROMPT[i:], **readable(mode, max_tokens=15, block_length=4))
        assert result(sequence) == result(alone), mode


def test_a_denoise_adapter_makes_diffusion_possible_on_an_untrained_model():
    model = adapted("llama", scope="denoise", trained=False)
    assert len(model.generate(PROMPT, mode="diffusion", max_tokens=9).tokens) == 9
