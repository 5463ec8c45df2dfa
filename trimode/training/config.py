"""The configuration of a run: frozen dataclasses, read from YAML and checked before any work."""

from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

from trimode.config import DraftForm, check_range
from trimode.errors import InputError
from trimode.training.adapter import AdapterConfig
from trimode.training.data import LearnFrom
from trimode.training.step import StepConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Training data and how it is cut into rows."""

    files: tuple[str, ...]
    """Rows (JSONL, JSON, CSV, TSV, Parquet) of messages, conversations, prompt and completion, or
    text; or plain `.txt`."""
    sequence_length: int = 512
    """Tokens of a packed row."""
    overlong: Literal["error", "truncate"] = "error"
    learn_from: LearnFrom = "answers"
    held_out: int | None = None
    """How many examples, the first ones, are kept out of training to measure losses on; half of
    them at most. None: 16 if there are at least 160."""

    @property
    def paths(self) -> list[Path]:
        """The files, `~` expanded."""
        return [Path(name).expanduser() for name in self.files]

    def __post_init__(self) -> None:
        if not self.files:
            raise InputError("data.files", "empty", "needs at least one file")
        check_range("data.sequence_length", self.sequence_length, 2, None)
        check_range("data.held_out", self.held_out, 0, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimiserConfig:
    """AdamW and its schedule. Times are in optimiser steps."""

    learning_rate: float = 1e-3
    schedule: Literal["constant", "cosine", "wsd"] = "wsd"
    """After the warm-up: constant; a cosine to the end; or constant with a decay at the end."""
    warmup_steps: int = 20
    decay_steps: int = 0
    """wsd: length of the linear decay at the end of the run."""
    final_ratio: float = 0.1
    """cosine and wsd: last learning rate as a share of the first."""
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    clip: float = 1.0
    """Largest gradient norm."""

    def __post_init__(self) -> None:
        check_range("learning_rate", self.learning_rate, 0, None, exclusive_low=True)
        for name in ("warmup_steps", "decay_steps", "weight_decay"):
            check_range(name, getattr(self, name), 0, None)
        check_range("clip", self.clip, 0, None, exclusive_low=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig:
    """What is measured while training."""

    every: int = 100
    """Steps between evaluations; 0 is never."""
    prompts: str | None = None
    """JSONL file with `prompt` in each row, to measure acceptance length and TPF. None of it may be
    trained on."""
    max_prompts: int = 16
    max_tokens: int = 64
    threshold: float = 0.9
    """Threshold of the diffusion decode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """One run of `trimode train`."""

    output: str
    """Run directory: config, metrics, checkpoints, and the result under `final`."""
    data: DataConfig
    model: str = "smollm2-135m-instruct"
    mask_token: str | int | None = None
    """Text or id of the token that stands for "not yet decided". None: the checkpoint's own, or an
    unused token if it has none."""
    train: Literal["adapter", "everything"] = "adapter"
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    """The new adapter, for train: adapter."""
    step: StepConfig = field(default_factory=StepConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    steps: int = 1000
    ar_only_steps: int = 0
    """How many of the first steps have the AR loss alone (NLD's first stage). They have no noisy
    pass."""
    batch_size: int = 8
    """Packed rows of an optimiser step, over all processes."""
    micro_batch_size: int | None = None
    """Packed rows of one pass. None: all rows of the process."""
    recompute: bool | None = None
    """Whether the noisy pass keeps only the inputs of its layers and computes them once more in the
    backward pass. That takes a fraction of the memory and a third more time; the numbers are the
    same. None: if keeping everything would take more than 4 GB."""
    replicate: int = 1
    """Copies of the weights among the processes (HSDP), each sharded over its share of them. With
    one a node, layers are gathered within nodes."""
    ema_decay: float | None = None
    """Decay of an exponential moving average of the trained parameters. The average is what is
    evaluated and exported. None: no average."""
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """bf16 is autocast over fp32 weights. auto is bf16 on CUDA and on a CPU that multiplies bf16,
    else fp32. A continued run keeps the precision that it began with."""
    export_dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """dtype of the result. Checkpoints are always fp32."""
    device: str = "auto"
    seed: int = 0
    save_every: int = 100
    keep_checkpoints: int = 2
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "save_every", "keep_checkpoints", "replicate"):
            check_range(name, getattr(self, name), 1, None)
        self._check_ar_only_steps()
        micro = self.micro_batch_size
        if micro is not None and (micro < 1 or self.batch_size % micro):
            raise InputError("micro_batch_size", str(micro), f"must divide {self.batch_size}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise InputError("ema_decay", str(self.ema_decay), "must be between 0 and 1")
        if self.train == "adapter" and self.step.objective.ar_loss_weight:
            objective = replace(self.step.objective, ar_loss_weight=0.0)  # it trains no adapter
            object.__setattr__(self, "step", replace(self.step, objective=objective))

    @property
    def draft_form(self) -> DraftForm:
        """How the result drafts: as `step.blocks.draft_form` says, else as it is trained.

        Denoising adapters draft in the led form, draft adapters in the seeded one (NLD). A whole
        model drafts in the led form if its blocks begin after any token and some of them with a
        mask, and in the seeded one otherwise.
        """
        blocks = self.step.blocks
        if blocks.draft_form is not None:
            return blocks.draft_form
        if self.train == "adapter":
            return "led" if self.adapter.scope == "denoise" else "seeded"
        begins_masked = self.step.noise.seeded_share < 1
        return "led" if blocks.placement == "random" and begins_masked else "seeded"

    def _check_ar_only_steps(self) -> None:
        name, found = "ar_only_steps", str(self.ar_only_steps)
        check_range(name, self.ar_only_steps, 0, self.steps)
        if self.ar_only_steps and self.train == "adapter":
            raise InputError(name, found, "needs train: everything; the AR loss trains no adapter")
        if self.ar_only_steps and not self.step.objective.ar_loss_weight:
            raise InputError(name, found, "needs an ar_loss_weight above 0")


def read_train_config(path: Path | None, overrides: dict[str, Any]) -> TrainConfig:
    """A run's configuration from a YAML file and dotted overrides (`optimiser.clip: 0.5`).

    Raises:
        InputError: names the field.
    """
    import yaml

    fields: Any = {}
    if path is not None:
        try:
            fields = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError("config", f"{path}: {error.strerror}", "a YAML file") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())
            raise InputError(str(path), f"not YAML ({reason})", "a YAML file") from None
        if not isinstance(fields, dict):
            raise InputError(str(path), type(fields).__name__, "must be a mapping")
    for name, value in overrides.items():
        *parents, last = name.split(".")
        inner = fields
        for parent in parents:
            inner = inner.setdefault(parent, {})
            if not isinstance(inner, dict):
                raise InputError(name, f"{parent} is not a group of fields", "see docs/training.md")
        inner[last] = value
    return parse_train_config(fields)


def parse_train_config(fields: dict[str, Any]) -> TrainConfig:
    """A run's configuration from nested mappings.

    Raises:
        InputError: names the field.
    """
    from pydantic import TypeAdapter, ValidationError

    _refuse_unknown(TrainConfig, fields, "")
    try:
        return TypeAdapter(TrainConfig).validate_python(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        reason = first.get("ctx", {}).get("error")
        if isinstance(reason, InputError):  # one of our own checks, which knows the field
            inside = reason.field.removeprefix(f"{where}.")
            name = f"{where}.{inside}" if where else inside
            raise InputError(name, reason.found, reason.allowed) from None
        raise InputError(where, repr(first["input"])[:80], first["msg"]) from None


def _refuse_unknown(kind: type, values: dict[str, Any], prefix: str) -> None:
    """Raise InputError for an unknown field name, which pydantic would ignore silently."""
    hints = get_type_hints(kind)
    for name, value in values.items():
        if name not in hints:
            raise InputError(f"{prefix}{name}", "no such field", f"one of {', '.join(hints)}")
        if is_dataclass(hints[name]) and isinstance(value, dict):
            _refuse_unknown(hints[name], value, f"{prefix}{name}.")
