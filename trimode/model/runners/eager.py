"""Floats: the transformer's own forward, with PyTorch's operators, on any device."""

from collections.abc import Sequence

from torch import Tensor

from trimode.config import ModelConfig
from trimode.model.adapter import AdapterRows
from trimode.model.attention import CachedAttention, Segment, Windows
from trimode.model.formats import WeightFormat
from trimode.model.runners.runner import Runner
from trimode.model.transformer import GivenRows


class EagerRunner(Runner):
    """Calls the transformer as it is."""

    @classmethod
    def supports(cls, config: ModelConfig, weight_format: WeightFormat) -> bool:  # noqa: ARG003
        """Any model in a float format: int8 and int4 promise more than it keeps."""
        return not weight_format.independent_rows

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
        attend = CachedAttention(segments, self.format.dtype, self.device, windows)
        return self.transformer(tokens, positions, attend, adapter_rows, given)
