"""Writes safetensors files tensor by tensor, so that one tensor is in memory at a time.

The library's `save_file` wants all of a file's tensors at once.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
SHARD_BYTES = 4 * 2**30
"""Most bytes of a file, unless one tensor has more."""
_ALIGNED = 8
"""Bytes that a header's length is a multiple of."""


class Shard(NamedTuple):
    """One file and the tensors in it."""

    file: str
    shapes: dict[str, tuple[int, ...]]
    """By name, in the order in which they are written."""


def split_into_shards(
    shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, most_bytes: int
) -> list[Shard]:
    """Share tensors out to files of at most `most_bytes`, named as Hugging Face names them.

    A tensor larger than that has a file of its own.
    """
    groups: list[dict[str, tuple[int, ...]]] = [{}]
    held = 0
    for name, shape in shapes.items():
        size = _bytes(shape, dtype)
        if groups[-1] and held + size > most_bytes:
            groups.append({})
            held = 0
        groups[-1][name] = shape
        held += size
    if len(groups) == 1:
        return [Shard("model.safetensors", groups[0])]
    of = len(groups)
    return [Shard(f"model-{i:05d}-of-{of:05d}.safetensors", g) for i, g in enumerate(groups, 1)]


def write_shard(
    directory: Path, shard: Shard, dtype: torch.dtype, tensor: Callable[[str], Tensor]
) -> None:
    """Write a file; it has its name once it is whole and on the disk.

    Args:
        directory: where it goes.
        shard: its name, and its tensors.
        dtype: of all tensors.
        tensor: makes each of them when its turn comes.

    Raises:
        OSError: the disk is full; what was written stays.
    """
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shard.shapes.items():
        start, end = end, end + _bytes(shape, dtype)
        entries[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [start, end]}
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % _ALIGNED)
    temporary = directory / f"{shard.file}.part"
    try:
        with temporary.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for name, shape in shard.shapes.items():
                made = tensor(name)
                assert made.dtype == dtype, name
                assert tuple(made.shape) == shape, name
                file.write(made.contiguous().view(-1).view(torch.uint8).numpy().data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:  # a full disk does not name the file
        raise OSError(f"{temporary}: {error}") from None
    temporary.replace(directory / shard.file)


def write_index(directory: Path, shards: list[Shard], dtype: torch.dtype) -> None:
    """Write `model.safetensors.index.json`, if there are several files."""
    if len(shards) == 1:
        return
    total = sum(shard_bytes(shard, dtype) for shard in shards)
    homes = {name: shard.file for shard in shards for name in shard.shapes}
    index = {"metadata": {"total_size": total}, "weight_map": homes}
    path = directory / "model.safetensors.index.json"
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def shard_bytes(shard: Shard, dtype: torch.dtype) -> int:
    """Bytes of a shard's tensors."""
    return sum(_bytes(shape, dtype) for shape in shard.shapes.values())


def _bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return torch.Size(shape).numel() * dtype.itemsize
