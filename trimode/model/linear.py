"""Linear layers in the weight format that is fastest for a dtype and device.

Inference packs each weight once at load:

- fp32 on CPU: oneDNN's blocked layout. Twice as fast as `F.linear` at one row, and where oneDNN
  keeps one kernel for all row counts a row's result does not depend on its neighbours.
- bf16 on a CPU with bf16 instructions, and on CUDA: plain `F.linear` in bf16.
- bf16 on other CPUs: 16-bit weights in FBGEMM's layout, fp32 activations and accumulation
  (PyTorch's bf16 GEMM falls back to a scalar loop there, ten times slower at 16 rows).
- int8 on CPU: one scale an output, activations quantised row by row to 12 bits, int32 accumulation.
  Integers do not round, so a row's result never depends on its neighbours.
"""

import warnings
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimode.errors import InputError
from trimode.model.native import library, wants_packed

DTYPES = ("auto", "fp32", "bf16", "int8")
Kernel = Literal["plain", "onednn", "fbgemm", "int8"]

_PACK_ROWS = 16
"""Row count oneDNN lays weights out for; 4 to 128 time alike, 1 is slower beyond one row."""


def choose_kernel(dtype: str, device: str) -> tuple[torch.dtype, Kernel]:
    """Activation dtype and weight format for a requested dtype.

    Raises:
        InputError: the dtype is unknown, or not for this device.
    """
    if dtype not in DTYPES:
        raise InputError("dtype", repr(dtype), f"allowed: {', '.join(DTYPES)}")
    on_cpu = torch.device(device).type == "cpu"
    if dtype == "auto":
        dtype = ("int8" if library() else "fp32") if on_cpu else "bf16"
    if dtype == "int8":
        if not on_cpu:
            raise InputError("dtype", f"int8 on {device}", "runs on the CPU only; use bf16")
        return torch.float32, "int8"
    if not on_cpu:
        return (torch.float32 if dtype == "fp32" else torch.bfloat16), "plain"
    if dtype == "fp32":
        return torch.float32, "onednn" if torch.backends.mkldnn.is_available() else "plain"
    if cpu_multiplies_bf16():
        return torch.bfloat16, "plain"
    if "fbgemm" in torch.backends.quantized.supported_engines:
        return torch.float32, "fbgemm"
    return torch.bfloat16, "plain"


def cpu_multiplies_bf16() -> bool:
    """Whether this CPU has instructions for products of bf16 numbers."""
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512", "NO AVX"):  # x86
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class PlainLinear(nn.Module):
    """`F.linear` over ordinary parameters: training, CUDA, native bf16."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[T, in]` -> `[T, out]`."""
        return F.linear(x, self.weight, self.bias)


class OneDnnLinear(nn.Module):
    """fp32 weights packed once into oneDNN's blocked layout; CPU inference only."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, _PACK_ROWS)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """`[T, in]` -> `[T, out]`."""
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


class FbgemmLinear(nn.Module):
    """16-bit weights, fp32 activations and accumulation; CPU inference only.

    A bf16 weight above 6e-5 in magnitude is exact in fp16; a smaller one is off by at most 3e-8.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of fp16 saturation on every call
            self.packed = torch.ops.quantized.linear_prepack_fp16(weight.float(), bias)

    def forward(self, x: Tensor) -> Tensor:
        """`[T, in]` -> `[T, out]`."""
        return torch.ops.quantized.linear_dynamic_fp16(x, self.packed)


WEIGHT_LEVELS = 127
_QUANTISED_AT_ONCE = 2**16
"""Weights that are turned from floats into int8 at a time."""


