"""Saving a checkpoint in NVIDIA's layout or Hugging Face's."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from trimode.checkpoints.atomic import atomic_directory, marked
from trimode.checkpoints.hf_config import SAVED_BY_US, to_hf
from trimode.checkpoints.names import check_tensors, fuse, published_layout, to_published
from trimode.checkpoints.safetensors_writer import (
    SHARD_BYTES,
    split_into_shards,
    write_index,
    write_shard,
)
from trimode.checkpoints.special_tokens import template_tokens
from trimode.checkpoints.vision import save_processor, vision_fields, vision_tensors
from trimode.config import ModelConfig
from trimode.model import expected_tensors
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
    fields["dtype"] = _name(named["embed_tokens.weight"].dtype)
    stored = fuse(named, config.family)
    published = {
        to_published(name, config.family, vision and vision.layout): t for name, t in stored.items()
    }
    if vision is not None:
        fields = _with_vision(fields, vision)
        published |= vision_tensors(vision)
    with atomic_directory(directory, replaceable=is_ours, overwrite=overwrite) as temporary:
        _save_others(temporary, fields, config, tokenizer, chat_template, extra_files, vision)
        try:
            save_file(published, temporary / "model.safetensors", metadata={"format": "pt"})
        except SafetensorError as error:  # how the library reports a full disk
            raise OSError(f"{directory}: could not be written ({error})") from None


def stream_checkpoint(
    directory: Path,
    config: ModelConfig,
    tensors: Iterator[tuple[str, Tensor]],
    names: Iterable[str],
    dtype: torch.dtype,
    *,
    tokenizer: Tokenizer | None = None,
    chat_template: ChatTemplate | None = None,
    vision: Vision | None = None,
    extra_files: Iterable[Path] = (),
    extra_fields: Mapping[str, Any] | None = None,
    most_bytes: int = SHARD_BYTES,
) -> None:
    """As `save_checkpoint`, but each tensor is made when it is written, and then let go.

    Args:
        directory: new, empty, or a checkpoint saved by this program, which is replaced whole.
        config: the family decides the layout, unless there is a vision part.
        tensors: canonical name and tensor, each once.
        names: the same names, in the order in which `tensors` has them.
        dtype: in which they are written.
        tokenizer: saved as `tokenizer.json`.
        chat_template: saved as `chat_template.jinja`.
        vision: tower and projector, saved in the layout that they have.
        extra_files: copied into the directory; they replace what is made from the other arguments.
        extra_fields: of `config.json`; they replace what is made from `config`.
        most_bytes: of a file of weights.

    Raises:
        CheckpointError: the directory holds something else.
        OSError: the disk is full; nothing is left behind.
    """
    expected = expected_tensors(config)
    shapes = {name: expected[name] for name in names}
    check_tensors(config, shapes, str(directory))
    parts, published = published_layout(shapes, config.family, vision and vision.layout)
    fields = to_hf(config, dtype="float32")
    fields |= extra_fields or {}
    fields["dtype"] = _name(dtype)
    pictures: dict[str, Tensor] = {}
    if vision is not None:
        fields = _with_vision(fields, vision)
        pictures = vision_tensors(vision)
        published |= {name: tuple(tensor.shape) for name, tensor in pictures.items()}
    shards = split_into_shards(published, dtype, most_bytes)
    held: dict[str, Tensor] = {}

    def piece(name: str) -> Tensor:
        while name not in held:
            made, tensor = next(tensors)
            held[made] = tensor.to(dtype).cpu()
        return held.pop(name)

    def whole(name: str) -> Tensor:
        if name in pictures:
            return pictures[name].to(dtype).cpu()
        pieces = [piece(part) for part in parts[name]]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    with atomic_directory(directory, replaceable=is_ours) as temporary:
        for shard in shards:
            write_shard(temporary, shard, dtype, whole)
        write_index(temporary, shards, dtype)
        _save_others(temporary, fields, config, tokenizer, chat_template, extra_files, vision)


def _save_others(
    directory: Path,
    fields: Mapping[str, Any],
    config: ModelConfig,
    tokenizer: Tokenizer | None,
    chat_template: ChatTemplate | None,
    extra_files: Iterable[Path],
    vision: Vision | None,
) -> None:
    """Write all of a checkpoint but the weights."""
    (directory / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
    save_texts(directory, config, tokenizer, chat_template)
    if vision is not None and tokenizer is not None:
        save_processor(directory, vision, tokenizer)
    for path in extra_files:
        shutil.copy(path, directory / path.name)


def _with_vision(fields: Mapping[str, Any], vision: Vision) -> dict[str, Any]:
    """The config of a whole model, from the fields of its language model."""
    return {**vision_fields(vision, fields), "dtype": fields["dtype"], SAVED_BY_US: 1}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


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
