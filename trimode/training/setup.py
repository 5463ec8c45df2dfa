"""The parts that a run is built from, each resolved once before it starts."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from trimode.checkpoints import Checkpoint, LoadedModel
from trimode.errors import InputError
from trimode.model import AdapterWeights, cpu_multiplies_bf16
from trimode.training.adapter import first_adapter
from trimode.training.config import TrainConfig
from trimode.training.data import Batch, PackedRows, read_documents
from trimode.training.run_directory import recorded_precision
from trimode.training.self_generate import read_prompts

HELD_OUT = 16
"""Examples held out to measure losses on, if the data has at least ten times as many."""


def resolved_precision(config: TrainConfig) -> Literal["fp32", "bf16"]:
    """The precision, `auto` resolved for this machine. A continued run keeps what it began with."""
    if config.precision != "auto":
        return config.precision
    recorded = recorded_precision(Path(config.output))
    if recorded is not None:
        return "bf16" if recorded == "bf16" else "fp32"
    on_cuda = config.device.startswith("cuda")
    on_cuda |= config.device == "auto" and torch.cuda.is_available()
    return "bf16" if on_cuda or cpu_multiplies_bf16() else "fp32"


def check_model(config: TrainConfig, checkpoint: Checkpoint) -> None:
    """Raise InputError unless the checkpoint can be trained as the configuration says."""
    model = checkpoint.config
    if model.mask_token_id is None:
        raise InputError("model", f"{checkpoint.name} has no mask token", "set mask_token_id")
    if config.data.sequence_length > model.max_position_embeddings:
        raise InputError(
            "data.sequence_length",
            str(config.data.sequence_length),
            f"at most the model's context, {model.max_position_embeddings}",
        )


def check_batch_size(config: TrainConfig, processes: int) -> None:
    """Raise InputError unless the batch divides into passes and processes."""
    rows = (config.micro_batch_size or 1) * processes
    if config.batch_size % rows:
        allowed = f"a multiple of {rows}: micro_batch_size x processes"
        raise InputError("batch_size", str(config.batch_size), allowed)


def read_rows(config: TrainConfig, checkpoint: Checkpoint) -> tuple[PackedRows, list[Batch]]:
    """The rows to train on, and the held-out rows that losses are measured on."""
    length = config.data.sequence_length
    documents = read_documents(
        config.data.paths,
        checkpoint.tokenizer,
        checkpoint.chat_template,
        eos_token_ids=checkpoint.config.eos_token_ids,
        max_length=length,
        overlong=config.data.overlong,
        learn_from=config.data.learn_from,
    )
    held_out = HELD_OUT if len(documents) >= 10 * HELD_OUT else 0
    measured = one_epoch(PackedRows(documents[:held_out], length, 0)) if held_out else []
    return PackedRows(documents[held_out:], length, config.seed), measured


def first_adapter_of(config: TrainConfig, checkpoint: Checkpoint) -> AdapterWeights:
    """The adapter that training begins with, marked with the form that it will have.

    Raises:
        InputError: `start_from` names an adapter of another shape or form.
    """
    embedding = checkpoint.read("embed_tokens.weight")[checkpoint.config.mask_token_id]
    adapter = first_adapter(checkpoint.config, config.adapter, embedding, config.seed)
    shift, started = config.step.blocks.token_shift, config.adapter.start_from
    if started is not None and adapter.token_shift != shift:
        found = f"{started} was trained {'without' if shift else 'with'} token shift"
        raise InputError("adapter.start_from", found, "an adapter of the configured form")
    return replace(adapter, token_shift=shift, draft_form=config.draft_form)


def build_model(
    config: TrainConfig, checkpoint: Checkpoint, adapter: AdapterWeights | None
) -> LoadedModel:
    """The model with plain weights. Its config describes it as it will be after training."""
    model = checkpoint.build(dtype="fp32", device=config.device, adapter=adapter, plain=True)
    if adapter is not None:
        return model
    blocks = config.step.blocks
    trained = replace(
        checkpoint.config,
        trained_to_denoise=True,
        block_length=blocks.block_length,
        token_shift=blocks.token_shift,
        draft_form=config.draft_form,
    )
    return replace(model, config=trained)


def evaluation_prompts(config: TrainConfig) -> list[str]:
    """Prompts to decode while training; none if nothing is evaluated."""
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
    """SHA-256 of a sample of the head's numbers, which tells models apart."""
    data = head.detach().float().cpu().contiguous().view(-1)[:: max(1, head.numel() // 2**20)]
    return hashlib.sha256(data.contiguous().numpy().tobytes()).hexdigest()
