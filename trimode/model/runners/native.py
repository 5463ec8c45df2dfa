"""int8 and int4 with the C++ library: a whole pass is one call."""

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any

import torch
from torch import Tensor, nn

from trimode.config import ModelConfig, RopeConfig
from trimode.model.adapter import AdapterRows, Projection
from trimode.model.attention import Segment
from trimode.model.formats import WeightFormat
from trimode.model.formats.format import HeadEmbedding, SplitDelta
from trimode.model.formats.int4 import GroupedLinear
from trimode.model.formats.int8 import Int8Linear
from trimode.model.native import group_kernels, library, structs, wants_packed
from trimode.model.native.cores import threads
from trimode.model.norm import Norm
from trimode.model.runners.runner import DraftHeadParts, Runner
from trimode.model.transformer import Block, GivenRows, Transformer


def _any(_: Any) -> bool:
    return True


_KNOWN_FAMILIES = ("nemotron_labs_diffusion", "llama", "mistral", "ministral3", "qwen2", "qwen3")

_KNOWN_CONFIG: dict[str, Callable[[Any], bool]] = {
    "family": lambda family: family in _KNOWN_FAMILIES,
    "vocab_size": _any,
    "hidden_size": lambda size: size % structs.FEATURE_MULTIPLE == 0,
    "intermediate_size": lambda size: size % structs.FEATURE_MULTIPLE == 0,
    "num_layers": _any,
    "num_heads": _any,
    "num_kv_heads": _any,
    "head_dim": lambda size: size % structs.HEAD_DIM_MULTIPLE == 0,
    "rms_norm_eps": _any,
    "max_position_embeddings": _any,
    "rope": lambda rope: not unknown_fields(rope, _KNOWN_ROPE),
    "qkv_bias": _any,
    "o_bias": _any,
    "mlp_bias": _any,
    "qk_norm": _any,
    "tie_word_embeddings": _any,
    # These change what decoding does with the logits, not how they are computed.
    "bos_token_id": _any,
    "eos_token_ids": _any,
    "mask_token_id": _any,
    "block_length": _any,
    "trained_to_denoise": _any,
    "token_shift": _any,
    "draft_form": _any,
}
"""Fields of `ModelConfig` that the C++ pass knows, and the values that it computes.

A field that is not listed must have its default. So a new switch of the Python model is refused
here until somebody adds it to the C++ pass.
"""
_KNOWN_ROPE: dict[str, Callable[[Any], bool]] = dict.fromkeys(
    (
        "rope_type",
        "rope_theta",
        "factor",
        "original_max_position_embeddings",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "attention_factor",
        "truncate",
        "low_freq_factor",
        "high_freq_factor",
        "llama_4_scaling_beta",
        "frequency_factors",
    ),
    _any,
)
"""The same for `RopeConfig`. Python makes cos, sin and query scale; C++ rotates all pairs."""


def unknown_fields(
    config: ModelConfig | RopeConfig, known: Mapping[str, Callable[[Any], bool]] = _KNOWN_CONFIG
) -> list[str]:
    """Fields of a model's config that the C++ pass does not know with these values."""
    found = []
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in known:
            fits = known[field.name](value)
        else:
            default = field.default
            if field.default_factory is not MISSING:
                default = field.default_factory()
            fits = value == default
        if not fits:
            found.append(field.name)
    return found


def refused_fields(config: ModelConfig) -> list[str]:
    """Fields of a model's config for which the C++ pass refuses the model."""
    found = unknown_fields(config)
    if config.num_heads * config.head_dim % structs.FEATURE_MULTIPLE:  # inputs of a linear too
        found.append("num_heads")
    return found


_FIRST_POSITIONS = 2048


