"""The training that makes an AR checkpoint tri-modal: noise, masks, objective, loop."""

from pathlib import Path

RECIPES = Path(__file__).parent / "recipes"
"""Configurations that `trimode train` and `trimode convert` know by name."""
