"""The open block of masks, and the denoising passes that fill it."""

from collections.abc import Generator, Sequence, Set
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from trimode.decoding.context import BlockView, DecodingContext
from trimode.decoding.denoising.commit_rules import Proposal, quota_schedule, select
from trimode.decoding.events import Drafted, TokenState
from trimode.decoding.markov import chained
from trimode.decoding.span import Logits, Span, SpanKind


@dataclass(slots=True)
class OpenBlock:
    """A block on its way from masks to tokens."""

    start: int
    """Absolute position of its first token."""
    tokens: list[int]
    mask_token_id: int
    fixed: frozenset[int]
    """Offsets that are given, not denoised: the AR prediction, a forced token."""
    confidences: list[float] = field(init=False)
    forced: int | None = None
    """Offset of a forced end-of-thinking token."""

    def __post_init__(self) -> None:
        self.confidences = [float(token != self.mask_token_id) for token in self.tokens]

    @property
    def masked(self) -> list[int]:
        """Offsets still undecided."""
        return [i for i, token in enumerate(self.tokens) if token == self.mask_token_id]

    def known(self, history: Sequence[int]) -> list[int]:
        """All tokens decided so far: those before the block and those in it."""
        return [*history, *(token for token in self.tokens if token != self.mask_token_id)]

    def token_at(self, history: Sequence[int], position: int) -> int:
        """The token at an absolute position, in the block or in the history before it."""
        return history[position] if position < self.start else self.tokens[position - self.start]

    def fix(self, offset: int, token: int) -> None:
        """Give an offset its token, for good."""
        self.tokens[offset], self.confidences[offset] = token, 1.0
        self.fixed |= {offset}

    def drop_needless_forced(self) -> None:
        """Reopen the forced token's offset once denoising has put the same token before it."""
        if self.forced is not None and self.tokens[self.forced] in self.tokens[: self.forced]:
            self.tokens[self.forced], self.confidences[self.forced] = self.mask_token_id, 0.0
            self.fixed -= {self.forced}
            self.forced = None

    def end(self, stop_token_ids: frozenset[int]) -> int | None:
        """Length up to a stop token that has no mask before it, else None."""
        for i, token in enumerate(self.tokens):
            if token == self.mask_token_id:
                return None
            if token in stop_token_ids:
                return i + 1
        return None

    def snapshot(self, changed: Set[int], state: TokenState = "new") -> Drafted:
        """The block as a user may see it; `changed` are the offsets that have this state now."""

        def state_of(i: int) -> TokenState:
            if self.tokens[i] == self.mask_token_id:
                return "mask"
            return state if i in changed else "kept"

        return Drafted(
            start=self.start,
            tokens=tuple(self.tokens),
            confidences=tuple(self.confidences),
            states=tuple(state_of(i) for i in range(len(self.tokens))),
        )


def open_block(
    seed: int | None, start: int, length: int, history: Sequence[int], context: DecodingContext
) -> OpenBlock:
    """A block of masks at `start`; its first token is `seed` if there is one."""
    tokens = [context.mask_token_id] * length
    fixed = set()
    if seed is not None:
        tokens[0] = seed
        fixed.add(0)
        history = [*history, seed]
    forced = context.forced_offset(start, length, history)
    if forced in fixed:  # the seed was chosen under the same budget
        forced = None
    if forced is not None:
        token = context.sampler.forced(start + forced, history)
        assert token is not None
        tokens[forced] = token
        fixed.add(forced)
    return OpenBlock(start, tokens, context.mask_token_id, frozenset(fixed), forced=forced)


def denoise(
    block: OpenBlock,
    history: Sequence[int],
    context: DecodingContext,
    *,
    kind: SpanKind,
    one_pass: bool,
    adapter: bool,
    proposed: tuple[Tensor, Tensor] | None = None,
    stop_token_ids: frozenset[int] = frozenset(),
) -> Generator[Span | Drafted, Logits | None, None]:
    """Run denoising passes until the block holds no mask.

    A pass fills the masks that the commit rule trusts. The last pass that is allowed fills all. A
    stop token with no mask before it ends the work early.

    Args:
        block: changed in place.
        history: all tokens before the block.
        context: the request.
        kind: `draft` or `denoise`.
        one_pass: fill every mask in one pass, whatever the commit rule.
        adapter: whether the passes run with the adapter on.
        proposed: logits of the block's masks `[masks, vocab]`, and hidden states `[masks, dim]`, by
            a pass that has run already. It counts as the first.
        stop_token_ids: tokens that end the block.
    """
    # Chances given a neighbour that is only proposed are too high if that neighbour is wrong. AR
    # finds such tokens, if it judges them.
    judged = kind == "draft" or context.revision_threshold > 0
    passes = 1 if one_pass else context.max_denoising_steps
    schedule = quota_schedule(len(block.masked), passes)
    for step, share in enumerate(schedule):
        if not block.masked:
            return
        masked, known = block.masked, block.known(history)
        if step or proposed is None:
            rows, states = yield from _block_pass(block, masked, context, kind, adapter)
        else:
            rows, states = proposed
        rows = context.sampler.exclude_mask(rows)
        if context.markov_head is not None and judged and masked:
            positions = [block.start + offset for offset in masked]
            decided = partial(block.token_at, history)
            rows, _ = chained(rows, states, positions, decided, known, context)
        quota = None if step + 1 == passes else share
        filled = _fill(block, rows, masked, known, context, quota=quota)
        block.drop_needless_forced()
        if context.show_drafts:
            yield block.snapshot(filled)
        if block.end(stop_token_ids) is not None:
            return


