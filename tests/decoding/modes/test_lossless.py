"""`linear` and `quadratic` emit what `ar` emits: greedy and sampled, alone and packed."""

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference.options import readable
from tests.reference.scripted import peaked, scripted, speculative, word
from tests.reference.tiny import MASK, run_alone, tiny
from trimode.config import GenerationOptions
from trimode.decoding import Committed
from trimode.engine import Engine, drain

BLOCK_LENGTHS = (1, 2, 5, 8, 16, 32)
PROMPT = (3, 1, 4, 1, 5, 8, 2, 6)
SAMPLED = {
    "greedy": {},
    "temperature": {"temperature": 0.8, "seed": 1},
    "top-p": {"temperature": 0.8, "top_p": 0.9, "seed": 2},
    "top-k": {"temperature": 1.2, "top_k": 5, "seed": 3},
    "min-p": {"temperature": 0.8, "min_p": 0.1, "seed": 4},
    "penalty": {"repetition_penalty": 1.5},
    "penalties": {"frequency_penalty": 0.8, "presence_penalty": -0.4},
    "bias": {"logit_bias": ((5, 4.0), (9, -100.0))},
    "all": {
        "temperature": 0.9,
        "top_k": 12,
        "top_p": 0.95,
        "min_p": 0.02,
        "repetition_penalty": 1.2,
        "seed": 5,
    },
}


def agreeable(seed: int = 0, family: str = "llama"):
    """A model whose positions tend to predict alike, so that drafts are often right."""
    return tiny(family, seed, sharpness=3.0, common=0.05, eos=())


@pytest.mark.parametrize("block_length", BLOCK_LENGTHS)
@pytest.mark.parametrize("options", SAMPLED.values(), ids=SAMPLED)
@pytest.mark.parametrize(
    "mode",
    [
        {"mode": "linear"},
        {"mode": "linear", "seed_block": False},
        {"mode": "linear", "seed_block": False, "draft_tree": True},
        {"mode": "quadratic"},
        {"mode": "quadratic", "draft_tree": True},
    ],
    ids=["linear", "linear-all-masks", "linear-tree", "quadratic", "quadratic-tree"],
)
def test_speculation_emits_exactly_the_ar_tokens(mode, options, block_length):
    model = agreeable(1)
    tokens = 12 if block_length == 32 else 24
    expected = model.generate(PROMPT, max_tokens=tokens, **options).tokens
    got = model.generate(
        PROMPT, max_tokens=tokens, block_length=block_length, **mode, **options
    ).tokens
    assert got == expected


def test_a_tree_is_accepted_further_than_a_line():
    accepted = {}
    for tree in (False, True):
        asked = {"mode": "quadratic", "block_length": 5, "max_tokens": 80, "draft_tree": tree}
        found = [agreeable(seed).generate(PROMPT, **asked).stats for seed in range(3)]
        accepted[tree] = sum(s.acceptance_length for s in found)
    assert accepted[True] > 1.05 * accepted[False]


def test_a_pass_that_drafts_ahead_of_its_seed_yields_one_token_for_certain():
    """Where every draft is wrong NLD's form makes one token a cycle, this one two."""
    made = {}
    for seeded in (True, False):
        engine = Engine(scripted(speculative(lambda position: False)))
        options = GenerationOptions(
            mode="linear", block_length=5, max_tokens=21, seed_block=seeded, ignore_eos=True
        )
        sequence = engine.add(PROMPT, options)
        for _ in drain(engine):
            pass
        made[seeded] = sequence.stats
    assert made[True].acceptance_length == 1
    assert made[False].acceptance_length == 2
    assert made[False].passes == {"prefill": 1, "draft": 10, "verify": 10}
    assert made[False].tokens_per_forward == 1


@pytest.mark.parametrize("threshold", [0.4, 0.6, 0.95])
@pytest.mark.parametrize("options", SAMPLED.values(), ids=SAMPLED)
def test_several_passes_ahead_of_the_seed_emit_exactly_the_ar_tokens(options, threshold):
    model = agreeable(2)
    asked = {"max_tokens": 30, "block_length": 8, "threshold": threshold, **options}
    got = model.generate(PROMPT, mode="linear", seed_block=False, **asked)
    assert got.tokens == model.generate(PROMPT, max_tokens=30, **options).tokens


