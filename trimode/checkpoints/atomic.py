"""Directories that appear whole or not at all."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from trimode.errors import CheckpointError
from trimode.files import json_object_or_empty


@contextmanager
def atomic_directory(
    target: Path, *, replaceable: Callable[[Path], bool], overwrite: bool = False
) -> Iterator[Path]:
    """A temporary sibling to fill; it becomes `target` when the block ends without an error.

    Args:
        target: must not exist, be empty, or be `replaceable`.
        replaceable: whether a directory is one of ours, which may be replaced.
        overwrite: replace any directory.

    Raises:
        CheckpointError: `target` holds something else.
    """
    occupied = target.exists() and (not target.is_dir() or any(target.iterdir()))
    if occupied and not (target.is_dir() and (overwrite or replaceable(target))):
        allowed = "must be new, empty or saved by this program (or ask to overwrite it)"
        raise CheckpointError(str(target), "exists and holds something else", allowed)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.partial-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        mode = temporary.stat().st_mode & 0o666
        for path in temporary.iterdir():
            if path.is_file():
                path.chmod(mode)  # safetensors makes files that only their owner may read
            _sync(path)
        _sync(temporary)
        _put_in_place(temporary, target)
        _sync(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _put_in_place(temporary: Path, target: Path) -> None:
    """Rename to `target`. An old directory there is deleted, or restored if the rename fails."""
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    replaces = target.exists()
    if replaces:
        target.rename(old)
    try:
        temporary.rename(target)
    except OSError:
        if replaces:
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def marked(directory: Path, file: str, field: str) -> bool:
    """Whether a JSON file of the directory has the field that only our files have."""
    return field in json_object_or_empty(directory / file)


def _sync(path: Path) -> None:
    """Write a file or directory to the disk, before its name becomes visible."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a small file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        _sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
