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
            if name in homes:
                first = homes[name][1]
                raise CheckpointError(
                    f"{path}: {published}", f"is {name}, as {first} is", "each tensor once"
                )
            homes[name] = (path, published)
            shapes[name] = tuple(header.get_shape())
    tied = ("lm_head.weight",) if config.tie_word_embeddings else ()
    check_tensors(config, shapes, str(directory), ignore=tied)

    def read(name: str) -> Tensor:
        path, published = homes[name]
        return files[path].get_tensor(published)

    return read


def _shards(directory: Path) -> list[Path]:
    """The weight files; adapters and subfolders are ignored."""
    single, index = directory / _SINGLE, directory / _INDEX
    if not index.exists():
        return [single]
    allowed = 'must be a JSON object with a "weight_map" of tensor names to file names'
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(str(index), f"not readable ({error})", allowed) from None
    shards = content.get("weight_map") if isinstance(content, dict) else None
    names = set(map(str, shards.values())) if isinstance(shards, dict) else set()
    if not names or any(Path(name).name != name for name in names):
        raise CheckpointError(str(index), "not readable (no usable weight map)", allowed)
    return [directory / name for name in sorted(names)]


def _open(path: Path):  # noqa: ANN202 - the handle's class is private to safetensors
    if not path.is_file():
        raise CheckpointError(str(path), "missing", "the checkpoint's weights must be there")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        found = f"not readable ({error}); truncated or damaged"
        raise CheckpointError(str(path), found, "fetch it again") from None
