"""`trimode env`: what a bug report needs, in one paste."""

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import typer

from trimode.cli.options import Json

_PACKAGES = ("trimode", "torch", "numpy", "safetensors", "gguf", "tokenizers", "huggingface-hub")
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_tile", "amx_int8")


def env(json_output: Json = False) -> None:
    """Versions, machine, and the kernels used here."""
    found = facts()
    if json_output:
        typer.echo(json.dumps(found))
        return
    for name, value in found.items():
        typer.echo(f"{name}: {', '.join(value) if isinstance(value, list) else value}")


def facts() -> dict[str, Any]:
    """Versions and machine, by name."""
    import torch

    from trimode.checkpoints import cache_directory
    from trimode.model import describe
    from trimode.model.native.cores import threads

    def installed(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    pairs = dict(line.split(":", 1) for line in lines if ":" in line)
    fields = {name.strip(): value.strip() for name, value in pairs.items()}
    flags = fields.get("flags", "").split()
    cuda = torch.cuda.is_available()
    return {
        **{package: installed(package) for package in _PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": fields.get("model name", platform.processor()),
        "cores": os.cpu_count(),
        "threads": threads(),
        "cpu_flags": [flag for flag in _FLAGS if flag in flags],
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "cuda": torch.cuda.get_device_name() if cuda else "no",
        "fp32": describe("fp32", "cuda" if cuda else "cpu"),
        "bf16": describe("bf16", "cuda" if cuda else "cpu"),
        "int8": describe("int8", "cpu"),
        "int4": describe("int4", "cpu"),
        "cache": str(cache_directory()),
    }
