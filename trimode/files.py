"""Reads the small files of a checkpoint, which may come from strangers."""

import json
import stat
from pathlib import Path
from typing import Any

from trimode.errors import CheckpointError

LARGEST_JSON = 256 * 2**20
"""Bytes of the largest JSON file that is read. A shard index of a large model has a few MB."""
LARGEST_TOKENIZER = 2**30
"""Bytes of the largest tokenizer file that is read. Real ones have up to 40 MB."""


def check_file(path: Path, largest: int) -> None:
    """Check that a path is a regular file of a sane size, before anything is read of it.

    A pipe would wait for ever, and a device such as /dev/zero never ends.

    Raises:
        CheckpointError: it is missing, not a regular file, or too large.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        raise CheckpointError(str(path), "missing", "a checkpoint needs it") from None
    except OSError as error:
        raise CheckpointError(str(path), f"not readable ({error})", "a file") from None
    if not stat.S_ISREG(found.st_mode):
        raise CheckpointError(str(path), "not a regular file", "a regular file")
    if found.st_size > largest:
        allowed = f"at most {largest // 2**20} MiB"
        raise CheckpointError(str(path), f"{found.st_size // 2**20} MiB", allowed)


def read_text(path: Path, *, allowed: str = "UTF-8 text") -> str:
    """The text of a small file.

    Raises:
        CheckpointError: it is missing, no regular file, too large, or not UTF-8.
    """
    check_file(path, LARGEST_JSON)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(str(path), f"not readable ({error})", allowed) from None


def read_json_object(path: Path, *, allowed: str = "a JSON object") -> dict[str, Any]:
    """The JSON object of a small file.

    Raises:
        CheckpointError: it cannot be read, or holds something else.
    """
    text = read_text(path, allowed=allowed)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(str(path), f"not readable ({error})", allowed) from None
    if not isinstance(value, dict):
        raise CheckpointError(str(path), f"not readable ({type(value).__name__})", allowed)
    return value


def read_json_object_if_there(path: Path) -> dict[str, Any]:
    """The same; an empty object if there is no such file."""
    return read_json_object(path) if path.exists() else {}


def json_object_or_empty(path: Path) -> dict[str, Any]:
    """The JSON object of a file of our own, which may be missing or damaged: then an empty one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
