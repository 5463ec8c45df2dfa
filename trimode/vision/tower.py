"""Pixtral's vision tower: a transformer over the patches of one or more pictures.

Patches see all patches of their picture and none of another one. RoPE turns half of a head's
dimensions by a patch's row, and the other half by its column, so a picture may have any number of
patches (Agrawal et al. 2024, "Pixtral 12B", section 2.1).

Axis letters: N patches of all pictures, D hidden, H heads, K dimensions of a head.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trimode.vision.config import VisionActivation, VisionConfig

Grid = tuple[int, int]
"""Rows and columns of a picture's patches."""
Rotation = tuple[Tensor, Tensor]
"""Cosines and sines, `[N, 1, K]`."""

_EPS = 1e-5
"""Of all norms in the tower; no config names it."""

ACTIVATIONS: dict[VisionActivation, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}


class _Attention(nn.Module):
    """Projections of full attention."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(size, size, bias=False)
        self.k_proj = nn.Linear(size, size, bias=False)
        self.v_proj = nn.Linear(size, size, bias=False)
        self.o_proj = nn.Linear(size, size, bias=False)

    def heads(self, x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values `[n, H, K]` of rows `[n, D]`."""
        q, k, v = (
            projection(x).unflatten(-1, (-1, self.head_dim))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        return _rotate(q, rotation), _rotate(k, rotation), v


class _FeedForward(nn.Module):
    """Gated feed-forward."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        size, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(size, inner, bias=False)
        self.up_proj = nn.Linear(size, inner, bias=False)
        self.down_proj = nn.Linear(inner, size, bias=False)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        """`[n, D]` -> `[n, D]`."""
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))


class TowerLayer(nn.Module):
    """One layer, in the two parts between which rows look at each other."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden_size, eps=_EPS)
        self.attention = _Attention(config)
        self.ffn_norm = nn.RMSNorm(config.hidden_size, eps=_EPS)
        self.feed_forward = _FeedForward(config)

    def look(self, x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values `[n, H, K]` of rows `[n, D]`."""
        return self.attention.heads(self.attention_norm(x), rotation)

    def finish(self, x: Tensor, seen: Tensor) -> Tensor:
        """The layer's output `[n, D]`, from its input `[n, D]` and what attention saw `[n, D]`."""
        x = x + self.attention.o_proj(seen)
        return x + self.feed_forward(self.ffn_norm(x))

    def forward(self, x: Tensor, rotation: Rotation, sizes: Sequence[int]) -> Tensor:
        """`[N, D]` -> `[N, D]`; `sizes`: patches of each picture, N together."""
        pictures = zip(*(heads.split(list(sizes)) for heads in self.look(x, rotation)), strict=True)
        return self.finish(x, torch.cat([attend(*heads) for heads in pictures]))


class VisionTower(nn.Module):
    """Patch embedding and layers. Modules are named as in published checkpoints."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_conv = nn.Conv2d(
            3, config.hidden_size, config.patch_size, config.patch_size, bias=False
        )
        self.ln_pre = nn.RMSNorm(config.hidden_size, eps=_EPS)
        layers = nn.ModuleList(TowerLayer(config) for _ in range(config.num_layers))
        self.transformer = nn.ModuleDict({"layers": layers})

    @property
    def layers(self) -> list[TowerLayer]:
        """The layers up to the one whose output the projector reads."""
        layers = list(self.transformer["layers"])  # type: ignore[arg-type]
        return layers[: self.config.layers_run]

    def forward(self, images: Sequence[Tensor], *, recompute: bool = False) -> Tensor:
        """Features `[N, D]` of pictures `[3, height, width]`, whose sides are multiples of a patch.

        With `recompute`, a backward pass computes each layer once more from its input, which is all
        that is kept of it.
        """
        grids = [self.grid(image) for image in images]
        x = torch.cat([self.embed(image) for image in images])
        parts = [self.rotation(grid, x) for grid in grids]
        cos, sin = (torch.cat([part[i] for part in parts]) for i in (0, 1))
        sizes = [rows * columns for rows, columns in grids]
        for layer in self.layers:
            if recompute:
                x = checkpoint(layer, x, (cos, sin), sizes, use_reentrant=False)
            else:
                x = layer(x, (cos, sin), sizes)
        return x

    def grid(self, image: Tensor) -> Grid:
        """Rows and columns of patches of a picture `[3, height, width]`."""
        return tuple(side // self.config.patch_size for side in image.shape[1:])  # type: ignore[return-value]

    def embed(self, image: Tensor) -> Tensor:
        """What enters the first layer, `[n, D]`: the patches of a picture `[3, height, width]`."""
        weight = self.patch_conv.weight
        patches = F.unfold(
            image.to(weight.dtype)[None], self.config.patch_size, stride=self.config.patch_size
        )
        return self.ln_pre(F.linear(patches[0].T, weight.flatten(1)))

    def rotation(self, grid: Grid, like: Tensor) -> Rotation:
        """RoPE of a picture's patches `[n, 1, K]`, with the dtype and device of `like`.

        Frequencies alternate between rows and columns: the first, third, ... turn by the row.
        """
        rows, columns = grid
        size = self.config.head_dim
        exponents = torch.arange(0, size, 2, device=like.device, dtype=torch.float32) / size
        frequencies = 1.0 / self.config.rope_theta**exponents
        row, column = (torch.arange(n, device=like.device).float() for n in grid)
        by_row = torch.outer(row, frequencies[0::2])[:, None].expand(-1, columns, -1)
        by_column = torch.outer(column, frequencies[1::2])[None].expand(rows, -1, -1)
        angles = torch.cat((by_row, by_column), dim=-1).flatten(0, 1)
        angles = torch.cat((angles, angles), dim=-1)[:, None]
        return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """What queries `[q, H, K]` see of keys and values `[n, H, K]`, all of them: `[q, D]`."""
    q, k, v = (heads.transpose(0, 1)[None] for heads in (queries, keys, values))
    return F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1).flatten(1)


def _rotate(heads: Tensor, rotation: Rotation) -> Tensor:
    """Turn heads `[n, H, K]`; dimension i turns with i + K / 2."""
    cos, sin = rotation
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat((-second, first), dim=-1) * sin
