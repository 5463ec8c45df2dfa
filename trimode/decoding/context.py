"""What a decoder knows of its request besides the prompt."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trimode.config import GenerationOptions
from trimode.decoding.commit_rules import CommitScorer
from trimode.decoding.policy import Policy
from trimode.decoding.sampling import Sampler


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodingContext:
    """A request's options with every default resolved, and facts about the checkpoint."""

    options: GenerationOptions
    sampler: Sampler
    mask_token_id: int
    """Stands for an undecided token; -1 where the model has none and the mode needs none."""
    stop_token_ids: frozenset[int]
    prompt_length: int
    max_length: int
    """Prompt plus the tokens this request may produce; never beyond the model's context."""
    context_length: int
    """The model's limit on positions."""
    block_length: int
    draft_adapter: bool
    """Whether speculation's drafts run with the adapter on."""
    denoise_adapter: bool
    """Whether diffusion's passes run with the adapter on."""
    token_shift: bool = False
    """Whether the row before a token predicts it in denoising passes too, as in AR decoding."""
    seed_drafts: bool = True
    """Whether the last committed token opens a linear draft's block (NLD) or goes ahead of it."""
    draft_tree: bool = False
    """Whether a verify pass checks the likeliest beginnings instead of one line of tokens."""
    rolling_block: bool = False
    """Whether diffusion moves its block on after every pass or keeps it until it is full (NLD)."""
    commit_scorer: CommitScorer | None = None
    """For the commit rule `learned`."""
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
