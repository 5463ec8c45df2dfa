"""The built-in model's GGUF in other quantisations, made by llama.cpp's own code.

`xllamacpp` has llama.cpp inside, whose function for rows of numbers is called here. Which tensor
gets which format follows llama.cpp's quantiser: `Q4_0` and `Q4_1` keep the embedding, which is the
head too, in eight bits, and `Q4_K_M` gives some matrices more bits. Formats in superblocks of 256
numbers do not fit rows of 576; llama.cpp then takes a format with blocks of 32, and so do we.
"""

import ctypes
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from trimode.checkpoints import resolve

_FILE_TYPES = {"Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q4_K_M": 15}
"""llama.cpp's numbers of the whole file's format."""
KINDS = tuple(_FILE_TYPES)
"""Formats that the model is compared in."""
_SUPERBLOCK = 256
_NARROW = {Type.Q4_K: Type.Q5_0, Type.Q6_K: Type.Q8_0}
"""What llama.cpp takes where a row is no multiple of a superblock."""


def gguf_file(kind: str, folder: Path) -> Path:
    """The built-in model in one of `KINDS`; made once for a folder.

    The model comes as Q4_1, so its fp32 weights are what that file says. Q4_1 of them is the same
    again; the file itself is then read.
    """
    source = resolve("smollm2-135m-instruct").path
    if kind == "Q4_1":
        return source
    target = folder / f"model.{kind}.gguf"
    if not target.exists():
        _write(source, target, kind)
    return target


def _write(source: Path, target: Path, kind: str) -> None:
    quantise, reader = _quantiser(), gguf.GGUFReader(source)
    layers = 1 + max(int(t.name.split(".")[1]) for t in reader.tensors if t.name.startswith("blk."))
    tied = all(t.name != "output.weight" for t in reader.tensors)
    unfinished = target.with_suffix(".part")
    writer = gguf.GGUFWriter(unfinished, "llama")
    for name, entry in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        value_type = entry.types[0]
        inner = entry.types[-1] if value_type == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, entry.contents(), value_type, inner)
    writer.add_file_type(_FILE_TYPES[kind])
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if values.ndim < 2:
            writer.add_tensor(tensor.name, values)
            continue
        fmt = format_of(tensor.name, kind, layers, values.shape[-1], tied=tied)
        writer.add_tensor(tensor.name, quantise(values, fmt), raw_dtype=fmt)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.rename(target)


def format_of(name: str, kind: str, layers: int, columns: int, *, tied: bool) -> Type:
    """The format that llama.cpp gives a matrix in a file of a kind.

    Args:
        name: of the tensor in the file.
        kind: one of `KINDS`.
        layers: of the model.
        columns: numbers in a row.
        tied: whether the embedding is the head too.
    """
    if kind == "Q8_0":
        return Type.Q8_0
    head = name == "output.weight" or (tied and name == "token_embd.weight")
    fmt = Type.Q4_K if kind == "Q4_K_M" else Type[kind]
    if head:
        fmt = Type.Q6_K
    elif kind == "Q4_K_M" and name.endswith(("attn_v.weight", "ffn_down.weight")):
        layer = int(name.split(".")[1])
        if _more_bits(layer, layers):
            fmt = Type.Q6_K
    return _NARROW[fmt] if fmt in _NARROW and columns % _SUPERBLOCK else fmt


def _more_bits(layer: int, layers: int) -> bool:
    """The first and the last eighth of the layers, and each third one between them."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _quantiser() -> Callable[[np.ndarray, Type], np.ndarray]:
    """llama.cpp's `ggml_quantize_chunk` on a whole matrix."""
    spec = find_spec("xllamacpp.xllamacpp")
    if spec is None or spec.origin is None:
        raise SystemExit("needs xllamacpp: make peers-test")
    function = ctypes.CDLL(spec.origin).ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    function.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p,
                         *[ctypes.c_int64] * 3, ctypes.c_void_p]  # fmt: skip

    def quantise(values: np.ndarray, fmt: Type) -> np.ndarray:
        values = np.ascontiguousarray(values, dtype=np.float32)
        rows, columns = values.shape
        block, size = gguf.GGML_QUANT_SIZES[fmt]
        packed = np.empty((rows, columns // block * size), dtype=np.uint8)
        written = function(int(fmt), values.ctypes.data, packed.ctypes.data, 0, rows, columns, None)
        if written != packed.nbytes:
            raise SystemExit(f"{fmt.name}: {written} bytes written, {packed.nbytes} expected")
        return packed

    return quantise
