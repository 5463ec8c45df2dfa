"""The modes by name, and which options each of them reads."""

from dataclasses import fields, replace

from trimode.config import DECODING_FIELDS, GenerationOptions, Mode
from trimode.decoding.modes import ar, auto, diffusion, linear, quadratic
from trimode.decoding.modes.spec import ModeSpec
from trimode.errors import InputError

MODE_SPECS: dict[Mode, ModeSpec] = {
    "ar": ar.SPEC,
    "diffusion": diffusion.SPEC,
    "linear": linear.SPEC,
    "quadratic": quadratic.SPEC,
    "auto": auto.SPEC,
}

LOSSLESS_MODES: tuple[Mode, ...] = tuple(mode for mode, spec in MODE_SPECS.items() if spec.lossless)
"""Modes that emit AR's tokens, `ar` first."""

_DEFAULTS = {
    field.name: field.default
    for field in fields(GenerationOptions)
    if field.name in {*DECODING_FIELDS, "prediction"} - {"mode"}
}
"""Options that only some modes read, with the value of one that is not given."""


def modes_reading(option: str) -> tuple[Mode, ...]:
    """The modes that read an option; all of them if it belongs to no mode."""
    if option not in _DEFAULTS:
        return tuple(MODE_SPECS)
    return tuple(mode for mode, spec in MODE_SPECS.items() if option in spec.reads)


def refuse_unread(options: GenerationOptions) -> None:
    """Raise InputError if an option is given that the mode does not read."""
    reads = MODE_SPECS[options.mode].reads
    for name, default in _DEFAULTS.items():
        if name not in reads and getattr(options, name) != default:
            allowed = f"read by {', '.join(modes_reading(name))}; leave it out or change the mode"
            raise InputError(name, f"given in mode {options.mode}, which does not read it", allowed)


def inherited(defaults: GenerationOptions, mode: str) -> GenerationOptions:
    """Options for a mode that were not given for it: those that it does not read are left out.

    Raises:
        InputError: there is no such mode.
    """
    found = replace(defaults, mode=mode)  # type: ignore[arg-type] - aliases are resolved there
    reads = MODE_SPECS[found.mode].reads
    return replace(found, **{k: v for k, v in _DEFAULTS.items() if k not in reads})
