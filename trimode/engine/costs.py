"""What a pass costs here: measured once for each machine and model, kept in the cache directory.

A busy machine gives wrong times. A measurement with few points or with times that vary much is used
by the process that made it, and never kept. A kept one that passes disagree with (`cost_check`) is
marked, and counts as absent.
"""

import hashlib
import json
import logging
import math
import platform
import time
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch

from trimode.checkpoints import LoadedModel, cache_directory
from trimode.checkpoints.atomic import write_text
from trimode.decoding import CostCurve
from trimode.decoding.span import led_visibility
from trimode.files import json_object_or_empty
from trimode.model import KVCache, Runner, Segment, native
from trimode.model.native.cores import threads
from trimode.version import __version__

CONTEXT = 256
"""Tokens in the KV cache while a pass is timed."""
_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
_AGAIN = 2
"""Rounds in which sizes that were disturbed are timed again."""
_REPEATS = 5
_SEQUENCES = 8
"""Sequences of the pass that tells what another KV cache costs."""
_BUDGET = 12.0
"""Seconds after which no larger pass is timed, and none again; the curve continues with its last
slope."""
LEAST_POINTS = 5
"""Row counts that a curve needs to be kept, if the model's context allows as many."""
MOST_SPREAD = 0.3
"""By how much the median of a point's times may exceed the least one, for most points, in a curve
that is kept. On an idle machine it is below 0.1."""
MOST_WAITED = 0.15
"""Share of the time in which other programs may have had the processor, in a curve that is kept and
in passes that are compared with it. On an idle machine it is next to nothing; a busy process a core
makes it half."""

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Measurement:
    """A cost curve, and how far it can be trusted."""

    curve: CostCurve
    spread: float
    """Median, over the points, of how much the median of a point's times exceeds the least."""
    waited: float
    """Share of the time in which other programs had the processor."""
    possible_points: int
    """Row counts that could have been timed."""

    @property
    def doubt(self) -> str | None:
        """Why the curve is not kept, in words; None if it is."""
        points = len(self.curve.rows)
        if points < min(LEAST_POINTS, self.possible_points):
            return f"only {points} sizes of a pass were timed in {_BUDGET:g} s"
        if self.spread > MOST_SPREAD:
            return f"times of the same pass vary by {self.spread:.0%}"
        if self.waited > MOST_WAITED:
            return f"other programs had the processor for {self.waited:.0%} of the time"
        return None


@dataclass(frozen=True, slots=True)
class PassTime:
    """How long a pass took."""

    seconds: float
    waited: float
    """Share of them in which other programs had the processor. On a CPU only: a thread that waits
    for a GPU may sleep."""


def is_kept(model: LoadedModel) -> bool:
    """Whether `cost_curve` need not measure."""
    return _kept(_path(model)) is not None


def kept_at(model: LoadedModel) -> Path:
    """Where the model's curve is kept on this machine."""
    return _path(model)


_unkept: WeakKeyDictionary[Runner, CostCurve] = WeakKeyDictionary()
"""Curves that are not good enough to be kept. This process uses them: it would not get better ones
by measuring again at once."""


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
    if not again:
        found = _kept(_path(model)) or _unkept.get(model.runner)
        if found is not None:
            return found
    measured = measure(model, advance=advance)
    if measured.doubt is not None:
        logger.warning("the cost of a pass is not kept: %s; is the machine busy?", measured.doubt)
        _unkept[model.runner] = measured.curve
    else:
        keep(model, measured)
    return measured.curve


def keep(model: LoadedModel, measured: Measurement) -> bool:
    """Keep a curve without doubts for later runs; returns whether it was."""
    if measured.doubt is not None:
        return False
    steadiness = {"spread": measured.spread, "waited": measured.waited}
    return _write(_path(model), asdict(measured.curve) | steadiness)


def mark(model: LoadedModel, curve: CostCurve, *, doubted: bool) -> None:
    """Note in the cache whether passes disagree with a curve, if that curve is the one kept."""
    path = _path(model)
    record = json_object_or_empty(path)
    if _curve(record) == curve:
        _write(path, record | {_DOUBTED: doubted})


_DOUBTED = "doubted"


def _write(path: Path, record: dict[str, Any]) -> bool:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(record) + "\n")
    except OSError:  # a cache that cannot be written costs the next start a few seconds
        return False
    return True


def _kept(path: Path) -> CostCurve | None:
    """The curve of a file; None if there is none, or a doubtful one."""
    record = json_object_or_empty(path)
    return None if record.get(_DOUBTED) else _curve(record)


def _curve(record: dict[str, Any]) -> CostCurve | None:
    """The curve of a record; None if it is damaged, or from before steadiness was required."""
    try:
        if float(record["spread"]) > MOST_SPREAD or float(record["waited"]) > MOST_WAITED:
            return None
        rows = tuple(int(one) for one in record["rows"])
        plain, adapted = (tuple(map(float, record[name])) for name in ("plain", "adapted"))
        sequence = float(record["sequence"])
    except (ValueError, TypeError, KeyError, OverflowError):
        return None
    whole = rows == tuple(sorted({*rows})) and rows[:1] == (1,)
    whole &= len(rows) == len(plain) == len(adapted)
    whole &= all(0 < one < math.inf for one in (*plain, *adapted)) and 0 <= sequence < math.inf
    return CostCurve(rows, plain, adapted, sequence) if whole else None