def fill_block(
    block: OpenBlock,
    history: Sequence[int],
    context: DecodingContext,
    proposed: tuple[Tensor, Tensor] | None = None,
) -> Generator[Span | Drafted, Logits | None, list[int]]:
    """Fill a block of diffusion, in as many passes as it takes; see `denoise`.

    Returns:
        Its tokens, up to a stop token.
    """
    yield from denoise(
        block,
        history,
        context,
        kind="denoise",
        one_pass=False,
        adapter=context.denoise_adapter,
        proposed=proposed,
        stop_token_ids=context.stop_token_ids,
    )
    return block.tokens[: block.end(context.stop_token_ids)]


def _block_pass(
    block: OpenBlock,
    offsets: Sequence[int],
    context: DecodingContext,
    kind: SpanKind,
    adapter: bool,
) -> Generator[Span, Logits | None, tuple[Tensor, Tensor]]:
    """A pass over the block alone; returns logits and hidden states of `offsets`."""
    logits = yield Span(
        kind=kind,
        tokens=tuple(block.tokens),
        positions=range(block.start, block.start + len(block.tokens)),
        visibility="block",
        adapter=adapter,
        logits=context.predicting(offsets),
    )
    assert logits is not None
    return logits.rows, logits.hidden


def _fill(
    block: OpenBlock,
    rows: Tensor,
    masked: list[int],
    known: Sequence[int],
    context: DecodingContext,
    *,
    quota: int | None,
) -> set[int]:
    """Commit the masked offsets that the rule trusts, or all if quota is None; returns them."""
    if not masked:
        return set()
    proposed = candidates(rows, block.start, masked, known, context)
    chosen = [True] * len(masked)
    confidences = [1.0] * len(masked)
    if quota is not None or context.show_drafts:
        shown = tuple(block.tokens)
        allowed = quota or len(masked)
        proposal = propose(rows, proposed, block.start, shown, masked, context, allowed)
        confidences = proposal.confidences.tolist()
        if quota is not None:
            chosen = select(context.commit_rule, proposal, context.threshold).tolist()
    tokens = proposed.tolist()
    filled = set()
    for i, offset in enumerate(masked):
        if chosen[i]:
            block.tokens[offset] = tokens[i]
            block.confidences[offset] = confidences[i]
            filled.add(offset)
    return filled


def propose(
    rows: Tensor,
    proposed: Tensor,
    start: int,
    tokens: tuple[int, ...],
    masked: Sequence[int],
    context: DecodingContext,
    quota: int,
) -> Proposal:
    """What a commit rule is asked to judge.

    Args:
        rows: logits of the masked positions, `[masks, vocab]`.
        proposed: the token each would get, `[masks]`.
        start: absolute position of the block's first token.
        tokens: the block, masks included.
        masked: offsets of its masks.
        context: the request.
        quota: positions the even schedule allows this pass.
    """
    probabilities = rows.softmax(-1)
    scores = None
    if context.commit_rule == "learned":
        assert context.commit_scorer is not None
        scores = context.commit_scorer(BlockView(start, tokens, tuple(masked), probabilities))
    sure = probabilities.gather(-1, proposed[:, None])[:, 0]
    return Proposal(sure, probabilities, quota, scores)


def candidates(
    rows: Tensor, start: int, offsets: list[int], known: Sequence[int], context: DecodingContext
) -> Tensor:
    """The token proposed at each offset, `[n]`; `known` are the tokens already decided."""
    sampler = context.sampler
    if sampler.greedy:
        return sampler.sample(rows, start, known)
    picks = zip(offsets, rows, strict=True)
    return torch.cat([sampler.sample(row[None], start + i, known) for i, row in picks])


def standing(
    filled: Sequence[int], causal: Tensor, fixed: Set[int], context: DecodingContext
) -> int:
    """How many filled tokens stand before AR decoding: up to the first that it finds improbable.

    Args:
        filled: tokens that follow each other.
        causal: row i predicts filled[i] from what is before it, `[n, vocab]`.
        fixed: offsets that stand in any case.
        context: the request.
    """
    if not filled or not context.revision_threshold:
        return len(filled)
    probabilities = context.sampler.exclude_mask(causal).softmax(-1)
    chosen = torch.tensor(filled, device=causal.device)
    stands = probabilities.gather(-1, chosen[:, None])[:, 0] >= context.revision_threshold
    stands[list(fixed)] = True
    return int(stands.int().cumprod(0).sum())
