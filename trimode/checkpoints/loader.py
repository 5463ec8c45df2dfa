"""Loads a model that is ready to run."""

import ctypes
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from trimode.checkpoints.adapters import read_adapter
from trimode.checkpoints.commit_rule import read_commit_rule
from trimode.checkpoints.gguf_file import open_gguf
from trimode.checkpoints.hf_config import read_config
from trimode.checkpoints.safetensors_dir import open_weights
from trimode.checkpoints.sources import DEFAULT_MODEL, ResolvedSource, resolve
from trimode.config import ModelConfig
from trimode.decoding import CommitScorer
from trimode.errors import CheckpointError, InputError
from trimode.model import (
    AdapterScope,
    AdapterWeights,
    ReadTensor,
    Runner,
    Transformer,
    build_runner,
)
from trimode.text import ChatTemplate, Tokenizer, find_chat_template

HeaderCheck = Callable[[ModelConfig, AdapterScope | None, str], None]
"""(config as the adapter changes it, the adapter's scope, name of the checkpoint)."""

NLD_DRAFT_ADAPTER = "linear_spec_lora"
"""Folder of an NLD checkpoint that holds its draft adapter."""


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """Weights, tokenizer and chat template of one checkpoint."""

    name: str
    config: ModelConfig
    runner: Runner
    """Runs the model's passes."""
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    adapter_scope: AdapterScope | None
    """When the draft adapter is on; None if there is none."""
    path: Path | None = None
    commit_scorer: CommitScorer | None = None
    """The adapter's learned commit rule, if it has one."""

    @property
    def transformer(self) -> Transformer:
        """The model's modules."""
        return self.runner.transformer

    @property
    def can_denoise(self) -> bool:
        """Whether the checkpoint was trained to fill masks outside speculation's drafts."""
        return self.config.trained_to_denoise or self.adapter_scope == "denoise"

    @property
    def can_draft(self) -> bool:
        """Whether the checkpoint was trained to draft at all."""
        return self.config.trained_to_denoise or self.adapter_scope is not None


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """An open checkpoint: everything but the weights is read."""

    name: str
    path: Path
    config: ModelConfig
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    read: ReadTensor
    """Reads a weight by canonical name."""

    def build(
        self,
        *,
        dtype: str = "auto",
        device: str = "auto",
        adapter: AdapterWeights | None = None,
        plain: bool = False,
    ) -> LoadedModel:
        """Read the weights; see `load` and `build_runner`."""
        config = self.config if adapter is None else _with_adapter(self.config, adapter)
        runner = build_runner(
            config,
            self.read,
            dtype=dtype,
            device=_device(device),
            adapter=adapter,
            plain=plain,
        )
        return LoadedModel(
            name=self.name,
            config=config,
            runner=runner,
            tokenizer=self.tokenizer,
            chat_template=self.chat_template,
            adapter_scope=None if adapter is None else adapter.scope,
            path=self.path,
        )


def open_checkpoint(
    source: str | Path | ResolvedSource = DEFAULT_MODEL,
    *,
    offline: bool = False,
    progress: bool = True,
) -> Checkpoint:
    """Find a checkpoint and read all of it but the weights.

    Raises:
        InputError: there is no such source, or the checkpoint cannot be read.
        FetchError: a download failed.
    """
    if not isinstance(source, ResolvedSource):
        source = resolve(str(source), offline=offline, progress=progress)
    path = source.path
    if path.is_file():
        model = open_gguf(path)
        config, read = model.config, model.read
        tokenizer, chat_template = model.tokenizer, model.chat_template
    else:
        config = _with_generation_config(read_config(path / "config.json"), path)
        read = open_weights(path, config)
        tokenizer = Tokenizer.from_file(path / "tokenizer.json")
        chat_template = _chat_template(path, config, tokenizer)
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            "tokenizer", f"{tokenizer.vocab_size} ids", f"the model has {config.vocab_size}"
        )
    return Checkpoint(source.name, path, config, tokenizer, chat_template, read)


