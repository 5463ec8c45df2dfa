"""Runners: one file each. `RUNNERS` holds them in order of preference."""

from trimode.model.runners.eager import EagerRunner
from trimode.model.runners.native import NativeRunner
from trimode.model.runners.rowwise import RowwiseRunner
from trimode.model.runners.runner import Runner

RUNNERS: tuple[type[Runner], ...] = (NativeRunner, RowwiseRunner, EagerRunner)

__all__ = ["RUNNERS", "EagerRunner", "NativeRunner", "RowwiseRunner", "Runner"]