@pytest.mark.parametrize("threshold", [0.4, 0.6, 0.95])
@pytest.mark.parametrize("options", SAMPLED.values(), ids=SAMPLED)
def test_linear_with_several_draft_passes_emits_exactly_the_ar_tokens(options, threshold):
    model = agreeable(2)
    expected = model.generate(PROMPT, max_tokens=30, **options).tokens
    got = model.generate(
        PROMPT, mode="linear", max_tokens=30, block_length=8, threshold=threshold, **options
    )
    assert got.tokens == expected
    assert got.stats.passes["draft"] > got.stats.passes["verify"], "one pass filled every draft"


def test_sampled_speculation_differs_from_greedy_and_between_seeds():
    model = agreeable(1)
    runs = {
        tuple(model.generate(PROMPT, mode="linear", max_tokens=24, **options).tokens)
        for options in ({}, *({"temperature": 0.8, "seed": seed} for seed in range(3)))
    }
    assert len(runs) == 4


def cycles(updates):
    """(draft tokens offered, tokens committed) of every draft-verify cycle."""
    events = (u.event for u in updates)
    return [
        (e.drafted, len(e.tokens))
        for e in events
        if isinstance(e, Committed) and e.drafted is not None
    ]


def run(model, mode, options):
    engine = Engine(model)
    sequence = engine.add(PROMPT, GenerationOptions(mode=mode, **options))
    return sequence, cycles(drain(engine))


@pytest.mark.parametrize("mode", ["linear", "quadratic"])
@pytest.mark.parametrize("sampling", ["greedy", "temperature", "all"])
def test_random_models_accept_all_some_and_none_of_a_draft(mode, sampling):
    kinds = Counter()
    for seed, block_length in itertools.product(range(4), (2, 3, 5, 8)):
        model = agreeable(seed)
        options = {"max_tokens": 30, "block_length": block_length, **SAMPLED[sampling]}
        sequence, made = run(model.model, mode, options)
        expected = model.generate(PROMPT, **readable("ar", **options))
        assert sequence.tokens == expected.tokens
        for drafted, committed in made[:-1]:
            whole, nothing = committed == drafted + 1, committed == 1
            kinds["all" if whole else "none" if nothing else "some"] += 1
    assert min(kinds["all"], kinds["some"], kinds["none"]) >= 3, kinds


@given(
    right=st.lists(st.booleans(), min_size=126, max_size=126),
    prompt=st.lists(st.integers(8, 19), min_size=1, max_size=12),
    block_length=st.integers(1, 12),
    max_tokens=st.integers(1, 40),
    mode=st.sampled_from(["linear", "quadratic"]),
    threshold=st.sampled_from([0.0, 0.5, 0.9]),
)
@settings(max_examples=60)
def test_any_pattern_of_right_and_wrong_drafts_gives_the_ar_tokens(
    right, prompt, block_length, max_tokens, mode, threshold
):
    script = speculative(right.__getitem__)
    expected = list(prompt)
    while len(expected) < len(prompt) + max_tokens:
        expected.append(word(tuple(expected)))
    sequence = run_alone(
        scripted(script),
        prompt,
        **readable(mode, max_tokens=max_tokens, block_length=block_length, threshold=threshold),
    )
    assert sequence.tokens == expected[len(prompt) :]


