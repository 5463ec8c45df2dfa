"""Builds the optional C++ pass when the package is installed."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("trimode/model/native/pass.cpp")
OPTIMISED = (
    "-O3",
    "-std=c++17",
    "-mavx2",
    "-mfma",
    "-mf16c",
    "-mtune=native",
    "-ffp-contract=off",
)
"""No contraction: a float expression must be rounded the same way everywhere in the code."""


class NativePass(BuildHookInterface):
    """Compiles the library next to its source, for editable installs and for wheels."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Compile, or say why not and continue: the PyTorch operators do the same work."""
        source = Path(self.root) / SOURCE
        target = source.with_suffix(".so")
        reason = self._compile(source, target)
        if reason:
            print(f"trimode: C++ pass not built ({reason})", file=sys.stderr)  # noqa: T201
            return
        build_data["force_include"][str(target)] = str(SOURCE.with_suffix(".so"))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def _compile(self, source: Path, target: Path) -> str | None:
        if platform.machine().lower() not in ("x86_64", "amd64"):
            return f"no kernels for {platform.machine()}"
        compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
        if compiler is None:
            return "no C++ compiler"
        partial = target.with_suffix(f".{os.getpid()}.tmp")
        command = [
            compiler,
            *OPTIMISED,
            "-pthread",
            "-shared",
            "-fPIC",
            str(source),
            "-o",
            str(partial),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            partial.unlink(missing_ok=True)
            return done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "it failed"
        partial.replace(target)
        return None
