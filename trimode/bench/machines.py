"""What modes would make on a machine that is not here: computed from what its passes cost.

The curves of known machines follow from published throughputs. A forward pass of one row a request
takes 1 / (tokens a second of a request) in `ar`. A cycle of `linear` is two passes of B rows a
request, and takes (tokens a cycle) / (tokens a second of a request), so a pass takes half of that.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimode.config import check_range
from trimode.decoding import CostCurve, Plan
from trimode.decoding.auto.acceptance import expected_run
from trimode.engine.simulation import best_fixed, fixed_rate
from trimode.errors import InputError

BUSY = 0.8
"""Share of its time that a replica may be busy. Requests come unevenly; above it they soon wait."""
LOADS = (1, 2, 4, 8, 16, 32, 64, 128)
_MOST_MASKS = 32


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine and model with what a pass costs there."""

    curve: CostCurve
    source: str


def _curve(points: dict[int, float]) -> CostCurve:
    """A curve from milliseconds by rows; drafting rows cost what others do."""
    rows = tuple(sorted(points))
    times = tuple(points[row] / 1e3 for row in rows)
    return CostCurve(rows, times, times)


MACHINES: dict[str, Machine] = {
    "b200-8b": Machine(
        # ar: 222, 424, 834, 1599 and 3027 tokens/s at 1 to 16 requests. linear, block 32 in bf16 at
        # 6.72 tokens a cycle: 440, 777, 1317, 2204, 3069, 3651, 4024 and 4230 at 1 to 128.
        _curve(
            {
                1: 4.50,
                2: 4.72,
                4: 4.80,
                8: 5.00,
                16: 5.29,
                32: 7.64,
                64: 8.65,
                128: 10.2,
                256: 12.2,
                512: 17.5,
                1024: 29.5,
                2048: 53.4,
                4096: 101.7,
            }
        ),
        "8B in bf16 on a B200, from the throughputs published with SPEED-Bench",
    ),
    "dgx-spark-8b-fp8": Machine(
        # 24.7 tokens/s in ar, 77.5 in linear at block 32 and 8.69 tokens a cycle.
        _curve({1: 40.5, 32: 56.1}),
        "8B in FP8 on a DGX Spark, from two published throughputs at one request",
    ),
    "dgx-spark-8b-int4": Machine(
        # 41.8 and 112.5 tokens/s.
        _curve({1: 23.9, 32: 38.6}),
        "8B in INT4 on a DGX Spark, from two published throughputs at one request",
    ),
    "gb200-8b-fp8": Machine(
        # 256 and 851 tokens/s.
        _curve({1: 3.91, 32: 5.11}),
        "8B in FP8 on a GB200, from two published throughputs at one request",
    ),
    "rtx-pro-6000-8b-fp8": Machine(
        # 80 and 277 tokens/s.
        _curve({1: 12.5, 32: 15.7}),
        "8B in FP8 on an RTX Pro 6000, from two published throughputs at one request",
    ),
}
"""Beyond the last two points a curve goes on with their slope; curves of two points therefore say
little about loads above one."""


def _scaled(machine: Machine, factor: float, source: str) -> Machine:
    """A machine whose passes take `factor` times as long."""
    times = tuple(factor * one for one in machine.curve.plain)
    return Machine(CostCurve(machine.curve.rows, times, times), source)


_B200_TB_S, _H100_TB_S = 8.0, 3.35
"""Bandwidth of memory by the data sheets. Arithmetic in bf16 differs by about the same factor."""
MACHINES["h100-8b"] = _scaled(
    MACHINES["b200-8b"],
    _B200_TB_S / _H100_TB_S,
    "8B in bf16 on an H100, scaled from the B200's curve by the bandwidth of memory, not measured",
)


