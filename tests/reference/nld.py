"""The decoding modes of Nemotron-Labs-Diffusion, slow and obvious: no KV cache anywhere.

Every pass recomputes the whole sequence through `forward(tokens, positions, mask, adapted)`, which
returns logits `[n, vocab]`; `mask` is bool `[n, n]` (row sees column) and `adapted` the rows that
run with the draft adapter on. Greedy only. Each function returns (new tokens, forward passes):
one pass for the prefill and one for every later pass. A pass of this file may stand for two of
them if recomputation gives both answers at once.

`Request.margins` collects how narrowly each decision was taken, so that a caller can tell a wrong
result from a coin that rounding flipped.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tests.reference import masks

CLOSE = 50
"""Probabilities differ less than logits do: a gap of 2e-6 is as close as 1e-4 between logits."""

Forward = Callable[[list[int], list[int], Tensor, set[int]], Tensor]


@dataclass
class Request:
    """What all modes need to know."""

    forward: Forward
    prompt: list[int]
    max_tokens: int
    mask_id: int
    eos: frozenset[int] = frozenset()
    block_length: int = 8
    draft_adapter: bool = False
    """Drafts (linear, quadratic) or denoising passes (diffusion) run with the adapter on."""
    margins: list[float] = field(default_factory=list)

    def causal(self, tokens: list[int]) -> Tensor:
        """Logits of an ordinary causal pass."""
        return self.forward(tokens, list(range(len(tokens))), masks.causal(len(tokens)), set())

    def denoised(self, prefix: list[int], block: list[int]) -> Tensor:
        """Logits of the block's rows, the block seeing itself both ways."""
        n, m = len(prefix), len(block)
        adapted = set(range(n, n + m)) if self.draft_adapter else set()
        tokens = prefix + block
        logits = self.forward(tokens, list(range(n + m)), masks.open_block(n, m), adapted)
        return logits[n:]

    def best(self, row: Tensor) -> int:
        """Argmax over everything but the mask id."""
        row = row.clone()
        row[self.mask_id] = -torch.inf
        first, second = row.topk(2).values.tolist()
        self.margins.append(first - second)
        return int(row.argmax())

    def confidence(self, row: Tensor) -> tuple[int, float]:
        """The best token and its probability among all tokens but the mask."""
        row = row.clone()
        row[self.mask_id] = -torch.inf
        token = self.best(row)
        return token, float(row.softmax(-1)[token])

    def cut(self, tokens: list[int]) -> tuple[list[int], bool]:
        """Tokens up to the first EOS or the budget, and whether that ends the answer."""
        tokens = tokens[: self.max_tokens]
        for i, token in enumerate(tokens):
            if token in self.eos:
                return tokens[: i + 1], True
        return tokens, len(tokens) == self.max_tokens


def ar(request: Request) -> tuple[list[int], int]:
    """One token a pass; the prefill yields the first."""
    new: list[int] = []
    while True:
        new.append(request.best(request.causal(request.prompt + new)[-1]))
        new, done = request.cut(new)
        if done:
            return new, len(new)


def commit_threshold(request: Request, sure: dict[int, float], threshold: float) -> set[int]:
    """Offsets at least `threshold` sure, and the surest one always."""
    ordered = sorted(sure, key=lambda i: (-sure[i], i))
    request.margins.extend(abs(c - threshold) * CLOSE for c in sure.values() if threshold > 0)
    if len(ordered) > 1 and sure[ordered[0]] < threshold:
        request.margins.append((sure[ordered[0]] - sure[ordered[1]]) * CLOSE)
    return {ordered[0]} | {i for i in sure if sure[i] >= threshold}


def commit_quota(request: Request, sure: dict[int, float], count: int) -> set[int]:
    """The `count` surest offsets."""
    ordered = sorted(sure, key=lambda i: (-sure[i], i))
    if count < len(ordered):
        request.margins.append((sure[ordered[count - 1]] - sure[ordered[count]]) * CLOSE)
    return set(ordered[:count])


