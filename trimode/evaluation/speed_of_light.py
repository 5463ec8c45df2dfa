"""How many tokens of a block a pass could fill at best: the limit of block diffusion.

Source: the speed-of-light analysis of Nemotron-Labs-Diffusion. For each block, after a prefix that
is clean, and starting from masks only:

1. The target is what serial denoising makes: each pass fills the one position whose best token is
   most probable, over all positions.
2. Greedy parallel acceptance fills, in each pass, every position whose best token is the target's,
   and the surest one if there is none. Tokens filled together may lead the others astray, so it
   does not always end at the target.
3. Compaction ranks the positions that agree with the target by confidence and fills the longest run
   of them from which decoding on still ends at the target. Decoding on means greedy parallel
   acceptance, or compaction one level down. The surest one alone counts as safe, so that each pass
   fills one at least. It ends at the target always: until a longer run is safe, its passes are
   those of serial denoising.

What the analysis leaves open is decided here. The longest run is tried first, and then found by
halving, which is exact if all shorter runs of a safe one are safe. The budget counts the passes
that the model makes; a state of the block that was met before costs none.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from trimode.checkpoints import LoadedModel
from trimode.config import CommitRuleName, GenerationOptions
from trimode.decoding import RULES, Sampler
from trimode.decoding.denoising.commit_rules import Proposal, select
from trimode.engine import check_mode, check_prompt
from trimode.errors import InputError
from trimode.model import KVCache, Segment

BUDGET = 5000
"""Passes that the search may make in a block; beyond them no run counts as safe."""

State = tuple[int | None, ...]
"""Tokens of a block; None is a mask."""

THRESHOLDS = (0.3, 0.5, 0.7, 0.9)
"""Bars of the rule `threshold` that are compared with the limit."""


@dataclass(frozen=True, slots=True)
class View:
    """What one pass says of the masks of a block."""

    offsets: tuple[int, ...]
    """Of the masks, from left to right."""
    tokens: tuple[int, ...]
    """The best token of each."""
    confidences: tuple[float, ...]
    probabilities: Tensor | None = None
    """`[masks, vocab]`, for commit rules."""


Look = Callable[[State], View]
"""A pass over a block."""


@dataclass(frozen=True, slots=True)
class Reach:
    """What a way to fill a block comes to."""

    passes: int
    exact: bool
    """Whether it ends at the target."""


@dataclass(frozen=True, slots=True)
class Block:
    """The analysis of one block."""

    target: tuple[int, ...]
    fixed: int
    """Tokens at its beginning that were given, not denoised."""
    commits: tuple[int, ...]
    """Tokens that each pass of compaction filled."""
    greedy: Reach
    rules: dict[str, Reach]
    """What commit rules reach, by rule and bar."""
    forwards: int
    """Passes that the analysis made."""
    within_budget: bool
    """Whether every run was checked that had to be."""

    @property
    def length(self) -> int:
        """Tokens that were denoised."""
        return len(self.target) - self.fixed

    @property
    def passes(self) -> int:
        """Passes of compaction."""
        return len(self.commits)


@dataclass(frozen=True, slots=True)
class Limit:
    """Averages over blocks, each of them counting the same."""

    blocks: int
    block_length: float
    acceptance: float
    """Tokens a pass at the limit."""
    tokens_per_forward: float
    """The same with one more pass a block, which writes its keys and values causally."""
    greedy_acceptance: float
    greedy_exact: float
    """Share of blocks in which greedy parallel acceptance ends at the target."""
    rules: dict[str, tuple[float, float]]
    """By commit rule and bar: tokens a pass, and share of blocks that end at the target."""
    within_budget: float
    """Share of blocks whose search was not cut short."""


@torch.inference_mode()
def speed_of_light(
    model: LoadedModel,
    prompt: Sequence[int],
    *,
    blocks: int = 1,
    block_length: int | None = None,
    levels: int = 1,
    budget: int = BUDGET,
    force: bool = False,
) -> list[Block]:
    """Analyse the first blocks of the answer to a prompt, each after the targets before it.

    Fewer blocks are returned if a target ends the answer or the model's context is full.

    Args:
        model: one that was trained to denoise.
        prompt: token ids.
        blocks: how many.
        block_length: their length; the model's own by default.
        levels: of compaction; at 1 its checks are greedy parallel acceptance, as in the source.
        budget: passes of a block's analysis.
        force: also if the model was not trained to denoise.

    Raises:
        InputError: the model cannot denoise, or a number is out of range.
    """
    for name, value in (("blocks", blocks), ("levels", levels), ("budget", budget)):
        if value < 1:
            raise InputError(name, str(value), "must be at least 1")
    config = model.config
    options = GenerationOptions(mode="diffusion", block_length=block_length, force=force)
    check_mode(config, model.adapter_scope, model.name, options)
    length = block_length or config.block_length
    check_prompt(config, tuple(prompt), room=length)
    fill = _Filler(model, len(prompt) + blocks * length)
    fill.extend(prompt)
    found: list[Block] = []
    while len(found) < blocks and fill.length + length <= config.max_position_embeddings:
        # With token shift, the row before the block decides its first token.
        start: State = (fill.next_token,) if config.token_shift else ()
        start += (None,) * (length - len(start))
        block = analyse(fill.look, start, levels=levels, budget=budget)
        found.append(block)
        if set(block.target) & set(config.eos_token_ids):
            break
        fill.extend(block.target)
    return found


class _Filler:
    """Passes over blocks that follow a growing prefix."""

    def __init__(self, model: LoadedModel, capacity: int) -> None:
        assert model.config.mask_token_id is not None
        self._model, self._mask = model, model.config.mask_token_id
        runner = model.runner
        room = min(capacity, model.config.max_position_embeddings)
        self._cache = KVCache(model.config, room, dtype=runner.kv_dtype, device=runner.device)
        self._sampler = Sampler(GenerationOptions(), self._mask, 0)
        self._adapter = slice(None) if model.adapter_scope == "denoise" else None
        self.next_token = -1
        """What AR puts after the prefix."""

    @property
    def length(self) -> int:
        """Tokens of the prefix."""
        return self._cache.length

    def extend(self, tokens: Sequence[int], rows: int = 512) -> None:
        """Add tokens to the prefix, as a causal pass does that closes a block."""
        for start in range(0, len(tokens), rows):
            hidden = self._run(tokens[start : start + rows], "causal", adapted=False)
            self._cache.keep(range(len(hidden)))
            logits = self._sampler.exclude_mask(self._model.runner.logits(hidden[-1:]))
            self.next_token = int(logits[0].argmax())

    def look(self, state: State) -> View:
        """One pass over a block."""
        tokens = [self._mask if token is None else token for token in state]
        hidden = self._run(tokens, "block", adapted=True)
        offsets = tuple(i for i, token in enumerate(state) if token is None)
        rows = [i - self._model.config.token_shift for i in offsets]
        logits = self._sampler.exclude_mask(self._model.runner.logits(hidden[rows]))
        probabilities = logits.softmax(-1)
        sure, best = probabilities.max(-1)
        return View(offsets, tuple(best.tolist()), tuple(sure.tolist()), probabilities)

    def _run(self, tokens: Sequence[int], visibility: str, *, adapted: bool) -> Tensor:
        runner = self._model.runner
        first = self._cache.length
        segment = Segment(0, len(tokens), self._cache, visibility)  # type: ignore[arg-type]
        return runner.run(
            torch.tensor(list(tokens), device=runner.device),
            torch.arange(first, first + len(tokens), device=runner.device),
            [segment],
            self._adapter if adapted else None,
        )


class _OverBudget(Exception):
    """The search may make no more passes."""


@dataclass(slots=True)
class _Passes:
    """Passes over one block: each state is looked at once."""

    look: Look
    budget: int
    known: dict[State, View] = field(default_factory=dict)
    spent: bool = False

    def __call__(self, state: State, *, needed: bool = False) -> View:
        """What a pass says; a pass that is `needed` is made whatever the budget."""
        if state not in self.known:
            if not needed and len(self.known) >= self.budget:
                self.spent = True
                raise _OverBudget
            self.known[state] = self.look(state)
        return self.known[state]


def analyse(look: Look, start: State, *, levels: int = 1, budget: int = BUDGET) -> Block:
    """The analysis of one block.

    Args:
        look: a pass over the block.
        start: the block before the first pass.
        levels: see `speed_of_light`.
        budget: passes that checks may bring the block's number of passes to.
    """
    passes = _Passes(look, budget)
    target = serial(passes, start)
    greedy = _greedy(passes, start, target, needed=True)
    commits = _compact(passes, start, target, levels, needed=True)
    assert sum(commits) == sum(token is None for token in start)
    rules = {
        f"{name} {bar:g}": _by_rule(passes, start, target, name, bar) for name, bar in _rules()
    }
    return Block(
        target=target,
        fixed=sum(token is not None for token in start),
        commits=tuple(commits),
        greedy=greedy,
        rules=rules,
        forwards=len(passes.known),
        within_budget=not passes.spent,
    )


def serial(passes: _Passes, state: State) -> tuple[int, ...]:
    """What denoising makes that fills the surest position of all in each pass."""
    while None in state:
        view = passes(state, needed=True)
        best = _surest(view)
        state = _filled(state, [view.offsets[best]], [view.tokens[best]])
    return tuple(token for token in state if token is not None)


def _surest(view: View) -> int:
    """The place in a view of the most confident mask, the first of equals."""
    return max(range(len(view.offsets)), key=lambda i: (view.confidences[i], -i))


def _filled(state: State, offsets: Sequence[int], tokens: Sequence[int]) -> State:
    found = list(state)
    for offset, token in zip(offsets, tokens, strict=True):
        found[offset] = token
    return tuple(found)


def _agreeing(view: View, target: Sequence[int]) -> list[int]:
    """Places in a view whose best token is the target's, the surest one first."""
    places = [i for i, offset in enumerate(view.offsets) if view.tokens[i] == target[offset]]
    return sorted(places, key=lambda i: (-view.confidences[i], i))


