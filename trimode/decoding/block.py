"""The open block of masks, and the denoising passes that fill it."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trimode.config import DEFAULT_THRESHOLD
from trimode.decoding.commit_rules import BlockView, Proposal, quota_schedule, select
from trimode.decoding.context import DecodingContext
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

    def fix(self, offset: int, token: int) -> None:
        """Give an offset its token."""
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
    """A block of masks at `start`; its first token is `seed` where there is one."""
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
    at_once: bool,
    adapter: bool,
    lead: int | None = None,
    stop_token_ids: frozenset[int] = frozenset(),
) -> Generator[Span | Keep | Committed | Drafted, Logits | None, None]:
    """Run denoising passes until the block holds no mask.

    A pass asks logits of the undecided positions only (and of revisable ones where revision is
    on), fills those the commit rule trusts, and may reopen committed ones, each at most once.
    A stop token with no mask before it ends the work early.

    Args:
        block: changed in place.
        history: all tokens before the block.
        context: the request.
        kind: `draft` or `denoise`.
        at_once: fill every mask in one pass, whatever the commit rule.
        adapter: whether the passes run with the adapter on.
        lead: the token before the block where it is not in the KV cache yet. It joins the first
            pass as a causal row without the adapter, enters the cache, and its logits decide the
            block's first token as AR decoding would: that one is committed at once.
        stop_token_ids: tokens that end the block.
    """
    options = context.options
    passes = 1 if at_once else options.max_denoising_steps or context.block_length
    schedule = quota_schedule(len(block.masked), passes)
    step = 0
    while masked := block.masked:
        last = step + 1 >= passes
        revise = options.revision_threshold is not None and not last
        revisable = block.revisable if revise else []
        if lead is None:
            logits = yield Span(
                kind=kind,
                tokens=tuple(block.tokens),
                positions=range(block.start, block.start + len(block.tokens)),
                visibility="block",
                adapter=adapter,
                logits=context.predicting((*masked, *revisable)),
            )
            assert logits is not None
            rows = context.sampler.exclude_mask(logits.rows)
        else:
            masked = [offset for offset in masked if offset]
            wanted = context.predicting(offset + 1 for offset in masked)
            logits = yield _led_span(kind, lead, block, wanted, adapter=adapter)
            assert logits is not None
            yield from _commit_first(block, logits.rows[:1], history, context)
            rows = context.sampler.exclude_mask(logits.rows[1:])
            lead = None
        known = [*history, *(t for t in block.tokens if t != block.mask_token_id)]
        changed = _revise(block, rows[len(masked) :], revisable, known, context)
        quota = None if last else schedule[step]
        changed |= _fill(block, rows[: len(masked)], masked, known, context, quota=quota)
        block.drop_needless_forced()
        if options.show_drafts:
            yield block.snapshot(changed)
        if block.end(stop_token_ids) is not None:
            return
        step += 1


def _led_span(
    kind: SpanKind, lead: int, block: OpenBlock, rows: list[int], *, adapter: bool
) -> Span:
    """The block's first pass with the token before it as a causal row; its logits come first.

    `rows`: further rows of the pass whose logits are wanted.
    """
    visibility, in_block = led_visibility(1, len(block.tokens))
    return Span(
        kind=kind,
        tokens=(lead, *block.tokens),
        positions=range(block.start - 1, block.start + len(block.tokens)),
        visibility=visibility,
        adapter=in_block & adapter,
        logits=(0, *rows),
    )


def _commit_first(
    block: OpenBlock, row: Tensor, history: Sequence[int], context: DecodingContext
) -> Generator[Keep | Committed, Logits | None, None]:
    """Take the block's first token from the logits `[1, vocab]` of the token before it."""
    yield Keep((0,))
    block.fix(0, context.sampler.pick(row[0], block.start, history))
    first = tuple(block.tokens[:1])
    yield Committed(tokens=first, logprobs=context.sampler.logprobs(row, first), drafted=0)


def _fill(
    block: OpenBlock,
    rows: Tensor,
    masked: list[int],
    known: Sequence[int],
    context: DecodingContext,
    *,
    quota: int | None,
) -> set[int]:
    """Commit the masked offsets that the rule trusts, or all where quota is None; returns them."""
    if not masked:
        return set()
    proposed = candidates(rows, block.start, masked, known, context)
    options = context.options
    chosen = [True] * len(masked)
    confidences = [1.0] * len(masked)
    if quota is not None or options.show_drafts:
        shown = tuple(block.tokens)
        allowed = quota or len(masked)
        proposal = propose(rows, proposed, block.start, shown, masked, context, allowed)
        confidences = proposal.confidences.tolist()
        if quota is not None:
            chosen = select(options.commit_rule, proposal, options.threshold).tolist()
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
    if context.options.commit_rule == "learned":
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
    """Replace or reopen committed offsets whose probability has collapsed; returns those replaced.

    A replacement must itself pass the bar of a first commit; otherwise the offset becomes a mask
    again and later passes fill it. Each offset is revised at most once, so this ends.
    """
    options = context.options
    if options.revision_threshold is None or not revisable:
        return set()
    probabilities = rows.softmax(-1)
    proposed = candidates(rows, block.start, revisable, known, context).tolist()
    by_confidence = options.commit_rule == "threshold" and options.threshold is not None
    bar = options.threshold if by_confidence else DEFAULT_THRESHOLD
    assert bar is not None
    replaced = set()
    for i, offset in enumerate(revisable):
        old, new = block.tokens[offset], proposed[i]
        if new == old or float(probabilities[i, old]) >= options.revision_threshold:
            continue
        block.revised.add(offset)
        confidence = float(probabilities[i, new])
        if confidence >= bar:
            block.tokens[offset], block.confidences[offset] = new, confidence
            replaced.add(offset)
        else:
            block.tokens[offset], block.confidences[offset] = block.mask_token_id, 0.0
    return replaced
