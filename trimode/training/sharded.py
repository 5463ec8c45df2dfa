"""Checkpoints that several processes write and read, each its own share of every tensor.

They are PyTorch's distributed checkpoints (torch.distributed.checkpoint): no process holds a whole
tensor, and any number of processes can read them. Their form may change with PyTorch's version, so
the result of a run is never one of them.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

Groups = Mapping[str, Mapping[str, Tensor]]
"""Tensors by group and name."""


def write(directory: Path, groups: Groups) -> None:
    """Write the parts that this process has; all processes call this.

    Raises:
        OSError: a process could not write, such as on a full disk.
    """
    flat = {
        f"{group}/{name}": value
        for group, values in groups.items()
        for name, value in values.items()
    }
    try:
        save(flat, storage_writer=FileSystemWriter(directory), no_dist=not dist.is_initialized())
    except CheckpointException as error:
        raise OSError(f"{directory}: could not be written ({_reason(error)})") from None


def read(
    directory: Path, group: str, like: Callable[[str, torch.Size], Tensor]
) -> dict[str, Tensor]:
    """Read the parts of a group that this process needs; all processes call this.

    Args:
        directory: of the checkpoint.
        group: the group.
        like: makes the tensor that is filled, by name and whole shape; it may be sharded.

    Raises:
        OSError: a part is missing or damaged.
        Exception: whatever else the library raises then.
    """
    reader = FileSystemReader(directory)
    known = reader.read_metadata().state_dict_metadata
    found = {
        name: like(name.removeprefix(f"{group}/"), kept.size)
        for name, kept in known.items()
        if name.startswith(f"{group}/") and isinstance(kept, TensorStorageMetadata)
    }
    try:
        load(found, storage_reader=reader, no_dist=not dist.is_initialized())
    except CheckpointException as error:  # no Exception, but a BaseException
        raise OSError(_reason(error)) from None
    return {name.removeprefix(f"{group}/"): value for name, value in found.items()}


def _reason(error: CheckpointException) -> str:
    """What each process said, once."""
    return "; ".join(sorted({str(one[0]) for one in error.failures.values()}))
