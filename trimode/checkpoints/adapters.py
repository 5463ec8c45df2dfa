"""Adapters in PEFT's file layout: ours, which are on in some rows, and ordinary ones."""

import json
import math
from pathlib import Path
from typing import Any, cast, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from trimode.checkpoints.atomic import atomic_directory
from trimode.checkpoints.names import from_published, to_published
from trimode.config import DRAFT_FORMS, ModelConfig
from trimode.errors import CheckpointError
from trimode.files import read_json_object
from trimode.model import AdapterWeights, StoredScope

NLD_DRAFT_ADAPTER = "linear_spec_lora"
"""Folder of an NLD checkpoint that holds its draft adapter."""

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_MASK_EMBEDDING = "trimode.mask_embedding"
"""Kept outside PEFT's prefix: PEFT has no notion of an embedding that is on in some rows only."""
_SCOPE = "trimode_scope"
"""Key in the weights file's metadata, since PEFT warns of unknown keys in the config.

It also marks a directory as ours.
"""
_BLOCK_LENGTH = "trimode_block_length"
_TOKEN_SHIFT = "trimode_token_shift"
_DRAFT_FORM = "trimode_draft_form"
_MASK_TOKEN = "trimode_mask_token_id"

_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA", None),
    "use_dora": (False, None),
    "bias": ("none", None),
    "modules_to_save": ([], None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "fan_in_fan_out": (False, None),
    "lora_bias": (False, None),
    "alora_invocation_tokens": (None, []),
    "trainable_token_indices": (None, [], {}),
    "layer_replication": (None, []),
    "init_lora_weights": (True, False, "gaussian", None),
}
"""PEFT options that change the arithmetic, with the values that do not."""


