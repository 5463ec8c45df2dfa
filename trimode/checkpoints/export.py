"""A checkpoint for other programs: its AR model in its family's own layout, or NVIDIA's layout.

Weights are read, converted and written tensor by tensor. An interrupted export goes on with the
first file that is not whole.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from trimode.checkpoints.adapters import NLD_DRAFT_ADAPTER, save_adapter
from trimode.checkpoints.atomic import resumable_directory
from trimode.checkpoints.families import NLD
from trimode.checkpoints.hf_config import SAVED_BY_US, to_hf
from trimode.checkpoints.loader import Adapters, chosen_adapters, open_checkpoint, with_adapter
from trimode.checkpoints.names import published_layout
from trimode.checkpoints.safetensors_writer import (
    SHARD_BYTES,
    Shard,
    shard_bytes,
    split_into_shards,
    write_index,
    write_shard,
)
from trimode.checkpoints.save import save_texts
from trimode.checkpoints.sources import ResolvedSource
from trimode.checkpoints.text_files import copy_texts, source_tokens
from trimode.config import DEFAULT_BLOCK_LENGTH, ModelConfig
from trimode.errors import CheckpointError, InputError
from trimode.files import read_json_object, read_json_object_if_there
from trimode.model import (
    AdapterWeights,
    QuantisedMatrix,
    ReadTensor,
    as_floats,
    expected_tensors,
)
from trimode.model.adapter import check_adapter
from trimode.text import ChatTemplate, Tokenizer
from trimode.version import __version__

ExportForm = Literal["ar", "nld"]
"""`ar`: the layout of the AR family. `nld`: NVIDIA's, with the draft adapter in its folder."""

EXPORT_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_AR_FAMILY_OF_NLD = "ministral3"
"""NLD's layers are those of this family."""
_OUR_FIELDS = ("mask_token_id", "block_size", "dlm_paradigm", "ar_loss_weight")
"""Fields of a config that only decoding by blocks reads."""
_OF_THE_SOURCE = ("auto_map", "torch_dtype", "transformers_version", "_name_or_path")
"""Fields that speak of the source's own files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What is written; everything that can be refused has been checked."""

    source: Path
    form: ExportForm
    dtype: torch.dtype
    config: ModelConfig
    """Of the exported model; its end tokens are those of every file of the source."""
    fields: dict[str, Any]
    """Of `config.json`."""
    shards: list[Shard]
    parts: dict[str, tuple[str, ...]]
    """Published name -> canonical tensors stacked in it."""
    read: ReadTensor
    draft: AdapterWeights | None
    """The adapter in NVIDIA's folder."""
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    mask_token_id: int | None
    """Never written by our `ar`."""
    notes: tuple[str, ...]
    """What is left out, rounded or not known to the readers of the result."""
    adapters: tuple[str, ...]
    """As they were given."""

    @property
    def tensors(self) -> int:
        """How many tensors are written."""
        return len(self.parts)


def plan_export(
    source: ResolvedSource,
    form: str,
    *,
    dtype: str = "auto",
    adapter: list[str] | None = None,
    most_bytes: int = SHARD_BYTES,
) -> Export:
    """Read and check all of a checkpoint but the weights.

    Args:
        source: see `trimode.checkpoints.resolve`.
        form: `ar` or `nld`.
        dtype: `fp32`, `bf16`, `fp16`, or `auto`: that of the source, and fp32 if it has several or
            holds blocks of a few bits.
        adapter: as in `load`.
        most_bytes: of a file; an interrupted export loses at most as much.

    Raises:
        InputError: a value is not known, or the checkpoint cannot have that form; with the reason.
    """
    if form not in get_args(ExportForm):
        raise InputError("--as", repr(form), f"allowed: {', '.join(get_args(ExportForm))}")
    if dtype not in ("auto", *EXPORT_DTYPES):
        raise InputError("dtype", repr(dtype), f"allowed: auto, {', '.join(EXPORT_DTYPES)}")
    checkpoint = open_checkpoint(source)
    adapters = chosen_adapters(adapter, source)
    config = checkpoint.config
    stored = _stored_dtype(config, checkpoint.read)
    wanted = stored if dtype == "auto" else EXPORT_DTYPES[dtype]
    notes = []
    if not isinstance(checkpoint.vision, str):
        notes.append("left out: the tower and projector that read pictures")
    for lora in adapters.merged:
        checkpoint = checkpoint.merged(lora)
    if adapters.merged and wanted != torch.float32:
        notes.append(f"the sum with the LoRA is rounded to {_name(wanted)}; --dtype fp32 keeps it")
    if wanted.itemsize < stored.itemsize:
        notes.append(f"weights are rounded from {_name(stored)} to {_name(wanted)}")
    if form == "ar":
        target, draft, more = _as_ar(config, adapters)
        fields = _ar_fields(checkpoint.path, target)
    else:
        target, draft, more = _as_nld(config, adapters)
        fields = to_hf(target, dtype="float32")
    fields |= {k: v for k, v in source_tokens(source.path).items() if k != "eos_token_id"}
    fields["dtype"] = _name(wanted)
    parts, published = published_layout(expected_tensors(target), target.family)
    return Export(
        source=checkpoint.path,
        form="ar" if form == "ar" else "nld",
        dtype=wanted,
        config=target,
        fields=fields,
        shards=split_into_shards(published, wanted, most_bytes),
        parts=parts,
        read=checkpoint.read,
        draft=draft,
        tokenizer=checkpoint.tokenizer,
        chat_template=checkpoint.chat_template,
        mask_token_id=_mask_token(config, adapters),
        notes=(*notes, *more),
        adapters=tuple(adapter or ()),
    )


