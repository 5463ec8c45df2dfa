"""`--config FILE`: a YAML file of options by their long names, below the command line's own."""

from math import inf
from pathlib import Path
from typing import Any, get_args

import typer
import yaml

from trimode.config import check_range
from trimode.errors import InputError


def read_config(path: Path, parameters: list[Any]) -> dict[str, Any]:
    """The options of a file, by parameter.

    Args:
        path: a YAML mapping, such as the trimode.yaml that `trimode bench` writes.
        parameters: of the command.

    Raises:
        InputError: names the file and the field.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        found = f"{path} is not readable ({error.strerror})"
        raise InputError("config", found, "must be a file of YAML") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(str(path), f"not YAML ({reason})", "must map options to values") from None
    if not isinstance(content, dict):
        found = "empty" if content is None else type(content).__name__
        raise InputError(str(path), found, "must map options to values, mode: auto")
    by_name = {
        name.removeprefix("--"): parameter
        for parameter in parameters
        if parameter.param_type_name == "option" and parameter.name != "config"
        for name in parameter.opts
        if name.startswith("--")
    }
    values: dict[str, Any] = {}
    for name, value in content.items():
        plain = str(name).replace("_", "-")
        parameter = by_name.get(plain)
        if parameter is None:
            from trimode.rows import near_miss

            meant = near_miss(str(name), by_name)
            known = f"known: {', '.join(sorted(by_name))}"
            allowed = f"did you mean {meant}?" if meant else known
            raise InputError(f"{path}: {name}", "no such option", allowed)
        if parameter.name in values:
            raise InputError(f"{path}: {name}", "given twice", "give it once")
        values[parameter.name] = _checked(path, str(name), value, parameter)
    return values


_WORDS = {int: "a whole number", float: "a number", bool: "true or false"}


def _checked(path: Path, name: str, value: Any, parameter: Any) -> Any:
    """A value as the command line would take it.

    Raises:
        InputError: it is of another type.
    """
    place = f"{path}: {name}"
    kind = _kind(parameter.type_descriptor.annotation)
    if not parameter.multiple and (isinstance(value, list | dict) or value is None):
        raise InputError(place, repr(value), "must be one value")
    several = value if isinstance(value, list) else [value]
    for each in several:
        # YAML reads the text 1e3 or on as another type, so a text may look like anything.
        numeric = isinstance(each, int | float) and not isinstance(each, bool)
        fits = {
            int: numeric and isinstance(each, int),
            float: numeric,
            bool: isinstance(each, bool),
        }.get(kind, numeric or isinstance(each, str))
        if not fits:
            raise InputError(place, repr(each), f"must be {_WORDS.get(kind, 'a text')}")
        if isinstance(each, int | float) and kind in (int, float):
            low, high = getattr(parameter, "min", None), getattr(parameter, "max", None)
            check_range(place, each, -inf if low is None else low, high)
    found = [each if kind in _WORDS else str(each) for each in several]
    return found if parameter.multiple else found[0]


def _kind(annotation: Any) -> type:
    """The type of an option's value: of a list its entries', of an optional one its own."""
    inner = [kind for kind in get_args(annotation) if kind is not type(None)]
    return _kind(inner[0]) if inner else annotation


def take_config(context: typer.Context, path: Path | None) -> Path | None:
    """The callback of `--config`: its values become defaults of the command's options."""
    if path is not None and not context.resilient_parsing:
        values = read_config(path, context.command.params)
        context.default_map = {**(context.default_map or {}), **values}
    return path