def fill(
    request: Request,
    prefix: list[int],
    block: list[int],
    threshold: float | None,
    passes: int,
    eos: frozenset[int],
    first: int | None = None,
    opening: Tensor | None = None,
) -> int:
    """Denoise `block` in place; `threshold` None means an even quota. Returns passes made.

    `first`: the block's first token, if the first pass makes it known without having seen it.
    `opening`: logits of the first pass, if it was another than over this block.
    """
    undecided = block.count(request.mask_id)
    quotas = [undecided // passes + (i < undecided % passes) for i in range(passes)]
    for step in range(passes):
        masked = [i for i, token in enumerate(block) if token == request.mask_id]
        if not masked:
            return step
        logits = opening if step == 0 and opening is not None else request.denoised(prefix, block)
        if first is not None and step == 0:
            block[0] = first
            masked = masked[1:]
            if not masked:
                return 1
        candidates = {i: request.confidence(logits[i]) for i in masked}
        sure = {i: c for i, (_, c) in candidates.items()}
        if step == passes - 1:
            chosen = set(masked)
        elif threshold is None:
            chosen = commit_quota(request, sure, quotas[step])
        else:
            chosen = commit_threshold(request, sure, threshold)
        for i in chosen:
            block[i] = candidates[i][0]
        for token in block:
            if token == request.mask_id:
                break
            if token in eos:
                return step + 1
    return passes


def standing(
    request: Request, causal: Tensor, filled: list[int], revision: float, given: int = 0
) -> int:
    """How many tokens AR finds at least `revision` probable, from the left.

    Row i of `causal` predicts filled[i]. The first `given` stand in any case.
    """
    for i, token in enumerate(filled):
        row = causal[i].clone()
        row[request.mask_id] = -torch.inf
        likely = float(row.softmax(-1)[token])
        if i >= given:
            request.margins.append(abs(likely - revision) * CLOSE)
            if likely < revision:
                return i
    return len(filled)


def diffusion(
    request: Request,
    *,
    threshold: float | None,
    seeded: bool = True,
    steps: int | None = None,
    revision: float = 0.0,
) -> tuple[list[int], int]:
    """Block after block: denoise, then rewrite causally. `threshold` None: the quota rule.

    Not NLD's: with `revision`, tokens stand up to the first that AR finds too improbable. A block
    after one that fell begins with AR's token.
    """
    tokens, nfe = list(request.prompt), 1
    whole = True
    while True:
        left = request.max_tokens - (len(tokens) - len(request.prompt))
        block = [request.mask_id] * min(request.block_length, left)
        if seeded or not whole:
            block[0] = request.best(request.causal(tokens)[-1])
        passes = steps or request.block_length
        nfe += fill(request, tokens, block, threshold, passes, request.eos)
        nfe += 1  # the causal pass over the finished block
        if revision:
            filled = block[: next((i + 1 for i, t in enumerate(block) if t in request.eos), None)]
            causal = request.causal(tokens + filled)[len(tokens) - 1 :]
            stand = standing(request, causal, filled, revision, int(seeded or not whole))
            whole = stand == len(filled)
            block = filled[:stand]
        tokens += block
        new, done = request.cut(tokens[len(request.prompt) :])
        if done:
            return new, nfe


def verified(request: Request, prefix: list[int], block: list[int]) -> list[int]:
    """AR's choices after each token of `block`, up to the first that the block does not hold."""
    choices = [request.best(row) for row in request.causal(prefix + block)[len(prefix) :]]
    matched = 0
    while matched < len(block) - 1 and choices[matched] == block[matched + 1]:
        matched += 1
    return choices[: matched + 1]


def linear(request: Request, *, threshold: float = 0.0) -> tuple[list[int], int]:
    """Draft a block by denoising, verify it causally. `threshold` 0: one draft pass."""
    seed = request.best(request.causal(request.prompt)[-1])
    new, nfe = [seed], 1
    new, done = request.cut(new)
    while not done:
        prefix = request.prompt + new[:-1]
        block = [new[-1]] + [request.mask_id] * (request.block_length - 1)
        passes = 1 if threshold == 0 else request.block_length
        nfe += fill(request, prefix, block, threshold, passes, frozenset())
        nfe += 1
        new, done = request.cut(new + verified(request, prefix, block))
    return new, nfe


def linear_led(request: Request, *, threshold: float = 0.0) -> tuple[list[int], int]:
    """The same in the led form: not NLD's, see docs/design/0006."""
    new, nfe = [request.best(request.causal(request.prompt)[-1])], 1
    new, done = request.cut(new)
    while not done:
        prefix = request.prompt + new
        first = request.best(request.causal(prefix)[-1])
        new, done = request.cut([*new, first])
        if done:
            return new, nfe + 1
        block = [request.mask_id] * max(1, request.block_length - 1)
        passes = 1 if threshold == 0 else request.block_length
        nfe += fill(request, prefix, block, threshold, passes, frozenset(), first)
        nfe += 1
        new, done = request.cut(new + verified(request, prefix, block))
    return new, nfe


def quadratic(request: Request) -> tuple[list[int], int]:
    """One pass verifies the draft and drafts after every prefix of it."""
    size = request.block_length + 1
    prefix, draft = request.prompt[:-1], request.prompt[-1:]
    new: list[int] = []
    nfe = 0
    while True:
        rows: list[int] = []
        positions = list(range(len(prefix)))
        for j, token in enumerate(draft):
            rows += [token] + [request.mask_id] * request.block_length
            positions += [len(prefix) + j + i for i in range(size)]
        mask = masks.prefix_and_tree(len(prefix), len(draft), request.block_length)
        drafted = {len(prefix) + i for i in range(len(rows)) if i % size}
        adapted = drafted if request.draft_adapter else set()
        logits = request.forward(prefix + rows, positions, mask, adapted)[len(prefix) :]
        nfe += 1
        matched = 0
        chosen = request.best(logits[0])
        while matched + 1 < len(draft) and draft[matched + 1] == chosen:
            matched += 1
            chosen = request.best(logits[matched * size])
        accepted = [*draft[1 : matched + 1], chosen]
        new, done = request.cut(new + accepted)
        if done:
            return new, nfe
        prefix = prefix + draft[: matched + 1]
        # index 1 of the group predicts the token that the verifier has just decided
        after = logits[matched * size + 2 : (matched + 1) * size]
        draft = [chosen] + [request.best(row) for row in after]


def rolling(
    request: Request, *, threshold: float, revision: float, spare: int = 0
) -> tuple[list[int], int]:
    """Diffusion with a rolling block: not NLD's, see docs/design/0007."""
    ends: list[int] = []
    cached, filled = request.prompt[:-1], request.prompt[-1:]
    new: list[int] = []
    nfe = 0
    while True:
        nfe += 1
        known = cached + filled
        causal = request.causal(known)
        stand = 1 + standing(request, causal[len(cached) :], filled[1:], revision)
        following = request.best(causal[len(cached) + stand - 1])
        new, done = request.cut([*new, *filled[1:stand], following])
        if done:
            return new, nfe
        run: list[int] = []
        sures: list[float] = []
        if stand in (len(filled), *ends):
            before = cached + filled[:stand]
            block = request.denoised(before, [request.mask_id] * request.block_length)
            for row in block[1 : request.max_tokens - len(new) + 1]:
                token, sure = request.confidence(row)
                request.margins.append(abs(sure - threshold) * CLOSE)
                if sure < threshold:
                    break
                run.append(token)
                sures.append(sure)
                if token in request.eos:
                    break
        cached, filled = cached + filled[:stand], [following, *run]
        chances = [math.prod(sures[:i]) * (1 - sures[i]) for i in range(len(run))]
        order = sorted(range(len(run)), key=lambda i: -chances[i])
        ends = [1 + i for i in order[:spare]]
        if 0 < spare < len(run):
            request.margins.append((chances[order[spare - 1]] - chances[order[spare]]) * CLOSE)


def fixed_led(
    request: Request, *, threshold: float | None, revision: float, steps: int | None = None
) -> tuple[list[int], int]:
    """Diffusion in fixed blocks of the led form: not NLD's, see docs/design/0020."""
    cached, filled = request.prompt[:-1], request.prompt[-1:]
    new: list[int] = []
    nfe = 0
    while True:
        nfe += 1
        causal = request.causal(cached + filled)
        stand = 1 + standing(request, causal[len(cached) :], filled[1:], revision)
        following = request.best(causal[len(cached) + stand - 1])
        new, done = request.cut([*new, *filled[1:stand], following])
        if done:
            return new, nfe
        cached, whole = cached + filled[:stand], stand == len(filled)
        filled = [following]
        if whole:
            masks = [request.mask_id] * request.block_length
            opening = request.denoised(cached, masks)
            block = masks[: request.max_tokens - len(new) + 1]
            passes = steps or request.block_length
            made = fill(request, cached, block, threshold, passes, request.eos, following, opening)
            nfe += max(1, made) - 1
            filled = block[: next((i + 1 for i, t in enumerate(block) if t in request.eos), None)]
