"""Which masked positions of a block a denoising pass may commit.

Each rule looks at the probabilities of the still masked positions and tells which it trusts;
`select` adds the most trusted one, so that every pass makes progress. Sources: NLD's released
sampler (threshold, quota), the legacy rules of its research code, and a learned scorer (arXiv
2607.05722, section 3.2).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trimode.config import DEFAULT_THRESHOLD, CommitRuleName


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a pass proposes for the masked positions, in order of position."""

    confidences: Tensor
    """Un-tempered probability of each candidate token, `[masks]`."""
    probabilities: Tensor
    """Un-tempered distribution at each position, `[masks, vocab]`."""
    quota: int
    """Positions the even schedule allows this pass."""
    scores: Tensor | None = None
    """The learned scorer's opinion of each, `[masks]`, if the rule asks for it."""


Rule = Callable[[Proposal, float], tuple[Tensor, Tensor]]
"""(proposal, bar) -> (trust `[masks]`, higher is surer; trusted bool `[masks]`)."""


def threshold(proposal: Proposal, bar: float) -> tuple[Tensor, Tensor]:
    """Every position whose confidence reaches the bar."""
    return proposal.confidences, proposal.confidences >= bar


def quota(proposal: Proposal, _bar: float) -> tuple[Tensor, Tensor]:
    """The scheduled number of most confident positions."""
    ranks = ranks_of(proposal.confidences)
    return proposal.confidences, ranks < proposal.quota


def factor(proposal: Proposal, bar: float) -> tuple[Tensor, Tensor]:
    """The longest sorted prefix in which rank i has confidence >= 1 - bar / (i + 2).

    Source: the factor rule of Fast-dLLM (arXiv 2505.22618), in the form NLD's code uses.
    """

    def passes(ordered: Tensor) -> Tensor:
        rank = torch.arange(len(ordered), device=ordered.device)
        return ordered >= 1 - bar / (rank + 2)

    return proposal.confidences, _sorted_prefix(proposal.confidences, passes)


def cumulative_error(proposal: Proposal, bar: float) -> tuple[Tensor, Tensor]:
    """The longest sorted prefix whose confidences multiply to at least the bar."""
    return proposal.confidences, _sorted_prefix(
        proposal.confidences, lambda sure: sure.cumprod(0) >= bar
    )


def margin(proposal: Proposal, bar: float) -> tuple[Tensor, Tensor]:
    """Every position where the best token leads the second by the bar."""
    best = proposal.probabilities.topk(2).values
    lead = best[:, 0] - best[:, 1]
    return lead, lead >= bar


def entropy(proposal: Proposal, bar: float) -> tuple[Tensor, Tensor]:
    """Every position whose distribution has at most `bar` nats of entropy."""
    nats = torch.special.entr(proposal.probabilities).sum(-1)
    return -nats, nats <= bar


def learned(proposal: Proposal, bar: float) -> tuple[Tensor, Tensor]:
    """Every position that the model's scorer takes for final with at least this probability."""
    assert proposal.scores is not None
    return proposal.scores, proposal.scores >= bar


def ranks_of(trust: Tensor) -> Tensor:
    """Rank of each position, 0 for the highest; the earlier position wins a tie."""
    return trust.sort(descending=True, stable=True).indices.argsort()


def _sorted_prefix(trust: Tensor, passes: Callable[[Tensor], Tensor]) -> Tensor:
    """Positions in the longest prefix, by falling trust, of which every member passes."""
    ordered, order = trust.sort(descending=True, stable=True)
    in_prefix = passes(ordered).int().cumprod(0).bool()
    chosen = torch.zeros_like(in_prefix)
    chosen[order] = in_prefix
    return chosen


@dataclass(frozen=True, slots=True)
class CommitRule:
    """A rule, the bar it uses by default, and what the bar measures."""

    judge: Rule
    threshold: float
    """Default bar. A rolling block and a linear draft have their own for the rule `threshold`."""
    unit: str
    """What the bar measures, and its range."""
    commits: str
    """What a pass commits, for the documentation."""
    unreachable: float = 2.0
    """A bar that no proposal meets."""


RULES: dict[CommitRuleName, CommitRule] = {
    "threshold": CommitRule(
        threshold,
        DEFAULT_THRESHOLD,
        "probability of the token, 0 to 1",
        "every token whose probability reaches the bar",
    ),
    "quota": CommitRule(
        quota, 0.0, "none, the bar is not read", "an equal share of the block, surest tokens first"
    ),
    "factor": CommitRule(
        factor,
        1.0,
        "a factor f: rank i (from 0) needs a probability of 1 - f / (i + 2)",
        "the longest run of surest tokens in which each passes",
        unreachable=-9.0,
    ),
    "margin": CommitRule(
        margin,
        0.8,
        "difference of two probabilities, 0 to 1",
        "every token that leads the second best by the bar",
    ),
    "entropy": CommitRule(
        entropy,
        0.3,
        "nats, 0 to ln(vocabulary); lower is stricter",
        "every token whose distribution has at most this entropy",
        unreachable=-1.0,
    ),
    "cumulative_error": CommitRule(
        cumulative_error,
        0.8,
        "product of probabilities, 0 to 1",
        "the longest run of surest tokens whose probabilities multiply to at least the bar",
    ),
    "learned": CommitRule(
        learned,
        0.7,
        "probability that the token is final, by the adapter's scorer, 0 to 1",
        "every token that the scorer takes for final",
    ),
}


def trusted(rule: CommitRuleName, proposal: Proposal, bar: float) -> tuple[Tensor, Tensor]:
    """What the rule says of each masked position: trust `[masks]` and trusted bool `[masks]`."""
    return RULES[rule].judge(proposal, bar)


def select(rule: CommitRuleName, proposal: Proposal, bar: float) -> Tensor:
    """Masked positions to commit, bool `[masks]`: those the rule trusts and the surest one."""
    trust, chosen = trusted(rule, proposal, bar)
    chosen = chosen.clone()
    chosen[trust.argmax()] = True
    return chosen


def quota_schedule(masks: int, passes: int) -> list[int]:
    """Split `masks` evenly over `passes`; the first passes take the remainder."""
    share, rest = divmod(masks, passes)
    return [share + (i < rest) for i in range(passes)]
