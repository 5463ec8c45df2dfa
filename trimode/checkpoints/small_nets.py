"""Files of the small networks that go with an adapter: matrices in bytes, sizes in the header."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from trimode.checkpoints.atomic import write_tensors
from trimode.errors import CheckpointError, InputError

_SCALE = ".scale"


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Whatever goes wrong while a network is made of a file becomes one error.

    Raises:
        CheckpointError: the file is damaged or belongs to another model.
    """
    try:
        yield
    except (
        *(SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError, InputError),
    ) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        allowed = f"a {what} that was trained for this model"
        raise CheckpointError(str(path), f"not readable ({reason})", allowed) from None


def read_net(path: Path, key: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `write_net` wrote: the sizes, and all tensors, matrices in floats."""
    with safe_open(path, framework="pt") as file:
        sizes = json.loads((file.metadata() or {})[key])
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return sizes, _floats(stored)


def write_net(path: Path, key: str, sizes: Any, net: nn.Module, **others: Tensor) -> Path:
    """Write a network whole or not at all; its matrices become int8.

    Args:
        path: of the file.
        key: under which its header has the sizes.
        sizes: a dataclass.
        net: the network.
        others: tensors beside it, as they are.
    """
    tensors = {name: tensor.cpu() for name, tensor in others.items()}
    for name, tensor in net.state_dict().items():
        tensors |= _stored(name, tensor.float().cpu())
    write_tensors(path, tensors, {key: json.dumps(asdict(sizes))})
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
            found[name] = tensor if scale is None else tensor.float() * scale.float()[:, None]
    return found
