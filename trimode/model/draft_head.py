"""A draft head: guesses the tokens after the newest one without a pass of the model.

A step takes the hidden state that chose a token, and the token, and gives a state for what follows:

    x = [state / its scale, embedding(token) / its scale]
    next state = its scale (a + V silu(b)),   [a, b] = W x

The state times the output embeddings of frequent tokens gives their logits, and the next step
starts at it. A step multiplies a twentieth of what a pass of one row does.

Sources: EAGLE (arXiv 2401.15077), without its attention layer; Hydra (arXiv 2402.05109).
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimode.errors import InputError
from trimode.model.native.structs import FEATURE_MULTIPLE
from trimode.model.runners import Runner
from trimode.model.runners.runner import DraftHeadParts

_AT_ONCE = 32
"""Columns of an output head that are read at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftHeadConfig:
    """Sizes of a draft head and the scales of what it reads."""

    dim: int
    """Of the model's hidden states."""
    inner: int = 1024
    state_scale: float = 1.0
    """Root mean square of the model's hidden states."""
    embedding_scale: float = 1.0
    """Root mean square of its embeddings."""

    def __post_init__(self) -> None:
        if self.inner < 1 or self.inner % FEATURE_MULTIPLE:
            raise InputError("inner", str(self.inner), f"a multiple of {FEATURE_MULTIPLE}")


class DraftHeadNet(nn.Module):
    """The weights of a draft head, in floats."""

    def __init__(self, config: DraftHeadConfig) -> None:
        super().__init__()
        self.config = config
        self.enter = nn.Linear(2 * config.dim, config.dim + config.inner)
        self.leave = nn.Linear(config.inner, config.dim, bias=False)

    def forward(self, state: Tensor, embedded: Tensor) -> Tensor:
        """The states `[n, dim]` after some tokens.

        Args:
            state: that chose each token, `[n, dim]`.
            embedded: the tokens' embeddings, `[n, dim]`.
        """
        config = self.config
        x = torch.cat((state / config.state_scale, embedded / config.embedding_scale), -1)
        direct, inner = self.enter(x).split((config.dim, config.inner), dim=-1)
        return config.state_scale * (direct + self.leave(F.silu(inner)))


@torch.inference_mode()
def head_rows(runner: Runner, tokens: Tensor) -> Tensor:
    """The output head's weights for some tokens `[K]`, `[K, dim]`, whatever its format."""
    transformer, dim = runner.transformer, runner.transformer.config.hidden_size
    if transformer.config.tie_word_embeddings:
        return transformer.embedding(tokens)
    ones = torch.eye(dim, dtype=transformer.dtype, device=runner.device).split(_AT_ONCE)
    return torch.cat([runner.logits(some)[:, tokens] for some in ones]).T.contiguous()


class Worth(Protocol):
    """See `trimode.decoding.auto.policy.NodeWorth`."""

    @property
    def shares(self) -> tuple[float, ...]:
        """Of 0, 1, 2, ... nodes."""
        ...

    @property
    def trust(self) -> float:
        """In chances."""
        ...


class PackedDraftHead:
    """A draft head in the weight format of its model; see `trimode.decoding.DraftHead`."""

    def __init__(self, net: DraftHeadNet, tokens: Tensor, runner: Runner) -> None:
        """`tokens`: those that it can guess, `[K]`."""
        weight_format, config = runner.format, net.config
        self.tokens, self.vocab_size = tokens, runner.transformer.config.vocab_size
        self._runner = runner

        def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Module:
            if bias is not None:
                bias = bias.detach().to(runner.device, weight_format.dtype)
            made = weight_format.linear([weight_format.matrix(weight.detach())], bias)
            runner.pack(made)
            return made

        self._parts = DraftHeadParts(
            dim=config.dim,
            inner=config.inner,
            state_scale=config.state_scale,
            embedding_scale=config.embedding_scale,
            enter=linear(net.enter.weight, net.enter.bias),
            leave=linear(net.leave.weight),
            words=linear(head_rows(runner, tokens)),
            embedded=runner.transformer.embedding(tokens).detach().half(),
        )
        self._ids = tokens.tolist()

    def step(self, state: Tensor, token: int) -> tuple[Tensor, Tensor]:
        """See `trimode.decoding.DraftHead`."""
        return self._runner.draft_step(self._parts, state, self._embedding(token, state))

    def tree(
        self, state: Tensor, token: int, most: int, branches: int, worth: "Worth"
    ) -> tuple[list[int], list[int], list[float]] | None:
        """See `trimode.decoding.DraftHead`."""
        embedded = self._embedding(token, state)
        found = self._runner.draft_tree(
            self._parts, state, embedded, most, branches, worth.shares, worth.trust
        )
        if found is None:
            return None
        words, parents, chances = found
        return [self._ids[word] for word in words], parents, chances

    def _embedding(self, token: int, state: Tensor) -> Tensor:
        return self._runner.embedding(token).to(state.dtype)
