"""How a recommended setting is deployed: trimode.yaml, and the command line."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

CONFIG = "trimode.yaml"
_SERVED_TOGETHER = 16
"""Requests that `trimode serve` decodes at once by default."""


def serve_options(recommendation: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `trimode serve`, by their long names without the dashes.

    Args:
        recommendation: of a run.
        model: how the model was loaded: `model`, `dtype`, `device`, `adapter`.
    """
    path = Path(str(model["model"]))
    found: dict[str, Any] = {"model": str(path.resolve()) if path.exists() else model["model"]}
    for name in ("dtype", "device"):
        if model.get(name) not in (None, "auto"):
            found[name] = model[name]
    if model.get("adapter"):
        found["adapter"] = list(model["adapter"])
    found["mode"] = recommendation["mode"]
    for field in ("block_length", "threshold"):
        if recommendation.get(field) is not None:
            found[field.replace("_", "-")] = recommendation[field]
    load = recommendation.get("holds_up_to") or 1
    if load > _SERVED_TOGETHER:
        found["max-sequences"] = load
    return found


def command_line(options: Mapping[str, Any]) -> str:
    """The same as a command."""
    words = ["trimode", "serve"]
    for name, value in options.items():
        for each in value if isinstance(value, list) else [value]:
            words += [f"--{name}", f"{each:g}" if isinstance(each, float) else str(each)]
    return shlex.join(words)


def write_config(directory: Path, options: Mapping[str, Any], why: list[str]) -> Path:
    """Write trimode.yaml, which `trimode serve --config` takes."""
    path = directory / CONFIG
    comment = "".join(f"# {line}\n" for line in why)
    path.write_text(comment + yaml.safe_dump(dict(options), sort_keys=False), encoding="utf-8")
    return path
