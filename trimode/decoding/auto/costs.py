"""What a pass costs, as a function of its rows. `trimode.engine.costs` measures it."""

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CostCurve:
    """Seconds of a pass by its rows, on one machine and model."""

    rows: tuple[int, ...]
    """Row counts measured, rising."""
    plain: tuple[float, ...]
    """Seconds of a pass whose rows run without the adapter."""
    adapted: tuple[float, ...]
    """Seconds of a pass whose rows but one run with it."""
    sequence: float = 0.0
    """Seconds that each further sequence adds to a pass: its rows see another KV cache."""

    @property
    def efficient_rows(self) -> int:
        """Rows from which a larger pass saves at most a quarter of the time of a row."""
        bar = 1.25 * self.plain[-1] / self.rows[-1]
        costs = zip(self.rows, self.plain, strict=True)
        return next(rows for rows, seconds in costs if seconds / rows <= bar)

    def rows_within(self, seconds: float, most: int) -> int:
        """Rows of the largest pass that takes at most `seconds`; from 1 to `most`."""
        return max(1, bisect_right(range(1, most + 1), seconds, key=self.seconds))

    def seconds(self, rows: float, *, sequences: int = 1, drafting: bool = False) -> float:
        """Time of a pass: linear between measured points, and beyond the last two."""
        return self._alone(rows, self.adapted if drafting else self.plain) + self.sequence * (
            sequences - 1
        )

    def _alone(self, rows: float, times: tuple[float, ...]) -> float:
        if len(self.rows) == 1:
            return times[0]
        i = min(max(bisect_left(self.rows, rows), 1), len(self.rows) - 1)
        low, high = self.rows[i - 1], self.rows[i]
        slope = (times[i] - times[i - 1]) / (high - low)
        return max(times[i - 1] + slope * (rows - low), 1e-9)


def break_even(costs: CostCurve, masks: int) -> float:
    """Acceptance length from which `linear` with `masks` masks beats `ar` for one sequence."""
    cycle = costs.seconds(1 + masks, drafting=True) + costs.seconds(masks)
    ratio = cycle / costs.seconds(1)
    return ratio if math.isfinite(ratio) else math.inf