def find_machine(name: str) -> Machine:
    """A known machine, or one from a file that `trimode tune --json` has written.

    Raises:
        InputError: there is no such machine, or the file is damaged.
    """
    if name in MACHINES:
        return MACHINES[name]
    path = Path(name)
    if not path.is_file():
        known = f"a file of `trimode tune --json`, or {', '.join(MACHINES)}"
        raise InputError("cost_curve", repr(name), known)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = tuple(int(row) for row in content["rows"])
        plain, adapted = (
            tuple(float(one) for one in content.get(field, content["plain"]))
            for field in ("plain", "adapted")
        )
        curve = CostCurve(rows, plain, adapted, float(content.get("sequence", 0.0)))
        rising = rows == tuple(sorted({*rows})) and rows[:1] == (1,)
        if not rising or not len(rows) == len(plain) == len(adapted) or min(*plain, *adapted) <= 0:
            raise ValueError("rows must rise from 1, with a time above 0 each")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        found = f"{path} is no cost curve ({type(error).__name__}: {error})"
        raise InputError("cost_curve", found, "must be what `trimode tune --json` writes") from None
    return Machine(curve, str(path))


def chance_of(acceptance: float, block_length: int) -> float:
    """The chance of a drafted token that makes `linear` accept so many tokens a cycle.

    A cycle makes two tokens of its own and the drafted ones that are accepted, one after another.

    Args:
        acceptance: tokens a cycle.
        block_length: masks of a draft.

    Raises:
        InputError: no chance makes that many.
    """
    most = block_length + 1.0
    if not 2.0 <= acceptance <= most:
        allowed = f"must be 2 to {most:g} at block length {block_length}"
        raise InputError("acceptance", f"{acceptance:g}", allowed)
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if 2 + expected_run([middle] * (block_length - 1)) < acceptance:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def expect(
    machine: Machine, acceptance: float, block_length: int, loads: Sequence[int] = LOADS
) -> list[dict[str, Any]]:
    """Tokens a second of all requests together, by load; a computation, not a measurement.

    Args:
        machine: what passes cost.
        acceptance: tokens a cycle of `linear`, as measured on a workload.
        block_length: at which it was measured.
        loads: requests at a time.
    """
    chances = [chance_of(acceptance, block_length)] * _MOST_MASKS
    rows = []
    for load in loads:
        linear = fixed_rate(machine.curve, chances, Plan("linear", block_length, 0), load)
        ar = fixed_rate(machine.curve, chances, Plan("ar", 0, 0), load)
        best = best_fixed(machine.curve, chances, _MOST_MASKS, load)
        rows.append(
            {
                "load": load,
                "ar": load * ar,
                "linear": load * linear,
                "auto": load * best.rate,
                "auto_plan": best.kind + (f" {best.size}" if best.size else ""),
                "best": "ar" if ar >= linear else "linear",
            }
        )
    return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What all clients together ask for."""

    requests_per_second: float
    prompt_tokens: int
    """Of a request, on average, without those that the prefix cache has."""
    answer_tokens: int
    """Of a request, on average."""

    def __post_init__(self) -> None:
        check_range("requests_per_second", self.requests_per_second, 0, None, exclusive_low=True)
        check_range("prompt_tokens", self.prompt_tokens, 1, None)
        check_range("answer_tokens", self.answer_tokens, 1, None)


def capacity(
    machine: Machine, rates: Sequence[Mapping[str, Any]], demand: Demand
) -> list[dict[str, Any]]:
    """How many replicas a demand needs, by how many requests each of them decodes at a time.

    A request takes a replica's whole time for the pass that reads its prompt, and its share of the
    passes that it has with others. If `n` requests share a replica, each lasts `n` times as long.

    Args:
        machine: what a replica's passes cost.
        rates: rows of `expect`.
        demand: of all clients.

    Returns:
        For each load: `answer_seconds` from admission to the end, `requests_per_second` of a
        replica that is never idle, and the `replicas` that keep `BUSY`, in `auto` and in `ar`.
    """
    reading = machine.curve.seconds(demand.prompt_tokens)
    rows = []
    for rate in rates:
        busy = {mode: reading + demand.answer_tokens / rate[mode] for mode in ("auto", "ar")}
        needed = {mode: demand.requests_per_second * busy[mode] / BUSY for mode in busy}
        rows.append(
            {
                "load": rate["load"],
                "answer_seconds": rate["load"] * busy["auto"],
                "requests_per_second": 1 / busy["auto"],
                "replicas": math.ceil(needed["auto"]),
                "replicas_ar": math.ceil(needed["ar"]),
            }
        )
    return rows
