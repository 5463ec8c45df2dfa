"""Several processes, started by `torchrun`: FSDP2 shards the weights, each process has its rows.

With `replicate` there are several copies of the sharded weights (HSDP), such as one a node: layers
are gathered within a copy, and only gradients cross. One process runs the same code without any of
it.
"""

import os
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from trimode.errors import InputError
from trimode.model import Block, Transformer

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among the others."""

    rank: int = 0
    count: int = 1
    mesh: DeviceMesh | None = None
    """Of all processes, or `[replicate, shard]`."""

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.rank == 0

    def shard(self, transformer: Transformer) -> None:
        """Shard the weights over the processes; attention and MLP are gathered when they run."""
        if self.mesh is None:
            return
        for layer in transformer.layers:
            assert isinstance(layer, Block)
            fully_shard(layer.attention, mesh=self.mesh)
            fully_shard(layer.mlp, mesh=self.mesh)
        fully_shard(transformer, mesh=self.mesh)

    def sum(self, *values: float) -> list[float]:
        """Sums over the processes."""
        if self.mesh is None:
            return list(values)
        together = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(together)
        return together.tolist()

    def agree(self, value: T) -> T:
        """What the first process gives, in all of them."""
        if self.mesh is None:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def wait(self) -> None:
        """Return once every process is here."""
        if self.mesh is not None:
            dist.barrier()

    def leave(self) -> None:
        """Part from the others once all are here: one that hosts what they meet by must go last."""
        if self.mesh is not None:
            dist.barrier()
            dist.destroy_process_group()


def process_count() -> int:
    """How many processes `torchrun` started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def start(device: str, replicate: int = 1) -> Processes:
    """Join the processes that `torchrun` started; without it, be alone.

    Args:
        device: of the weights.
        replicate: copies of the weights, each sharded over `count / replicate` processes.

    Raises:
        InputError: the processes cannot be shared out to so many copies.
    """
    count = process_count()
    if count % replicate:
        allowed = f"a divisor of the {count} processes"
        raise InputError("replicate", str(replicate), allowed)
    if count == 1:
        return Processes()
    kind = "cuda" if device.startswith("cuda") else "cpu"
    if kind == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo")
    if replicate == 1:
        mesh = init_device_mesh(kind, (count,))
    else:
        shape = (replicate, count // replicate)
        mesh = init_device_mesh(kind, shape, mesh_dim_names=("replicate", "shard"))
    return Processes(dist.get_rank(), count, mesh)


def gathered(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered into one (every process must call this); others as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_like(tensor: Tensor, model: Tensor) -> Tensor:
    """Move a whole tensor to the device of `model`, and shard it if `model` is sharded."""
    tensor = tensor.to(model.device)
    if isinstance(model, DTensor) and tensor.shape == model.shape:
        return distribute_tensor(tensor, model.device_mesh, model.placements)
    return tensor