def write_export(
    export: Export,
    directory: Path,
    *,
    overwrite: bool = False,
    advance: Callable[[int], None] = lambda _: None,
) -> None:
    """Write an export; the directory appears whole or not at all.

    What an interrupted run wrote lies in a hidden directory beside it, and the next run goes on.

    Args:
        export: what `plan_export` made.
        directory: new or empty.
        overwrite: replace a directory that holds another checkpoint.
        advance: called with a number of tensors that have been written.

    Raises:
        InputError: the directory is that of the source, another run writes it, or the disk is too
            small.
        CheckpointError: the directory holds something else, or a weight is too large for the dtype.
    """
    _refuse_source(export.source, directory)

    def replaceable(path: Path) -> bool:
        return overwrite and (path / "config.json").is_file()

    made_with = _made_with(export)
    with resumable_directory(directory, made_with, replaceable=replaceable) as temporary:

        def next_tensor(name: str) -> Tensor:
            advance(1)
            return _tensor(export, name)

        _refuse_full_disk(export, temporary)
        for shard in export.shards:
            if (temporary / shard.file).exists():
                advance(len(shard.shapes))
            else:
                write_shard(temporary, shard, export.dtype, next_tensor)
        write_index(temporary, export.shards, export.dtype)
        if export.source.is_dir():
            copy_texts(export.source, temporary)
        else:
            save_texts(temporary, export.config, export.tokenizer, export.chat_template)
        _write_json(temporary / "generation_config.json", _generation_config(export))
        if export.draft is not None:
            save_adapter(temporary / NLD_DRAFT_ADAPTER, export.draft, export.config)
        _write_json(temporary / "config.json", export.fields)


def _as_ar(
    config: ModelConfig, adapters: Adapters
) -> tuple[ModelConfig, AdapterWeights | None, list[str]]:
    """The AR model of a checkpoint, no draft adapter, and what is left out."""
    notes = []
    if adapters.drafting is not None:
        rows = "drafts" if adapters.drafting.scope == "draft" else "denoising passes"
        notes.append(
            f"left out: the adapter {adapters.path}, which is on in {rows} only; AR text does not "
            "depend on it"
        )
    target = replace(
        config,
        family=_AR_FAMILY_OF_NLD if config.family == NLD else config.family,
        trained_to_denoise=False,
        token_shift=False,
        draft_form="seeded",
        mask_token_id=None,
        block_length=DEFAULT_BLOCK_LENGTH,
    )
    return target, None, notes


def _mask_token(config: ModelConfig, adapters: Adapters) -> int | None:
    """The mask token that decoding has here."""
    drafting = adapters.drafting
    return (config if drafting is None else with_adapter(config, drafting)).mask_token_id


def _as_nld(
    config: ModelConfig, adapters: Adapters
) -> tuple[ModelConfig, AdapterWeights | None, list[str]]:
    """A checkpoint in NLD's terms, its draft adapter, and what readers of the layout do not know.

    Raises:
        InputError: the layout cannot say what the checkpoint or its adapter is.
    """
    draft, notes = adapters.drafting, []
    if draft is not None:
        _refuse_beyond_peft(draft, config)
        check_adapter(config, draft)
        config = with_adapter(config, draft)
    elif not config.trained_to_denoise:
        allowed = "a checkpoint of a joint training, or --adapter with one that is on in drafts"
        raise InputError("model", "was not trained to denoise", allowed)
    if config.token_shift:
        found = "was trained with token shift, which NVIDIA's layout cannot say"
        raise InputError("model", found, "one that was trained without (step.blocks.token_shift)")
    if config.mask_token_id is None:
        raise InputError("model", "has no mask token", "NVIDIA's layout needs one")
    if not config.trained_to_denoise:
        notes.append("only drafts were trained: diffusion with these weights makes no sense")
    if config.draft_form == "led":
        notes.append(
            "trained with led drafts; programs that know NVIDIA's form only draft less well with it"
        )
    target = replace(config, family=NLD, trained_to_denoise=True)
    try:
        to_hf(target, dtype="float32")
    except CheckpointError as error:
        found = f"{error.field} is {error.found}, which NVIDIA's layout cannot say"
        raise InputError(f"model: {config.family}", found, "--as ar") from None
    return target, draft, notes


