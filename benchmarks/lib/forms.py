"""The forms of diffusion, by the option that asks for each (docs/design/0020)."""

from typing import Any

FORMS: dict[str, dict[str, Any]] = {
    "rolling": {"rolling_block": True},
    "fixed": {"rolling_block": False},
    "nld": {"seed_block": True},
}
"""Of a model that drafts in the led form. `nld`: a pass of its own closes the block."""
