"""How a forward pass is run: the interface between the engine and the model."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimode.config import ModelConfig
from trimode.model.adapter import AdapterRows
from trimode.model.attention import Segment
from trimode.model.formats import WeightFormat
from trimode.model.transformer import GivenRows, Transformer


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DraftHeadParts:
    """A draft head in a model's weight format; see `trimode.model.draft_head`."""

    dim: int
    inner: int
    state_scale: float
    embedding_scale: float
    enter: nn.Module
    leave: nn.Module
    words: nn.Module
    """Output embeddings of the tokens that it can guess."""
    embedded: Tensor
    """Embeddings of the same tokens, fp16 `[K, D]`."""


class Runner(ABC):
    """Runs passes of one transformer. `trimode.model.build` chooses it once, at load."""

    def __init__(self, transformer: Transformer, weight_format: WeightFormat) -> None:
        """`weight_format`: of the transformer's weights."""
        self.transformer, self.format = transformer, weight_format

    @classmethod
    @abstractmethod
    def supports(cls, config: ModelConfig, weight_format: WeightFormat) -> bool:
        """Whether it can run such a model on this machine."""

    @abstractmethod
    def run(
        self,
        tokens: Tensor,
        positions: Tensor,
        segments: Sequence[Segment],
        adapter_rows: AdapterRows = None,
        given: GivenRows | None = None,
    ) -> Tensor:
        """Run a pass over segments with KV caches; returns hidden states after the final norm.

        The keys and values of the pass become the pending rows of each segment's cache.

        Args:
            tokens: `[T]`.
            positions: `[T]`.
            segments: they cover the rows in order.
            adapter_rows: rows that the adapter is on for.
            given: rows whose embeddings are not the table's.

        Returns:
            `[T, D]`.
        """

    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 logits `[m, V]` of hidden states `[m, D]`."""
        return self.linear(self.transformer.head, hidden).float()

    def likeliest(self, hidden: Tensor) -> list[int] | None:
        """The token with the highest logit of each row of states `[m, D]`, the mask left out.

        Of equal ones it is the first. None: there is no faster way than `logits`, or those are not
        finite.
        """
        del hidden
        return None

    def linear(self, module: nn.Module, x: Tensor) -> Tensor:
        """The product of a linear of the model's weight format, `[T, in]` -> `[T, out]`."""
        return module(x)

    def pack(self, module: nn.Module) -> None:  # noqa: B027 - most formats have one layout
        """Lay the linears of a module out as this machine's kernels want them."""

    def embedding(self, token: int) -> Tensor:
        """The embedding of a token, `[D]`."""
        return self.transformer.embedding(torch.tensor([token], device=self.device))[0]

    def draft_step(
        self, head: DraftHeadParts, state: Tensor, embedded: Tensor
    ) -> tuple[Tensor, Tensor]:
        """A step of a draft head.

        Args:
            head: what makes it.
            state: that chose a token, `[D]`.
            embedded: the token's embedding, `[D]`.

        Returns:
            The state after the token `[D]`, and fp32 logits `[K]` of what follows.
        """
        x = torch.cat((state / head.state_scale, embedded / head.embedding_scale))[None]
        direct, inner = self.linear(head.enter, x).split((head.dim, head.inner), dim=-1)
        after = head.state_scale * (direct + self.linear(head.leave, F.silu(inner)))
        return after[0], self.linear(head.words, after)[0].float()

    def draft_tree(
        self,
        head: DraftHeadParts,
        state: Tensor,
        embedded: Tensor,
        most: int,
        branches: int,
        shares: Sequence[float],
        trust: float,
    ) -> tuple[list[int], list[int], list[float]] | None:
        """A draft tree of a draft head, if this runner has a fast way to make it.

        Args:
            head: what makes it.
            state: that chose the newest token, `[D]`.
            embedded: the newest token's embedding, `[D]`.
            most: nodes, at least one and at most as many as `shares`.
            branches: words considered after one node.
            shares: see `trimode.decoding.auto.policy.NodeWorth`.
            trust: the same.

        Returns:
            Numbers of the words, parents (-1: the newest token) and chances; or None.
        """
        del head, state, embedded, most, branches, shares, trust
        return None

    @property
    def kv_dtype(self) -> torch.dtype:
        """The dtype of the KV caches that it takes."""
        return self.format.kv_dtype

    @property
    def device(self) -> str:
        """Where it runs."""
        return self.format.device

    def describe(self) -> str:
        """Weight format and kernels in words."""
        return self.format.describe()
