"""Attention over ragged rows. The rows of a segment see the segment's KV cache, and each other as
its visibility says.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from trimode.model.kv_cache import KVCache

Visibility = Literal["causal", "block"] | Tensor
"""Which rows of its own segment a row sees: itself and earlier, all, or a bool `[n, n]`."""


class Attend(Protocol):
    """What a transformer layer calls: queries in, attention output out."""

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Queries `[T, heads, head_dim]`, keys and values `[T, kv_heads, head_dim]`.

        Returns:
            `[T, heads * head_dim]`.
        """
        ...


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows `start..stop` of a pass that belong to one sequence."""

    start: int
    stop: int
    cache: KVCache
    visibility: Visibility


@dataclass(frozen=True, slots=True)
class Windows:
    """How far back the rows of a pass see, by layer."""

    of_layer: tuple[int | None, ...]
    """Tokens that a layer's rows see, themselves included; None is all. Empty: all see all."""
    positions: Tensor
    """Of the pass's rows, `[T]`."""

    def __getitem__(self, layer: int) -> int | None:
        return self.of_layer[layer] if self.of_layer else None

    def within(self, segment: "Segment", window: int) -> Tensor:
        """Which keys lie in the window of a segment's rows, bool `[rows, prefix + rows]`."""
        rows = self.positions[segment.start : segment.stop]
        cached = torch.arange(segment.cache.length, device=rows.device)
        return rows[:, None] - torch.cat((cached, rows))[None, :] < window


def attention_bias(
    visibility: Visibility, rows: int, prefix: int, dtype: torch.dtype, device: str
) -> Tensor | None:
    """Additive mask `[rows, prefix + rows]` (0 or -inf), or None if every row sees all."""
    if isinstance(visibility, str):
        if visibility == "block" or rows == 1:
            return None
        visible = torch.ones(rows, rows, dtype=torch.bool, device=device).tril()
    else:
        visible = visibility.to(device)
    bias = torch.zeros(rows, prefix + rows, dtype=dtype, device=device)
    bias[:, prefix:].masked_fill_(~visible, float("-inf"))
    return bias


class CachedAttention:
    """Attention of a packed pass; writes each segment's keys and values into its cache."""

    def __init__(
        self,
        segments: Sequence[Segment],
        dtype: torch.dtype,
        device: str,
        windows: Windows | None = None,
    ) -> None:
        """Build the masks, once for all layers.

        Args:
            segments: they cover the rows of the pass.
            dtype: of the masks.
            device: of the masks.
            windows: how far back rows see; by default to the beginning.
        """
        self.segments = segments
        self._windows = windows
        biases = [
            attention_bias(s.visibility, s.stop - s.start, s.cache.length, dtype, device)
            for s in segments
        ]
        self._biases: dict[int | None, list[Tensor | None]] = {None: biases}
        for window in set(windows.of_layer if windows is not None else ()) - {None}:
            assert windows is not None
            assert window is not None
            narrowed = (
                _narrowed(bias, windows.within(segment, window), dtype)
                for bias, segment in zip(biases, segments, strict=True)
            )
            self._biases[window] = list(narrowed)

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `Attend`."""
        outputs = []
        biases = self._biases[None if self._windows is None else self._windows[layer]]
        for segment, bias in zip(self.segments, biases, strict=True):
            rows = slice(segment.start, segment.stop)
            all_keys, all_values = segment.cache.write(layer, keys[rows], values[rows])
            output = F.scaled_dot_product_attention(
                queries[rows].transpose(0, 1)[None],
                all_keys[None],
                all_values[None],
                attn_mask=bias,
                enable_gqa=True,
            )
            outputs.append(output[0].transpose(0, 1).flatten(1))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _narrowed(bias: Tensor | None, within: Tensor, dtype: torch.dtype) -> Tensor | None:
    """A mask that hides what lies outside a window too."""
    if bool(within.all()):
        return bias
    bias = torch.zeros(within.shape, dtype=dtype, device=within.device) if bias is None else bias
    return bias.masked_fill(~within, float("-inf"))
