"""The limit of block diffusion, against brute force on tiny models and on made-up blocks."""

import itertools
import random

import pytest
import torch

from tests.reference import masks
from tests.reference.tiny import MASK, random_adapter, tiny
from trimode.engine.generate import generate
from trimode.errors import InputError
from trimode.evaluation import speed_of_light as sol
from trimode.evaluation.speed_of_light import Reach, View, analyse, pooled, speed_of_light

PROMPT = [3, 14, 15, 9, 2, 6]


def slow_look(model, prompt: list[int]):
    """A pass over a block by transformers' model: no cache, the whole sequence again."""

    def look(state: tuple) -> list[tuple[int, int, float]]:
        tokens = [MASK if token is None else token for token in state]
        n, m = len(prompt), len(tokens)
        adapted = set(range(n, n + m)) if model.model.adapter_scope == "denoise" else set()
        mask = masks.open_block(n, m)
        logits = model.forward(prompt + tokens, list(range(n + m)), mask, adapted)[n:].clone()
        logits[:, MASK] = -torch.inf
        sure, best = logits.softmax(-1).max(-1)
        return [(i, int(best[i]), float(sure[i])) for i in range(m) if state[i] is None]

    return look


def put(state: tuple, tokens: dict[int, int]) -> tuple:
    return tuple(tokens.get(i, token) for i, token in enumerate(state))


def brute_serial(look, state: tuple) -> tuple:
    while None in state:
        offset, token, _ = max(look(state), key=lambda each: (each[2], -each[0]))
        state = put(state, {offset: token})
    return state


def agreeing(look, state: tuple, target: tuple) -> dict[int, int]:
    """By falling confidence."""
    right = [each for each in look(state) if each[1] == target[each[0]]]
    right.sort(key=lambda each: (-each[2], each[0]))
    return {offset: token for offset, token, _ in right}


def brute_greedy(look, state: tuple, target: tuple) -> Reach:
    passes = 0
    while None in state:
        right = agreeing(look, state, target)
        if not right:
            offset, token, _ = max(look(state), key=lambda each: (each[2], -each[0]))
            right = {offset: token}
        state, passes = put(state, right), passes + 1
    return Reach(passes, state == target)


def brute_compact(look, state: tuple, target: tuple) -> list[int]:
    """Every run is tried, from the longest down."""
    commits = []
    while None in state:
        right = list(agreeing(look, state, target).items())
        for count in range(len(right), 0, -1):
            after = put(state, dict(right[:count]))
            if count == 1 or brute_greedy(look, after, target).exact:
                break
        state = after
        commits.append(count)
    assert state == target
    return commits


def fewest_passes(look, state: tuple, target: tuple) -> int:
    """The true minimum: every set of agreeing positions is tried in every pass."""
    level, passes = {state}, 0
    while target not in level:
        following = set()
        for each in level:
            right = agreeing(look, each, target)
            for size in range(1, len(right) + 1):
                for chosen in itertools.combinations(right, size):
                    following.add(put(each, {i: right[i] for i in chosen}))
        level, passes = following, passes + 1
    return passes


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("adapted", [False, True])
def test_tiny_models(seed, adapted):
    adapter = random_adapter(tiny(seed=seed).config, scope="denoise") if adapted else None
    model = tiny(seed=seed, common=0.5, sharpness=1.5, adapter=adapter, eos=())
    (block,) = speed_of_light(model.model, PROMPT, block_length=5)
    look, start = slow_look(model, PROMPT), (None,) * 5
    target = brute_serial(look, start)
    assert block.target == target
    assert block.greedy == brute_greedy(look, start, target)
    assert list(block.commits) == brute_compact(look, start, target)
    assert fewest_passes(look, start, target) <= block.passes <= 5
    assert block.within_budget


class MadeUp:
    """A block whose passes are random but fixed: few tokens, so that much agrees."""

    def __init__(self, seed: int, length: int, tokens: int) -> None:
        self.seed, self.length, self.tokens, self.calls = seed, length, tokens, 0

    def triples(self, state: tuple) -> list[tuple[int, int, float]]:
        rng = random.Random(f"{self.seed} {state}")
        rows = [(i, rng.randrange(self.tokens), rng.random()) for i in range(self.length)]
        return [row for row in rows if state[row[0]] is None]

    def __call__(self, state: tuple) -> View:
        self.calls += 1
        offsets, tokens, sure = zip(*self.triples(state), strict=True)
        probabilities = torch.full((len(offsets), self.tokens), 0.1)
        probabilities[range(len(offsets)), list(tokens)] = torch.tensor(sure)
        return View(offsets, tokens, sure, probabilities)