def _refuse_beyond_peft(adapter: AdapterWeights, config: ModelConfig) -> None:
    """Raise InputError for an adapter that NVIDIA's folder cannot hold."""
    alone = ", or --adapter none for the weights alone" if config.trained_to_denoise else ""
    allowed = f"an adapter that is on in drafts (recipe nld_draft){alone}"
    if adapter.scope == "denoise":
        embedding = adapter.mask_embedding is not None
        more = ", with a mask embedding of its own, which PEFT cannot say" if embedding else ""
        found = f"is on in every denoising pass{more}; {NLD_DRAFT_ADAPTER} is on in drafts only"
        raise InputError("adapter", found, allowed)
    if adapter.mask_embedding is not None:
        raise InputError("adapter", "has a mask embedding, which PEFT cannot say", allowed)


def _ar_fields(source: Path, config: ModelConfig) -> dict[str, Any]:
    """`config.json` without what only decoding by blocks reads.

    A source of the same family keeps its own fields: they may say more than we read.
    """
    fields = to_hf(config, dtype="float32")
    if source.is_dir():
        given = read_json_object(source / "config.json")
        if given.get("model_type") == config.family:
            own = {name: fields[name] for name in ("architectures", "eos_token_id")}
            fields = given | own
    dropped = (*_OUR_FIELDS, *_OF_THE_SOURCE, SAVED_BY_US)
    return {
        name: value
        for name, value in fields.items()
        if name not in dropped and not name.startswith("trimode_")
    }


def _generation_config(export: Export) -> dict[str, Any]:
    """The source's, with every token that ends an answer here.

    `ar` never writes the mask token, so other programs must not either.
    """
    fields = {}
    if export.source.is_dir():
        fields = read_json_object_if_there(export.source / "generation_config.json")
    fields.pop("transformers_version", None)
    ends = list(export.config.eos_token_ids)
    fields |= {"eos_token_id": ends[0] if len(ends) == 1 else ends} if ends else {}
    if export.form == "ar" and export.mask_token_id is not None:
        known = fields.get("suppress_tokens") or []
        fields["suppress_tokens"] = sorted({*known, export.mask_token_id})
    return fields


def _tensor(export: Export, name: str) -> Tensor:
    """A tensor as it is written, made now."""
    pieces = [as_floats(export.read(part)) for part in export.parts[name]]
    whole = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    made = whole.to(export.dtype)
    if made.dtype.itemsize < whole.dtype.itemsize and not made.isfinite().all():
        allowed = "finite weights, or --dtype bf16 or fp32"
        raise CheckpointError(name, f"overflows {_name(export.dtype)}", allowed)
    return made


def _stored_dtype(config: ModelConfig, read: ReadTensor) -> torch.dtype:
    """The dtype that holds every weight as it is. No weight is converted to find it."""
    found = {_dtype_of(read(name)) for name in expected_tensors(config)}
    return found.pop() if len(found) == 1 else torch.float32


def _dtype_of(weight: Tensor | QuantisedMatrix) -> torch.dtype:
    return torch.float32 if isinstance(weight, QuantisedMatrix) else weight.dtype


def _refuse_source(source: Path, directory: Path) -> None:
    """Raise InputError if writing the directory could harm the source."""
    home, target = source.resolve(), directory.resolve()
    if home == target or target in home.parents or home in target.parents:
        allowed = "a directory of its own"
        raise InputError("output", f"{directory} holds the model, or lies in it", allowed)


def _refuse_full_disk(export: Export, directory: Path) -> None:
    """Raise InputError if what is still to be written will not fit."""
    todo = [shard for shard in export.shards if not (directory / shard.file).exists()]
    needed = sum(shard_bytes(shard, export.dtype) for shard in todo)
    free = shutil.disk_usage(directory).free
    if needed > free:
        found = f"needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
        raise InputError("output", found, "another disk, or a smaller --dtype")


def _made_with(export: Export) -> dict[str, Any]:
    """What the files depend on."""
    paths = [export.source, *(Path(name).expanduser() for name in export.adapters)]
    return {
        "trimode": __version__,
        "form": export.form,
        "dtype": _name(export.dtype),
        "shards": [shard.file for shard in export.shards],
        "files": [list(state) for path in paths for state in _states(path)],
    }


def _states(path: Path) -> Iterator[tuple[str, int, int]]:
    """Name, size and time of change of a file, or of the files in a directory."""
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if file.is_file():
            found = file.stat()
            yield str(file.resolve()), found.st_size, found.st_mtime_ns


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _write_json(path: Path, fields: dict[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
