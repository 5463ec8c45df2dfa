"""The transformer that every mode runs: pre-RMSNorm, GQA, SwiGLU, RoPE.

It takes a ragged pack of rows and an `Attend` that decides who sees whom. It does not know decoding
modes, how its weights are stored (`formats`) or how its pass is run (`runners`).

Axis letters: T rows of a pass, D hidden, V vocabulary.
"""

from collections.abc import Callable, Iterator
from typing import Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trimode.config import ModelConfig
from trimode.model.adapter import AdapterRows, AdapterWeights, Projection, check_adapter
from trimode.model.attention import Attend
from trimode.model.builder import Builder, ReadTensor
from trimode.model.formats import WeightFormat
from trimode.model.norm import RMSNorm
from trimode.model.rope import Rope, rotate


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
        self.q_norm = build.norm(f"{name}.q_norm", config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = build.norm(f"{name}.k_norm", config.rms_norm_eps) if config.qk_norm else None

    def forward(
        self,
        x: Tensor,
        layer: int,
        attend: Attend,
        rotation: tuple[Tensor, Tensor],
        query_scale: Tensor | None,
        adapter_rows: AdapterRows,
    ) -> Tensor:
        """`[T, D]` -> `[T, D]`."""
        heads = self.qkv(x, adapter_rows).unflatten(-1, (-1, self.head_dim))
        if self.q_norm is not None and self.k_norm is not None:
            queries, keys, values = heads.split((self.heads, self.kv_heads, self.kv_heads), dim=1)
            queries = rotate(self.q_norm(queries), *rotation)
            keys = rotate(self.k_norm(keys), *rotation)
        else:  # one rotation for queries and keys together: fewer small operations
            both, values = heads.split((self.heads + self.kv_heads, self.kv_heads), dim=1)
            queries, keys = rotate(both, *rotation).split((self.heads, self.kv_heads), dim=1)
        if query_scale is not None:
            queries = queries * query_scale
        return self.o(attend(layer, queries, keys, values), adapter_rows)


class MLP(nn.Module):
    """SwiGLU feed-forward with fused gate and up projections."""

    def __init__(self, config: ModelConfig, name: str, build: Builder) -> None:
        super().__init__()
        self.gate_up = build.projection(
            f"{name}.gate_proj", f"{name}.up_proj", bias=config.mlp_bias
        )
        self.down = build.projection(f"{name}.down_proj", bias=config.mlp_bias)

    def forward(self, x: Tensor, adapter_rows: AdapterRows) -> Tensor:
        """`[T, D]` -> `[T, D]`."""
        gate, up = self.gate_up(x, adapter_rows).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up, adapter_rows)


class Block(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, config: ModelConfig, name: str, build: Builder) -> None:
        super().__init__()
        self.input_norm = build.norm(f"{name}.input_layernorm", config.rms_norm_eps)
        self.attention = Attention(config, f"{name}.self_attn", build)
        self.mlp_norm = build.norm(f"{name}.post_attention_layernorm", config.rms_norm_eps)
        self.mlp = MLP(config, f"{name}.mlp", build)


class Transformer(nn.Module):
    """Embedding, layers, final norm and output head."""

    def __init__(self, config: ModelConfig, build: Builder) -> None:
        super().__init__()
        self.config = config
        self.dtype, self.device = build.format.dtype, build.format.device
        layers = (Block(config, f"layers.{i}", build) for i in range(config.num_layers))
        self.layers = nn.ModuleList(layers)
        self.norm = build.norm("norm", config.rms_norm_eps)
        self.embedding, self.head = build.embedding_and_head(config)
        self.rope = Rope(config.rope, config.head_dim).to(self.device)
        self.mask_embedding = build.mask_embedding()

    @classmethod
    def from_tensors(
        cls,
        config: ModelConfig,
        read: ReadTensor,
        weight_format: WeightFormat,
        adapter: AdapterWeights | None = None,
    ) -> Self:
        """Build; `read` is called once for each canonical tensor name.

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
        *,
        recompute: bool = False,
    ) -> Tensor:
        """Hidden states `[T, D]` after the final norm, for tokens and positions `[T]`.

        With `recompute`, a backward pass computes each layer once more from its input, which is all
        that is kept of it.
        """
        x, rotation, query_scale = self.inputs(tokens, positions, adapter_rows)
        for i in range(len(self.layers)):
            arguments = (i, x, attend, rotation, query_scale, adapter_rows)
            if recompute:
                x = cast(Tensor, checkpoint(self._layer, *arguments, use_reentrant=False))
            else:
                x = self._layer(*arguments)
        return self.norm(x)

    def _layer(
        self,
        i: int,
        x: Tensor,
        attend: Attend,
        rotation: tuple[Tensor, Tensor],
        query_scale: Tensor | None,
        adapter_rows: AdapterRows,
    ) -> Tensor:
        """Layer `i`, `[T, D]` -> `[T, D]`."""
        layer = self.layers[i]
        assert isinstance(layer, Block)
        x = x + layer.attention(layer.input_norm(x), i, attend, rotation, query_scale, adapter_rows)
        return x + layer.mlp(layer.mlp_norm(x), adapter_rows)

    def inputs(
        self, tokens: Tensor, positions: Tensor, adapter_rows: AdapterRows
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor | None]:
        """What enters the layers: embeddings `[T, D]`, rotation and query scale."""
        x = self.embedding(tokens)
        if adapter_rows is not None and self.mask_embedding is not None:
            adapted = torch.zeros_like(tokens, dtype=torch.bool)
            adapted[adapter_rows] = True
            x[adapted & (tokens == self.config.mask_token_id)] = self.mask_embedding
        return x, self.rope(positions, x.dtype), self.rope.query_scale(positions, x.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 logits `[m, V]` of hidden states `[m, D]`."""
        return self.head(hidden).float()

    def named_weights(self, gather: Callable[[Tensor], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Canonical names and tensors of weights in the plain format; fused linears are split.

        `gather` returns a whole parameter, even if it is sharded over processes.
        """
        yield "embed_tokens.weight", gather(self.embedding.weight)
        if not self.config.tie_word_embeddings:
            yield "lm_head.weight", gather(self.head.weight)  # type: ignore[arg-type]
        for module in self.modules():
            if isinstance(module, RMSNorm):
                yield f"{module.name}.weight", gather(module.weight)
            elif isinstance(module, Projection):
                yield from module.named_weights(gather)
