"""The files of a checkpoint that stay as they are when its weights change."""

import shutil
from pathlib import Path
from typing import Any

from trimode.files import read_json_object

_TEXT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
)
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def source_files(source: Path | None) -> list[Path]:
    """The files of the source directory that are copied to the result as they are."""
    if source is None or not source.is_dir():
        return []
    return [path for name in _TEXT_FILES if (path := source / name).is_file()]


def copy_texts(source: Path, target: Path) -> None:
    """Copy those files, and chat templates for special uses."""
    for path in source_files(source):
        shutil.copy(path, target / path.name)
    more = source / "additional_chat_templates"
    if more.is_dir():
        shutil.copytree(more, target / more.name, dirs_exist_ok=True)


def source_tokens(source: Path | None) -> dict[str, Any]:
    """The special tokens of the source's `config.json`, as it gives them."""
    if source is None or not (path := source / "config.json").is_file():
        return {}
    fields = read_json_object(path)
    inner = fields.get("text_config")
    fields = fields | (inner if isinstance(inner, dict) else {})
    return {name: fields[name] for name in _TOKENS if fields.get(name) is not None}
