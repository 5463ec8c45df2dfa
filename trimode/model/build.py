"""Builds a model that runs. The weight format and the runner are each chosen once."""

import logging

import torch

from trimode.config import ModelConfig
from trimode.errors import InputError
from trimode.model.adapter import AdapterWeights, ReadTensor
from trimode.model.formats import (
    FbgemmFormat,
    Int4Format,
    Int8Format,
    OneDnnFormat,
    PlainFormat,
    WeightFormat,
)
from trimode.model.native import library
from trimode.model.runners import RUNNERS, NativeRunner, Runner
from trimode.model.runners.native import kernels, refused_fields, runs_natively
from trimode.model.transformer import Transformer

logger = logging.getLogger(__name__)

DTYPES = ("auto", "fp32", "bf16", "int8", "int4")


def build_runner(
    config: ModelConfig,
    read: ReadTensor,
    *,
    dtype: str = "auto",
    device: str = "cpu",
    adapter: AdapterWeights | None = None,
    plain: bool = False,
    in_blocks: bool = False,
) -> Runner:
    """A model in the best weight format for a dtype and device, with its runner.

    Args:
        config: the model.
        read: called with each canonical tensor name, with that of a matrix in blocks maybe twice.
        dtype: one of `DTYPES`.
        device: a torch device.
        adapter: to load with it.
        plain: keep the weights as ordinary parameters, for training; they are packed otherwise.
        in_blocks: whether most weights are stored in blocks of a few bits, for `auto`.

    Raises:
        InputError: the dtype is unknown, or this device does not run it.
        CheckpointError: the adapter does not fit the model.
    """
    if plain:
        weight_format = PlainFormat(torch.bfloat16 if dtype == "bf16" else torch.float32, device)
    else:
        weight_format = choose_format(dtype, device, config, in_blocks=in_blocks)
    transformer = Transformer.from_tensors(config, read, weight_format, adapter)
    return choose_runner(transformer, weight_format)


def choose_format(
    dtype: str, device: str, config: ModelConfig | None = None, *, in_blocks: bool = False
) -> WeightFormat:
    """The weight format for a dtype on a device.

    `auto` is bf16 on a GPU. On a CPU it is fp32 if the C++ pass does not run such a model; else
    int4 for weights that are stored in blocks, which it uses as they are, and int8 for others,
    which four bits would make worse.

    Args:
        dtype: one of `DTYPES`.
        device: a torch device.
        config: the model, for `auto`; None stands for one that the C++ pass knows.
        in_blocks: whether most of its weights are stored in blocks of a few bits, for `auto`.

    Raises:
        InputError: the dtype is unknown, or this device does not run it.
    """
    if dtype not in DTYPES:
        raise InputError("dtype", repr(dtype), f"allowed: {', '.join(DTYPES)}")
    on_cpu = torch.device(device).type == "cpu"
    if dtype == "auto":
        dtype = _best_on_cpu(config, in_blocks=in_blocks) if on_cpu else "bf16"
        if dtype == "fp32" and config is not None and library() is not None:
            unknown = ", ".join(refused_fields(config)[:3])
            logger.warning("runs in fp32: the C++ pass does not know this model's %s", unknown)
    if dtype in ("int8", "int4"):
        if not on_cpu:
            raise InputError("dtype", f"{dtype} on {device}", "runs on the CPU only; use bf16")
        if dtype == "int8":
            return Int8Format(device)
        return Int4Format(device, packs=_runs_natively(config))
    if dtype == "fp32":
        packs = on_cpu and torch.backends.mkldnn.is_available()
        return (OneDnnFormat if packs else PlainFormat)(torch.float32, device)
    if dtype == "bf16":
        if on_cpu and not cpu_multiplies_bf16() and _has_fbgemm():
            return FbgemmFormat(torch.float32, device)
        return PlainFormat(torch.bfloat16, device)
    raise AssertionError(f"no weight format for dtype {dtype}")


def choose_runner(transformer: Transformer, weight_format: WeightFormat) -> Runner:
    """The first runner that can run the model."""
    config = transformer.config
    kind = next(kind for kind in RUNNERS if kind.supports(config, weight_format))
    if weight_format.independent_rows and kind is not NativeRunner and library() is not None:
        unknown, name = ", ".join(refused_fields(config)), weight_format.name
        logger.warning("%s runs slowly: the C++ pass does not know this model's %s", name, unknown)
    return kind(transformer, weight_format)


def _best_on_cpu(config: ModelConfig | None, *, in_blocks: bool) -> str:
    if not _runs_natively(config):
        return "fp32"
    return "int4" if in_blocks else "int8"


def _runs_natively(config: ModelConfig | None) -> bool:
    return library() is not None if config is None else runs_natively(config)


def cpu_multiplies_bf16() -> bool:
    """Whether this CPU has instructions for products of bf16 numbers."""
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512", "NO AVX"):  # x86
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _has_fbgemm() -> bool:
    return "fbgemm" in torch.backends.quantized.supported_engines


def describe(dtype: str, device: str) -> str:
    """How linears run for a dtype on a device, in words."""
    weight_format = choose_format(dtype, device)
    if not weight_format.independent_rows:
        return weight_format.describe()
    how = kernels(weight_format) if library() else "PyTorch operators (the C++ pass is not built)"
    return f"{weight_format.describe()}, {how}"
