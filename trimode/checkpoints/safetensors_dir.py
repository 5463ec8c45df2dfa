"""Weights of a Hugging Face directory: single or sharded safetensors, read by mmap."""

import json
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from trimode.checkpoints.names import check_tensors, from_published
from trimode.config import ModelConfig
from trimode.errors import CheckpointError

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_DTYPES = ("F32", "F16", "BF16")


def open_weights(directory: Path, config: ModelConfig) -> Callable[[str], Tensor]:
    """Check every header, then return a reader of tensors by canonical name.

    Raises:
        CheckpointError: a file is missing or damaged, or the tensors are not those of the model.
    """
    files = {path: _open(path) for path in _shards(directory)}
    homes: dict[str, tuple[Path, str]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for path, file in files.items():
        for published in file.keys():  # noqa: SIM118 - a safe_open handle is no mapping
            name = from_published(published)
            if name is None:
                continue
            header = file.get_slice(published)
            if header.get_dtype() not in _DTYPES:
                supported = f"supported: {', '.join(_DTYPES)}"
                raise CheckpointError(f"{path}: {published}", header.get_dtype(), supported)
            homes[name] = (path, published)
            shapes[name] = tuple(header.get_shape())
    tied = ("lm_head.weight",) if config.tie_word_embeddings else ()
    check_tensors(config, shapes, str(directory), ignore=tied)

    def read(name: str) -> Tensor:
        path, published = homes[name]
        return files[path].get_tensor(published)

    return read


def _shards(directory: Path) -> list[Path]:
    """The weight files themselves; adapters and subfolders are not looked at."""
    index = directory / _INDEX
    if not index.exists():
        return [directory / _SINGLE]
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(str(index), f"not readable ({error!r})", "a weight map") from None
    return [directory / name for name in names]


def _open(path: Path):  # noqa: ANN202 - the handle's class is private to safetensors
    if not path.is_file():
        raise CheckpointError(str(path), "missing", "the checkpoint's weights must be there")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        found = f"not readable ({error}); truncated or damaged"
        raise CheckpointError(str(path), found, "fetch it again") from None
