"""The transformer that every mode runs: pre-RMSNorm, GQA, SwiGLU, RoPE.

It takes a ragged pack of rows and an `Attend` that decides who sees whom. It knows nothing of
decoding modes.

Axis letters: T rows of a pass, D hidden, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimode.config import ModelConfig
from trimode.errors import CheckpointError
from trimode.model.adapter import (
    AdapterRows,
    AdapterWeights,
    IntegerDelta,
    LowRankDelta,
    Projection,
)
from trimode.model.attention import Attend, CachedAttention, RowwiseAttention, Segment
from trimode.model.linear import KERNELS, Int8Linear, Kernel, PlainLinear, choose_kernel
from trimode.model.native.call import NativePass
from trimode.model.parameters import expected_tensors
from trimode.model.rope import Rope, rotate

ReadTensor = Callable[[str], Tensor]


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned scale."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """`[..., dim]` -> `[..., dim]`."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Builder:
    """Turns named tensors into modules of one dtype and weight format, each read once."""

    def __init__(
        self,
        read: ReadTensor,
        adapter: AdapterWeights | None,
        dtype: str,
        device: str,
        *,
        plain: bool = False,
    ) -> None:
        """`plain`: keep weights as ordinary parameters of the dtype, as training needs them."""
        self.kernel: Kernel
        self.dtype, self.kernel = choose_kernel(dtype, device)
        if plain:
            self.dtype = torch.bfloat16 if dtype == "bf16" else torch.float32
            self.kernel = "plain"
        self.device = device
        self.integer = self.kernel == "int8"
        self._read = read
        self._adapter = adapter

    def tensor(self, name: str, *, own: bool = False) -> Tensor:
        """A tensor on the device in the activation dtype.

        `own`: a copy, where the tensor is kept as it is. A view would keep the whole mapped file
        in memory beside the packed weights.
        """
        return self._read(name).to(device=self.device, dtype=self.dtype, copy=own)

    def norm(self, name: str, eps: float) -> RMSNorm:
        """An RMSNorm from `name.weight`."""
        return RMSNorm(self.tensor(f"{name}.weight", own=True), eps)

    def weight(self, name: str, *, own: bool = False) -> Tensor:
        """`name.weight` in the activation dtype; beside int8 linears as it is stored.

        They are quantised from any float, and an embedding that stays is read by rows: in fp32
        that of a bf16 checkpoint would weigh twice as much for the same numbers.
        """
        if self.integer:
            return self._read(f"{name}.weight").to(device=self.device, copy=own)
        return self.tensor(f"{name}.weight", own=own)

    def linear(self, weights: list[Tensor], bias: Tensor | None = None) -> nn.Module:
        """Weights, stacked along their outputs, in the chosen format."""
        if self.integer:
            return Int8Linear(weights, bias)
        return KERNELS[self.kernel](torch.cat(weights) if len(weights) > 1 else weights[0], bias)

    def projection(self, *names: str, bias: bool) -> Projection:
        """The linears `names`, fused along their outputs, with their share of the adapter."""
        weights = [self.weight(name) for name in names]
        sizes = [len(weight) for weight in weights]
        biases = torch.cat([self.tensor(f"{name}.bias") for name in names]) if bias else None
        linear = self.linear(weights, biases)
        return Projection(names, sizes, linear, self._delta(names, sizes))

    def _delta(
        self, names: Sequence[str], sizes: Sequence[int]
    ) -> LowRankDelta | IntegerDelta | None:
        if self._adapter is None:
            return None
        parts = []
        for name in names:
            part = self._adapter.targets.get(name)
            moved = part and tuple(t.to(device=self.device, dtype=self.dtype) for t in part)
            parts.append(moved)
        if self.integer and any(part is not None for part in parts):
            return IntegerDelta(parts, sizes, self._adapter.scale)
        return LowRankDelta.fused(parts, sizes, self._adapter.scale)


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

    def __init__(self, config: ModelConfig, build: Builder, adapter: AdapterWeights | None) -> None:
        super().__init__()
        self.config = config
        self.dtype, self.device = build.dtype, build.device
        layers = (Block(config, f"layers.{i}", build) for i in range(config.num_layers))
        self.layers = nn.ModuleList(layers)
        self.norm = build.norm("norm", config.rms_norm_eps)
        tied = config.tie_word_embeddings
        embedding = build.weight("embed_tokens", own=not (tied and build.integer))
        self.head = build.linear([embedding if tied else build.weight("lm_head")])
        shared = tied and isinstance(self.head, Int8Linear)
        self.embedding = None if shared else nn.Parameter(embedding, requires_grad=False)
        """`[V, D]`, see `Builder.weight`; None where the int8 head serves for both."""
        if tied and isinstance(self.head, PlainLinear):
            assert self.embedding is not None
            self.head.weight = self.embedding  # one parameter, one gradient
        self.rope = Rope(config.rope, config.head_dim).to(build.device)
        mask = adapter.mask_embedding if adapter else None
        self.mask_embedding = (
            None
            if mask is None
            else nn.Parameter(mask.to(build.device, build.dtype), requires_grad=False)
        )
        self.kernel, self.integer = build.kernel, build.integer
        self.kv_dtype = torch.bfloat16 if build.integer else build.dtype
        """Of the KV cache. Coarser than fp32, and finer than what int8 weights leave of a value."""
        self._native = NativePass(self) if build.integer and NativePass.fits(self) else None

    @classmethod
    def from_tensors(
        cls,
        config: ModelConfig,
        read: ReadTensor,
        *,
        dtype: str = "auto",
        device: str = "cpu",
        adapter: AdapterWeights | None = None,
        plain: bool = False,
    ) -> Self:
        """Build; `read` is called once for each canonical tensor name.

        `plain` keeps the weights as ordinary parameters, for training; they are packed otherwise.

        Raises:
            InputError: unknown dtype.
            CheckpointError: the adapter does not fit the model.
        """
        if adapter is not None:
            check_adapter(config, adapter)
        return cls(config, Builder(read, adapter, dtype, device, plain=plain), adapter).eval()

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        attend: Attend,
        adapter_rows: AdapterRows = None,
    ) -> Tensor:
        """Hidden states `[T, D]` after the final norm, for tokens and positions `[T]`."""
        x, rotation, query_scale = self._inputs(tokens, positions, adapter_rows)
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, Block)
            x = x + layer.attention(
                layer.input_norm(x), i, attend, rotation, query_scale, adapter_rows
            )
            x = x + layer.mlp(layer.mlp_norm(x), adapter_rows)
        return self.norm(x)

    def run(
        self,
        tokens: Tensor,
        positions: Tensor,
        segments: Sequence[Segment],
        adapter_rows: AdapterRows = None,
    ) -> Tensor:
        """`forward` over segments with their KV caches, by the fastest way there is.

        Keys and values of the pass lie behind each segment's cache, pending.
        """
        if self._native is not None:
            inputs = self._inputs(tokens, positions, adapter_rows)
            return self._native(*inputs, segments, adapter_rows)
        if self.integer:
            return self(tokens, positions, RowwiseAttention(segments), adapter_rows)
        return self(tokens, positions, CachedAttention(segments, self.norm.weight), adapter_rows)

    def _inputs(
        self, tokens: Tensor, positions: Tensor, adapter_rows: AdapterRows
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor | None]:
        """What enters the layers: embeddings `[T, D]`, rotation and query scale."""
        x = self.embed(tokens)
        if adapter_rows is not None and self.mask_embedding is not None:
            adapted = torch.zeros_like(tokens, dtype=torch.bool)
            adapted[adapter_rows] = True
            x[adapted & (tokens == self.config.mask_token_id)] = self.mask_embedding
        return x, self.rope(positions, x.dtype), self.rope.query_scale(positions, x.dtype)

    def embed(self, tokens: Tensor) -> Tensor:
        """Embeddings `[T, D]` of tokens `[T]`, in the activation dtype."""
        if self.embedding is not None:
            found = F.embedding(tokens, self.embedding)
            return found.to(self.dtype) if self.integer else found
        assert isinstance(self.head, Int8Linear)
        return self.head.rows(tokens)

    def embedding_matrix(self) -> Tensor:
        """All embeddings `[V, D]` in the activation dtype; beside an int8 head a copy."""
        if self.embedding is not None:
            found = self.embedding.detach()
            return found.to(self.dtype) if self.integer else found
        return self.embed(torch.arange(self.config.vocab_size))

    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 logits `[m, V]` of hidden states `[m, D]`."""
        if self._native is not None:
            return self._native.head(hidden)
        return self.head(hidden).float()


def check_adapter(config: ModelConfig, adapter: AdapterWeights) -> None:
    """Raise CheckpointError unless every adapter tensor fits the model."""
    shapes = expected_tensors(config)
    for name, (a, b) in adapter.targets.items():
        shape = shapes.get(f"{name}.weight")
        if shape is None:
            raise CheckpointError(f"adapter {name}", "no such linear in the model", "wrong model?")
        found = (b.shape[0], a.shape[1])
        if found != shape or a.shape[0] != b.shape[1]:
            raise CheckpointError(
                f"adapter {name}",
                f"A {tuple(a.shape)}, B {tuple(b.shape)}",
                f"must give {list(shape)}; it belongs to another model",
            )
    embedding = adapter.mask_embedding
    if embedding is not None and tuple(embedding.shape) != (config.hidden_size,):
        raise CheckpointError(
            "adapter mask embedding", str(tuple(embedding.shape)), f"must be [{config.hidden_size}]"
        )
