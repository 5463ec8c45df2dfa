"""A low-rank weights delta (LoRA) that is on for some rows of a pass and off for the others."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimode.model.linear import Int8Linear

AdapterScope = Literal["draft", "denoise"]
"""`draft`: on in speculation's drafts only (NLD). `denoise`: on in every denoising pass."""

AdapterRows = Tensor | slice | None
"""Rows of the pass that the adapter is on for: indices `[m]`, all of them, or none."""


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """An adapter as read from its file."""

    scale: float
    """lora_alpha / rank."""
    targets: dict[str, tuple[Tensor, Tensor]]
    """Canonical linear name -> (A `[rank, in]`, B `[out, rank]`)."""
    scope: AdapterScope
    mask_embedding: Tensor | None = None
    """Embedding `[hidden]` of the mask token while the adapter is on."""
    block_length: int | None = None
    """Block length it was trained with, the default of a request."""
    token_shift: bool = False
    """Whether rows with the adapter on predict the token after their own (docs/design/0011)."""

    def to(self, dtype: torch.dtype) -> "AdapterWeights":
        """The same in another dtype."""
        targets = {name: (a.to(dtype), b.to(dtype)) for name, (a, b) in self.targets.items()}
        mask = self.mask_embedding
        return replace(
            self, targets=targets, mask_embedding=None if mask is None else mask.to(dtype)
        )


class LowRankDelta(nn.Module):
    """x -> scale * B(A(x)) for one linear, or for several fused into one.

    Fused parts lie on the diagonal of `up`; what is off it is zero and `on_diagonal` says where.
    """

    def __init__(
        self, down: Tensor, up: Tensor, parts: Sequence[tuple[slice, slice] | None]
    ) -> None:
        """`parts`: rows of `up` and rows of `down` that each linear has; None where it has none."""
        super().__init__()
        self.down = nn.Parameter(down, requires_grad=False)
        self.up = nn.Parameter(up, requires_grad=False)
        self.parts = tuple(parts)

    @classmethod
    def fused(
        cls,
        parts: Sequence[tuple[Tensor, Tensor] | None],
        sizes: Sequence[int],
        scale: float,
    ) -> "LowRankDelta | None":
        """One delta for linears whose outputs are concatenated; None if no part has one.

        Args:
            parts: (A, B) of each linear, None where the adapter leaves it alone.
            sizes: output features of each linear.
            scale: multiplied into B.
        """
        present = [part for part in parts if part is not None]
        if not present:
            return None
        down = torch.cat([a for a, _ in present])
        up = down.new_zeros(sum(sizes), len(down))
        places: list[tuple[slice, slice] | None] = []
        row = column = 0
        for part, size in zip(parts, sizes, strict=True):
            place = None
            if part is not None:
                place = slice(row, row + size), slice(column, column + part[1].shape[1])
                up[place] = part[1] * scale
                column = place[1].stop
            places.append(place)
            row += size
        return cls(down, up, places)

    def forward(self, x: Tensor) -> Tensor:
        """`[T, in]` -> `[T, out]`."""
        return (x @ self.down.T) @ self.up.T

    def split(self, down: Tensor, up: Tensor) -> list[tuple[Tensor, Tensor] | None]:
        """(A, scale * B) of each linear, as views of tensors like ours; the reverse of `fused`."""
        return [None if place is None else (down[place[1]], up[place]) for place in self.parts]

    def on_diagonal(self) -> Tensor:
        """Where `up` may differ from zero, bool `[out, rank]`."""
        kept = torch.zeros(self.up.shape, dtype=torch.bool)
        for place in self.parts:
            if place is not None:
                kept[place] = True
        return kept


_RANKS = 16


class IntegerDelta(nn.Module):
    """A low-rank delta with int8 weights, each fused part on its own."""

    def __init__(
        self, parts: Sequence[tuple[Tensor, Tensor] | None], sizes: Sequence[int], scale: float
    ) -> None:
        """See `LowRankDelta.fused`; one part at least must be there."""
        super().__init__()
        self.places: list[tuple[slice, slice]] = []
        """Output rows and ranks of each part."""
        downs, ups = [], []
        for part, size, end in zip(parts, sizes, accumulate(sizes), strict=True):
            if part is None:
                continue
            # Ranks of zeros change nothing. The C++ pass takes ranks by the sixteen, and all
            # adapters must take it: AR's bits may not depend on which one is loaded.
            fill = -len(part[0]) % _RANKS
            start = sum(map(len, downs))
            downs.append(F.pad(part[0], (0, 0, 0, fill)))
            ups.append(F.pad(part[1] * scale, (0, fill)))
            self.places.append((slice(end - size, end), slice(start, start + len(downs[-1]))))
        self.down = Int8Linear(downs, None)
        self.ups = nn.ModuleList(Int8Linear(up, None) for up in ups)
        self.out_features = sum(sizes)

    def forward(self, x: Tensor) -> Tensor:
        """`[T, in]` -> `[T, out]`."""
        low = self.down(x)
        y = x.new_zeros(len(x), self.out_features)
        for (rows, ranks), up in zip(self.places, self.ups, strict=True):
            y[:, rows] = up(low[:, ranks])
        return y


class Projection(nn.Module):
    """Linears over one input, fused, with an optional delta on chosen rows."""

    def __init__(
        self,
        names: Sequence[str],
        sizes: Sequence[int],
        linear: nn.Module,
        delta: LowRankDelta | IntegerDelta | None,
    ) -> None:
        """`names` and output `sizes` of the fused linears, in order."""
        super().__init__()
        self.names, self.sizes = tuple(names), tuple(sizes)
        self.linear = linear
        self.delta = delta

    def forward(self, x: Tensor, rows: AdapterRows) -> Tensor:
        """`[T, in]` -> `[T, out]`; the delta is added on `rows`."""
        y = self.linear(x)
        if self.delta is None or rows is None:
            return y
        if isinstance(rows, slice) and rows == slice(None):
            return y + self.delta(x)
        y[rows] += self.delta(x[rows])
        return y
