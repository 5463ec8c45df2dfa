"""What a run is built from, each resolved once before it starts."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from trimode.errors import InputError
from trimode.model import AdapterWeights
from trimode.model.linear import cpu_multiplies_bf16
from trimode.training.config import TrainConfig
from trimode.training.data import Batch, PackedRows
from trimode.training.run_directory import recorded_precision
from trimode.training.self_generate import read_prompts


def resolved_precision(config: TrainConfig) -> Literal["fp32", "bf16"]:
    """What `auto` is here, or was where the run began."""
    if config.precision != "auto":
        return config.precision
    recorded = recorded_precision(Path(config.output))
    if recorded is not None:
        return "bf16" if recorded == "bf16" else "fp32"
    on_cuda = config.device.startswith("cuda")
    on_cuda |= config.device == "auto" and torch.cuda.is_available()
    return "bf16" if on_cuda or cpu_multiplies_bf16() else "fp32"


def in_form(adapter: AdapterWeights, config: TrainConfig) -> AdapterWeights:
    """The adapter that training begins with, marked with the form it will have."""
    shift, started = config.step.blocks.token_shift, config.adapter.start_from
    if started is not None and adapter.token_shift != shift:
        found = f"{started} was trained {'without' if shift else 'with'} token shift"
        raise InputError("adapter.start_from", found, "an adapter of the configured form")
    return replace(adapter, token_shift=shift)


def evaluation_prompts(config: TrainConfig) -> list[str]:
    """Prompts to decode while training; none where nothing is evaluated."""
    options = config.evaluation
    if options.prompts is None or not options.every:
        return []
    return read_prompts(Path(options.prompts).expanduser())[: options.max_prompts]


def one_epoch(rows: PackedRows) -> list[Batch]:
    """One epoch of rows, two at a time."""
    count = 0
    while rows.epoch_of(count) < 1:
        count += 1
    return [rows.batch(i, min(2, count - i)) for i in range(0, count, 2)]


def weights_fingerprint(head: torch.Tensor) -> str:
    """SHA-256 of a matrix that two models hardly share."""
    data = head.detach().float().cpu().contiguous().view(-1)[:: max(1, head.numel() // 2**20)]
    return hashlib.sha256(data.contiguous().numpy().tobytes()).hexdigest()
