"""The transformer that every mode runs: norms, GQA, gated MLP, RoPE.

It takes a ragged pack of rows and an `Attend` that decides who sees whom. It does not know decoding
modes, how its weights are stored (`formats`) or how its pass is run (`runners`).

Axis letters: T rows of a pass, D hidden, V vocabulary.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trimode.config import LayerRope, ModelConfig
from trimode.model.adapter import (
    AdapterRows,
    AdapterWeights,
    Projection,
    ReadTensor,
    check_adapter,
)
from trimode.model.attention import Attend
from trimode.model.builder import Builder
from trimode.model.formats import WeightFormat
from trimode.model.norm import LayerNorm, Norm
from trimode.model.parameters import LAYER_NORMS
from trimode.model.rope import Rope, Rotation, rotate


@dataclass(frozen=True, slots=True, eq=False)
class GivenRows:
    """Rows of a pass whose embeddings are given, whatever their tokens: those of pictures."""

    rows: Tensor
    """int64 `[m]`."""
    embeddings: Tensor
    """`[m, D]`; they take the place of what the table holds, multiplied already."""


class Attention(nn.Module):
    """Grouped-query attention with fused query, key and value projections."""

    def __init__(self, config: ModelConfig, name: str, build: Builder) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.num_heads, config.num_kv_heads
        self.head_dim = config.head_dim
        self.qkv = build.projection(
            f"{name}.q_proj", f"{name}.k_proj", f"{name}.v_proj", bias=config.qkv_bias
        )
        self.o = build.projection(f"{name}.o_proj", bias=config.o_bias)
        self.q_norm = self.k_norm = None
        if config.qk_norm:
            self.q_norm = build.norm(f"{name}.q_norm", config.norm, config.rms_norm_eps)
            self.k_norm = build.norm(f"{name}.k_norm", config.norm, config.rms_norm_eps)
        self.norms_whole = config.qk_norm_over == "projection"
        # `attend` multiplies scores by head_dim ** -0.5, so queries take what is left.
        scale = config.attention_scale
        self.query_multiplier = None if scale is None else scale * config.head_dim**0.5

    def forward(
        self,
        x: Tensor,
        layer: int,
        attend: Attend,
        rotation: Rotation,
        query_scale: Tensor | None,
        adapter_rows: AdapterRows,
    ) -> Tensor:
        """`[T, D]` -> `[T, D]`."""
        heads = self.qkv(x, adapter_rows).unflatten(-1, (-1, self.head_dim))
        if self.q_norm is not None and self.k_norm is not None:
            queries, keys, values = heads.split((self.heads, self.kv_heads, self.kv_heads), dim=1)
            queries = rotate(self._normed(self.q_norm, queries), rotation)
            keys = rotate(self._normed(self.k_norm, keys), rotation)
        else:  # one rotation for queries and keys together: fewer small operations
            both, values = heads.split((self.heads + self.kv_heads, self.kv_heads), dim=1)
            queries, keys = rotate(both, rotation).split((self.heads, self.kv_heads), dim=1)
        if self.query_multiplier is not None:
            queries = queries * self.query_multiplier
        if query_scale is not None:
            queries = queries * query_scale
        return self.o(attend(layer, queries, keys, values), adapter_rows)

    def _normed(self, norm: Norm, heads: Tensor) -> Tensor:
        if self.norms_whole:
            return norm(heads.flatten(1)).view_as(heads)
        return norm(heads)


class MLP(nn.Module):
    """Gated feed-forward with fused gate and up projections."""

    def __init__(self, config: ModelConfig, name: str, build: Builder) -> None:
        super().__init__()
        self.gate_up = build.projection(
            f"{name}.gate_proj", f"{name}.up_proj", bias=config.mlp_bias
        )
        self.down = build.projection(f"{name}.down_proj", bias=config.mlp_bias)
        self.activation = _ACTIVATIONS[config.activation]

    def forward(self, x: Tensor, adapter_rows: AdapterRows) -> Tensor:
        """`[T, D]` -> `[T, D]`."""
        gate, up = self.gate_up(x, adapter_rows).chunk(2, dim=-1)
        return self.down(self.activation(gate) * up, adapter_rows)


_ACTIVATIONS = {"silu": F.silu, "gelu_tanh": partial(F.gelu, approximate="tanh")}


class Block(nn.Module):
    """One transformer layer, with norms where its family has them."""

    def __init__(self, config: ModelConfig, name: str, build: Builder) -> None:
        super().__init__()

        def norm(part: str | None) -> Norm | None:
            if part is None:
                return None
            return build.norm(f"{name}.{part}", config.norm, config.rms_norm_eps)

        names = LAYER_NORMS[config.norm_placement]
        self.input_norm = norm(names.before_attention)
        self.attention = Attention(config, f"{name}.self_attn", build)
        self.attention_norm = norm(names.after_attention)
        self.mlp_norm = norm(names.before_mlp)
        self.mlp = MLP(config, f"{name}.mlp", build)
        self.output_norm = norm(names.after_mlp)
        self.multiplier = config.residual_multiplier

    def forward(
        self,
        x: Tensor,
        layer: int,
        attend: Attend,
        rotation: Rotation,
        query_scale: Tensor | None,
        adapter_rows: AdapterRows,
    ) -> Tensor:
        """`[T, D]` -> `[T, D]`."""
        seen = self.attention(
            _through(self.input_norm, x), layer, attend, rotation, query_scale, adapter_rows
        )
        x = x + self._scaled(_through(self.attention_norm, seen))
        made = self.mlp(_through(self.mlp_norm, x), adapter_rows)
        return x + self._scaled(_through(self.output_norm, made))

    def _scaled(self, x: Tensor) -> Tensor:
        return x if self.multiplier == 1.0 else x * self.multiplier


def _through(norm: Norm | None, x: Tensor) -> Tensor:
    return x if norm is None else norm(x)


class Transformer(nn.Module):
    """Embedding, layers, final norm and output head."""

    def __init__(self, config: ModelConfig, build: Builder) -> None:
        super().__init__()
        self.config = config
        self.dtype, self.device = build.format.dtype, build.format.device
        # The largest matrices first: what packing them takes beside them is then free for the rest.
        embedding, head = build.embedding_and_head(config)
        layers = (Block(config, f"layers.{i}", build) for i in range(config.num_layers))
        self.layers = nn.ModuleList(layers)
        self.norm = build.norm("norm", config.norm, config.rms_norm_eps)
        self.embedding, self.head = embedding, head
        rotated = config.rotary_dim or config.head_dim
        self.rope = Rope(config.rope, rotated).to(self.device)
        local = config.local_rope
        self.local_rope = None if local is None else Rope(local, rotated).to(self.device)
        self.mask_embedding = build.mask_embedding()

    @classmethod
    def from_tensors(
        cls,
        config: ModelConfig,
        read: ReadTensor,
        weight_format: WeightFormat,
        adapter: AdapterWeights | None = None,
    ) -> Self:
        """Build; `read` is called with each canonical tensor name, maybe twice.

        Raises:
            CheckpointError: the adapter does not fit the model.
        """
        if adapter is not None:
            check_adapter(config, adapter)
        return cls(config, Builder(read, weight_format, adapter)).eval()

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        attend: Attend,
        adapter_rows: AdapterRows = None,
        given: GivenRows | None = None,
        *,
        recompute: bool = False,
    ) -> Tensor:
        """Hidden states `[T, D]` after the final norm, for tokens and positions `[T]`.

        With `recompute`, a backward pass computes each layer once more from its input, which is all
        that is kept of it.
        """
        x = self.embed(tokens, adapter_rows, given)
        rotation = self.rope(positions, x.dtype)
        query_scale = self.rope.query_scale(positions, x.dtype)
        rotations: dict[LayerRope, Rotation] = {"global": rotation, "none": None}
        if self.local_rope is not None:
            rotations["local"] = self.local_rope(positions, x.dtype)
        for i, layer in enumerate(self.layers):
            turn = rotations[self.config.layer_ropes[i]] if self.config.layer_ropes else rotation
            arguments = (x, i, attend, turn, query_scale, adapter_rows)
            if recompute:
                x = cast(Tensor, checkpoint(layer, *arguments, use_reentrant=False))
            else:
                x = layer(*arguments)
        x = self.norm(x)
        multiplier = self.config.logit_multiplier
        return x if multiplier == 1.0 else x * multiplier

    def embed(
        self, tokens: Tensor, adapter_rows: AdapterRows, given: GivenRows | None = None
    ) -> Tensor:
        """Embeddings `[T, D]`."""
        x = self.embedding(tokens)
        if adapter_rows is not None and self.mask_embedding is not None:
            adapted = torch.zeros_like(tokens, dtype=torch.bool)
            adapted[adapter_rows] = True
            x[adapted & (tokens == self.config.mask_token_id)] = self.mask_embedding
        if self.config.embedding_multiplier != 1.0:  # rounded to the dtype, as in training
            x = x * torch.tensor(self.config.embedding_multiplier, dtype=x.dtype, device=x.device)
        if given is not None:
            x = x.index_copy(0, given.rows, given.embeddings.to(x.dtype))
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 logits `[m, V]` of hidden states `[m, D]`."""
        return self.head(hidden).float()

    def named_weights(self, gather: Callable[[Tensor], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Canonical names and tensors of weights in the plain format; fused linears are split.

        Args:
            gather: returns a whole parameter, even if it is sharded over processes; called when a
                parameter's turn comes.
        """
        yield "embed_tokens.weight", gather(self.embedding.weight)
        if not self.config.tie_word_embeddings:
            yield "lm_head.weight", gather(self.head.weight)  # type: ignore[arg-type]
        for module in self.modules():
            if isinstance(module, Norm):
                yield f"{module.name}.weight", gather(module.weight)
                if isinstance(module, LayerNorm):
                    yield f"{module.name}.bias", gather(module.bias)
            elif isinstance(module, Projection):
                yield from module.named_weights(gather)
