"""Makes a new low-rank adapter, and chooses which parameters of a model are trained."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from trimode.checkpoints import read_adapter
from trimode.config import ModelConfig, check_range
from trimode.errors import InputError
from trimode.model import (
    AdapterScope,
    AdapterWeights,
    LowRankDelta,
    Projection,
    Transformer,
    expected_tensors,
)
from trimode.training.distributed import gathered, sharded_like
from trimode.training.examples import rms

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """Shape of a new adapter. NLD's draft adapter: rank 128, scale 4, `o_proj`, scope draft."""

    rank: int = 64
    scale: float = 1.0
    """lora_alpha / rank. B learns at this multiple of the learning rate, as if it were stored
    without the scale."""
    targets: tuple[str, ...] = LINEARS
    scope: AdapterScope = "denoise"
    mask_embedding: bool = True
    """Whether the mask token gets an embedding of its own while the adapter is on."""
    start_from: str | None = None
    """An adapter of this shape to continue from, instead of a new one. It gets our `scale`."""

    def __post_init__(self) -> None:
        check_range("rank", self.rank, 1, None)
        check_range("scale", self.scale, 0, None, exclusive_low=True)
        unknown = [name for name in self.targets if name not in LINEARS]
        if unknown or not self.targets:
            allowed = f"allowed: {', '.join(LINEARS)}"
            raise InputError("targets", ", ".join(unknown) or "none", allowed)


def new_adapter(
    config: ModelConfig, adapter: AdapterConfig, embedding: Tensor, seed: int
) -> AdapterWeights:
    """An adapter that changes nothing yet: A random, B zero (LoRA, arXiv 2106.09685).

    Args:
        config: the model.
        adapter: its shape.
        embedding: of the mask token, `[D]`. The adapter's own mask embedding starts from it.
        seed: for A.
    """
    generator = torch.Generator().manual_seed(seed)
    targets = {}
    for name, shape in expected_tensors(config).items():
        linear = name.removesuffix(".weight")
        if linear != name and linear.rpartition(".")[2] in adapter.targets:
            rows, columns = shape
            bound = columns**-0.5
            down = (torch.rand(adapter.rank, columns, generator=generator) * 2 - 1) * bound
            targets[linear] = (down, torch.zeros(rows, adapter.rank))
    mask_embedding = embedding.detach().float().clone() if adapter.mask_embedding else None
    return AdapterWeights(adapter.scale, targets, adapter.scope, mask_embedding)


_LEAST_NORM = 0.1
"""Of the median norm of a table's rows; a row below it was never trained."""


