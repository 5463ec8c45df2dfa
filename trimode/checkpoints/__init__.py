"""Fetches, reads and saves checkpoints in the formats of other programs."""

from trimode.checkpoints.adapters import read_adapter, save_adapter
from trimode.checkpoints.draft_priors import DraftPriors
from trimode.checkpoints.export import Export, plan_export, write_export
from trimode.checkpoints.loader import Checkpoint, LoadedModel, load, open_checkpoint
from trimode.checkpoints.mask_token import MaskToken, find_mask_token
from trimode.checkpoints.save import save_checkpoint, stream_checkpoint
from trimode.checkpoints.sources import (
    BUILT_IN,
    DEFAULT_MODEL,
    CachedModel,
    ResolvedSource,
    cache_directory,
    list_cached,
    remove_cached,
    resolve,
)

__all__ = [
    "BUILT_IN",
    "DEFAULT_MODEL",
    "CachedModel",
    "Checkpoint",
    "DraftPriors",
    "Export",
    "LoadedModel",
    "MaskToken",
    "ResolvedSource",
    "cache_directory",
    "find_mask_token",
    "list_cached",
    "load",
    "open_checkpoint",
    "plan_export",
    "read_adapter",
    "remove_cached",
    "resolve",
    "save_adapter",
    "save_checkpoint",
    "stream_checkpoint",
    "write_export",
]
