"""Rows of a user's file: JSONL, JSON, CSV, TSV, Parquet, Arrow, each with the place it comes from.

Every command that reads rows reads them here, so all of them take the same files.
"""

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimode.errors import InputError

FORMATS = ".jsonl, .json, .csv, .tsv or .parquet"
_BYTE_ORDER_MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file."""

    number: int
    """Its line, or its row in formats without lines; from 1."""
    where: str
    """File and line, for errors."""
    fields: dict[str, Any]
    """By column. A column that is empty in a CSV file is left out."""
    is_text: bool = False
    """Whether every value is text, since the format knows no other type."""


def read_rows(
    path: Path, *, line_column: str | None = None, split: str | None = None
) -> Iterator[Row]:
    """Rows of a file; the suffix says the format, and anything unknown is JSONL.

    A byte order mark, Windows line ends and empty lines are accepted.

    Args:
        path: the file, or the directory of a data set: as `datasets` saves it, or as the hub has
            it.
        line_column: what a line of a `.txt` file is; by default such files are read as JSONL.
        split: the part of a directory that has several.

    Raises:
        InputError: the file cannot be read, or a row is damaged; names the line.
    """
    if path.is_dir():
        for part in _files_of_split(path, split):
            yield from read_rows(part)
        return
    if split is not None:
        raise InputError("split", repr(split), f"{path} is a file, which has no parts")
    suffix = path.suffix.lower()
    if suffix == ".txt" and line_column is not None:
        for number, line in enumerate(read_text(path).split("\n"), 1):
            if line.strip():
                yield Row(number, f"{path} line {number}", {line_column: line.strip()})
        return
    if suffix in (".parquet", ".arrow"):
        yield from _arrow(path)
    elif suffix in (".csv", ".tsv"):
        yield from _csv(path, "\t" if suffix == ".tsv" else None)
    elif suffix == ".json":
        yield from _json(path)
    else:
        yield from _lines(path, read_text(path))


def image_sources(value: Any, row: Row, path: Path) -> tuple[Any, ...]:
    """The pictures of a row's column `images`: paths, `data:` URLs or bytes.

    Args:
        value: of the column: a list, one picture, or None.
        row: that has it.
        path: of the rows' file or directory, from whose directory paths are taken.

    Raises:
        InputError: an item is no picture's path, or there is no such file.
    """
    where = f"{row.where}: images"
    if row.is_text and isinstance(value, str) and value.startswith("["):
        value = parse_json(value, where)
    if value is None:
        return ()
    home = path if path.is_dir() else path.parent
    items = value if isinstance(value, list) else [value]
    return tuple(_image_source(item, f"{where}[{i}]", home) for i, item in enumerate(items))


def _image_source(item: Any, where: str, home: Path) -> Any:
    if isinstance(item, dict):
        item = item.get("path") if item.get("bytes") is None else item["bytes"]
    if isinstance(item, bytes) or (isinstance(item, str) and item[:5].lower() == "data:"):
        return item
    if not isinstance(item, str) or not item:
        raise InputError(where, repr(item)[:80], "must be the path of a picture, or a data: URL")
    path = home / Path(item).expanduser()
    if not path.is_file():
        raise InputError(where, f"{path} is not a file", "must be a picture's file")
    return str(path)


def read_text(path: Path) -> str:
    """A text file without its byte order mark: UTF-8, or UTF-16 with a mark.

    Raises:
        InputError: the file cannot be read, or is no such text.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(str(path), f"not readable ({error.strerror})", FORMATS) from None
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        found = f"byte {error.start} is not UTF-8"
        raise InputError(f"{path} line {line}", found, "must be UTF-8") from None


def parse_object(text: str | bytes, where: str) -> dict[str, Any]:
    """One JSON object.

    Raises:
        InputError: the text is something else.
    """
    row = parse_json(text, where, "must be one object a line")
    if not isinstance(row, dict):
        raise InputError(where, type(row).__name__, "must be a JSON object")
    return row


def near_miss(name: str, known: Iterable[str]) -> str | None:
    """The known name that an unknown one was probably meant to be, the nearest, if there is one.

    Case and the characters between words do not count. Two letters may be wrong, missing, too much
    or exchanged with the next one. In names of up to five letters only one may be, not the first
    one, and none may be wrong: "code" is no "mode".
    """
    plain = _plain(name)
    if not plain:
        return None
    near: list[tuple[int, str]] = []
    for candidate in known:
        other = _plain(candidate)
        edits = _distance(plain, other)
        if min(len(plain), len(other)) > 5:
            if edits <= 2:
                near.append((edits, candidate))
        elif edits == 0 or (edits == 1 and plain[0] == other[0] and _no_other(plain, other)):
            near.append((edits, candidate))
    return min(near, key=lambda found: found[0])[1] if near else None


def _no_other(left: str, right: str) -> bool:
    """Whether two names one edit apart have the same letters, one missing or exchanged."""
    return len(left) != len(right) or sorted(left) == sorted(right)


def _plain(name: str) -> str:
    return name.strip().lower().replace("-", "_").replace(" ", "_")


