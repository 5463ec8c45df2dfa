"""Files of JSON lines that grow while a run works, and that the same command continues."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trimode.errors import InputError


def intact_rows(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Rows up to the first damaged one, and the bytes that they take; none if there is no file."""
    rows: list[dict[str, Any]] = []
    intact = 0
    if not path.exists():
        return rows, intact
    for raw in path.read_bytes().splitlines(keepends=True):
        try:
            row = json.loads(raw) if raw.endswith(b"\n") else None
        except ValueError:
            row = None
        if not isinstance(row, dict):
            break
        rows.append(row)
        intact += len(raw)
    return rows, intact


def changes(before: Any, now: Mapping[str, Any]) -> str:
    """What differs between an earlier run and this one, in words; empty if nothing does.

    Args:
        before: what the earlier run's results depend on, as it was read back.
        now: the same of this run, by name.
    """
    if not isinstance(before, dict):
        return "written by another version"
    return ", ".join(
        "another input" if name == "input" else f"{name} was {before.get(name)!r}, is {value!r}"
        for name, value in now.items()
        if before.get(name) != value
    )


@contextmanager
def locked(output: Path, *, by: str = "run", instead: str = "give another file") -> Iterator[None]:
    """Keep other runs away from an output.

    Args:
        output: a file or a directory; it need not be there.
        by: what may write it too, for the error.
        instead: what else a user can do than wait, for the error.

    Raises:
        InputError: another run writes it, or it cannot be written.
    """
    from filelock import FileLock, Timeout

    if not output.parent.is_dir():
        raise InputError("output", f"no directory {output.parent}", "create it first")
    path = output.with_name(f".{output.name}.lock")
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        found = f"{output} is being written by another {by}"
        raise InputError("output", found, f"wait for it, or {instead}") from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()
