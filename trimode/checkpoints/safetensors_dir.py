"""Weights of a Hugging Face directory: safetensors or torch.save's files, read by mmap."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trimode.checkpoints.mapped_file import MappedFile
from trimode.checkpoints.names import (
    check_tensors,
    from_published,
    rows_of,
    split_fused,
    vision_name,
)
from trimode.config import ModelConfig
from trimode.errors import CheckpointError
from trimode.files import read_json_object

_FILES = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
"""A whole file, and the index of its shards."""
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_HEADER_SIZE = 8
"""Bytes of the number that a safetensors file begins with: the size of its header."""


def open_weights(directory: Path, config: ModelConfig) -> Callable[[str], Tensor]:
    """Check every header, then return a reader of tensors by canonical name.

    Raises:
        CheckpointError: a file is missing or damaged, or the tensors are not those of the model.
    """
    files = {path: _open(path) for path in _shards(directory)}
    homes: dict[str, tuple[Path, str, slice | None]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for path, file in files.items():
        for published in file.names():
            name = from_published(published)
            if name is None:
                continue
            shape = _shape(path, file, published)
            for part, rows in split_fused(name, config).items():
                if part in homes:
                    found = f"is {part}, as {homes[part][1]} is"
                    raise CheckpointError(f"{path}: {published}", found, "each tensor once")
                homes[part] = (path, published, rows)
                shapes[part] = rows_of(shape, rows)
    tied = ("lm_head.weight",) if config.tie_word_embeddings else ()
    check_tensors(config, shapes, str(directory), ignore=tied)

    def read(name: str) -> Tensor:
        path, published, rows = homes[name]
        return files[path].read(published, rows)

    return read


def open_vision_weights(
    directory: Path,
) -> tuple[dict[str, tuple[int, ...]], Callable[[str], Tensor]]:
    """Shapes of tower and projector by canonical name, none if there are none, and a reader.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    files = {path: _open(path) for path in _shards(directory)}
    homes: dict[str, tuple[Path, str]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for path, file in files.items():
        for published in file.names():
            name = vision_name(published)
            if name is not None:
                homes[name] = path, published
                shapes[name] = _shape(path, file, published)

    def read(name: str) -> Tensor:
        path, published = homes[name]
        return files[path].read(published, None)

    return shapes, read


class _Safetensors:
    """An open safetensors file. The library checks it, and this class maps it.

    The library's own mapping would keep every page that was read in memory, until all tensors of
    the file are gone.
    """

    def __init__(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt"):
                self._file = MappedFile(path)
        except (SafetensorError, OSError) as error:
            found = f"not readable ({error}); truncated or damaged"
            raise CheckpointError(str(path), found, "fetch it again") from None
        self._data = _HEADER_SIZE + int.from_bytes(self._file.map[:_HEADER_SIZE], "little")
        header: dict[str, Any] = json.loads(self._file.map[_HEADER_SIZE : self._data])
        self._tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}

    def names(self) -> list[str]:
        return list(self._tensors)

    def header(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Dtype and shape of a tensor."""
        entry = self._tensors[name]
        return entry["dtype"], tuple(entry["shape"])

    def read(self, name: str, rows: slice | None) -> Tensor:
        """A tensor, or some rows of it: a view of the file."""
        dtype, shape = self.header(name)
        start, end = self._tensors[name]["data_offsets"]
        if rows is not None:
            row = (end - start) // max(1, shape[0])
            first, after, _ = rows.indices(shape[0])
            start, end = start + first * row, start + after * row
        data = self._file.tensor(self._data + start, end - start)
        return data.view(_DTYPES[dtype]).view(rows_of(shape, rows))


class _Pickled:
    """A file of torch.save, mapped into memory. Nothing but tensors is unpickled."""

    def __init__(self, path: Path) -> None:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # noqa: BLE001 - a damaged pickle fails in any way
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            found = f"not readable ({reason})"
            raise CheckpointError(
                str(path), found, "weights of torch.save, in its zip form"
            ) from None
        if not isinstance(content, dict) or not all(
            isinstance(t, Tensor) for t in content.values()
        ):
            raise CheckpointError(str(path), "holds more than tensors by name", "a state dict")
        self._tensors: dict[str, Tensor] = {str(name): t for name, t in content.items()}

    def names(self) -> list[str]:
        return list(self._tensors)

    def header(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Dtype and shape of a tensor."""
        tensor = self._tensors[name]
        found = str(tensor.dtype).removeprefix("torch.")
        return _DTYPE_NAMES.get(tensor.dtype, found), tuple(tensor.shape)

    def read(self, name: str, rows: slice | None) -> Tensor:
        """A tensor, or some rows of it."""
        tensor = self._tensors[name]
        return tensor if rows is None else tensor[rows]


def _shape(path: Path, file: _Safetensors | _Pickled, published: str) -> tuple[int, ...]:
    """The shape of a tensor.

    Raises:
        CheckpointError: it is not of floats.
    """
    dtype, shape = file.header(published)
    if dtype not in _DTYPES:
        supported = f"supported: {', '.join(_DTYPES)}"
        raise CheckpointError(f"{path}: {published}", dtype, supported)
    return shape


def _shards(directory: Path) -> list[Path]:
    """The weight files; adapters and subfolders are ignored.

    safetensors come before torch.save's files, and a whole file before an index, which is then
    stale: the order of transformers.
    """
    for single, index in _FILES:
        if (directory / single).exists():
            return [directory / single]
        if (directory / index).exists():
            return _listed(directory / index)
    return [directory / _FILES[0][0]]


def _listed(index: Path) -> list[Path]:
    """The shards that an index names."""
    allowed = 'must be a JSON object with a "weight_map" of tensor names to file names'
    shards = read_json_object(index, allowed=allowed).get("weight_map")
    names = set(map(str, shards.values())) if isinstance(shards, dict) else set()
    if not names or any(Path(name).name != name for name in names):
        raise CheckpointError(str(index), "not readable (no usable weight map)", allowed)
    return [index.with_name(name) for name in sorted(names)]


def _open(path: Path) -> _Safetensors | _Pickled:
    if not path.is_file():
        raise CheckpointError(str(path), "missing", "the checkpoint's weights must be there")
    return _Pickled(path) if path.suffix == ".bin" else _Safetensors(path)