def _distance(left: str, right: str) -> int:
    """Edits from one text to the other; neighbours that changed places are one edit."""
    if abs(len(left) - len(right)) > 2:
        return 3
    before: list[int] = []
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        older, before, row = before, row, [i]
        for j, b in enumerate(right, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b))
            if i > 1 and j > 1 and a == right[j - 2] and left[i - 2] == b:
                cost = min(cost, older[j - 2] + 1)
            row.append(cost)
    return row[-1]


def _lines(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{path} line {number}"
            yield Row(number, where, parse_object(line, where))


def _json(path: Path) -> Iterator[Row]:
    """A list of objects, or JSONL under another name."""
    text = read_text(path)
    if not text.lstrip().startswith("["):
        yield from _lines(path, text)
        return
    for number, fields in enumerate(parse_json(text, str(path), "must be a list of objects"), 1):
        where = f"{path} row {number}"
        if not isinstance(fields, dict):
            raise InputError(where, type(fields).__name__, "must be a JSON object")
        yield Row(number, where, fields)


def _csv(path: Path, delimiter: str | None) -> Iterator[Row]:
    """A table with a header; commas or semicolons (or tabs) between the columns."""
    text = read_text(path)
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
    if delimiter is None:
        header = text.lstrip("\r\n").split("\n", 1)[0]
        delimiter = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] | None = None
    begins = 1
    try:
        for cells in reader:
            number, begins = begins, reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            where = f"{path} line {number}"
            if names is None:
                names = _header(cells, where)
                continue
            if len(cells) != len(names):
                found = f"{len(cells)} columns"
                raise InputError(where, found, f"the header has {len(names)}; quote texts")
            pairs = zip(names, cells, strict=True)
            yield Row(number, where, {k: v for k, v in pairs if v != ""}, is_text=True)
    except csv.Error as error:
        where = f"{path} line {reader.line_num}"
        raise InputError(where, f"not CSV ({error})", "quote texts with line breaks") from None


def _header(cells: list[str], where: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or "" in names:
        found = f"column {twice[0]!r} twice" if twice and twice[0] else "a column without a name"
        raise InputError(where, found, "the first line must name each column once")
    return names


def _arrow(path: Path) -> Iterator[Row]:
    """A Parquet file, or a file that `datasets` has saved."""
    try:
        import pyarrow  # type: ignore[import-not-found]
        from pyarrow import parquet  # type: ignore[import-not-found]
    except ImportError:
        what = "Parquet" if path.suffix.lower() == ".parquet" else "Arrow"
        found = f"{what} needs the package pyarrow"
        raise InputError(str(path), found, "pip install 'trimode[data]', or give JSONL") from None
    try:
        if path.suffix.lower() == ".parquet":
            rows = parquet.read_table(path).to_pylist()
        else:
            with pyarrow.memory_map(str(path)) as file:
                rows = pyarrow.ipc.open_stream(file).read_all().to_pylist()
    except Exception as error:  # noqa: BLE001 - any failure of the reader means the same
        raise InputError(str(path), f"not readable ({error})", "a Parquet or Arrow file") from None
    for number, fields in enumerate(rows, 1):
        # A column that a row lacks is null in Parquet.
        given = {name: value for name, value in fields.items() if value is not None}
        yield Row(number, f"{path} row {number}", given)


_TABLES = frozenset((".parquet", ".arrow", ".jsonl", ".json", ".csv", ".tsv"))
_ABOUT_A_DATA_SET = frozenset(
    ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
)


def _files_of_split(directory: Path, split: str | None) -> list[Path]:
    """The files of one part of a data set, in order.

    Raises:
        InputError: there is none, or several and none is named.
    """
    splits: dict[str, list[Path]] = {}
    for path in sorted(directory.rglob("*")):
        inner = path.relative_to(directory)
        hidden = any(part.startswith(".") for part in inner.parts)
        left_by_datasets = path.name in _ABOUT_A_DATA_SET or path.name.startswith("cache-")
        if path.suffix.lower() in _TABLES and path.is_file() and not (hidden or left_by_datasets):
            splits.setdefault(_split_of(inner), []).append(path)
    if not splits:
        raise InputError(str(directory), "no rows in it", f"needs files in {FORMATS}")
    names = ", ".join(splits)
    if split is not None:
        if split not in splits:
            raise InputError("split", repr(split), f"{directory} has {names}")
        return splits[split]
    if len(splits) > 1:
        raise InputError(str(directory), f"has the parts {names}", "choose one: --split NAME")
    return next(iter(splits.values()))


def _split_of(path: Path) -> str:
    """The part that a file belongs to: `train` of train/data-00000-of-00001.arrow, of
    data/train-00000-of-00001.parquet and of train.jsonl.
    """
    name = re.sub(r"-\d{5}-of-\d{5}$", "", path.stem)
    folders = [part for part in path.parent.parts if part != "data"]
    return folders[-1] if name == "data" and folders else name


def content_digest(path: Path) -> str:
    """SHA-256 of a file, or of all files of a directory with their names."""
    if not path.is_dir():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    digest = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        digest.update(f"{file.relative_to(path)}\0{content}\n".encode())
    return digest.hexdigest()


def parse_json(text: str | bytes, where: str, allowed: str = "must be JSON") -> Any:
    """A JSON value.

    Raises:
        InputError: the text is no JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(where, f"not JSON ({error})", allowed) from None
