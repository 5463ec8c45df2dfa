"""Options of a command in dataclasses, one for each meaning."""

import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import wraps
from typing import Any, TypeVar, get_type_hints

Result = TypeVar("Result")


def grouped(command: Callable[..., Result]) -> Callable[..., Result]:
    """Let typer see the fields of a command's dataclass parameters as options of their own.

    A field's annotation and default are those of its option; a subclass that names a field again
    gives it another default. The command is handed the dataclasses, which are keyword-only.
    """
    signature = inspect.signature(command, eval_str=True)
    groups: dict[str, type] = {
        parameter.name: parameter.annotation
        for parameter in signature.parameters.values()
        if isinstance(parameter.annotation, type) and is_dataclass(parameter.annotation)
    }
    flat: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if parameter.name in groups:
            flat += _options(groups[parameter.name])
        else:
            flat.append(parameter)

    flat_signature = signature.replace(parameters=flat)

    @wraps(command)
    def run(*positional: Any, **named: Any) -> Result:
        bound = flat_signature.bind(*positional, **named)
        bound.apply_defaults()
        values = dict(bound.arguments)
        built = {
            name: group(**{field.name: values.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        return command(**values, **built)

    run.__signature__ = flat_signature  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in flat}
    return run


def _options(group: Any) -> list[inspect.Parameter]:
    """A keyword parameter for each field; a name used twice is an error of `Signature.replace`."""
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=hints[field.name],
        )
        for field in fields(group)
    ]
