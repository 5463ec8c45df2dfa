"""A draft head, kept in an adapter's directory as `draft_head.safetensors`."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trimode.checkpoints.atomic import write_tensors
from trimode.errors import CheckpointError, InputError
from trimode.model import Runner
from trimode.model.draft_head import DraftHeadConfig, DraftHeadNet, PackedDraftHead

FILE = "draft_head.safetensors"
_CONFIG = "trimode_draft_head"
_TOKENS, _SCALE = "tokens", ".scale"


def read_draft_head(directory: Path, runner: Runner) -> PackedDraftHead | None:
    """The draft head of an adapter directory, or None if it has none.

    Raises:
        CheckpointError: the file is damaged or belongs to another model.
    """
    path = directory / FILE
    if not path.is_file():
        return None
    model = runner.transformer.config
    try:
        with safe_open(path, framework="pt") as file:
            config = DraftHeadConfig(**json.loads((file.metadata() or {})[_CONFIG]))
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        tokens = stored.pop(_TOKENS).long()
        if config.dim != model.hidden_size or int(tokens.max()) >= model.vocab_size:
            raise ValueError(f"of a model with hidden states of {config.dim} numbers")
        net = DraftHeadNet(config)
        net.load_state_dict(_floats(stored))
    except (
        *(SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError, InputError),
    ) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            str(path), f"not readable ({reason})", "a draft head that was trained for this model"
        ) from None
    return PackedDraftHead(net, tokens.to(runner.device), runner)


def save_draft_head(directory: Path, net: DraftHeadNet, tokens: Tensor) -> Path:
    """Write a draft head into an adapter directory, whole or not at all. Matrices become int8."""
    path = directory / FILE
    tensors = {_TOKENS: tokens.int().cpu()}
    for name, tensor in net.state_dict().items():
        tensors |= _stored(name, tensor.float().cpu())
    write_tensors(path, tensors, {_CONFIG: json.dumps(asdict(net.config))})
    return path


def _stored(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """A matrix as int8 with a scale for each row, a vector as it is."""
    if tensor.dim() < 2:
        return {name: tensor.contiguous()}
    scale = tensor.abs().amax(-1).clamp(min=1e-12) / 127
    return {name: (tensor / scale[:, None]).round().to(torch.int8), name + _SCALE: scale.half()}


def _floats(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for name, tensor in stored.items():
        if not name.endswith(_SCALE):
            scale = stored.get(name + _SCALE)
            found[name] = tensor.float() * (1 if scale is None else scale.float()[:, None])
    return found
