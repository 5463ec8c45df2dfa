"""A low-rank weight delta (LoRA) that is on for some rows of a pass and off for the others."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from trimode.config import DraftForm, ModelConfig
from trimode.errors import CheckpointError
from trimode.model.parameters import expected_tensors
from trimode.model.quantised import QuantisedMatrix, as_floats

_FP8 = torch.float8_e4m3fn

AdapterScope = Literal["draft", "denoise"]
"""`draft`: on in speculation's drafts only (NLD). `denoise`: on in every denoising pass."""
StoredScope = Literal[AdapterScope, "merged"]
"""`merged`: an ordinary LoRA, on in all rows. It is added to the weights when they are read."""

ReadTensor = Callable[[str], Tensor | QuantisedMatrix]
"""Canonical name -> tensor, or a matrix as its file stores it."""

AdapterRows = Tensor | slice | None
"""Rows of the pass that the adapter is on for: indices `[m]`, all of them, or none."""


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """An adapter as read from its file."""

    scale: float
    """lora_alpha / rank."""
    targets: dict[str, tuple[Tensor, Tensor]]
    """Canonical linear name -> (A `[rank, in]`, B `[out, rank]`)."""
    scope: StoredScope
    mask_embedding: Tensor | None = None
    """Embedding `[hidden]` of the mask token while the adapter is on."""
    block_length: int | None = None
    """Block length it was trained with, the default of a request."""
    token_shift: bool = False
    """Whether rows with the adapter on predict the token after their own (docs/design/0011)."""
    draft_form: DraftForm = "seeded"
    """How it was trained to draft (docs/design/0006)."""
    mask_token_id: int | None = None
    """The mask token it was trained with; None is the model's own."""

    @property
    def row_scope(self) -> AdapterScope:
        """The scope of an adapter that is on in some rows."""
        assert self.scope != "merged", "such an adapter is added to the weights"
        return self.scope

    def to(self, dtype: torch.dtype) -> "AdapterWeights":
        """The same in another dtype."""
        targets = {name: (a.to(dtype), b.to(dtype)) for name, (a, b) in self.targets.items()}
        mask = self.mask_embedding
        return replace(
            self, targets=targets, mask_embedding=None if mask is None else mask.to(dtype)
        )

    def in_eight_bits(self) -> "AdapterWeights":
        """The same in fp8 (e4m3, four significant bits), for files of half the size.

        Both sides are brought into its range by powers of two, which `scale` takes back.
        """
        most = [float(torch.finfo(_FP8).max) / _highest(self.targets, side) for side in (0, 1)]
        down, up = (2.0 ** math.floor(math.log2(room)) for room in most)
        targets = {
            name: ((a.float() * down).to(_FP8), (b.float() * up).to(_FP8))
            for name, (a, b) in self.targets.items()
        }
        return replace(self, scale=self.scale / (down * up), targets=targets)


def _highest(targets: dict[str, tuple[Tensor, Tensor]], side: int) -> float:
    return max(float(pair[side].float().abs().max()) for pair in targets.values()) or 1.0


def merged(config: ModelConfig, read: ReadTensor, adapter: AdapterWeights) -> ReadTensor:
    """A reader of weights to which an adapter is added, in fp32 before they are packed.

    Raises:
        CheckpointError: the adapter does not fit the model.
    """
    check_adapter(config, adapter)

    def read_merged(name: str) -> Tensor | QuantisedMatrix:
        weight = read(name)
        stem, _, kind = name.rpartition(".")
        part = adapter.targets.get(stem) if kind == "weight" else None
        if part is None:
            return weight
        down, up = (tensor.float() for tensor in part)
        return as_floats(weight).float() + (up @ down) * adapter.scale

    return read_merged


class LowRankDelta(nn.Module):
    """x -> scale * B(A(x)) for one linear, or for several fused into one.

    Fused parts lie on the diagonal of `up`. The rest is zero; `on_diagonal` says which is which.
    """

    def __init__(
        self, down: Tensor, up: Tensor, parts: Sequence[tuple[slice, slice] | None]
    ) -> None:
        """`parts`: rows of `up` and rows of `down` that each linear has; None if it has none."""
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
        """One delta for linears whose outputs are concatenated; None if all parts are None.

        Args:
            parts: (A, B) of each linear, None if the adapter leaves it alone.
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


class Projection(nn.Module):
    """Linears over one input, fused, with an optional delta on chosen rows."""

    def __init__(
        self,
        names: Sequence[str],
        sizes: Sequence[int],
        linear: nn.Module,
        delta: nn.Module | None,
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

    def named_weights(self, gather: Callable[[Tensor], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """See `Transformer.named_weights`."""
        for kind in ("weight", "bias"):
            tensor = getattr(self.linear, kind)
            if tensor is not None:
                parts = gather(tensor).split(self.sizes)
                yield from zip((f"{name}.{kind}" for name in self.names), parts, strict=True)


def check_adapter(config: ModelConfig, adapter: AdapterWeights) -> None:
    """Raise CheckpointError unless every adapter tensor fits the model."""
    shapes = expected_tensors(config)
    for name, (a, b) in adapter.targets.items():
        shape = shapes.get(f"{name}.weight")
        if shape is None:
            raise CheckpointError(f"adapter {name}", "no such linear in the model", "wrong model?")
        found = (b.shape[0], a.shape[1])
        if found != shape or a.shape[0] != b.shape[1]:
            raise CheckpointError(
                f"adapter {name}",
                f"A {tuple(a.shape)}, B {tuple(b.shape)}",
                f"must give {list(shape)}; it belongs to another model",
            )
    embedding = adapter.mask_embedding
    if embedding is not None and tuple(embedding.shape) != (config.hidden_size,):
        raise CheckpointError(
            "adapter mask embedding", str(tuple(embedding.shape)), f"must be [{config.hidden_size}]"
        )