def _greedy(
    passes: _Passes, state: State, target: tuple[int, ...], *, needed: bool = False
) -> Reach:
    """Greedy parallel acceptance from a state on."""
    count = 0
    while None in state:
        view = passes(state, needed=needed)
        places = _agreeing(view, target) or [_surest(view)]
        offsets = [view.offsets[i] for i in places]
        state = _filled(state, offsets, [view.tokens[i] for i in places])
        count += 1
    return Reach(count, state == target)


def _compact(
    passes: _Passes, state: State, target: tuple[int, ...], level: int, *, needed: bool = False
) -> list[int]:
    """Tokens that each pass of compaction fills; fewer in all than masks if it goes astray."""
    commits: list[int] = []
    while None in state:
        view = passes(state, needed=needed)
        places = _agreeing(view, target)
        if not places:  # only off the path of serial denoising, where checks look
            return commits
        offsets = [view.offsets[i] for i in places]
        safe = _longest(len(places), partial(_is_safe, passes, state, offsets, target, level))
        if level > 1:  # halving may miss the run that the level below is known to get on from
            below = _ending_at_target(passes, state, target, level - 1)
            safe = max(safe, below[0] if below else 1)
        state = _filled(state, offsets[:safe], [target[offset] for offset in offsets[:safe]])
        commits.append(safe)
    return commits


