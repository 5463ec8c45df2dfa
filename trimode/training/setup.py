"""The parts that a run is built from, each resolved once before it starts."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from trimode.checkpoints import (
    Checkpoint,
    LoadedModel,
    MaskToken,
    find_mask_token,
    open_checkpoint,
    read_adapter,
)
from trimode.errors import InputError
from trimode.model import (
    AdapterWeights,
    QuantisedMatrix,
    ReadTensor,
    as_floats,
    cpu_multiplies_bf16,
)
from trimode.training.adapter import first_adapter, mask_row
from trimode.training.config import TrainConfig
from trimode.training.data import Batch, Examples, PackedRows, read_documents
from trimode.training.run_directory import recorded_precision
from trimode.training.self_generate import read_prompts

HELD_OUT = 16
"""Examples held out to measure on, if the data has at least ten times as many."""


def held_out_of(conversations: int) -> int:
    """How many of so many conversations a conversion is measured on: a tenth, 1 to `HELD_OUT`."""
    return min(HELD_OUT, max(1, conversations // 10))


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


def open_for_training(
    config: TrainConfig, *, progress: bool = True
) -> tuple[Checkpoint, MaskToken]:
    """The checkpoint, no weights read yet, and its mask token, which its config then has.

    Raises:
        InputError: the checkpoint cannot be trained as the configuration says.
    """
    checkpoint = open_checkpoint(config.model, progress=progress)
    model, asked, started = checkpoint.config, config.mask_token, config.adapter.start_from
    if asked is None and config.train == "adapter" and started is not None:
        asked = read_adapter(Path(started).expanduser()).mask_token_id
    mask = find_mask_token(
        model,
        checkpoint.tokenizer,
        checkpoint.chat_template,
        asked=asked,
        directory=checkpoint.path if checkpoint.path.is_dir() else None,
    )
    if model.trained_to_denoise and model.mask_token_id not in (None, mask.id):
        allowed = f"the model was trained with {model.mask_token_id}; leave it out"
        raise InputError("mask_token", str(asked), allowed)
    checkpoint = replace(checkpoint, config=replace(model, mask_token_id=mask.id))
    check_model(config, checkpoint)
    return checkpoint, mask


def check_model(config: TrainConfig, checkpoint: Checkpoint) -> None:
    """Raise InputError unless the checkpoint can be trained as the configuration says."""
    model = checkpoint.config
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


def read_examples(config: TrainConfig, checkpoint: Checkpoint) -> Examples:
    """Every example of the run's files, tokenised."""
    return read_documents(
        config.data.paths,
        checkpoint.tokenizer,
        checkpoint.chat_template,
        eos_token_ids=checkpoint.config.eos_token_ids,
        max_length=config.data.sequence_length,
        mask_token_id=checkpoint.config.mask_token_id,
        overlong=config.data.overlong,
        learn_from=config.data.learn_from,
        vision=checkpoint.vision,
    )


def packed_rows(config: TrainConfig, examples: Examples) -> tuple[PackedRows, list[Batch]]:
    """The rows to train on, and the held-out rows that losses are measured on."""
    documents, length = examples.documents, config.data.sequence_length
    held_out = config.data.held_out
    if held_out is None:
        held_out = HELD_OUT if len(documents) >= 10 * HELD_OUT else 0
    held_out = min(held_out, len(documents) // 2)
    measured = one_epoch(PackedRows(documents[:held_out], length, 0)) if held_out else []
    return PackedRows(documents[held_out:], length, config.seed), measured


def first_adapter_of(config: TrainConfig, checkpoint: Checkpoint) -> AdapterWeights:
    """The adapter that training begins with, marked with the form that it will have.

    Raises:
        InputError: `start_from` names an adapter of another shape or form.
    """
    mask = checkpoint.config.mask_token_id
    assert mask is not None  # see `open_for_training`
    embedding = mask_row(as_floats(checkpoint.read("embed_tokens.weight")), mask)
    adapter = first_adapter(checkpoint.config, config.adapter, embedding, config.seed)
    if adapter.mask_token_id not in (None, mask):
        found = (
            f"{config.adapter.start_from} was trained with the mask token {adapter.mask_token_id}"
        )
        raise InputError("adapter.start_from", found, f"mask_token: {adapter.mask_token_id}")
    shift, started = config.step.blocks.token_shift, config.adapter.start_from
    if started is not None and adapter.token_shift != shift:
        found = f"{started} was trained {'without' if shift else 'with'} token shift"
        raise InputError("adapter.start_from", found, "an adapter of the configured form")
    return replace(adapter, token_shift=shift, draft_form=config.draft_form, mask_token_id=mask)


def build_model(
    config: TrainConfig, checkpoint: Checkpoint, adapter: AdapterWeights | None
) -> LoadedModel:
    """The model with plain weights. Its config describes it as it will be after training."""
    if adapter is not None:
        return checkpoint.build(dtype="fp32", device=config.device, adapter=adapter, plain=True)
    checkpoint = replace(checkpoint, read=_with_usable_mask_row(checkpoint))
    model = checkpoint.build(dtype="fp32", device=config.device, plain=True)
    blocks = config.step.blocks
    trained = replace(
        checkpoint.config,
        trained_to_denoise=True,
        block_length=blocks.block_length,
        token_shift=blocks.token_shift,
        draft_form=config.draft_form,
    )
    return replace(model, config=trained)


def _with_usable_mask_row(checkpoint: Checkpoint) -> ReadTensor:
    """Read the weights; an empty embedding of the mask token is filled first."""
    mask = checkpoint.config.mask_token_id
    assert mask is not None  # see `open_for_training`

    def read(name: str) -> torch.Tensor | QuantisedMatrix:
        if name != "embed_tokens.weight":
            return checkpoint.read(name)
        weight = as_floats(checkpoint.read(name)).clone()
        weight[mask] = mask_row(weight, mask).to(weight.dtype)
        return weight

    return read


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
