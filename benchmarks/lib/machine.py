"""The header every benchmark prints: machine, versions, command."""

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

import trimode

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
KINDS = ("avx2", "avx512_vnni", "amx")
"""Kinds of machines, by their instructions for products of bytes; each has a folder of results."""


def machine_kind() -> str:
    """The kind of this machine."""
    flags = _cpuinfo("flags").split()
    if "amx_int8" in flags:
        return "amx"
    return "avx512_vnni" if "avx512_vnni" in flags else "avx2"


def results() -> Path:
    """Where results of this kind of machine are written."""
    folder = RESULTS / machine_kind()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def header() -> dict[str, Any]:
    """Facts a reader needs to judge a figure."""
    return {
        "command": " ".join(["python", _program(), *sys.argv[1:]]),
        "machine": machine_kind(),
        "cpu": _cpuinfo("model name") or platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "bf16_instructions": bool(
            torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        ),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "trimode": trimode.__version__,
    }


def _program() -> str:
    """This program's file as it is named in the repository's root, however it was started."""
    path = Path(sys.argv[0]).resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else sys.argv[0]


def _cpuinfo(field: str) -> str:
    """A field of the first CPU; empty if the system does not say."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    found = (line.split(":", 1)[1].strip() for line in lines if line.startswith(field))
    return next(found, "")


def megabytes(field: str, process: int | str = "self") -> float:
    """Memory of a process: VmRSS now, VmHWM the most it has held. Linux only."""
    status = Path(f"/proc/{process}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def weight_bytes(model: torch.nn.Module) -> int:
    """Bytes of all tensors of a model, not those in packs of PyTorch's own."""
    plain = [t for m in model.modules() for t in vars(m).values() if isinstance(t, torch.Tensor)]
    return sum(t.nbytes for t in (*plain, *model.parameters(), *model.buffers()))


def save(name: str, result: dict[str, Any]) -> Path:
    """Write a result as JSON into the folder of this kind of machine."""
    path = results() / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path
