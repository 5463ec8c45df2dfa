"""What a run needs of the machine: memory and disk, estimated from shapes before it starts."""

import os
import shutil
from pathlib import Path

from trimode.config import ModelConfig
from trimode.model import expected_tensors
from trimode.training.config import TrainConfig

_BYTES = 4
"""Of a number: weights, gradients and moments are fp32."""
_PROGRAM = 400 * 2**20
"""PyTorch and the tokenizer."""
_CHUNK_COPIES = 8
_CHUNK_LOGITS = 2**23
"""See `objective.head_loss`."""
_MOST_KEPT = 4 * 2**30
"""Bytes of activations from which on they are computed again instead of kept."""


def trained_numbers(config: TrainConfig, model: ModelConfig) -> int:
    """How many parameters a run trains."""
    shapes = expected_tensors(model)
    if config.train == "everything":
        return sum(_product(shape) for shape in shapes.values())
    count = model.hidden_size if config.adapter.mask_embedding else 0
    for name, shape in shapes.items():
        linear = name.removesuffix(".weight")
        if linear != name and linear.rpartition(".")[2] in config.adapter.targets:
            count += config.adapter.rank * sum(shape)
    return count


def checkpoint_bytes(config: TrainConfig, model: ModelConfig) -> int:
    """Bytes of one checkpoint: weights, two moments, and their average if there is one."""
    copies = 3 if config.ema_decay is None else 4
    return copies * trained_numbers(config, model) * _BYTES


def disk_bytes(config: TrainConfig, model: ModelConfig) -> int:
    """Bytes that a whole run writes; a new checkpoint is whole before an old one is deleted."""
    size = 4 if config.export_dtype == "fp32" else 2
    kept = min(config.keep_checkpoints, max(1, config.steps // config.save_every)) + 1
    return kept * checkpoint_bytes(config, model) + size * trained_numbers(config, model)


def free_disk(path: Path) -> int:
    """Bytes that can still be written where a path is or will be."""
    while not path.exists():
        path = path.absolute().parent
    return shutil.disk_usage(path).free


def recomputes(config: TrainConfig, model: ModelConfig, processes: int = 1) -> bool:
    """Whether the noisy pass computes its layers again in the backward pass."""
    if config.recompute is not None:
        return config.recompute
    return noisy_bytes(config, model, processes) > _MOST_KEPT


def noisy_bytes(config: TrainConfig, model: ModelConfig, processes: int = 1) -> int:
    """Bytes of activations that the noisy pass keeps for its backward pass, all layers."""
    if not config.step.objective.needs_noise:
        return 0
    return model.num_layers * _layer_bytes(config, model, _noisy_rows(config, processes))


def peak_bytes(config: TrainConfig, model: ModelConfig, processes: int = 1) -> int:
    """An estimate of a run's peak memory, within about a third."""
    weights = sum(_product(shape) for shape in expected_tensors(model).values())
    trained = trained_numbers(config, model)
    copies = 3 + (config.ema_decay is not None) + (config.train == "adapter")
    kept = noisy_bytes(config, model, processes)
    noisy = _noisy_rows(config, processes)
    if recomputes(config, model, processes):
        inputs = noisy * model.hidden_size * _BYTES
        kept = model.num_layers * inputs + _layer_bytes(config, model, noisy)
    clean = _micro(config, processes) * config.data.sequence_length
    keys = 2 * model.num_layers * model.num_kv_heads * model.head_dim * clean * _BYTES
    if config.train == "everything":
        kept += model.num_layers * _layer_bytes(config, model, clean)
    head = _CHUNK_COPIES * min(_CHUNK_LOGITS, 128 * model.vocab_size) * _BYTES
    if config.train == "everything":
        head += model.vocab_size * model.hidden_size * _BYTES
    share = (weights + copies * trained) * _BYTES // max(1, processes // config.replicate)
    return _PROGRAM + share + kept + keys + head


def _micro(config: TrainConfig, processes: int) -> int:
    """Rows of one pass of one process."""
    return config.micro_batch_size or max(1, config.batch_size // processes)


def _noisy_rows(config: TrainConfig, processes: int) -> int:
    """Tokens of the noisy pass."""
    blocks = config.step.blocks
    per_row = config.data.sequence_length * blocks.copies
    if blocks.placement == "random":
        per_row = blocks.noisy_tokens
    return _micro(config, processes) * per_row


def _layer_bytes(config: TrainConfig, model: ModelConfig, tokens: int) -> int:
    """Bytes that one layer keeps of `tokens` tokens: activations, and scores of its attention."""
    heads = model.num_heads * model.head_dim
    keys = model.num_kv_heads * model.head_dim
    wide = 7 * model.hidden_size + 3 * heads + 4 * keys + 5 * model.intermediate_size
    scores = 3 * model.num_heads * (config.data.sequence_length + config.step.blocks.block_length)
    return tokens * (wide + scores) * _BYTES


def machine_memory() -> int | None:
    """Bytes of memory that this process may have in all; None if the system does not say."""
    found = []
    try:
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError, AttributeError):
        return None
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        path = Path("/sys/fs/cgroup") / name
        if path.is_file() and (text := path.read_text().strip()).isdecimal():
            found.append(int(text))
    return min(found)


def free_memory() -> int | None:
    """Bytes of memory that programs may still take; None if the system does not say."""
    info = Path("/proc/meminfo")
    if not info.is_file():
        return None
    lines = (line.split() for line in info.read_text().splitlines())
    return next((int(f[1]) * 1024 for f in lines if f and f[0] == "MemAvailable:"), None)


def _product(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
