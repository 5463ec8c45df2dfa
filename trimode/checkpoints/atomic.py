"""Directories that appear whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trimode.errors import CheckpointError


@contextmanager
def atomic_directory(target: Path, *, replaceable: str) -> Iterator[Path]:
    """A temporary sibling to fill; it becomes `target` when the block ends without an error.

    Args:
        target: must not exist, be empty, or hold a file named `replaceable`.
        replaceable: the file that marks a directory of the same kind, which may be replaced.

    Raises:
        CheckpointError: `target` holds something else.
    """
    occupied = target.exists() and (not target.is_dir() or any(target.iterdir()))
    if occupied and not (target / replaceable).is_file():
        allowed = f"must be new, empty or hold {replaceable}"
        raise CheckpointError(str(target), "exists and holds something else", allowed)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.partial-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for path in temporary.iterdir():
            _sync(path)
        old = target.with_name(f".{target.name}.old-{os.getpid()}")
        if target.exists():
            target.rename(old)
        temporary.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sync(path: Path) -> None:
    """Have the disk hold a file before its name becomes visible."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