def activation_levels(features: int) -> int:
    """Largest quantised activation: 12 bits, or what an int32 sum over `features` can hold.

    The C++ pass multiplies 16-bit numbers either way, and the extra bits keep answers closer to
    fp32's.
    """
    return min(2047, (2**31 - 1) // (WEIGHT_LEVELS * features))


def quantise(x: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Symmetric rows: whole numbers `[n, k]` in -levels..levels and their scales `[n]`, fp32."""
    top = torch.maximum(x.amax(-1), -x.amin(-1))
    most = torch.full_like(top, levels)  # number / tensor would be a rounded reciprocal
    inverse = torch.where(top > 0, most / top, 0.0)
    return (x * inverse[:, None]).round_(), top / most


class Int8Linear(nn.Module):
    """int8 weights, 12-bit activations, exact int32 products; CPU inference only."""

    def __init__(self, weight: Tensor | Sequence[Tensor], bias: Tensor | None) -> None:
        """`weight`: of any float dtype; several are stacked along their outputs."""
        super().__init__()
        parts = [weight] if isinstance(weight, Tensor) else weight
        self.out_features, self.in_features = sum(map(len, parts)), parts[0].shape[1]
        self.scale = torch.empty(self.out_features)
        values = torch.empty(self.out_features, self.in_features, dtype=torch.int8)
        # A few rows at a time: what lies between float and int8 then stays in the CPU's cache, and
        # no weight is ever held in fp32 as a whole.
        rows = max(1, _QUANTISED_AT_ONCE // self.in_features)
        start = 0
        for piece in (piece for part in parts for piece in part.split(rows)):
            place = slice(start, start + len(piece))
            values[place], self.scale[place] = quantise(piece.float(), WEIGHT_LEVELS)
            start = place.stop
        self.weight: Tensor | None = values
        """`[out, in]`; None once packed."""
        self.packed: Tensor | None = None
        """`[out / 16, in / 4, 16, 4]`, filled up with zeros: the order in which tiles read it."""
        self.bias = bias

    def pack(self) -> None:
        """Lay the weights out as tiles of 16 outputs and 64 inputs, instead of row by row."""
        if self.weight is None:
            return
        fill = (0, -self.in_features % 64, 0, -self.out_features % 16)
        filled = F.pad(self.weight, fill) if any(fill) else self.weight
        fours = filled.view(torch.int32).view(-1, 16, filled.shape[1] // 4)  # moved together
        tiles = fours.transpose(1, 2).contiguous()
        self.weight, self.packed = None, tiles.view(torch.int8).view(*tiles.shape, 4)

    def forward(self, x: Tensor) -> Tensor:
        """`[T, in]` -> `[T, out]`."""
        values, scale = quantise(x, activation_levels(x.shape[1]))
        high = torch.round(values / 64)  # two int8 halves: PyTorch multiplies no wider integers
        low = values - 64 * high
        weight = self._plain_rows(slice(None)).T
        product = 64 * _multiply(high, weight) + _multiply(low, weight)
        y = product.float() * (scale[:, None] * self.scale)
        return y if self.bias is None else y + self.bias

    def rows(self, index: Tensor) -> Tensor:
        """fp32 weights of outputs `index` `[n]`, `[n, in]`: a tied head's embeddings."""
        return self._plain_rows(index).float() * self.scale[index, None]

    def _plain_rows(self, index: Tensor | slice) -> Tensor:
        """int8 weights of outputs `index`, `[n, in]`."""
        if self.weight is not None:
            return self.weight[index]
        assert self.packed is not None
        if isinstance(index, slice):
            index = torch.arange(self.out_features)[index]
        fours = self.packed.view(torch.int32)[..., 0]  # moved together
        found = fours[index // 16, :, index % 16].contiguous()
        return found.view(torch.int8)[:, : self.in_features]


def _multiply(values: Tensor, weight: Tensor) -> Tensor:
    """Exact products of whole numbers in int8's range, int32."""
    return torch.ops.aten._int_mm(values.to(torch.int8), weight)


KERNELS: dict[Kernel, type[nn.Module]] = {
    "plain": PlainLinear,
    "onednn": OneDnnLinear,
    "fbgemm": FbgemmLinear,
    "int8": Int8Linear,
}


def describe_kernel(dtype: str, device: str) -> str:
    """How linears run for a dtype on a device, in words."""
    activations, kernel = choose_kernel(dtype, device)
    return {
        "plain": f"F.linear in {str(activations).removeprefix('torch.')}",
        "onednn": "oneDNN, fp32 weights packed",
        "fbgemm": "FBGEMM, 16-bit weights, fp32 accumulation (no bf16 instructions here)",
        "int8": f"int8 weights, 12-bit activations, {_int8_kernels()}",
    }[kernel]


def _int8_kernels() -> str:
    if not library():
        return "PyTorch operators (the C++ pass is not built)"
    return f"C++ pass ({'AMX' if wants_packed() else 'AVX2'})"
