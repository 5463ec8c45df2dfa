"""What a decoder reports. Everything a user sees is built on these."""

from dataclasses import dataclass
from typing import Literal

TokenState = Literal["mask", "new", "kept", "revised"]
"""A position of the open block: undecided, filled in this pass, filled earlier, changed."""

PlanKind = Literal["ar", "lookup", "head", "linear", "quadratic"]
"""What `auto` can do at a step."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """AR log-probability of a token and of the most probable alternatives."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """(token id, log-probability), most probable first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafted:
    """A full snapshot of the open block after one pass."""

    start: int
    """Absolute position of the block's first token."""
    tokens: tuple[int, ...]
    """Token ids; the mask id for undecided tokens."""
    confidences: tuple[float, ...]
    """Probability of each token in the pass that filled it; 0 for undecided tokens."""
    states: tuple[TokenState, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """Tokens that are final, in order."""

    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    """One for each token if the request asked for them, else empty."""
    drafted: int | None = None
    """Draft tokens that this commit judged; None outside speculation."""
    new_cycle: bool = True
    """In speculation: False if the commit belongs to the same cycle as the one before."""
    revisions: int = 0
    """Positions that denoising changed after it had filled them."""
    plan: PlanKind | None = None
    """What `auto` chose for the pass; None in the other modes, and for an answer's first token."""
    predicted: int = 0
    """Judged draft tokens that came from the request's prediction."""


Event = Drafted | Committed