def test_made_up_blocks():
    """Also where a longer run is safe though a shorter one is not: halving may stop earlier."""
    exact = greedy_exact = 0
    for seed in range(300):
        made_up, start = MadeUp(seed, 6, 2), (None,) * 6
        look = made_up.triples
        block = analyse(made_up, start)
        assert block.target == brute_serial(look, start)
        assert block.greedy == brute_greedy(look, start, block.target)
        assert sum(block.commits) == 6
        brute = brute_compact(look, start, block.target)
        assert fewest_passes(look, start, block.target) <= block.passes
        exact += list(block.commits) == brute
        greedy_exact += block.greedy.exact
        if block.greedy.exact:
            assert block.passes == block.greedy.passes
    assert exact > 250
    assert 30 < greedy_exact < 270  # both kinds are among them


@pytest.mark.parametrize("levels", [2, 3])
def test_deeper_levels_end_at_the_target_too(levels):
    better = 0
    for seed in range(150):
        start = (None,) * 6
        deep = analyse(MadeUp(seed, 6, 2), start, levels=levels)
        shallow = analyse(MadeUp(seed, 6, 2), start)
        assert sum(deep.commits) == 6
        assert deep.target == shallow.target
        better += deep.commits[0] > shallow.commits[0]
        assert deep.commits[0] >= shallow.commits[0]
    assert better


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("budget", [1, 8, 20])
def test_a_budget_is_kept_and_the_target_reached_all_the_same(levels, budget):
    cut = 0
    for seed in range(100):
        made_up = MadeUp(seed, 8, 2)
        block = analyse(made_up, (None,) * 8, levels=levels, budget=budget)
        assert sum(block.commits) == 8
        cut += not block.within_budget
    assert cut


def test_a_state_is_looked_at_once():
    made_up = MadeUp(1, 8, 2)
    block = analyse(made_up, (None,) * 8)
    assert made_up.calls == block.forwards


def test_a_longest_run_is_found_by_halving():
    for most in range(1, 40):
        for limit in range(1, most + 1):
            asked = []

            def is_safe(count, limit=limit, asked=asked):
                asked.append(count)
                return count <= limit

            assert sol._longest(most, is_safe) == limit
            assert len(asked) <= 1 + most.bit_length()


def test_a_threshold_commits_what_diffusion_commits():
    """The rule's passes in the analysis are those of the mode, all-mask start."""
    model = tiny(common=0.5, sharpness=1.5, eos=())
    for bar in sol.THRESHOLDS:
        (block,) = speed_of_light(model.model, PROMPT, block_length=6)
        result = generate(
            model.model, PROMPT, mode="diffusion", block_length=6, max_tokens=6,
            seed_block=False, threshold=bar,
        )  # fmt: skip
        reach = block.rules[f"threshold {bar:g}"]
        assert result.stats.passes["denoise"] == reach.passes
        assert (result.token_ids == block.target) == reach.exact


def test_blocks_follow_each_other():
    model = tiny(common=0.5, sharpness=1.5, eos=())
    first, second = speed_of_light(model.model, PROMPT, blocks=2, block_length=4)
    (again,) = speed_of_light(model.model, [*PROMPT, *first.target], block_length=4)
    assert second.target == again.target
    assert second.commits == again.commits


def test_an_end_in_a_target_ends_the_analysis():
    model = tiny(common=0.5, sharpness=1.5, eos=())
    (first, *_) = speed_of_light(model.model, PROMPT, blocks=3, block_length=4)
    ending = tiny(common=0.5, sharpness=1.5, eos=(first.target[1],))
    assert len(speed_of_light(ending.model, PROMPT, blocks=3, block_length=4)) == 1
    short = tiny(common=0.5, sharpness=1.5, eos=(), limit=16)
    assert len(speed_of_light(short.model, PROMPT, blocks=3, block_length=4)) == 2


def test_token_shift_gives_the_first_token():
    model = tiny(common=0.5, sharpness=1.5, eos=(), token_shift=True)
    (block,) = speed_of_light(model.model, PROMPT, block_length=5)
    assert block.fixed == 1
    assert block.length == 4
    assert block.target[0] == model.generate(PROMPT, max_tokens=1).tokens[0]


def test_averages():
    blocks = [analyse(MadeUp(seed, 6, 2), (None,) * 6) for seed in range(10)]
    limit = pooled(blocks)
    assert limit.blocks == 10
    assert limit.acceptance == pytest.approx(sum(6 / b.passes for b in blocks) / 10)
    assert limit.tokens_per_forward == pytest.approx(sum(6 / (b.passes + 1) for b in blocks) / 10)
    assert limit.acceptance > limit.tokens_per_forward


def test_bad_input_is_named():
    model = tiny(trained=False).model
    with pytest.raises(InputError, match=r"^mode: diffusion"):
        speed_of_light(model, PROMPT)
    assert speed_of_light(model, PROMPT, block_length=2, force=True)
    for name in ("blocks", "levels", "budget"):
        with pytest.raises(InputError, match=f"^{name}: 0"):
            speed_of_light(tiny().model, PROMPT, **{name: 0})
    with pytest.raises(InputError, match=r"^prompt: "):
        speed_of_light(tiny().model, [])
