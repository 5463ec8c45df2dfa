"""Saving a checkpoint in NVIDIA's layout or Hugging Face's."""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from trimode.checkpoints.atomic import atomic_directory, marked
from trimode.checkpoints.hf_config import SAVED_BY_US, to_hf
from trimode.checkpoints.names import check_tensors, fuse, to_published
from trimode.checkpoints.special_tokens import template_tokens
from trimode.checkpoints.vision import save_processor, vision_fields, vision_tensors
from trimode.config import ModelConfig
from trimode.text import ChatTemplate, Tokenizer
from trimode.text.token_names import NAMES
from trimode.vision import Vision


def save_checkpoint(
    directory: Path,
    config: ModelConfig,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    tokenizer: Tokenizer | None = None,
    chat_template: ChatTemplate | None = None,
    vision: Vision | None = None,
    extra_files: Iterable[Path] = (),
    extra_fields: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a checkpoint that this program, transformers and readers of NLD's layout can load.

    Args:
        directory: new, empty, or a checkpoint saved by this program, which is replaced whole.
        config: the family decides the layout, unless there is a vision part.
        tensors: canonical name and tensor, each once.
        tokenizer: saved as `tokenizer.json`.
        chat_template: saved as `chat_template.jinja`.
        vision: tower and projector, saved in the layout that they have.
        extra_files: copied into the directory; they replace what is made from the other arguments.
        extra_fields: of `config.json`; they replace what is made from `config`.
        overwrite: replace the directory whatever it holds.

    Raises:
        CheckpointError: the tensors are not those of the config, or the directory holds something
            else.
        OSError: the disk is full; nothing is left behind.
    """
    fields = to_hf(config, dtype="float32")  # refuse before the tensors are made
    named = {name: tensor.contiguous() for name, tensor in tensors}
    check_tensors(config, {name: tuple(t.shape) for name, t in named.items()}, str(directory))
    fields |= extra_fields or {}
    fields["dtype"] = str(named["embed_tokens.weight"].dtype).removeprefix("torch.")
    stored = fuse(named, config.family)
    layout = None if vision is None else vision.layout
    published = {to_published(name, config.family, layout): t for name, t in stored.items()}
    if vision is not None:
        fields = {**vision_fields(vision, fields), "dtype": fields["dtype"], SAVED_BY_US: 1}
        published |= vision_tensors(vision)
    with atomic_directory(directory, replaceable=is_ours, overwrite=overwrite) as temporary:
        (temporary / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
        save_texts(temporary, config, tokenizer, chat_template)
        if vision is not None and tokenizer is not None:
            save_processor(temporary, vision, tokenizer)
        for path in extra_files:
            shutil.copy(path, temporary / path.name)
        try:
            save_file(published, temporary / "model.safetensors", metadata={"format": "pt"})
        except SafetensorError as error:  # how the library reports a full disk
            raise OSError(f"{directory}: could not be written ({error})") from None


def save_texts(
    directory: Path,
    config: ModelConfig,
    tokenizer: Tokenizer | None,
    chat_template: ChatTemplate | None,
) -> None:
    """Write a tokenizer and a chat template in the files in which transformers looks for them."""
    if tokenizer is not None:
        tokenizer.save(directory / "tokenizer.json")
        special = _tokenizer_config(config, tokenizer)
        (directory / "tokenizer_config.json").write_text(json.dumps(special, indent=2) + "\n")
    if chat_template is not None:
        (directory / "chat_template.jinja").write_text(chat_template.source, encoding="utf-8")
        if chat_template.tool_source != chat_template.source:
            more = directory / "additional_chat_templates"
            more.mkdir(exist_ok=True)
            (more / "tool_use.jinja").write_text(chat_template.tool_source, encoding="utf-8")


def is_ours(directory: Path) -> bool:
    """Whether this program saved the checkpoint, so that it may be replaced."""
    return marked(directory, "config.json", SAVED_BY_US)


def _tokenizer_config(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    tokens = template_tokens(tokenizer, config)
    if config.mask_token_id is not None:
        tokens["mask_token"] = tokenizer.token_text(config.mask_token_id)
    fields: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    fields |= {name: text for name, text in tokens.items() if name in NAMES}
    models_own = {name: text for name, text in tokens.items() if name not in NAMES}
    if models_own:
        fields["extra_special_tokens"] = models_own
    fields["add_bos_token"] = tokenizer.add_bos
    return fields