def _is_safe(
    passes: _Passes,
    state: State,
    offsets: Sequence[int],
    target: tuple[int, ...],
    level: int,
    count: int,
) -> bool:
    """Whether decoding ends at the target once the first `count` offsets are filled from it."""
    after = _filled(state, offsets[:count], [target[offset] for offset in offsets[:count]])
    if level > 1:
        return None not in after or bool(_ending_at_target(passes, after, target, level - 1))
    try:
        return _greedy(passes, after, target).exact
    except _OverBudget:
        return False


def _ending_at_target(
    passes: _Passes, state: State, target: tuple[int, ...], level: int
) -> list[int]:
    """What compaction fills pass by pass; nothing if it does not end at the target."""
    try:
        commits = _compact(passes, state, target, level)
    except _OverBudget:
        return []
    return commits if sum(commits) == state.count(None) else []


def _longest(most: int, is_safe: Callable[[int], bool]) -> int:
    """The longest safe run of at most `most`; 1 is safe unasked."""
    if most == 1 or is_safe(most):
        return most
    low, high = 1, most - 1
    while low < high:
        middle = (low + high + 1) // 2
        if is_safe(middle):
            low = middle
        else:
            high = middle - 1
    return low


def _rules() -> list[tuple[CommitRuleName, float]]:
    """Rules and bars that are compared with the limit: those that need no more than a pass."""
    others: tuple[CommitRuleName, ...] = ("factor", "margin", "entropy", "cumulative_error")
    bars: list[tuple[CommitRuleName, float]] = [("threshold", bar) for bar in THRESHOLDS]
    return bars + [(name, RULES[name].threshold) for name in others]


def _by_rule(
    passes: _Passes, state: State, target: tuple[int, ...], rule: CommitRuleName, bar: float
) -> Reach:
    """What a commit rule, which does not know the target, makes of a block."""
    count = 0
    while None in state:
        view = passes(state, needed=True)
        probabilities = view.probabilities
        if probabilities is None:
            raise ValueError("commit rules need the probabilities of a pass")
        proposal = Proposal(torch.tensor(view.confidences), probabilities.cpu(), len(view.offsets))
        chosen = [
            i for i, is_chosen in enumerate(select(rule, proposal, bar).tolist()) if is_chosen
        ]
        offsets = [view.offsets[i] for i in chosen]
        state = _filled(state, offsets, [view.tokens[i] for i in chosen])
        count += 1
    return Reach(count, state == target)


def pooled(blocks: Sequence[Block]) -> Limit:
    """Averages over blocks.

    Raises:
        ValueError: there is no block.
    """
    if not blocks:
        raise ValueError("no block to average over")

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    names = list(blocks[0].rules)
    return Limit(
        blocks=len(blocks),
        block_length=mean([block.length for block in blocks]),
        acceptance=mean([block.length / block.passes for block in blocks]),
        tokens_per_forward=mean([block.length / (block.passes + 1) for block in blocks]),
        greedy_acceptance=mean([block.length / block.greedy.passes for block in blocks]),
        greedy_exact=mean([block.greedy.exact for block in blocks]),
        rules={
            name: (
                mean([block.length / block.rules[name].passes for block in blocks]),
                mean([block.rules[name].exact for block in blocks]),
            )
            for name in names
        },
        within_budget=mean([block.within_budget for block in blocks]),
    )
