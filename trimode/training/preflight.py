"""What is checked before a run's long parts: everything that needs no weights."""

from pathlib import Path

from trimode.checkpoints import Checkpoint, MaskToken
from trimode.config import ModelConfig
from trimode.errors import InputError
from trimode.training.config import TrainConfig
from trimode.training.conversations import Conversation
from trimode.training.data import tokenise
from trimode.training.resources import (
    disk_bytes,
    free_disk,
    free_memory,
    machine_memory,
    peak_bytes,
    recomputes,
)
from trimode.training.run_directory import check_output
from trimode.training.self_generate import user_turn_opening

_GB = 1e9


def mask_notes(mask: MaskToken) -> list[str]:
    """What to tell of a mask token that the user did not name and the checkpoint neither."""
    if not mask.chosen:
        return []
    return [f"mask token: {mask}; --mask-token takes another one"]


def check_conversion(config: TrainConfig, checkpoint: Checkpoint) -> list[str]:
    """Check what `trimode convert` does after it has written conversations; returns notes.

    Raises:
        InputError: the template, the output directory, or the machine will not do.
    """
    check_output(config)
    check_template(checkpoint)
    return check_resources(config, checkpoint.config)


def check_template(checkpoint: Checkpoint) -> None:
    """Render and tokenise one exchange, as training will.

    Raises:
        InputError: there is no template, it refuses the exchange, or it shows no answer that could
            be learned.
    """
    user_turn_opening(checkpoint.chat_template, checkpoint.name)
    messages = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there."})
    (document,) = tokenise(
        Conversation(messages),
        checkpoint.tokenizer,
        checkpoint.chat_template,
        eos_token_ids=checkpoint.config.eos_token_ids,
    )
    if not document.learn.any():
        raise InputError("chat_template", "shows no answer", "must show the assistant's text")


def check_resources(config: TrainConfig, model: ModelConfig) -> list[str]:
    """Compare what the run needs with the machine; returns notes.

    Raises:
        InputError: the disk is too small for the checkpoints, or the memory for the run.
    """
    needed, free = disk_bytes(config, model), free_disk(Path(config.output))
    if needed > free:
        found = f"{config.output} needs {needed / _GB:.1f} GB, {free / _GB:.1f} GB are free"
        allowed = "another disk, fewer keep_checkpoints, a smaller adapter.rank, or no ema_decay"
        raise InputError("output", found, allowed)
    if config.device.startswith("cuda"):
        return []
    peak, whole, left = peak_bytes(config, model), machine_memory(), free_memory()
    advice = "lower " + (
        "micro_batch_size or data.sequence_length"
        if config.train == "everything"
        else "step.blocks.noisy_tokens, micro_batch_size or adapter.rank"
    )
    if not recomputes(config, model):
        advice += ", or set recompute=true"
    if whole is not None and peak > whole:
        found = f"about {peak / _GB:.1f} GB needed, the machine has {whole / _GB:.1f} GB"
        raise InputError("memory", found, advice)
    if left is not None and peak > left:
        figures = f"about {peak / _GB:.1f} GB will be needed, {left / _GB:.1f} GB are free"
        return [f"memory: {figures}; {advice}"]
    return []
