"""Builds the optional C++ pass when the package is installed."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path("trimode/model/native")
LIBRARY = FOLDER / "pass.so"
OPTIMISED = (
    "-O3",
    "-std=c++17",
    "-mavx2",
    "-mfma",
    "-mf16c",
    "-mtune=native",
    "-ffp-contract=off",
    "-pthread",
    "-fPIC",
    "-fvisibility=hidden",
)
"""No contraction: a float expression must be rounded the same way everywhere in the code."""


class BuildError(Exception):
    """Why the library was not built."""


class NativePass(BuildHookInterface):
    """Compiles the library next to its source, for editable installs and for wheels."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Compile, or say why not and continue: the PyTorch operators do the same work."""
        root = Path(self.root)
        try:
            compile_library(sorted((root / FOLDER).glob("*.cpp")), root / LIBRARY)
        except BuildError as error:
            print(f"trimode: C++ pass not built ({error})", file=sys.stderr)  # noqa: T201
            return
        build_data["force_include"][str(root / LIBRARY)] = str(LIBRARY)
        build_data["pure_python"] = False
        build_data["infer_tag"] = True


def compile_library(sources: Sequence[Path], target: Path, *more: str) -> None:
    """Compile files side by side, and link them; the library is there whole or not at all.

    Args:
        sources: C++ files.
        target: the library to write.
        more: further options.

    Raises:
        BuildError: there are no kernels for this machine, no compiler, or it failed.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        raise BuildError(f"no kernels for {platform.machine()}")
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise BuildError("no C++ compiler")
    with TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = [Path(folder, f"{source.stem}.o") for source in sources]

        def compile_one(source: Path, into: Path) -> None:
            _run(compiler, *OPTIMISED, *more, "-c", str(source), "-o", str(into))

        list(pool.map(compile_one, sources, objects))
        partial = target.with_suffix(f".{os.getpid()}.tmp")
        try:
            _run(compiler, "-pthread", "-shared", *map(str, objects), "-o", str(partial))
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise BuildError(next((line for line in lines if "error" in line), "it failed"))
