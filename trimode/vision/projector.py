"""The projector: squares of patches become tokens of the language model.

Axis letters: N patches, M tokens, D hidden size of the tower.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trimode.vision.config import VisionConfig
from trimode.vision.tower import ACTIVATIONS, Grid


class _PatchMerger(nn.Module):
    """Turns the patches of a square into one."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        wide = config.hidden_size * config.merge_size**2
        self.merging_layer = nn.Linear(wide, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[M, squares]` -> `[M, D]`."""
        return self.merging_layer(x)


class Projector(nn.Module):
    """Norm, merge and two linears. Modules are named as in published checkpoints."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        size, text, bias = config.features, config.text_size, config.projector_bias
        self.norm = None
        if config.projector_norm:
            self.norm = nn.RMSNorm(config.hidden_size, eps=config.projector_norm_eps)
        self.patch_merger = _PatchMerger(config) if config.merging_layer else None
        self.linear_1 = nn.Linear(size, text, bias=bias)
        self.activation = ACTIVATIONS[config.projector_activation]
        self.linear_2 = nn.Linear(text, text, bias=bias)

    def forward(self, features: Tensor, grids: Sequence[Grid]) -> Tensor:
        """Embeddings `[M, text]` of the patches `[N, D]` of pictures with these grids."""
        pictures = features.split([rows * columns for rows, columns in grids])
        pairs = zip(pictures, grids, strict=True)
        return self.project(torch.cat([self.squares(part, grid) for part, grid in pairs]))

    def squares(self, features: Tensor, grid: Grid) -> Tensor:
        """The patches `[N, D]` of one picture, those of a square side by side: `[M, D * square]`.

        A channel's values of a square stand together, in the order of rows.
        """
        if self.norm is not None:
            features = self.norm(features)
        side = self.config.merge_size
        rows, columns = grid
        x = features.view(rows // side, side, columns // side, side, -1)
        return x.permute(0, 2, 4, 1, 3).flatten(2).flatten(0, 1)

    def project(self, squares: Tensor) -> Tensor:
        """`[M, D * square]` -> `[M, text]`, each row by itself."""
        x = squares if self.patch_merger is None else self.patch_merger(squares)
        return self.linear_2(self.activation(self.linear_1(x)))