@given(
    salt=st.integers(0, 999),
    wrong=st.sets(st.integers(0, 60)),
    prompt=st.lists(st.integers(8, 19), min_size=1, max_size=8),
    block_length=st.integers(1, 9),
    mode=st.sampled_from(["linear", "quadratic"]),
    options=st.fixed_dictionaries(
        {
            "temperature": st.floats(0.3, 2.0),
            "top_p": st.floats(0.3, 1.0),
            "top_k": st.integers(0, 20),
            "min_p": st.floats(0.0, 0.3),
            "repetition_penalty": st.floats(0.5, 2.0),
            "seed": st.integers(0, 2**63 - 1),
            "max_tokens": st.integers(1, 30),
        }
    ),
)
@settings(max_examples=60)
def test_any_sampling_options_give_the_ar_tokens(salt, wrong, prompt, block_length, mode, options):
    def script(row):
        position = row.position if row.token == MASK else len(row.history)
        missed = row.token == MASK and position in wrong
        return peaked(word(salt, position, missed), 0.5)

    expected = run_alone(scripted(script), prompt, **options).tokens
    got = run_alone(scripted(script), prompt, mode=mode, block_length=block_length, **options)
    assert got.tokens == expected


def test_sampled_drafts_share_the_verifiers_noise():
    """The denoiser's distribution is AR's here, so every draft must be accepted whole."""

    def script(row):
        position = row.position if row.token == MASK else row.position + 1
        return peaked(word(position), 0.3)

    sequence = run_alone(
        scripted(script), PROMPT, mode="linear", max_tokens=41, block_length=8, temperature=1.0
    )
    assert sequence.stats.acceptance_length == 8
    sequence = run_alone(
        scripted(script), PROMPT, mode="quadratic", max_tokens=41, block_length=8, temperature=1.0
    )
    assert sequence.stats.acceptance_length == 8


@pytest.mark.parametrize("family", ["llama", "ministral3", "qwen3"])
def test_mixed_batches_emit_in_every_mode_what_ar_emits_alone(family):
    model = agreeable(3, family)
    engine = Engine(model.model, max_sequences=9)
    wanted = []
    choices = itertools.product(("linear", "ar", "quadratic", "diffusion"), SAMPLED.values())
    for i, (mode, options) in enumerate(choices):
        prompt = [(i * 7 + j * j) % 31 for j in range(1 + i % 11)]
        options = {"max_tokens": 5 + i % 17, **options}
        reference = "diffusion" if mode == "diffusion" else "ar"
        alone = readable(reference, block_length=6, **options)
        expected = model.generate(prompt, **alone).tokens
        block_length = 6 if mode == "diffusion" else BLOCK_LENGTHS[i % 5]
        asked = GenerationOptions(**readable(mode, block_length=block_length, **options))
        wanted.append((engine.add(prompt, asked), expected))
    for _ in drain(engine):
        pass
    for sequence, expected in wanted:
        assert sequence.tokens == expected, sequence.options


@given(
    prompt=st.lists(st.integers(0, 30), min_size=1, max_size=20),
    block_length=st.integers(1, 10),
    mode=st.sampled_from(["linear", "quadratic"]),
    sampling=st.sampled_from(list(SAMPLED)),
    max_tokens=st.integers(1, 20),
)
@settings(max_examples=30)
def test_any_prompt_gives_the_ar_tokens(prompt, block_length, mode, sampling, max_tokens):
    model = agreeable(4, "ministral3")
    options = {"max_tokens": max_tokens, **SAMPLED[sampling]}
    expected = model.generate(prompt, **options).tokens
    got = model.generate(prompt, mode=mode, block_length=block_length, **options).tokens
    assert got == expected


@pytest.mark.slow
@given(
    seed=st.integers(0, 5),
    family=st.sampled_from(["llama", "ministral3", "qwen3"]),
    prompt=st.lists(st.integers(0, 30), min_size=1, max_size=60),
    block_length=st.integers(1, 20),
    mode=st.sampled_from(["linear", "quadratic"]),
    sampling=st.sampled_from(list(SAMPLED)),
    max_tokens=st.integers(1, 60),
)
@settings(max_examples=500)
def test_any_prompt_gives_the_ar_tokens_exhaustively(
    seed, family, prompt, block_length, mode, sampling, max_tokens
):
    model = agreeable(seed, family)
    options = {"max_tokens": max_tokens, **SAMPLED[sampling]}
    expected = model.generate(prompt, **options).tokens
    got = model.generate(prompt, mode=mode, block_length=block_length, **options).tokens
    assert got == expected
