"""Tower and projector together: pictures become embeddings that stand in a prompt."""

from collections.abc import Generator, Iterable, Sequence

import torch
from torch import Tensor, nn

from trimode.vision.config import VisionConfig
from trimode.vision.projector import Projector
from trimode.vision.tower import TowerLayer, VisionTower, attend

_SLICE_OPERATIONS = 1e9
"""Of a slice's linears, about: some 10 ms on two cores. A slice has at least 64 rows."""


class VisionModel(nn.Module):
    """The vision part of a checkpoint. Its `state_dict` has the canonical names of tensors."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_tower = VisionTower(config)
        self.multi_modal_projector = Projector(config)

    def forward(self, images: Sequence[Tensor], *, recompute: bool = False) -> list[Tensor]:
        """Embeddings `[tokens, text]` of each picture `[3, height, width]`.

        Sides are multiples of `merged_patch`, as `process` makes them. For `recompute` see
        `VisionTower.forward`.
        """
        grids = [self.vision_tower.grid(image) for image in images]
        features = self.vision_tower(images, recompute=recompute)
        tokens = [rows * columns // self.config.merge_size**2 for rows, columns in grids]
        return list(self.multi_modal_projector(features, grids).split(tokens))

    def encode(self, bands: Iterable[Tensor]) -> Generator[None, None, Tensor]:
        """The embeddings `[tokens, text]` of one picture, in slices between which it waits.

        A slice is a band or some rows of a layer, so the caller can do other work after each. What
        a picture becomes depends on that picture alone, to the bit.

        Args:
            bands: the picture from top to bottom, `[3, height of the band, width]`, each of whole
                rows of patches. The next one is asked for after a pause.
        """
        tower, projector, rows = self.vision_tower, self.multi_modal_projector, self.slice_rows
        embedded, height, columns = [], 0, 0
        for band in bands:
            embedded.append(tower.embed(band))
            more, columns = tower.grid(band)
            height += more
            yield
        x, grid = torch.cat(embedded), (height, columns)
        rotation = tower.rotation(grid, x)
        for layer in tower.layers:
            x = yield from _layer_in_slices(layer, x, rotation, rows)
        made = []
        for part in projector.squares(x, grid).split(rows):
            made.append(projector.project(part))
            yield
        return torch.cat(made)

    @property
    def slice_rows(self) -> int:
        """Rows that `encode` computes between two pauses. They depend on the config alone."""
        size, inner = self.config.hidden_size, self.config.intermediate_size
        operations = 2 * size * (4 * size + 3 * inner)
        return max(64, min(1024, int(_SLICE_OPERATIONS // operations) // 64 * 64))


def _layer_in_slices(
    layer: TowerLayer, x: Tensor, rotation: tuple[Tensor, Tensor], size: int
) -> Generator[None, None, Tensor]:
    """A layer's output `[N, D]` for one picture; it waits after each slice."""
    cos, sin = rotation
    looked = []
    for part in zip(*(t.split(size) for t in (x, cos, sin)), strict=True):
        looked.append(layer.look(part[0], part[1:]))
        yield
    queries, keys, values = (torch.cat(parts) for parts in zip(*looked, strict=True))
    made = []
    for rows, asked in zip(x.split(size), queries.split(size), strict=True):
        made.append(layer.finish(rows, attend(asked, keys, values)))
        yield
    return torch.cat(made)


def expected_vision_tensors(config: VisionConfig) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of every tensor of tower and projector."""
    with torch.device("meta"):
        tensors = VisionModel(config).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