class NativeRunner(Runner):
    """Keeps pointers into the transformer's weights: they must not move."""

    def __init__(self, transformer: Transformer, weight_format: WeightFormat) -> None:
        super().__init__(transformer, weight_format)
        native = library()
        assert native is not None
        self._pass = native.trimode_pass
        self.pack(transformer)
        self._draft_heads: dict[DraftHeadParts, structs.DraftHead] = {}
        """What the library is told of each head; a key keeps the weights that it points to."""
        self.products_seconds = 0.0
        """Time that the last pass spent in products with the layers' weights."""
        config = transformer.config
        blocks = [_layer(block) for block in transformer.layers]  # type: ignore[arg-type]
        self._layers = (structs.Layer * len(blocks))(*blocks)
        self._embedding = _embedding(transformer)
        self._model = structs.Model(
            config.num_layers,
            config.hidden_size,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            config.intermediate_size,
            config.rms_norm_eps,
            self._layers,
            transformer.norm.weight.data_ptr(),
            None if self._embedding is None else ctypes.pointer(self._embedding),
            _address(transformer.mask_embedding),
            -1 if config.mask_token_id is None else config.mask_token_id,
        )
        self._rotation = transformer.rope(torch.arange(_FIRST_POSITIONS), torch.float32)
        """Cos and sin of the positions that passes have reached."""
        self._head = _linear(transformer.head)
        self._screened = native.trimode_screened(ctypes.byref(self._head))
        """Most rows whose likeliest token the library finds faster than all logits."""

    @classmethod
    def supports(cls, config: ModelConfig, weight_format: WeightFormat) -> bool:
        """Models in int8 or int4 that the library knows, if there is a library."""
        return weight_format.independent_rows and runs_natively(config)

    def run(
        self,
        tokens: Tensor,
        positions: Tensor,
        segments: Sequence[Segment],
        adapter_rows: AdapterRows = None,
        given: GivenRows | None = None,
    ) -> Tensor:
        """See `Runner`."""
        # After a pass the caches hold weights, so each call of PyTorch costs ten microseconds. The
        # library looks up embeddings and rotations itself where it can.
        tokens, positions = tokens.contiguous(), positions.contiguous()
        looks_up = self._embedding is not None and given is None
        if looks_up:
            x = torch.empty(len(tokens), self.transformer.config.hidden_size)
        else:
            x = self.transformer.embed(tokens, adapter_rows, given)
        query_scale = self.transformer.rope.query_scale(positions, x.dtype)
        adapted = None
        if adapter_rows is not None:
            adapted = torch.arange(len(x), dtype=torch.int32)[adapter_rows]
        masks = [_mask(segment) for segment in segments]  # they must outlive the call
        found = (structs.Segment * len(segments))()
        for i, (segment, mask) in enumerate(zip(segments, masks, strict=True)):
            found[i] = _segment(segment, mask)
        asked = structs.Pass(
            rows=len(x),
            x=x.data_ptr(),
            tokens=tokens.data_ptr() if looks_up else None,
            positions=positions.data_ptr(),
            query_scale=_address(query_scale),
            adapted=0 if adapted is None else len(adapted),
            adapter_rows=_address(adapted),
            segments=len(segments),
            segment=found,
            threads=threads(),
        )
        self._compute(asked)
        self.products_seconds = asked.products
        return x  # turned into hidden states in place

    def _compute(self, asked: structs.Pass) -> None:
        cos, sin = self._rotation  # they must outlive the call
        asked.cos, asked.sin, asked.places = cos.data_ptr(), sin.data_ptr(), len(cos)
        if positions := self._pass(ctypes.byref(self._model), ctypes.byref(asked)):
            # Twice as many as it lacks, so that few passes wait for it.
            rope, reached = self.transformer.rope, torch.arange(2 * positions)
            self._rotation = rope(reached, torch.float32)
            self._compute(asked)

    def likeliest(self, hidden: Tensor) -> list[int] | None:
        """See `Runner` and `native/screen.h`."""
        if not 0 < len(hidden) <= self._screened:
            return None
        found = _highest(self._head, hidden, self._model.mask_token)
        return None if -1 in found else found

    def embedding(self, token: int) -> Tensor:
        """See `Runner`."""
        if self._embedding is None:
            return super().embedding(token)
        native = library()
        assert native is not None
        found = torch.empty(self.transformer.config.hidden_size)
        wanted = ctypes.byref(ctypes.c_int64(token))
        native.trimode_rows(ctypes.byref(self._embedding), wanted, 1, found.data_ptr())
        return found

    def linear(self, module: nn.Module, x: Tensor) -> Tensor:
        """See `Runner`."""
        return linear(module, x)

    def pack(self, module: nn.Module) -> None:
        """See `Runner`."""
        if wants_packed():
            for part in module.modules():
                if isinstance(part, Int8Linear):
                    part.pack()

    def draft_step(
        self, head: DraftHeadParts, state: Tensor, embedded: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `Runner`."""
        native = library()
        assert native is not None
        given = self._known(head)
        state, embedded = state.contiguous(), embedded.contiguous()
        after, logits = torch.empty(head.dim), torch.empty(given.words.out)
        native.trimode_draft_step(
            ctypes.byref(given),
            *(tensor.data_ptr() for tensor in (state, embedded, after, logits)),
            threads(),
        )
        return after, logits

    def draft_tree(
        self,
        head: DraftHeadParts,
        state: Tensor,
        embedded: Tensor,
        most: int,
        branches: int,
        shares: Sequence[float],
        trust: float,
    ) -> tuple[list[int], list[int], list[float]] | None:
        """See `Runner`."""
        native = library()
        assert native is not None
        given = self._known(head)
        state, embedded = state.contiguous(), embedded.contiguous()
        words, parents = (ctypes.c_int64 * most)(), (ctypes.c_int64 * most)()
        chances = (ctypes.c_float * most)()
        count = native.trimode_draft_tree(
            ctypes.byref(given),
            head.embedded.data_ptr(),
            state.data_ptr(),
            embedded.data_ptr(),
            most,
            branches,
            (ctypes.c_float * most)(*shares[:most]),
            trust,
            *(ctypes.addressof(array) for array in (words, parents, chances)),
            threads(),
        )
        return words[:count], parents[:count], chances[:count]

    def _known(self, head: DraftHeadParts) -> structs.DraftHead:
        if head not in self._draft_heads:
            self._draft_heads[head] = _draft_head(head)
        return self._draft_heads[head]

    def describe(self) -> str:
        """See `Runner`."""
        return f"{super().describe()}, {kernels(self.format)}"


def kernels(weight_format: WeightFormat) -> str:
    """The library's kernels for a format on this CPU, in words."""
    if weight_format.name == "int4":
        return f"C++ pass ({group_kernels()})"
    return f"C++ pass ({'AMX' if wants_packed() else 'AVX2'})"


def runs_natively(config: ModelConfig) -> bool:
    """Whether there is a library and it knows such a model."""
    return library() is not None and not refused_fields(config)


def linear(module: nn.Module, x: Tensor) -> Tensor:
    """The product of one linear by the library, `[T, in]` -> `[T, out]`."""
    native = library()
    assert native is not None
    x = x.contiguous()
    arguments = _linear(module)
    y = torch.empty(len(x), arguments.out)
    native.trimode_linear(ctypes.byref(arguments), x.data_ptr(), len(x), y.data_ptr(), threads())
    return y


def highest_outputs(module: nn.Module, x: Tensor, excluded: int = -1) -> list[int]:
    """The first of the highest outputs of a linear for each row of `x` `[T, in]`.

    The linear has 8 bits a weight, in groups, and no bias. See `native/screen.h`.

    Args:
        module: the linear.
        x: what goes in.
        excluded: an output that does not count.

    Returns:
        `[T]`; -1 if outputs are not finite.
    """
    return _highest(_linear(module), x, excluded)


def _highest(linear: structs.Linear, x: Tensor, excluded: int) -> list[int]:
    native = library()
    assert native is not None
    x = x.contiguous()
    found = (ctypes.c_int64 * len(x))()
    native.trimode_highest(ctypes.byref(linear), x.data_ptr(), len(x), excluded, found, threads())
    return list(found)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _mask(segment: Segment) -> Tensor | None:
    """Who sees whom, uint8 `[n, n]`; None if the segment's visibility is `causal` or `block`."""
    if isinstance(segment.visibility, str):
        return None
    return segment.visibility.to(torch.uint8).contiguous()


def _segment(segment: Segment, mask: Tensor | None) -> structs.Segment:
    cache = segment.cache
    assert cache.keys.dtype == torch.bfloat16, "the pass keeps bf16 keys"
    cache.reserve(segment.stop - segment.start)
    return structs.Segment(
        segment.start,
        segment.stop,
        cache.keys.data_ptr(),
        cache.values.data_ptr(),
        cache.capacity,
        cache.length,
        mask is None and segment.visibility == "causal",
        _address(mask),
    )


def _linear(module: nn.Module) -> structs.Linear:
    if isinstance(module, GroupedLinear):
        return module.native()
    assert isinstance(module, Int8Linear)
    return structs.Linear(
        out=module.out_features,
        in_=module.in_features,
        weight=_address(module.weight),
        packed=_address(module.packed),
        scale=_address(module.scale),
        bias=_address(module.bias),
    )


def _draft_head(head: DraftHeadParts) -> structs.DraftHead:
    return structs.DraftHead(
        head.dim,
        head.inner,
        head.state_scale,
        head.embedding_scale,
        _linear(head.enter),
        _linear(head.leave),
        _linear(head.words),
    )


def _projection(module: Projection) -> structs.Projection:
    found = structs.Projection(base=_linear(module.linear))
    if isinstance(module.delta, SplitDelta):
        found.down = _linear(module.delta.down)
        found.parts = len(module.delta.places)
        places = zip(module.delta.places, module.delta.ups, strict=True)
        for i, ((rows, ranks), up) in enumerate(places):
            part = _linear(up)
            found.part[i] = structs.DeltaPart(rows.start, ranks.start, part)
    return found


def _embedding(transformer: Transformer) -> structs.Linear | None:
    """A head's weights in groups that serve as the tokens' embeddings; None if there are none."""
    embedding = transformer.embedding
    if isinstance(embedding, HeadEmbedding) and isinstance(embedding.head, GroupedLinear):
        return _linear(embedding.head)
    return None


def _layer(block: Block) -> structs.Layer:
    def weight(norm: Norm | None) -> int | None:
        return None if norm is None else norm.weight.data_ptr()

    return structs.Layer(
        weight(block.input_norm),
        weight(block.mlp_norm),
        weight(block.attention.q_norm),
        weight(block.attention.k_norm),
        _projection(block.attention.qkv),
        _projection(block.attention.o),
        _projection(block.mlp.gate_up),
        _projection(block.mlp.down),
    )
