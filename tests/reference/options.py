"""Options for several modes at once."""

from typing import Any

from trimode.decoding import modes_reading


def readable(mode: str, **options: Any) -> dict[str, Any]:
    """The options that a mode reads, of those given for several; the mode among them."""
    read = {name: value for name, value in options.items() if mode in modes_reading(name)}
    return {"mode": mode, **read}