def _path(model: LoadedModel) -> Path:
    """The curve's file, named after everything that the times depend on."""
    facts = (
        __version__,
        torch.__version__,
        platform.node(),
        platform.processor(),
        torch.backends.cpu.get_cpu_capability(),
        threads(),
        model.name,
        repr(replace(model.config, block_length=1)),
        model.runner.describe(),
        native.build(),
        model.runner.device,
        model.adapter_scope,
    )
    digest = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
    return cache_directory() / "costs" / f"{model.name}-{digest}.json"


def measure(model: LoadedModel, *, advance: Callable[[int], None] = lambda _: None) -> Measurement:
    """Time passes of growing size; see `measuring`."""
    steps = measuring(model, advance=advance)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


@torch.inference_mode()
def measuring(
    model: LoadedModel, *, advance: Callable[[int], None] = lambda _: None
) -> Generator[None, None, Measurement]:
    """Time passes of growing size over a cache of `CONTEXT` tokens, heads included.

    Stops after each pass, so that its caller can attend to something else.

    Args:
        model: what to time.
        advance: called with each row count before it is timed.
    """
    runner, config = model.runner, model.config
    context = min(CONTEXT, config.max_position_embeddings // 2)
    limit = config.max_position_embeddings - context
    cache = KVCache(config, context + _ROWS[-1], dtype=runner.kv_dtype, device=runner.device)
    _one_pass(model, cache, context, drafting=False)
    cache.keep(range(context))
    rows_done, plain, adapted, spreads = [], [], [], []
    possible = [rows for rows in _ROWS if rows <= limit]
    elapsed = waited = 0.0

    def seconds_of(rows: int, drafting: bool) -> Generator[None, None, list[float]]:
        nonlocal elapsed, waited
        times = yield from _times(model, lambda: _one_pass(model, cache, rows, drafting=drafting))
        seconds = [each.seconds for each in times]
        elapsed += sum(seconds)
        waited += sum(each.waited * each.seconds for each in times)
        return seconds

    for rows in possible:
        if rows_done and elapsed > _BUDGET:
            break
        advance(rows)
        rows_done.append(rows)
        for found, drafting in ((plain, False), (adapted, True)):
            seconds = yield from seconds_of(rows, drafting)
            found.append(min(seconds))
            spreads.append(median(seconds) / min(seconds) - 1)
    # A larger pass is never cheaper. If it was timed so, the smaller one was disturbed: rows would
    # look free between the two.
    for found, drafting in ((plain, False), (adapted, True)):
        for i in _disturbed(found) * _AGAIN:
            if elapsed > _BUDGET:
                break
            seconds = yield from seconds_of(rows_done[i], drafting)
            found[i] = min(found[i], *seconds)
    alone = CostCurve(tuple(rows_done), _rising(plain), _rising(adapted))
    caches = [cache]
    while len(caches) < _SEQUENCES:
        other = KVCache(config, context + 1, dtype=runner.kv_dtype, device=runner.device)
        other.copy_prefix(cache, context)
        caches.append(other)
    segments = [Segment(i, i + 1, each, "causal") for i, each in enumerate(caches)]
    times = yield from _times(model, lambda: _run(model, segments, context))
    together = min(each.seconds for each in times)
    extra = (together - alone.seconds(_SEQUENCES)) / (_SEQUENCES - 1)
    curve = replace(alone, sequence=max(0.0, extra))
    return Measurement(curve, median(spreads), waited / elapsed, len(possible))


def _disturbed(times: list[float]) -> list[int]:
    return [i for i in range(len(times) - 1) if times[i] > min(times[i + 1 :])]


def _rising(times: list[float]) -> tuple[float, ...]:
    return tuple(min(times[i:]) for i in range(len(times)))


def _times(model: LoadedModel, run: Callable[[], None]) -> Generator[None, None, list[PassTime]]:
    """Several times of the same pass. The least counts: disturbances only make a pass longer."""
    times = []
    for _ in range(_REPEATS):
        synchronise(model)
        times.append(timed(model, run)[1])
        yield
    return times


def timed(model: LoadedModel, run: Callable[[], T]) -> tuple[T, PassTime]:
    """What a pass gives, and its time, until the device is done."""
    began, ran = time.perf_counter(), time.thread_time()
    result = run()
    synchronise(model)
    ran, seconds = time.thread_time() - ran, time.perf_counter() - began
    on_gpu = model.runner.device.startswith("cuda")
    return result, PassTime(seconds, 0.0 if on_gpu else max(0.0, 1 - ran / seconds))


def _one_pass(model: LoadedModel, cache: KVCache, rows: int, *, drafting: bool) -> None:
    if not drafting or rows == 1:
        return _run(model, [Segment(0, rows, cache, "causal")], cache.length)
    visibility, is_mask = led_visibility(1, masks=rows - 1)
    return _run(model, [Segment(0, rows, cache, visibility)], cache.length, is_mask)


def _run(
    model: LoadedModel, segments: list[Segment], context: int, masks: torch.Tensor | None = None
) -> None:
    """A pass. `masks`: which rows are, bool `[rows]`; without any it verifies."""
    runner = model.runner
    rows = segments[-1].stop
    positions = torch.arange(context, context + rows, device=runner.device)
    tokens = torch.full((rows,), model.config.mask_token_id or 0, device=runner.device)
    adapter_rows = None
    if masks is not None and model.adapter_scope is not None:
        adapter_rows = masks.nonzero()[:, 0].to(runner.device)
    hidden = runner.run(tokens, positions, segments, adapter_rows)[:128]
    if masks is not None or runner.likeliest(hidden) is None:
        runner.logits(hidden)


def synchronise(model: LoadedModel) -> None:
    """Wait until the device has done what it was given."""
    if model.runner.device.startswith("cuda"):
        torch.cuda.synchronize()
