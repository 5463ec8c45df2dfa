"""One language-model checkpoint, three ways to decode it.

Use it as `from trimode import load, generate`. Heavy modules are imported at their first use.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

from trimode.version import __version__

if TYPE_CHECKING:
    from trimode.checkpoints import LoadedModel, load
    from trimode.config import GenerationOptions, ModelConfig
    from trimode.engine import Engine, GenerationResult, generate, generate_batch, stream
    from trimode.errors import InputError, TrimodeError

# PyTorch's OpenMP threads spin almost without bound after an operation that used them, and keep the
# cores from the threads of a pass. Read when PyTorch is loaded: a program that loads it first sets
# the variable itself.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

_HOMES = {
    "LoadedModel": "trimode.checkpoints",
    "load": "trimode.checkpoints",
    "GenerationOptions": "trimode.config",
    "ModelConfig": "trimode.config",
    "Engine": "trimode.engine",
    "GenerationResult": "trimode.engine",
    "generate": "trimode.engine",
    "generate_batch": "trimode.engine",
    "stream": "trimode.engine",
    "InputError": "trimode.errors",
    "TrimodeError": "trimode.errors",
}

__all__ = [
    "Engine",
    "GenerationOptions",
    "GenerationResult",
    "InputError",
    "LoadedModel",
    "ModelConfig",
    "TrimodeError",
    "__version__",
    "generate",
    "generate_batch",
    "load",
    "stream",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'trimode' has no attribute {name!r}")
