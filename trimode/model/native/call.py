"""One call of the C++ pass: a transformer's weights, caches and rows as C structures."""

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_double, c_float, c_int64, c_void_p
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from trimode.model.adapter import AdapterRows, IntegerDelta, Projection
from trimode.model.attention import Segment
from trimode.model.linear import Int8Linear
from trimode.model.native import library, wants_packed

if TYPE_CHECKING:
    from trimode.model.transformer import Block, RMSNorm, Transformer


class _Linear(Structure):
    _fields_ = [
        ("out", c_int64),
        ("in_", c_int64),
        ("weight", c_void_p),
        ("packed", c_void_p),
        ("scale", c_void_p),
        ("bias", c_void_p),
    ]


class _DeltaPart(Structure):
    _fields_ = [("first_out", c_int64), ("first_rank", c_int64), ("up", _Linear)]


class _Projection(Structure):
    _fields_ = [("base", _Linear), ("down", _Linear), ("parts", c_int64), ("part", _DeltaPart * 3)]


class _Layer(Structure):
    _fields_ = [
        ("input_norm", c_void_p),
        ("mlp_norm", c_void_p),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
        ("qkv", _Projection),
        ("o", _Projection),
        ("gate_up", _Projection),
        ("down", _Projection),
    ]


class _Model(Structure):
    _fields_ = [
        ("layers", c_int64),
        ("hidden", c_int64),
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("head_dim", c_int64),
        ("intermediate", c_int64),
        ("eps", c_float),
        ("layer", POINTER(_Layer)),
        ("norm", c_void_p),
    ]


class _Segment(Structure):
    _fields_ = [
        ("start", c_int64),
        ("stop", c_int64),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("capacity", c_int64),
        ("length", c_int64),
        ("causal", c_int64),
        ("visible", c_void_p),
    ]


class _Pass(Structure):
    _fields_ = [
        ("rows", c_int64),
        ("x", c_void_p),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("query_scale", c_void_p),
        ("adapted", c_int64),
        ("adapter_rows", c_void_p),
        ("segments", c_int64),
        ("segment", POINTER(_Segment)),
        ("threads", c_int64),
        ("products", c_double),
    ]


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _linear(module: nn.Module) -> _Linear:
    assert isinstance(module, Int8Linear)
    return _Linear(
        module.out_features,
        module.in_features,
        _address(module.weight),
        _address(module.packed),
        _address(module.scale),
        _address(module.bias),
    )


def linear(module: Int8Linear, x: Tensor) -> Tensor:
    """The product of one linear, `[T, in]` -> `[T, out]`."""
    native = library()
    assert native is not None
    native.trimode_linear.argtypes = [POINTER(_Linear), c_void_p, c_int64, c_void_p, c_int64]
    x = x.contiguous()
    y = torch.empty(len(x), module.out_features)
    threads = torch.get_num_threads()
    native.trimode_linear(_linear(module), x.data_ptr(), len(x), y.data_ptr(), threads)
    return y


def _projection(module: Projection) -> _Projection:
    found = _Projection(base=_linear(module.linear))
    if isinstance(module.delta, IntegerDelta):
        found.down = _linear(module.delta.down)
        found.parts = len(module.delta.places)
        for i, ((rows, ranks), up) in enumerate(
            zip(module.delta.places, module.delta.ups, strict=True)
        ):
            found.part[i] = _DeltaPart(rows.start, ranks.start, _linear(up))
    return found


def _layer(block: "Block") -> _Layer:
    def weight(norm: "RMSNorm | None") -> int | None:
        return None if norm is None else norm.weight.data_ptr()

    return _Layer(
        weight(block.input_norm),
        weight(block.mlp_norm),
        weight(block.attention.q_norm),
        weight(block.attention.k_norm),
        _projection(block.attention.qkv),
        _projection(block.attention.o),
        _projection(block.mlp.gate_up),
        _projection(block.mlp.down),
    )


class NativePass:
    """A transformer's layers as one call. Keeps pointers into its weights: they must not move."""

    def __init__(self, transformer: "Transformer") -> None:
        """`transformer`: with int8 linears on the CPU."""
        config = transformer.config
        native = library()
        assert native is not None
        self._run = native.trimode_pass
        if wants_packed():
            for module in transformer.modules():
                if isinstance(module, Int8Linear):
                    module.pack()
        self._head = transformer.head
        self.products_seconds = 0.0
        """Of the last pass: its time in products with the layers' weights."""
        blocks = [_layer(block) for block in transformer.layers]  # type: ignore[arg-type]
        self._layers = (_Layer * len(blocks))(*blocks)
        self._model = _Model(
            config.num_layers,
            config.hidden_size,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            config.intermediate_size,
            config.rms_norm_eps,
            self._layers,
            transformer.norm.weight.data_ptr(),
        )

    def head(self, hidden: Tensor) -> Tensor:
        """Logits `[m, V]` of hidden states `[m, D]`."""
        assert isinstance(self._head, Int8Linear)
        return linear(self._head, hidden)

    @staticmethod
    def fits(transformer: "Transformer") -> bool:
        """Whether the library is there and its loops take the sizes of this int8 model."""
        if library() is None or transformer.config.head_dim % 8:
            return False
        linears = (m for m in transformer.modules() if isinstance(m, Int8Linear))
        return all(m.in_features % 16 == 0 for m in linears)

    def __call__(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        query_scale: Tensor | None,
        segments: Sequence[Segment],
        adapter_rows: AdapterRows,
    ) -> Tensor:
        """Turn embeddings `[T, D]` into hidden states after the last norm, in place.

        New keys and values lie behind each segment's cache, pending.
        """
        if adapter_rows is None:
            adapted = torch.empty(0, dtype=torch.int32)
        else:
            adapted = torch.arange(len(x), dtype=torch.int32)[adapter_rows]
        kept: list[Tensor] = []
        found = (_Segment * len(segments))()
        for i, segment in enumerate(segments):
            cache = segment.cache
            assert cache.keys.dtype == torch.bfloat16, "the int8 pass keeps bf16 keys"
            cache.reserve(segment.stop - segment.start)
            mask = None
            if isinstance(segment.visibility, Tensor):
                mask = segment.visibility.to(torch.uint8).contiguous()
                kept.append(mask)
            found[i] = _Segment(
                segment.start,
                segment.stop,
                cache.keys.data_ptr(),
                cache.values.data_ptr(),
                cache.capacity,
                cache.length,
                segment.visibility == "causal" if mask is None else False,
                _address(mask),
            )
        cos, sin = (part.contiguous() for part in rotation)
        asked = _Pass(
            len(x),
            x.data_ptr(),
            cos.data_ptr(),
            sin.data_ptr(),
            _address(query_scale),
            len(adapted),
            adapted.data_ptr(),
            len(segments),
            found,
            torch.get_num_threads(),
        )
        self._run(ctypes.byref(self._model), ctypes.byref(asked))
        self.products_seconds = asked.products
        return x
