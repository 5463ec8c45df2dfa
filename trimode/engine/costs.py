"""What a pass costs here: measured once for each machine and model, kept in the cache directory."""

import hashlib
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch

from trimode.checkpoints import LoadedModel, cache_directory
from trimode.checkpoints.atomic import write_text
from trimode.decoding import CostCurve
from trimode.decoding.span import led_visibility
from trimode.model import KVCache, Segment, native
from trimode.version import __version__

CONTEXT = 256
"""Tokens in the KV cache while a pass is timed."""
_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
_REPEATS = 5
_SEQUENCES = 8
"""Sequences of the pass that tells what another KV cache costs."""
_BUDGET = 12.0
"""Seconds after which no larger pass is timed; the curve continues with its last slope."""


def cost_curve(
    model: LoadedModel,
    *,
    again: bool = False,
    advance: Callable[[int], None] = lambda _: None,
) -> CostCurve:
    """The model's cost curve on this machine, from the cache or measured now.

    Args:
        model: what to time.
        again: measure even if the cache has a curve.
        advance: called with each row count before it is timed.
    """
    path = _path(model)
    if not again:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return CostCurve(
                tuple(found["rows"]),
                tuple(found["plain"]),
                tuple(found["adapted"]),
                float(found["sequence"]),
            )
        except (OSError, ValueError, TypeError, KeyError):
            pass  # none yet, or one that cannot be read
    curve = measure(model, advance=advance)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(asdict(curve)) + "\n")
    except OSError:
        pass  # a cache that cannot be written costs the next start a few seconds
    return curve


def _path(model: LoadedModel) -> Path:
    """The curve's file, named after everything that the times depend on."""
    facts = (
        __version__,
        torch.__version__,
        platform.node(),
        platform.processor(),
        torch.backends.cpu.get_cpu_capability(),
        torch.get_num_threads(),
        model.name,
        repr(replace(model.config, block_length=1)),
        model.runner.describe(),
        native.build(),
        model.runner.device,
        model.adapter_scope,
    )
    digest = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
    return cache_directory() / "costs" / f"{model.name}-{digest}.json"


@torch.inference_mode()
def measure(model: LoadedModel, *, advance: Callable[[int], None] = lambda _: None) -> CostCurve:
    """Time passes of growing size over a cache of `CONTEXT` tokens, heads included."""
    runner, config = model.runner, model.config
    context = min(CONTEXT, config.max_position_embeddings // 2)
    limit = config.max_position_embeddings - context
    cache = KVCache(config, context + _ROWS[-1], dtype=runner.kv_dtype, device=runner.device)
    _one_pass(model, cache, context, drafting=False)
    cache.keep(range(context))
    rows_done, plain, adapted = [], [], []
    began = time.perf_counter()
    for rows in (r for r in _ROWS if r <= limit):
        if rows_done and time.perf_counter() - began > _BUDGET:
            break
        advance(rows)
        rows_done.append(rows)
        plain.append(_fastest(model, cache, rows, drafting=False))
        adapted.append(_fastest(model, cache, rows, drafting=True))
    # A larger pass is never cheaper. If it was timed so, the smaller one was disturbed.
    alone = CostCurve(tuple(rows_done), _rising(plain), _rising(adapted))
    caches = [cache]
    while len(caches) < _SEQUENCES:
        other = KVCache(config, context + 1, dtype=runner.kv_dtype, device=runner.device)
        other.copy_prefix(cache, context)
        caches.append(other)
    segments = [Segment(i, i + 1, each, "causal") for i, each in enumerate(caches)]
    together = _fastest_of(model, lambda: _run(model, segments, context, None))
    extra = (together - alone.seconds(_SEQUENCES)) / (_SEQUENCES - 1)
    return replace(alone, sequence=max(0.0, extra))


def _rising(times: list[float]) -> tuple[float, ...]:
    return tuple(min(times[i:]) for i in range(len(times)))


def _fastest(model: LoadedModel, cache: KVCache, rows: int, *, drafting: bool) -> float:
    return _fastest_of(model, lambda: _one_pass(model, cache, rows, drafting=drafting))


def _fastest_of(model: LoadedModel, run: Callable[[], None]) -> float:
    """The least of several times, since disturbances only make a pass longer."""
    times = []
    for _ in range(_REPEATS):
        _synchronise(model)
        began = time.perf_counter()
        run()
        _synchronise(model)
        times.append(time.perf_counter() - began)
    return min(times)


def _one_pass(model: LoadedModel, cache: KVCache, rows: int, *, drafting: bool) -> None:
    visibility, adapter_rows = "causal", None
    if drafting:
        visibility, is_mask = led_visibility(1, rows - 1)
        if model.adapter_scope is not None and rows > 1:
            adapter_rows = is_mask.nonzero()[:, 0].to(model.runner.device)
    _run(model, [Segment(0, rows, cache, visibility)], cache.length, adapter_rows)


def _run(
    model: LoadedModel, segments: list[Segment], context: int, adapter_rows: torch.Tensor | None
) -> None:
    runner = model.runner
    rows = segments[-1].stop
    positions = torch.arange(context, context + rows, device=runner.device)
    tokens = torch.full((rows,), model.config.mask_token_id or 0, device=runner.device)
    hidden = runner.run(tokens, positions, segments, adapter_rows)
    runner.logits(hidden[:128])


def _synchronise(model: LoadedModel) -> None:
    if model.runner.device.startswith("cuda"):
        torch.cuda.synchronize()
