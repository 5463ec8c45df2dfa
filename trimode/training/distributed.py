"""Several processes, started by `torchrun`: FSDP2 shards the weights, each process has its rows.

One process runs the same code without any of it.
"""

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from trimode.model import Block, Transformer


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among the others."""

    rank: int = 0
    count: int = 1
    mesh: DeviceMesh | None = None

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

    def wait(self) -> None:
        """Return once every process is here."""
        if self.mesh is not None:
            dist.barrier()


def start(device: str) -> Processes:
    """Join the processes that `torchrun` started; without it, be alone."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Processes()
    kind = "cuda" if device.startswith("cuda") else "cpu"
    if kind == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo")
    return Processes(dist.get_rank(), count, init_device_mesh(kind, (count,)))


def gathered(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered into one (every process must call this); others as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_like(tensor: Tensor, model: Tensor) -> Tensor:
    """Move a whole tensor to the device of `model`, and shard it if `model` is sharded."""
    tensor = tensor.to(model.device)
    if isinstance(model, DTensor) and tensor.shape == model.shape:
        return distribute_tensor(tensor, model.device_mesh, model.placements)
    return tensor
