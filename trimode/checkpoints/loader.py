"""Loads a model that is ready to run."""

import ctypes
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from trimode.checkpoints.adapters import NLD_DRAFT_ADAPTER, read_adapter
from trimode.checkpoints.commit_rule import read_commit_rule
from trimode.checkpoints.draft_head import read_draft_head
from trimode.checkpoints.draft_priors import DraftPriors, read_draft_priors
from trimode.checkpoints.gguf_file import open_gguf
from trimode.checkpoints.hf_config import read_config
from trimode.checkpoints.markov_head import read_markov_head
from trimode.checkpoints.safetensors_dir import open_weights
from trimode.checkpoints.sources import DEFAULT_MODEL, ResolvedSource, resolve
from trimode.checkpoints.special_tokens import (
    end_token_ids,
    generation_config_ends,
    template_tokens,
)
from trimode.checkpoints.vision import VisionCheckpoint, open_vision
from trimode.config import ModelConfig
from trimode.decoding import CommitScorer, DraftHead, MarkovHead
from trimode.errors import CheckpointError, InputError
from trimode.model import (
    AdapterScope,
    AdapterWeights,
    ReadTensor,
    Runner,
    Transformer,
    build_runner,
    merged,
)
from trimode.text import ChatTemplate, Tokenizer, chat_template, find_chat_templates
from trimode.vision import NO_VISION, Vision

ADDED_LORA = "lora"
"""Folder of the LoRA among a built-in model's additions."""
HeaderCheck = Callable[[ModelConfig, AdapterScope | None, str], None]
"""(config as the adapter changes it, the adapter's scope, name of the checkpoint)."""


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
    draft_head: DraftHead | None = None
    """The adapter's draft head, if it has one."""
    markov_head: MarkovHead | None = None
    """The adapter's Markov head, if it has one."""
    draft_priors: DraftPriors = field(default_factory=DraftPriors)
    """How often drafts are right, as far as the adapter says."""
    vision: Vision | str = NO_VISION
    """What it reads pictures with, or the reason why it cannot."""

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

    @property
    def vision_or_none(self) -> Vision | None:
        """What it reads pictures with, if it does."""
        return None if isinstance(self.vision, str) else self.vision

    def require_vision(self, field: str) -> Vision:
        """What it reads pictures with.

        Raises:
            InputError: it reads none; the error names the field that a picture was given in.
        """
        if isinstance(self.vision, str):
            found = "a picture"
            raise InputError(field, found, f"{self.name} reads none: {self.vision}")
        return self.vision


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
    vision: VisionCheckpoint | str = NO_VISION
    """Its vision part, or the reason why it reads no pictures."""
    in_blocks: bool = False
    """Whether most weights are stored in blocks of a few bits."""

    def build(
        self,
        *,
        dtype: str = "auto",
        device: str = "auto",
        adapter: AdapterWeights | None = None,
        plain: bool = False,
    ) -> LoadedModel:
        """Read the weights; see `load` and `build_runner`."""
        config = self.config if adapter is None else with_adapter(self.config, adapter)
        runner = build_runner(
            config,
            self.read,
            dtype=dtype,
            device=_device(device),
            adapter=adapter,
            plain=plain,
            in_blocks=self.in_blocks,
        )
        vision = self.vision
        if not isinstance(vision, str):
            vision = vision.build(dtype=_vision_dtype(runner), device=runner.device)
        return LoadedModel(
            name=self.name,
            config=config,
            runner=runner,
            tokenizer=self.tokenizer,
            chat_template=self.chat_template,
            adapter_scope=None if adapter is None else adapter.row_scope,
            path=self.path,
            vision=vision,
        )

    def merged(self, adapter: AdapterWeights) -> "Checkpoint":
        """The same with an adapter added to the weights.

        Raises:
            CheckpointError: the adapter does not fit the model.
        """
        return replace(self, read=merged(self.config, self.read, adapter), in_blocks=False)


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
    vision: VisionCheckpoint | str = NO_VISION
    if path.is_file():
        model = open_gguf(path)
        config, read, in_blocks = model.config, model.read, model.in_blocks
        tokenizer, template = model.tokenizer, model.chat_template
    else:
        config = read_config(path / "config.json")
        read, in_blocks = open_weights(path, config), False
        tokenizer = Tokenizer.from_directory(path)
        ends = end_token_ids(tokenizer, config, generation_config_ends(path))
        config = replace(config, eos_token_ids=ends)
        template = _template_in(path, tokenizer, config)
        vision = open_vision(path, config, tokenizer)
    if source.mask_token is not None:
        mask = tokenizer.token_id(source.mask_token)
        if mask is None:
            allowed = "a token of its vocabulary"
            raise CheckpointError(f"{path}: mask token", repr(source.mask_token), allowed)
        config = replace(config, mask_token_id=mask)
    checkpoint = Checkpoint(source.name, path, config, tokenizer, template, read, vision, in_blocks)
    return checkpoint if source.additions is None else _with_additions(checkpoint, source.additions)


def _with_additions(checkpoint: Checkpoint, directory: Path) -> Checkpoint:
    """A checkpoint with a LoRA, a vision part and the chat template of a directory."""
    config, tokenizer = checkpoint.config, checkpoint.tokenizer
    return replace(
        checkpoint.merged(read_adapter(directory / ADDED_LORA)),
        vision=open_vision(directory, config, tokenizer),
        chat_template=_template_in(directory, tokenizer, config),
    )


