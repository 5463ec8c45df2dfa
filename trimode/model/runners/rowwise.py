"""int8 and int4 without the C++ library: PyTorch's operators, attention one row at a time.

It is slow. It keeps their promise of independent rows if the library is not built or does not know
the model.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from trimode.config import ModelConfig
from trimode.model.adapter import AdapterRows
from trimode.model.attention import Segment, Windows
from trimode.model.formats import WeightFormat
from trimode.model.runners.runner import Runner
from trimode.model.transformer import GivenRows


class RowwiseAttention:
    """Attention whose arithmetic depends on the keys that a row sees and on no other row."""

    def __init__(self, segments: Sequence[Segment], windows: Windows) -> None:
        self.segments = segments
        self.windows = windows

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `Attend`."""
        outputs = []
        for segment in self.segments:
            rows = slice(segment.start, segment.stop)
            all_keys, all_values = segment.cache.write(layer, keys[rows], values[rows])
            count, prefix = segment.stop - segment.start, segment.cache.length
            window = self.windows[layer]
            within = None if window is None else self.windows.within(segment, window)
            for i, query in enumerate(queries[rows]):
                seen = torch.arange(prefix + count, device=query.device)
                if isinstance(segment.visibility, Tensor):
                    visible = segment.visibility[i].to(query.device).nonzero()[:, 0]
                    seen = torch.cat((seen[:prefix], prefix + visible))
                elif segment.visibility == "causal":
                    seen = seen[: prefix + i + 1]
                if within is not None:
                    seen = seen[within[i, seen]]
                output = F.scaled_dot_product_attention(
                    query[None, :, None],
                    all_keys[None, :, seen].to(query.dtype),
                    all_values[None, :, seen].to(query.dtype),
                    enable_gqa=True,
                )
                outputs.append(output.flatten())
        return torch.stack(outputs)


class RowwiseRunner(Runner):
    """The transformer's own forward, with exact products and attention row by row."""

    @classmethod
    def supports(cls, config: ModelConfig, weight_format: WeightFormat) -> bool:  # noqa: ARG003
        """Any model, in int8 or int4."""
        return weight_format.independent_rows

    def run(
        self,
        tokens: Tensor,
        positions: Tensor,
        segments: Sequence[Segment],
        adapter_rows: AdapterRows = None,
        given: GivenRows | None = None,
    ) -> Tensor:
        """See `Runner`."""
        windows = Windows(self.transformer.config.layer_windows, positions)
        attend = RowwiseAttention(segments, windows)
        return self.transformer(tokens, positions, attend, adapter_rows, given)

    def describe(self) -> str:
        """See `Runner`."""
        return f"{super().describe()}, PyTorch operators"