def read_adapter(directory: Path) -> AdapterWeights:
    """Read `adapter_config.json` and `adapter_model.safetensors`.

    The weights file's metadata says when the adapter is on: adapters of ours have it. Without it,
    the adapter is an ordinary LoRA, which is on in all rows; but NVIDIA's `linear_spec_lora`, known
    by the name of its directory, is on in drafts.

    Raises:
        CheckpointError: a file is missing or damaged, or an option is not supported.
    """
    fields = read_json_object(directory / _CONFIG)
    for name, neutral in _UNSUPPORTED.items():
        if fields.get(name) not in neutral:
            allowed = f"supported: {neutral[0]!r}"
            raise CheckpointError(f"{directory / _CONFIG}: {name}", repr(fields[name]), allowed)
    rank, scale = _rank_and_scale(fields, directory / _CONFIG)
    path = directory / _WEIGHTS
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: _widened(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(str(path), f"not readable ({error})", "fetch it again") from None
    unmarked = "draft" if directory.resolve().name == NLD_DRAFT_ADAPTER else "merged"
    scope, length = metadata.get(_SCOPE, unmarked), metadata.get(_BLOCK_LENGTH)
    if scope not in get_args(StoredScope):
        allowed = f"allowed: {', '.join(get_args(StoredScope))}"
        raise CheckpointError(f"{path}: {_SCOPE}", repr(scope), allowed)
    if length is not None and not (length.isdecimal() and len(length) < 10 and int(length)):
        allowed = "must be a whole number of at least 1"
        raise CheckpointError(f"{path}: {_BLOCK_LENGTH}", repr(length[:20]), allowed)
    shift = metadata.get(_TOKEN_SHIFT, "false")
    if shift not in ("true", "false"):
        raise CheckpointError(f"{path}: {_TOKEN_SHIFT}", repr(shift), "allowed: true, false")
    # Adapters that were saved before the field existed have the form of their scope's recipe.
    form = metadata.get(_DRAFT_FORM, "led" if scope == "denoise" else "seeded")
    if form not in DRAFT_FORMS:
        allowed = f"allowed: {', '.join(DRAFT_FORMS)}"
        raise CheckpointError(f"{path}: {_DRAFT_FORM}", repr(form), allowed)
    mask_token = metadata.get(_MASK_TOKEN)
    if mask_token is not None and not mask_token.isdecimal():
        raise CheckpointError(f"{path}: {_MASK_TOKEN}", repr(mask_token), "must be a token id")
    mask_embedding = tensors.pop(_MASK_EMBEDDING, None)
    if mask_embedding is not None:
        _check_numbers(mask_embedding, f"{path}: {_MASK_EMBEDDING}")
    targets = _pairs(tensors, rank, path)
    for name, (_, up) in targets.items():
        if not (up.float() * scale).isfinite().all():
            raise CheckpointError(
                f"{path}: {name}", f"overflows at scale {scale:g}", "finite weights"
            )
    return AdapterWeights(
        scale,
        targets,
        cast(StoredScope, scope),
        mask_embedding,
        None if length is None else int(length),
        shift == "true",
        form,
        None if mask_token is None else int(mask_token),
    )


def _widened(tensor: Tensor) -> Tensor:
    """fp8 in bf16, which holds all of its values. PyTorch computes little in fp8."""
    return tensor.bfloat16() if tensor.dtype == torch.float8_e4m3fn else tensor


def _rank_and_scale(fields: dict[str, Any], path: Path) -> tuple[int, float]:
    rank, alpha = fields.get("r"), fields.get("lora_alpha")
    allowed = "r and lora_alpha must be numbers, r whole and at least 1"
    if type(rank) is not int or rank < 1:
        raise CheckpointError(f"{path}: r", repr(rank), allowed)
    if not isinstance(alpha, int | float) or isinstance(alpha, bool):
        raise CheckpointError(f"{path}: lora_alpha", repr(alpha), allowed)
    try:
        scale = float(alpha) / (rank**0.5 if fields.get("use_rslora") else rank)
    except OverflowError:
        scale = math.inf
    if not math.isfinite(scale):
        raise CheckpointError(f"{path}: lora_alpha", str(alpha)[:20], allowed)
    return rank, scale


def _check_numbers(tensor: Tensor, where: str) -> None:
    if not tensor.is_floating_point():
        found = str(tensor.dtype).removeprefix("torch.")
        raise CheckpointError(where, found, "must be of floats")
    if not tensor.isfinite().all():
        raise CheckpointError(where, "NaN or infinite", "must be finite numbers")


def _pairs(tensors: dict[str, Tensor], rank: int, path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Canonical linear name -> (A `[rank, in]`, B `[out, rank]`), from PEFT's tensor names."""
    downs, ups = {}, {}
    for published, tensor in tensors.items():
        _check_numbers(tensor, f"{path}: {published}")
        stem = published.removeprefix(_PREFIX)
        for suffix, side in ((".lora_A.weight", downs), (".lora_B.weight", ups)):
            if stem.endswith(suffix):
                name = from_published(stem.removesuffix(suffix))
                if name is None or name in side:
                    found = "not of the text model" if name is None else f"is {name} once more"
                    raise CheckpointError(f"{path}: {published}", found, "each linear once")
                side[name] = tensor
                break
        else:
            raise CheckpointError(
                f"{path}: {published}", "unknown tensor", "lora_A and lora_B only"
            )
    if downs.keys() != ups.keys():
        odd = sorted(downs.keys() ^ ups.keys())[0]
        raise CheckpointError(f"{path}: {odd}", "lora_A without lora_B or the reverse", "need both")
    for name, down in downs.items():
        if down.ndim != 2 or ups[name].ndim != 2 or len(down) != rank or ups[name].shape[1] != rank:
            found = f"A {list(down.shape)} and B {list(ups[name].shape)}"
            raise CheckpointError(
                f"{path}: {name}", found, f"r is {rank}: it belongs to another model"
            )
    return {name: (downs[name], ups[name]) for name in downs}


def save_adapter(
    directory: Path, adapter: AdapterWeights, config: ModelConfig, *, overwrite: bool = False
) -> None:
    """Write an adapter that PEFT and this program load; the directory appears whole or not at all.

    Raises:
        CheckpointError: the directory exists and is not an adapter of ours.
        OSError: the disk is full; nothing is left behind.
    """
    ranks = {len(a) for a, _ in adapter.targets.values()}
    if len(ranks) != 1:
        raise CheckpointError("adapter", f"ranks {sorted(ranks)}", "must have one rank")
    rank = ranks.pop()
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": adapter.scale * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": _target_modules(adapter, config),
    }
    tensors = {}
    for name, (down, up) in adapter.targets.items():
        stem = _PREFIX + to_published(name, config.family)
        tensors[f"{stem}.lora_A.weight"] = down.contiguous()
        tensors[f"{stem}.lora_B.weight"] = up.contiguous()
    if adapter.mask_embedding is not None:
        tensors[_MASK_EMBEDDING] = adapter.mask_embedding.contiguous()
    with atomic_directory(directory, replaceable=_is_ours, overwrite=overwrite) as temporary:
        (temporary / _CONFIG).write_text(json.dumps(fields, indent=2) + "\n")
        try:
            metadata = {"format": "pt", _SCOPE: adapter.scope, _DRAFT_FORM: adapter.draft_form}
            if adapter.block_length is not None:
                metadata[_BLOCK_LENGTH] = str(adapter.block_length)
            if adapter.token_shift:
                metadata[_TOKEN_SHIFT] = "true"
            if adapter.mask_token_id is not None:
                metadata[_MASK_TOKEN] = str(adapter.mask_token_id)
            save_file(tensors, temporary / _WEIGHTS, metadata=metadata)
        except SafetensorError as error:  # how the library reports a full disk
            raise OSError(f"{directory}: could not be written ({error})") from None


def _target_modules(adapter: AdapterWeights, config: ModelConfig) -> list[str]:
    """`o_proj` and the like if all layers have them, else every linear by its path."""
    kinds = {name.rpartition(".")[2] for name in adapter.targets}
    if len(adapter.targets) == len(kinds) * config.num_layers:
        return sorted(kinds)
    return sorted(adapter.targets)


def _is_ours(directory: Path) -> bool:
    try:
        with safe_open(directory / _WEIGHTS, framework="pt") as file:
            return _SCOPE in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False
