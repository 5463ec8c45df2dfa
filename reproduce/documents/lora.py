"""A LoRA that is on in every row while it is trained, and is saved in PEFT's layout."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from trimode.model import AdapterWeights, Projection, Transformer


class LoraLinear(nn.Module):
    """A frozen linear, and a low-rank delta on top of it."""

    def __init__(self, linear: nn.Module, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.linear = linear
        self.down = nn.Parameter((torch.rand(rank, inputs) * 2 - 1) * inputs**-0.5)
        self.up = nn.Parameter(torch.zeros(outputs, rank))

    def forward(self, x: Tensor) -> Tensor:
        """`[T, in]` -> `[T, out]`."""
        return self.linear(x) + (x @ self.down.T) @ self.up.T


def add_lora(transformer: Transformer, rank: int) -> list[nn.Parameter]:
    """Put a new LoRA on all projections; returns what is to be trained."""
    trained: list[nn.Parameter] = []
    for projection in projections(transformer):
        outputs, inputs = projection.linear.weight.shape  # type: ignore[union-attr, misc]
        projection.linear = LoraLinear(projection.linear, inputs, outputs, rank)  # type: ignore[arg-type]
        trained += [projection.linear.down, projection.linear.up]
    return trained


def projections(transformer: Transformer) -> Iterator[Projection]:
    """The fused linears of all layers."""
    return (module for module in transformer.modules() if isinstance(module, Projection))


def exported(transformer: Transformer) -> AdapterWeights:
    """The LoRA as it is saved: fused linears share their first matrix."""
    targets: dict[str, tuple[Tensor, Tensor]] = {}
    for projection in projections(transformer):
        lora = projection.linear
        assert isinstance(lora, LoraLinear)
        ups = lora.up.detach().split(projection.sizes)
        for name, up in zip(projection.names, ups, strict=True):
            targets[name] = (lora.down.detach().clone(), up.clone())
    return AdapterWeights(1.0, targets, "merged")


def rank_of(saved: AdapterWeights) -> int:
    """Of a LoRA that `exported` gave."""
    down, _ = next(iter(saved.targets.values()))
    return len(down)


@torch.no_grad()
def restore(transformer: Transformer, saved: AdapterWeights) -> None:
    """Set a LoRA, which `add_lora` has put in place, to one that `exported` gave."""
    for projection in projections(transformer):
        lora = projection.linear
        assert isinstance(lora, LoraLinear)
        pairs = [saved.targets[name] for name in projection.names]
        lora.down.copy_(pairs[0][0])
        lora.up.copy_(torch.cat([up for _, up in pairs]))