def load(
    source: str | Path | ResolvedSource = DEFAULT_MODEL,
    *,
    dtype: str = "auto",
    device: str = "auto",
    adapter: str | Path | None = None,
    offline: bool = False,
    progress: bool = True,
    check: HeaderCheck = lambda *_: None,
) -> LoadedModel:
    """Load a model.

    Args:
        source: see `trimode.checkpoints.resolve`, whose result may be given too.
        dtype: `int8`, `fp32`, `bf16`, or `auto`: bf16 on a GPU; on a CPU int8 if the C++ pass
            runs this model, else fp32.
        device: a torch device, or `auto` (CUDA if there is one).
        adapter: a draft adapter's directory (PEFT layout), or `none`. The default is the adapter
            that comes with the checkpoint: NLD's own, or ours for the built-in model.
        offline: do not use the network.
        progress: report downloads on stderr if it is a terminal.
        check: called before weights are read; what it raises ends the loading.

    Raises:
        InputError: there is no such source, device or dtype, or the checkpoint cannot be read.
        FetchError: a download failed.
    """
    device = _device(device)
    if not isinstance(source, ResolvedSource):
        source = resolve(str(source), offline=offline, progress=progress)
    model = _load(source, dtype, device, _adapter_path(adapter, source), check)
    _return_freed_memory()
    return model


def _load(
    source: ResolvedSource, dtype: str, device: str, adapter: Path | None, check: HeaderCheck
) -> LoadedModel:
    checkpoint = open_checkpoint(source)
    if adapter is None:
        check(checkpoint.config, None, checkpoint.name)
        return checkpoint.build(dtype=dtype, device=device)
    weights = read_adapter(adapter)
    check(_with_adapter(checkpoint.config, weights), weights.scope, checkpoint.name)
    model = checkpoint.build(dtype=dtype, device=device, adapter=weights)
    scorer = read_commit_rule(adapter, model.transformer.embedding.matrix)
    return replace(model, commit_scorer=scorer)


def _with_adapter(config: ModelConfig, adapter: AdapterWeights) -> ModelConfig:
    """The config of a checkpoint with an adapter: passes are read as the adapter was trained.

    Raises:
        InputError: base and adapter both denoise, but with another mask token, or only one of
            them with token shift.
    """
    shift = adapter.token_shift
    if adapter.scope == "draft" and config.trained_to_denoise and shift != config.token_shift:
        found = f"trained {'with' if shift else 'without'} token shift, unlike the model"
        raise InputError("adapter", found, "one trained like the model, or of scope denoise")
    mask = config.mask_token_id if adapter.mask_token_id is None else adapter.mask_token_id
    if adapter.scope == "draft" and config.trained_to_denoise and mask != config.mask_token_id:
        allowed = f"one trained with the model's own, {config.mask_token_id}"
        raise InputError("adapter", f"trained with the mask token {mask}", allowed)
    return replace(
        config,
        block_length=adapter.block_length or config.block_length,
        token_shift=shift,
        draft_form=adapter.draft_form,
        mask_token_id=mask,
    )


def _return_freed_memory() -> None:
    """Give the memory that loading freed back to the system.

    Most of it comes from parsing the tokenizer, and is as much as the tokenizer itself. glibc would
    keep it for the process. With another C library this does nothing.
    """
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise InputError("device", repr(device), "a torch device such as cpu or cuda:0") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError("device", repr(device), "this PyTorch sees no CUDA device; use cpu")
    return device


def _with_generation_config(config: ModelConfig, directory: Path) -> ModelConfig:
    """Add the stop tokens of `generation_config.json`; chat models often list theirs there."""
    path = directory / "generation_config.json"
    if not path.is_file():
        return config
    try:
        eos = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    except (ValueError, AttributeError) as error:
        raise CheckpointError(str(path), f"not readable ({error})", "a JSON object") from None
    more = eos if isinstance(eos, list) else [] if eos is None else [eos]
    return replace(config, eos_token_ids=tuple(dict.fromkeys((*config.eos_token_ids, *more))))


def _chat_template(
    directory: Path, config: ModelConfig, tokenizer: Tokenizer
) -> ChatTemplate | None:
    source = find_chat_template(directory)
    if source is None:
        return None
    bos, eos = config.bos_token_id, next(iter(config.eos_token_ids), None)
    return ChatTemplate(
        source,
        bos_token="" if bos is None else tokenizer.token_text(bos),
        eos_token="" if eos is None else tokenizer.token_text(eos),
    )


def _adapter_path(adapter: str | Path | None, source: ResolvedSource) -> Path | None:
    if adapter == "none":
        return None
    if adapter is not None:
        path = Path(adapter).expanduser()
        if not path.is_dir():
            allowed = "must be none or a directory in PEFT's layout"
            raise InputError("adapter", str(path), allowed)
        return path
    shipped = source.path / NLD_DRAFT_ADAPTER
    return shipped if shipped.is_dir() else source.adapter
