"""What a decoder knows of its request besides the prompt."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from trimode.config import CommitRuleName
from trimode.decoding.auto.policy import NodeWorth, Policy
from trimode.decoding.sampling import Sampler


@dataclass(frozen=True, slots=True)
class BlockView:
    """A block in the middle of its denoising, as a scorer sees it."""

    start: int
    """Absolute position of its first token."""
    tokens: tuple[int, ...]
    """The mask token if nothing is committed yet."""
    masked: tuple[int, ...]
    """Offsets of the masks."""
    probabilities: Tensor
    """Un-tempered distribution at each of them, `[masks, vocab]`."""


class DraftHead(Protocol):
    """Guesses the tokens after the newest one without a pass of the model."""

    tokens: Tensor
    """The tokens that it can guess, `[K]`."""
    vocab_size: int
    """The model's."""

    def step(self, state: Tensor, token: int) -> tuple[Tensor, Tensor]:
        """What may follow a token.

        Args:
            state: what chose the token, `[dim]`: the model's hidden state, or that of a step.
            token: the chosen one.

        Returns:
            The state after it `[dim]`, and logits `[K]` of the token that follows.
        """
        ...

    def tree(
        self, state: Tensor, token: int, most: int, branches: int, worth: NodeWorth
    ) -> tuple[list[int], list[int], list[float]] | None:
        """The draft of `head_draft` for a sampler that takes the likeliest token.

        Returns:
            Tokens, parents and chances; None if it has no faster way than step by step.
        """
        ...


Before = tuple[int, int]
"""The two tokens before a place, in their order."""


class MarkovHead(Protocol):
    """Judges the candidates of a mask by the two tokens before it."""

    def prepare(self) -> None:
        """Make what it needs now, a fraction of a second, instead of before the first draft."""
        ...

    def at(self, states: Tensor, candidates: Tensor) -> Callable[[int, Before], np.ndarray]:
        """What is to be added to logits of candidates.

        Args:
            states: hidden states of the places' masks, `[places, dim]`.
            candidates: ids of each place's candidates, `[places, k]`.

        Returns:
            (place, tokens before it) -> what is added to the logits of its candidates, `[k]`.
        """
        ...

    def tree(
        self,
        scores: Tensor,
        states: Tensor,
        sharpness: float,
        before: Before,
        *,
        candidates: int,
        branches: int,
        nodes: int,
    ) -> tuple[list[int], list[int], list[float]] | None:
        """The likeliest beginnings of an answer.

        Args:
            scores: of the places, `[places, vocab]`.
            states: hidden states of the places' masks, `[places, dim]`.
            sharpness: by how much a score rises with its logit.
            before: the tokens before the first place.
            candidates: tokens of a place that are compared.
            branches: of them that are considered after the same tokens.
            nodes: of the tree, at most.

        Returns:
            Tokens, parents and chances; None if it has no faster way than candidate by candidate.
        """
        ...


class CommitScorer(Protocol):
    """Tells which of a block's best candidates will not change any more."""

    def __call__(self, view: BlockView) -> Tensor:
        """Probability that the best candidate of each mask is final, `[masks]`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodingContext:
    """A request with every default resolved, and what its decoder needs to know of the checkpoint.

    `trimode.engine.request.resolve` makes it. Decoders read nothing else.
    """

    sampler: Sampler
    mask_token_id: int
    """Stands for an undecided token; -1 if the model has none and the mode needs none."""
    stop_token_ids: frozenset[int]
    prompt_length: int
    max_length: int
    """Prompt plus the tokens this request may produce; never beyond the model's context."""
    context_length: int
    """The model's limit on positions."""
    block_length: int
    token_shift: bool = False
    """Whether the row before a token predicts it in denoising passes too, as in AR decoding."""
    draft_adapter: bool = False
    """Whether the adapter is on in speculation's drafts."""
    denoise_adapter: bool = False
    """Whether the adapter is on in diffusion's passes."""
    commit_rule: CommitRuleName = "threshold"
    threshold: float = 0.0
    """The commit rule's bar, in the rule's unit (`denoising.commit_rules.RULES`)."""
    one_pass: bool = False
    """Whether a linear draft is filled in one pass, without a commit rule."""
    max_denoising_steps: int = 1
    """Passes that a block may take."""
    revision_threshold: float = 0.0
    """A filled token falls if AR finds it less probable than this when it is closed, and those
    after it with it; 0 is never."""
    seed_block: bool = True
    """Whether a block begins with the AR prediction of its first token. In a linear draft that does
    not, the newest token is a causal row before the block (the led form)."""
    draft_tree: bool = False
    """Whether a verify pass checks the likeliest beginnings instead of one line of tokens."""
    rolling_block: bool = False
    """Whether diffusion moves its block on after every pass or keeps it until it is full (NLD)."""
    led_blocks: bool = False
    """Whether the first pass of a diffusion block closes what was filled before it. A rolling block
    always does; else the block begins as `seed_block` says, and a pass of its own closes it."""
    spare_drafts: int = 0
    """After how many more of a rolling block's filled tokens masks stand too."""
    show_drafts: bool = False
    commit_scorer: CommitScorer | None = None
    """For the commit rule `learned`."""
    draft_head: DraftHead | None = None
    """For the plan `head` of the mode `auto`."""
    markov_head: MarkovHead | None = None
    """For led drafts of one pass and rolling blocks."""
    policy: Policy | None = None
    """For the mode `auto`."""
    prediction: tuple[int, ...] = ()
    """Tokens that the answer is expected to resemble."""

    def remaining(self, length: int) -> int:
        """Tokens that may still be produced once a sequence has `length` tokens."""
        return self.max_length - length

    def predicting(self, rows: Iterable[int]) -> list[int]:
        """Rows of a denoising pass whose logits are those of the tokens in `rows`."""
        return [row - self.token_shift for row in rows]

    def draft_length(self, start: int) -> int:
        """Length of a draft block at `start`: full, unless the model's context ends before."""
        return min(self.block_length, self.context_length - start)

    def forced_offset(self, start: int, length: int, history: Sequence[int]) -> int | None:
        """Where a block at `start` must hold the end-of-thinking token, if it must."""
        for offset in range(length):
            if self.sampler.forced(start + offset, history) is not None:
                return offset
        return None
