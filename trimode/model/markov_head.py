"""A Markov head: what a drafted token says of the one after it.

A denoiser proposes a token at each mask without knowing what its neighbours become. The head adds
to the logit of a place's candidate c, given the tokens s and t that were chosen before it and the
mask's hidden state h:

    W E(c) . V silu(A h + B D E(s) + C D E(t)),    E: the model's embeddings

D and W lead to `rank` numbers, so each token has a row in two small tables, which are made when the
head is first used. A candidate costs `rank` multiplications, a token before some ten thousand.

Sources: DSpark (arXiv 2607.05147), whose tables are learnt for each token and know nothing of the
mask's state; Hydra (arXiv 2402.05109), whose heads depend on each other.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimode.config import check_range
from trimode.model.native import library, structs
from trimode.model.native.cores import threads
from trimode.model.transformer import Transformer

_AT_ONCE = 4096
"""Embeddings that are read at once."""
_MOST = 60.0
"""Its exponential is a number still."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkovHeadConfig:
    """Sizes of a Markov head and the scales of what it reads."""

    dim: int
    """Of the model's hidden states."""
    inner: int = 512
    rank: int = 128
    state_scale: float = 1.0
    """Root mean square of the hidden states of masks."""
    embedding_scale: float = 1.0
    """Root mean square of the model's embeddings."""

    def __post_init__(self) -> None:
        for name in ("dim", "inner", "rank"):
            check_range(name, getattr(self, name), 1, None)


class MarkovHeadNet(nn.Module):
    """The weights of a Markov head."""

    def __init__(self, config: MarkovHeadConfig) -> None:
        super().__init__()
        self.config = config
        self.state = nn.Linear(config.dim, config.inner)
        self.before = nn.Linear(config.dim, config.rank, bias=False)
        self.enter = nn.Linear(2 * config.rank, config.inner, bias=False)
        self.leave = nn.Linear(config.inner, config.rank, bias=False)
        self.words = nn.Linear(config.dim, config.rank, bias=False)

    def forward(self, state: Tensor, before: Tensor, candidates: Tensor, dropout: float) -> Tensor:
        """What is added to the logits of candidates, `[n, k]`.

        Args:
            state: of the masks, `[n, dim]`.
            before: embeddings of the two tokens before each, in their order, `[n, 2, dim]`.
            candidates: embeddings of their candidates, `[n, k, dim]`.
            dropout: share of the inner units that are left out.
        """
        config = self.config
        known = self.enter(self.before(before / config.embedding_scale).flatten(1))
        inner = F.silu(self.state(state / config.state_scale) + known)
        judged = self.leave(F.dropout(inner, dropout, dropout > 0))
        words = self.words(candidates / config.embedding_scale)
        return torch.einsum("nkr,nr->nk", words, judged)


class PackedMarkovHead:
    """A Markov head for decoding; see `trimode.decoding.MarkovHead`."""

    def __init__(self, net: MarkovHeadNet, transformer: Transformer) -> None:
        """`transformer`: whose embeddings it reads."""
        self._net, self._transformer = net.eval(), transformer

    @torch.inference_mode()
    def at(
        self, states: Tensor, candidates: Tensor
    ) -> Callable[[int, tuple[int, int]], np.ndarray]:
        """See `trimode.decoding.MarkovHead`."""
        table, words = self._tables
        scaled = states.float().cpu() / self._net.config.state_scale
        places = self._net.state(scaled).numpy()
        shown = words[candidates].float().numpy()
        enter, leave = (
            linear.weight.detach().numpy() for linear in (self._net.enter, self._net.leave)
        )

        def after(place: int, before: tuple[int, int]) -> np.ndarray:
            inner = enter @ table[list(before)].float().flatten().numpy()
            inner += places[place]
            inner /= 1 + np.exp(np.minimum(-inner, _MOST))
            return shown[place] @ (leave @ inner)

        return after

    @torch.inference_mode()
    def tree(
        self,
        scores: Tensor,
        states: Tensor,
        sharpness: float,
        before: tuple[int, int],
        *,
        candidates: int,
        branches: int,
        nodes: int,
    ) -> tuple[list[int], list[int], list[float]] | None:
        """See `trimode.decoding.MarkovHead`."""
        native = library()
        if native is None or scores.device.type != "cpu" or scores.dtype != torch.float32:
            return None
        scores = scores if scores.stride(-1) == 1 else scores.contiguous()
        states = states.float().cpu().contiguous()
        tokens, parents = (ctypes.c_int64 * nodes)(), (ctypes.c_int64 * nodes)()
        chances = (ctypes.c_double * nodes)()
        count = native.trimode_markov_tree(
            ctypes.byref(self._native),
            scores.data_ptr(),
            *scores.shape,
            scores.stride(0),
            states.data_ptr(),
            sharpness,
            *before,
            candidates,
            branches,
            nodes,
            *(ctypes.addressof(array) for array in (tokens, parents, chances)),
            threads(),
        )
        return tokens[:count], parents[:count], chances[:count]

    def prepare(self) -> None:
        """See `trimode.decoding.MarkovHead`."""
        _ = self._tables

    @cached_property
    def _native(self) -> structs.MarkovHead:
        """For the C++ library; its memory is that of the tables and matrices."""
        net, (before, words) = self._net, self._tables
        return structs.MarkovHead(
            dim=net.config.dim,
            rank=net.config.rank,
            inner=net.config.inner,
            state=net.state.weight.data_ptr(),
            state_bias=net.state.bias.data_ptr(),
            state_factor=1 / net.config.state_scale,
            before=before.data_ptr(),
            words=words.data_ptr(),
            enter=net.enter.weight.data_ptr(),
            leave=net.leave.weight.data_ptr(),
        )

    @cached_property
    def _tables(self) -> tuple[Tensor, Tensor]:
        """Of each token before and each candidate, fp16 `[vocab, rank]` both."""
        net, transformer = self._net, self._transformer
        ids = torch.arange(transformer.config.vocab_size).split(_AT_ONCE)
        made: tuple[list[Tensor], list[Tensor]] = ([], [])
        for some in ids:
            embedded = transformer.embedding(some.to(transformer.device)).float().cpu()
            for table, linear in zip(made, (net.before, net.words), strict=True):
                table.append(linear(embedded / net.config.embedding_scale).half())
        return torch.cat(made[0]), torch.cat(made[1])
