"""Makes modules of one weight format from named tensors."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trimode.config import ModelConfig, NormKind
from trimode.errors import CheckpointError
from trimode.model.adapter import AdapterWeights, Projection, ReadTensor
from trimode.model.formats import WeightFormat
from trimode.model.norm import LayerNorm, Norm, OffsetRMSNorm, RMSNorm
from trimode.model.quantised import QuantisedMatrix, as_floats


class Builder:
    """Makes the modules of a transformer."""

    def __init__(
        self, read: ReadTensor, weight_format: WeightFormat, adapter: AdapterWeights | None
    ) -> None:
        self.format = weight_format
        self._read, self._adapter = read, adapter

    def norm(self, name: str, kind: NormKind, eps: float) -> Norm:
        """A norm from `name.weight`, and `name.bias` if it has one."""
        # A copy: a view would keep the whole mapped file in memory beside the packed weights.
        weight = self._tensor(f"{name}.weight", copy=True)
        if kind == "layer":
            return LayerNorm(name, weight, self._tensor(f"{name}.bias", copy=True), eps)
        return (OffsetRMSNorm if kind == "offset_rms" else RMSNorm)(name, weight, eps)

    def projection(self, *names: str, bias: bool) -> Projection:
        """The linears `names`, fused along their outputs, with their share of the adapter."""
        weights = [self.format.matrix(self._read(f"{name}.weight")) for name in names]
        sizes = [len(weight) for weight in weights]
        biases = torch.cat([self._tensor(f"{name}.bias") for name in names]) if bias else None
        delta = None
        if self._adapter is not None:
            parts = [self._part(self._adapter, name) for name in names]
            delta = self.format.delta(parts, sizes, self._adapter.scale)
        return Projection(names, sizes, self.format.linear(weights, biases), delta)

    def embedding_and_head(self, config: ModelConfig) -> tuple[Any, nn.Module]:
        """The embedding module and the output head."""
        embedding = partial(self._finite, "embed_tokens.weight")
        head = None if config.tie_word_embeddings else partial(self._finite, "lm_head.weight")
        return self.format.embedding_and_head(embedding, head)

    def mask_embedding(self) -> nn.Parameter | None:
        """The adapter's embedding of the mask token, `[D]`, if it has one."""
        mask = self._adapter.mask_embedding if self._adapter else None
        if mask is None:
            return None
        return nn.Parameter(mask.to(self.format.device, self.format.dtype), requires_grad=False)

    def _tensor(self, name: str, *, copy: bool = False) -> Tensor:
        tensor = as_floats(self._finite(name))
        return tensor.to(device=self.format.device, dtype=self.format.dtype, copy=copy)

    def _finite(self, name: str) -> Tensor | QuantisedMatrix:
        """A tensor whose numbers all reach the logits: norms, biases, embedding and head.

        One pass over them costs little; the many linears are not looked at.

        Raises:
            CheckpointError: a number is not finite.
        """
        tensor = self._read(name)
        if not _is_finite(tensor):
            raise CheckpointError(name, "NaN or infinite", "must be finite numbers")
        if isinstance(tensor, QuantisedMatrix):
            del tensor  # a view of a mapped file, which then gives back the pages looked at
            tensor = self._read(name)
        return tensor

    def _part(self, adapter: AdapterWeights, name: str) -> tuple[Tensor, Tensor] | None:
        part = adapter.targets.get(name)
        if part is None:
            return None
        down, up = (t.to(device=self.format.device, dtype=self.format.dtype) for t in part)
        return down, up


def _is_finite(tensor: Tensor | QuantisedMatrix) -> bool:
    if isinstance(tensor, QuantisedMatrix):
        return tensor.is_finite()
    return bool(tensor.sum(dtype=torch.float32).isfinite()) or bool(tensor.isfinite().all())
