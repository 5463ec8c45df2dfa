"""Weights of a Hugging Face directory: single or sharded safetensors, read by mmap."""

from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from trimode.checkpoints.names import check_tensors, from_published, rows_of, split_fused
from trimode.config import ModelConfig
from trimode.errors import CheckpointError
from trimode.files import read_json_object

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_DTYPES = ("F32", "F16", "BF16")


def open_weights(directory: Path, config: ModelConfig) -> Callable[[str], Tensor]:
    """Check every header, then return a reader of tensors by canonical name.

    Raises:
        CheckpointError: a file is missing or damaged, or the tensors are not those of the model.
    """
    files = {path: _open(path) for path in _shards(directory)}
    homes: dict[str, tuple[Path, str, slice | None]] = {}
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
            for part, rows in split_fused(name, config).items():
                if part in homes:
                    found = f"is {part}, as {homes[part][1]} is"
                    raise CheckpointError(f"{path}: {published}", found, "each tensor once")
                homes[part] = (path, published, rows)
                shapes[part] = rows_of(tuple(header.get_shape()), rows)
    tied = ("lm_head.weight",) if config.tie_word_embeddings else ()
    check_tensors(config, shapes, str(directory), ignore=tied)

    def read(name: str) -> Tensor:
        path, published, rows = homes[name]
        if rows is None:
            return files[path].get_tensor(published)
        return files[path].get_slice(published)[rows]

    return read


def _shards(directory: Path) -> list[Path]:
    """The weight files; adapters and subfolders are ignored."""
    single, index = directory / _SINGLE, directory / _INDEX
    if single.exists() or not index.exists():  # an index beside a whole file is stale
        return [single]
    allowed = 'must be a JSON object with a "weight_map" of tensor names to file names'
    shards = read_json_object(index, allowed=allowed).get("weight_map")
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
