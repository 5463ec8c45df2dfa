"""The open block of masks, and the denoising passes that fill it."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trimode.decoding.context import BlockView, DecodingContext
from trimode.decoding.denoising.commit_rules import Proposal, quota_schedule, select
from trimode.decoding.events import Committed, Drafted, TokenState
from trimode.decoding.span import Keep, Logits, Span, SpanKind, led_visibility


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
    revised: set[int] = field(default_factory=set)
    forced: int | None = None
    """Offset of a forced end-of-thinking token."""

    def __post_init__(self) -> None:
        self.confidences = [float(token != self.mask_token_id) for token in self.tokens]

    @property
    def masked(self) -> list[int]:
        """Offsets still undecided."""
        return [i for i, token in enumerate(self.tokens) if token == self.mask_token_id]

    @property
    def revisable(self) -> list[int]:
        """Offsets that a denoising pass filled and that were not yet revised."""
        settled = self.fixed | self.revised
        return [
            i
            for i, token in enumerate(self.tokens)
            if token != self.mask_token_id and i not in settled
        ]

    def known(self, history: Sequence[int]) -> list[int]:
        """All tokens decided so far: those before the block and those in it."""
        return [*history, *(token for token in self.tokens if token != self.mask_token_id)]

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

    def snapshot(self, changed: set[int]) -> Drafted:
        """The block as a user may see it; `changed` are the offsets this pass filled."""

        def state(i: int) -> TokenState:
            if self.tokens[i] == self.mask_token_id:
                return "mask"
            if i in changed:
                return "revised" if i in self.revised else "new"
            return "kept"

        return Drafted(
            start=self.start,
            tokens=tuple(self.tokens),
            confidences=tuple(self.confidences),
            states=tuple(state(i) for i in range(len(self.tokens))),
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
    lead: int | None = None,
    stop_token_ids: frozenset[int] = frozenset(),
) -> Generator[Span | Keep | Committed | Drafted, Logits | None, None]:
    """Run denoising passes until the block holds no mask.

    A pass fills the masks that the commit rule trusts, and may reopen filled ones, each at most
    once. The last pass that is allowed fills all. A stop token with no mask before it ends the
    work early.

    Args:
        block: changed in place.
        history: all tokens before the block.
        context: the request.
        kind: `draft` or `denoise`.
        one_pass: fill every mask in one pass, whatever the commit rule.
        adapter: whether the passes run with the adapter on.
        lead: the token before the block if it is not in the KV cache yet. It joins the first
            pass as a causal row without the adapter, enters the cache, and its logits decide the
            block's first token as AR decoding would: that one is committed at once.
        stop_token_ids: tokens that end the block.
    """
    passes = 1 if one_pass else context.max_denoising_steps
    schedule = quota_schedule(len(block.masked), passes)
    for step, share in enumerate(schedule):
        if not block.masked:
            return
        last = step + 1 == passes
        revisable = block.revisable if context.revision_threshold and not last else []
        if lead is None:
            masked = block.masked
            rows = yield from _block_pass(block, [*masked, *revisable], context, kind, adapter)
        else:
            masked = [offset for offset in block.masked if offset]
            rows = yield from _led_pass(block, lead, masked, history, context, kind, adapter)
            lead = None
        known = block.known(history)
        changed = _revise(block, rows[len(masked) :], revisable, known, context)
        quota = None if last else share
        changed |= _fill(block, rows[: len(masked)], masked, known, context, quota=quota)
        block.drop_needless_forced()
        if context.show_drafts:
            yield block.snapshot(changed)
        if block.end(stop_token_ids) is not None:
            return


def _block_pass(
    block: OpenBlock,
    offsets: Sequence[int],
    context: DecodingContext,
    kind: SpanKind,
    adapter: bool,
) -> Generator[Span, Logits | None, Tensor]:
    """A pass over the block alone; returns the logits of `offsets`, `[n, vocab]`."""
    logits = yield Span(
        kind=kind,
        tokens=tuple(block.tokens),
        positions=range(block.start, block.start + len(block.tokens)),
        visibility="block",
        adapter=adapter,
        logits=context.predicting(offsets),
    )
    assert logits is not None
    return context.sampler.exclude_mask(logits.rows)


def _led_pass(
    block: OpenBlock,
    lead: int,
    offsets: Sequence[int],
    history: Sequence[int],
    context: DecodingContext,
    kind: SpanKind,
    adapter: bool,
) -> Generator[Span | Keep | Committed, Logits | None, Tensor]:
    """The block's first pass with the token before it as a causal row.

    That row enters the KV cache and decides the block's first token, which is committed.

    Returns:
        The logits of `offsets`, `[n, vocab]`.
    """
    visibility, in_block = led_visibility(1, masks=len(block.tokens))
    logits = yield Span(
        kind=kind,
        tokens=(lead, *block.tokens),
        positions=range(block.start - 1, block.start + len(block.tokens)),
        visibility=visibility,
        adapter=in_block & adapter,
        logits=(0, *context.predicting(offset + 1 for offset in offsets)),
    )
    assert logits is not None
    yield Keep((0,))
    row = logits.rows[:1]
    block.fix(0, context.sampler.pick(row[0], block.start, history))
    first = tuple(block.tokens[:1])
    yield Committed(tokens=first, logprobs=context.sampler.logprobs(row, first), drafted=0)
    return context.sampler.exclude_mask(logits.rows[1:])


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


def _revise(
    block: OpenBlock,
    rows: Tensor,
    revisable: list[int],
    known: Sequence[int],
    context: DecodingContext,
) -> set[int]:
    """Replace or reopen filled offsets whose probability has collapsed; returns those replaced.

    A replacement must itself be probable enough; otherwise the offset becomes a mask again and
    later passes fill it. Each offset is revised at most once, so this ends.
    """
    if not revisable:
        return set()
    probabilities = rows.softmax(-1)
    proposed = candidates(rows, block.start, revisable, known, context).tolist()
    replaced = set()
    for i, offset in enumerate(revisable):
        old, new = block.tokens[offset], proposed[i]
        if new == old or float(probabilities[i, old]) >= context.revision_threshold:
            continue
        block.revised.add(offset)
        confidence = float(probabilities[i, new])
        if confidence >= context.replacement_threshold:
            block.tokens[offset], block.confidences[offset] = new, confidence
            replaced.add(offset)
        else:
            block.tokens[offset], block.confidences[offset] = block.mask_token_id, 0.0
    return replaced
