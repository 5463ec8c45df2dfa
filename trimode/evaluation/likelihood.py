"""Log-likelihood of texts under AR decoding, many at once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trimode.checkpoints import LoadedModel
from trimode.engine.engine import DEFAULT_KV_CACHE_BYTES, DEFAULT_MAX_ROWS
from trimode.model import KVCache, Segment

Pair = tuple[Sequence[int], Sequence[int]]
"""(context, continuation), both of at least one token."""

_HEAD_ROWS = 128
"""Rows whose logits are held at once: 128 x 49,152 floats are 25 MB."""


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How likely a continuation is."""

    log_probability: float
    """Sum over its tokens, natural logarithm, over the whole vocabulary."""
    greedy: bool
    """Whether each token is the likeliest one."""


@dataclass(slots=True, eq=False)
class _Work:
    """Tokens that go through the model after those in a cache."""

    tokens: Sequence[int]
    cache: KVCache
    scored: bool
    """Whether what comes out is wanted."""
    hidden: list[Tensor] = field(default_factory=list)
    done: int = 0


@torch.inference_mode()
def log_likelihoods(
    model: LoadedModel,
    pairs: Sequence[Pair],
    *,
    rows: int = DEFAULT_MAX_ROWS,
    kv_cache_bytes: int = DEFAULT_KV_CACHE_BYTES,
) -> Iterator[tuple[int, Likelihood]]:
    """The log-likelihood of each continuation after its context.

    A context that several pairs share is computed once. Beyond the model's context length, tokens
    on the left are left out.

    Args:
        model: the model.
        pairs: what to score.
        rows: of a pass.
        kv_cache_bytes: memory of all caches that are held at once.

    Yields:
        Numbers of pairs and their results, in an order that saves work.
    """
    limit = model.config.max_position_embeddings + 1
    cut = {i: _fitting(pair, limit) for i, pair in enumerate(pairs)}
    by_context: dict[tuple[int, ...], list[int]] = {}
    for i, (context, _) in cut.items():
        by_context.setdefault(tuple(context), []).append(i)
    room = kv_cache_bytes // KVCache.bytes_per_token(model.config, model.runner.kv_dtype)
    together: dict[tuple[int, ...], list[int]] = {}
    held = 0
    for context, numbers in sorted(by_context.items(), key=lambda item: len(item[0])):
        needed = sum(len(context) + len(cut[i][1]) for i in numbers)
        if together and held + needed > room:
            yield from _scored(model, together, cut, rows)
            together, held = {}, 0
        together[context] = numbers
        held += needed
    yield from _scored(model, together, cut, rows)


def _fitting(pair: Pair, limit: int) -> tuple[list[int], list[int]]:
    """A pair of at most `limit` tokens, one of context at least."""
    context, continuation = list(pair[0]), list(pair[1])
    excess = max(0, len(context) + len(continuation) - limit)
    context = context[excess:]
    if not context:  # the continuation alone is as long as the model's context
        raise ValueError(f"a continuation of {len(continuation)} tokens leaves no room for context")
    return context, continuation


def _scored(
    model: LoadedModel,
    together: dict[tuple[int, ...], list[int]],
    pairs: dict[int, tuple[list[int], list[int]]],
    rows: int,
) -> Iterator[tuple[int, Likelihood]]:
    """Score pairs that share their passes: first all contexts, then all continuations."""
    contexts: dict[tuple[int, ...], _Work] = {}
    for context, numbers in together.items():
        cache = _cache(model, len(context) + len(pairs[numbers[0]][1]))  # the first pair's too
        contexts[context] = _Work(context[:-1], cache, scored=False)
    _run(model, list(contexts.values()), rows)
    tails: dict[int, _Work] = {}
    for context, numbers in together.items():
        known = contexts[context].cache
        for i in numbers:
            continuation = pairs[i][1]
            cache = known
            if i != numbers[0]:
                cache = _cache(model, len(context) + len(continuation))
                cache.copy_prefix(known, len(context) - 1)
            tails[i] = _Work([context[-1], *continuation[:-1]], cache, scored=True)
    _run(model, list(tails.values()), rows)
    for i, work in tails.items():
        yield i, _likelihood(model, torch.cat(work.hidden), pairs[i][1])


def _cache(model: LoadedModel, capacity: int) -> KVCache:
    runner = model.runner
    return KVCache(model.config, capacity, dtype=runner.kv_dtype, device=runner.device)


def _run(model: LoadedModel, works: list[_Work], rows: int) -> None:
    """Run all tokens of all works, at most `rows` of them in a pass."""
    runner = model.runner
    waiting = [work for work in works if work.tokens]
    while waiting:
        tokens: list[int] = []
        positions: list[int] = []
        segments: list[Segment] = []
        parts: list[_Work] = []
        for work in waiting:
            if len(tokens) == rows:
                break
            start = len(tokens)
            tokens += work.tokens[work.done : work.done + rows - start]
            first = work.cache.length
            positions += range(first, first + len(tokens) - start)
            segments.append(Segment(start, len(tokens), work.cache, "causal"))
            parts.append(work)
        device = runner.device
        hidden = runner.run(
            torch.tensor(tokens, device=device), torch.tensor(positions, device=device), segments
        )
        for work, segment in zip(parts, segments, strict=True):
            count = segment.stop - segment.start
            work.cache.keep(range(count))
            if work.scored:
                work.hidden.append(hidden[segment.start : segment.stop])
            work.done += count
        waiting = [work for work in waiting if work.done < len(work.tokens)]


def _likelihood(model: LoadedModel, hidden: Tensor, continuation: list[int]) -> Likelihood:
    total, greedy = 0.0, True
    wanted = torch.tensor(continuation, device=hidden.device)
    for start in range(0, len(continuation), _HEAD_ROWS):
        targets = wanted[start : start + _HEAD_ROWS]
        logits = model.runner.logits(hidden[start : start + len(targets)])
        chosen = torch.log_softmax(logits, -1).gather(-1, targets[:, None])
        total += float(chosen.sum())
        greedy &= bool((logits.argmax(-1) == targets).all())
    return Likelihood(total, greedy)