def mask_row(embedding: Tensor, token: int) -> Tensor:
    """Where training starts the embedding of the mask token, fp32 `[D]`.

    It is the token's own row. Reserved tokens and rows of padding may be zero or nearly so, which a
    model cannot see; they start at the mean of a sample of all rows instead.

    Args:
        embedding: the model's, `[V, D]`.
        token: the mask token.
    """
    row = embedding[token].float()
    sample = embedding[:: max(1, len(embedding) // 4096)].float()
    if row.norm() >= _LEAST_NORM * sample.norm(dim=1).median():
        return row
    return sample.mean(0)


def first_adapter(
    config: ModelConfig, adapter: AdapterConfig, embedding: Tensor, seed: int
) -> AdapterWeights:
    """The adapter that training starts from: a new one, or the one that `start_from` names.

    Raises:
        InputError: the named adapter has another shape than the configuration says.
    """
    new = new_adapter(config, adapter, embedding, seed)
    if adapter.start_from is None:
        return new
    old = read_adapter(Path(adapter.start_from).expanduser()).to(torch.float32)
    if old.scale != new.scale:  # an adapter in eight bits has one of its own
        old = _rescaled(old, new)
    shapes = [
        {name: (a.shape, b.shape) for name, (a, b) in weights.targets.items()}
        for weights in (old, new)
    ]
    facts = [(w.scope, w.mask_embedding is None) for w in (old, new)]
    if shapes[0] != shapes[1] or facts[0] != facts[1]:
        found = f"{adapter.start_from} has another rank, scope or targets"
        raise InputError("adapter.start_from", found, "an adapter of the configured shape")
    return old


def _rescaled(old: AdapterWeights, new: AdapterWeights) -> AdapterWeights:
    """An adapter at the scale of a new one, with A about as large as there.

    It computes the same, to the bit if the scales differ by a power of two.
    """
    down = 2.0 ** round(math.log2(size_of_a(new) / size_of_a(old)))
    up = old.scale / (new.scale * down)
    targets = {name: (a * down, b * up) for name, (a, b) in old.targets.items()}
    return replace(old, scale=new.scale, targets=targets)


def size_of_a(adapter: AdapterWeights) -> float:
    """Root mean square of the A sides."""
    return rms(torch.cat([a.flatten() for a, _ in adapter.targets.values()])) or 1.0


@dataclass(frozen=True, slots=True)
class Trainable:
    """A parameter that is trained, and its multiple of the learning rate."""

    name: str
    parameter: nn.Parameter
    learning_rate_scale: float = 1.0
    decays: bool = True
    gradient_mask: Tensor | None = None
    """Entries that are trained; the gradient of the others is dropped."""


def train_adapter(transformer: Transformer, scale: float) -> list[Trainable]:
    """Train the adapter and nothing else."""
    found = []
    for name, module in transformer.named_modules():
        if isinstance(module, LowRankDelta):
            module.down.requires_grad_()
            module.up.requires_grad_()
            fused = sum(part is not None for part in module.parts) > 1
            kept = sharded_like(module.on_diagonal(), module.up) if fused else None
            found.append(Trainable(f"{name}.down", module.down))
            found.append(Trainable(f"{name}.up", module.up, scale, gradient_mask=kept))
    if transformer.mask_embedding is not None:
        transformer.mask_embedding.requires_grad_()
        found.append(Trainable("mask_embedding", transformer.mask_embedding, decays=False))
    return found


def train_everything(transformer: Transformer) -> list[Trainable]:
    """Train every weight. Vectors (norms, biases) get no weight decay."""
    found = []
    for name, parameter in transformer.named_parameters():  # a tied head is listed once
        parameter.requires_grad_()
        found.append(Trainable(name, parameter, decays=parameter.ndim > 1))
    return found


def head_matrix(transformer: Transformer) -> Tensor:
    """The output matrix `[vocab, D]` of a transformer with plain weights."""
    return cast(Tensor, transformer.head.weight)


def export_adapter(transformer: Transformer, scope: AdapterScope, scale: float) -> AdapterWeights:
    """The adapter as it is saved."""
    targets: dict[str, tuple[Tensor, Tensor]] = {}
    for module in transformer.modules():
        if isinstance(module, Projection) and module.delta is not None:
            delta = cast(LowRankDelta, module.delta)
            parts = delta.split(gathered(delta.down.detach()), gathered(delta.up.detach()))
            for name, part in zip(module.names, parts, strict=True):
                if part is not None:
                    down, up = part
                    targets[name] = (down, up / scale)
    embedding = transformer.mask_embedding
    kept = None if embedding is None else gathered(embedding.detach())
    return AdapterWeights(scale, targets, scope, kept)


def weight_names(transformer: Transformer) -> list[str]:
    """Canonical names of a transformer's plain weights, in the order of `export_weights`."""
    shapes = transformer.named_weights(
        lambda parameter: torch.empty(parameter.shape, device="meta")
    )
    return [name for name, _ in shapes]


def export_weights(transformer: Transformer) -> Iterator[tuple[str, Tensor]]:
    """Canonical names and weights of a transformer with plain weights, as loading expects them.

    One parameter after the other is gathered, when its turn comes: every process must take all.
    """
    return transformer.named_weights(lambda parameter: gathered(parameter.detach()))
