"""Directories and files that appear whole or not at all."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from trimode.errors import CheckpointError, InputError
from trimode.files import json_object_or_empty
from trimode.journal import locked

_MADE_WITH = "made_with.json"


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
    _refuse_occupied(target, lambda path: overwrite or replaceable(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.partial-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        _publish(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def resumable_directory(
    target: Path, made_with: Mapping[str, Any], *, replaceable: Callable[[Path], bool]
) -> Iterator[Path]:
    """As `atomic_directory`, but what an interrupted run wrote is still there in the next one.

    Args:
        target: must not exist, be empty, or be `replaceable`.
        made_with: what the files depend on, as JSON; another run's files are deleted.
        replaceable: whether a directory may be replaced.

    Raises:
        CheckpointError: `target` holds something else.
        InputError: another run is writing it.
    """
    _refuse_occupied(target, replaceable)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.partial")
    with locked(target, instead="give another directory"):
        try:
            if json_object_or_empty(temporary / _MADE_WITH) != made_with:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir()
                write_text(temporary / _MADE_WITH, json.dumps(made_with))
            yield temporary
            (temporary / _MADE_WITH).unlink()
            _publish(temporary, target)
        except CheckpointError:  # it would fail again
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        except InputError:  # such as a disk that is too small; what is written serves another run
            if [path.name for path in temporary.iterdir()] == [_MADE_WITH]:
                shutil.rmtree(temporary, ignore_errors=True)
            raise


def _refuse_occupied(target: Path, replaceable: Callable[[Path], bool]) -> None:
    occupied = target.exists() and (not target.is_dir() or any(target.iterdir()))
    if occupied and not (target.is_dir() and replaceable(target)):
        allowed = "must be new, empty or saved by this program (or ask to overwrite it)"
        raise CheckpointError(str(target), "exists and holds something else", allowed)


def _publish(temporary: Path, target: Path) -> None:
    """Give a directory its name once all of it is on the disk."""
    mode = temporary.stat().st_mode & 0o666
    for path in temporary.rglob("*"):
        if path.is_file():
            path.chmod(mode)  # safetensors makes files that only their owner may read
        _sync(path)
    _sync(temporary)
    _put_in_place(temporary, target)
    _sync(target.parent)


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


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a small safetensors file, whole or not at all."""
    temporary = path.with_suffix(".partial")
    try:
        save_file(tensors, temporary, metadata={"format": "pt", **metadata})
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a small file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        _sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
