"""Saving a checkpoint in NVIDIA's layout or Hugging Face's."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from trimode.checkpoints.atomic import atomic_directory
from trimode.checkpoints.hf_config import to_hf
from trimode.checkpoints.names import check_tensors, to_published
from trimode.config import ModelConfig
from trimode.text import ChatTemplate, Tokenizer


def save_checkpoint(
    directory: Path,
    config: ModelConfig,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    tokenizer: Tokenizer | None = None,
    chat_template: ChatTemplate | None = None,
    extra_files: Iterable[Path] = (),
) -> None:
    """Write a checkpoint that this program, transformers and readers of NLD's layout load.

    Args:
        directory: new, empty, or an earlier checkpoint, which is replaced.
        config: the family decides the layout.
        tensors: canonical name and tensor, each once.
        tokenizer: saved as `tokenizer.json`.
        chat_template: saved as `chat_template.jinja`.
        extra_files: copied beside the rest.

    Raises:
        CheckpointError: the tensors are not those of the config, or the directory is taken.
        OSError: the disk is full; nothing is left behind.
    """
    named = {name: tensor.contiguous() for name, tensor in tensors}
    check_tensors(config, {name: tuple(t.shape) for name, t in named.items()}, str(directory))
    dtype = str(named["embed_tokens.weight"].dtype).removeprefix("torch.")
    published = {to_published(name, config.family): tensor for name, tensor in named.items()}
    with atomic_directory(directory, replaceable="config.json") as temporary:
        fields = to_hf(config, dtype=dtype)
        (temporary / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
        if tokenizer is not None:
            tokenizer.save(temporary / "tokenizer.json")
            special = {"tokenizer_class": "PreTrainedTokenizerFast"} | _special_tokens(
                config, tokenizer
            )
            (temporary / "tokenizer_config.json").write_text(json.dumps(special, indent=2) + "\n")
        if chat_template is not None:
            (temporary / "chat_template.jinja").write_text(chat_template.source, encoding="utf-8")
        for path in extra_files:
            shutil.copy(path, temporary / path.name)
        save_file(published, temporary / "model.safetensors", metadata={"format": "pt"})


def _special_tokens(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, str]:
    ids = {"bos_token": config.bos_token_id, "mask_token": config.mask_token_id}
    if config.eos_token_ids:
        ids["eos_token"] = config.eos_token_ids[0]
    return {name: tokenizer.token_text(i) for name, i in ids.items() if i is not None}