def _template_in(directory: Path, tokenizer: Tokenizer, config: ModelConfig) -> ChatTemplate | None:
    """The chat template of a directory."""
    return chat_template(find_chat_templates(directory), **template_tokens(tokenizer, config))


def load(
    source: str | Path | ResolvedSource = DEFAULT_MODEL,
    *,
    dtype: str = "auto",
    device: str = "auto",
    adapter: str | Path | Sequence[str | Path] | None = None,
    offline: bool = False,
    progress: bool = True,
    check: HeaderCheck = lambda *_: None,
) -> LoadedModel:
    """Load a model.

    Args:
        source: see `trimode.checkpoints.resolve`, whose result may be given too.
        dtype: `int8`, `int4`, `fp32`, `bf16`, or `auto`: see `choose_format`.
        device: a torch device, or `auto` (CUDA if there is one).
        adapter: directories of adapters in PEFT's layout, or `none`. At most one may be a drafting
            adapter, as our training makes them. Ordinary LoRAs are added to the weights, in the
            given order; beside them, the drafting adapter that comes with the checkpoint stays (our
            built-in model's, or NLD's own). It is also the default.
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
    model = _load(source, dtype, device, chosen_adapters(adapter, source), check)
    _return_freed_memory()
    return model


@dataclass(frozen=True, slots=True)
class Adapters:
    """The adapters to load with a model."""

    drafting: AdapterWeights | None
    path: Path | None
    """Of the drafting one."""
    merged: tuple[AdapterWeights, ...]


def _load(
    source: ResolvedSource, dtype: str, device: str, adapters: Adapters, check: HeaderCheck
) -> LoadedModel:
    checkpoint = open_checkpoint(source)
    for lora in adapters.merged:
        checkpoint = checkpoint.merged(lora)
    if adapters.drafting is None or adapters.path is None:
        check(checkpoint.config, None, checkpoint.name)
        return checkpoint.build(dtype=dtype, device=device)
    config = with_adapter(checkpoint.config, adapters.drafting)
    check(config, adapters.drafting.row_scope, checkpoint.name)
    model = checkpoint.build(dtype=dtype, device=device, adapter=adapters.drafting)
    scorer = read_commit_rule(adapters.path, model.transformer.embedding.matrix)
    head = read_draft_head(adapters.path, model.runner)
    return replace(
        model,
        commit_scorer=scorer,
        draft_head=head,
        markov_head=read_markov_head(adapters.path, model.transformer),
        draft_priors=read_draft_priors(adapters.path),
    )


def with_adapter(config: ModelConfig, adapter: AdapterWeights) -> ModelConfig:
    """The config of a checkpoint with an adapter: passes are read as the adapter was trained.

    Raises:
        InputError: base and adapter both denoise, but with another mask token, or only one of
            them with token shift.
    """
    shift = adapter.token_shift
    if adapter.scope == "draft" and config.trained_to_denoise and shift != config.token_shift:
        found = f"trained {'with' if shift else 'without'} token shift, unlike the model"
        raise InputError("adapter", found, "one trained like the model, or of scope denoise")
    length = adapter.block_length or config.block_length
    if length > config.max_position_embeddings:
        allowed = f"at most the model's context, {config.max_position_embeddings}"
        raise InputError("adapter", f"trained with blocks of {length}", allowed)
    mask = config.mask_token_id if adapter.mask_token_id is None else adapter.mask_token_id
    if adapter.scope == "draft" and config.trained_to_denoise and mask != config.mask_token_id:
        allowed = f"one trained with the model's own, {config.mask_token_id}"
        raise InputError("adapter", f"trained with the mask token {mask}", allowed)
    return replace(
        config,
        block_length=length,
        token_shift=shift,
        draft_form=adapter.draft_form,
        mask_token_id=mask,
    )


def _vision_dtype(runner: Runner) -> torch.dtype:
    """Of tower and projector: on a CPU fp32, so that pictures are the same in every format."""
    return torch.float32 if runner.device == "cpu" else runner.transformer.dtype


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


def chosen_adapters(
    given: str | Path | Sequence[str | Path] | None, source: ResolvedSource
) -> Adapters:
    """Read the adapters that were asked for, or the one that comes with the checkpoint.

    Raises:
        InputError: there is no such directory, or two of them are drafting adapters.
    """
    if given is None:
        given = ()
    paths = [given] if isinstance(given, str | Path) else list(given)
    drafting, merged = [], []
    for path in (_adapter_directory(path) for path in paths if str(path) != "none"):
        adapter = read_adapter(path)
        if adapter.scope == "merged":
            merged.append(adapter)
        else:
            drafting.append((path, adapter))
    if len(drafting) > 1:
        names = " and ".join(str(path) for path, _ in drafting)
        raise InputError("adapter", names, "at most one may be a drafting adapter")
    if not drafting and "none" not in map(str, paths) and (own := _own_adapter(source)):
        drafting.append((own, read_adapter(own)))
    path, adapter = drafting[0] if drafting else (None, None)
    return Adapters(adapter, path, tuple(merged))


def _adapter_directory(given: str | Path) -> Path:
    path = Path(given).expanduser()
    if not path.is_dir():
        raise InputError("adapter", str(path), "must be none or a directory in PEFT's layout")
    return path


def _own_adapter(source: ResolvedSource) -> Path | None:
    """The drafting adapter that comes with a checkpoint."""
    shipped = source.path / NLD_DRAFT_ADAPTER
    return shipped if shipped.is_dir() else source.adapter
