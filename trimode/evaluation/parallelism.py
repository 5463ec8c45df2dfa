"""Figures of accuracy and speed together."""

import math
from collections.abc import Sequence
from itertools import pairwise

ALPHA = 3.0
"""How fast accuracy below the best loses its weight."""
MOST_LOSS = 5.0
"""Percentage points below the slowest setting from which a setting does not count at all."""
_Z = 1.959964
"""Of a two-sided interval of 95 %."""


def accuracy_under_parallelism(
    points: Sequence[tuple[float, float]], best: float | None = None
) -> float:
    """AUP: the area under accuracy over tokens per forward pass, where low accuracy counts little.

    With settings in order of TPF `r` and accuracy `y` in percent, those more than 5 points below
    the first one dropped: `r1 y1 + sum (r_i - r_(i-1)) (y_i W(y_i) + y_(i-1) W(y_(i-1))) / 2` with
    `W(y) = min(exp(-3 (1 - y / best)), 1)`. Definition: Qian et al., "AUP: when Accuracy Meets
    Parallelism in Diffusion Language Models", 2025.

    Args:
        points: (TPF, accuracy from 0 to 1) of each setting.
        best: the best accuracy of anything compared, from 0 to 1; by default that of the points.
    """
    if not points:
        raise ValueError("AUP needs a setting at least")
    ordered = sorted((r, 100 * y) for r, y in points)
    top = 100 * best if best is not None else max(y for _, y in ordered)
    first = ordered[0][1]
    kept = [(r, y) for r, y in ordered if y >= first - MOST_LOSS]

    def weighted(y: float) -> float:
        return y * min(math.exp(-ALPHA * (1 - y / top)), 1.0) if top else 0.0

    area = kept[0][0] * kept[0][1]
    for (left, before), (right, after) in pairwise(kept):
        area += (right - left) * (weighted(after) + weighted(before)) / 2
    return area


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of a mean of values from 0 to 1.

    Wilson's for values that are 0 or 1; the normal one for others.
    """
    n = len(values)
    if not n:
        return 0.0, 1.0
    mean = sum(values) / n
    if all(value in (0, 1) for value in values):
        spread = _Z / (1 + _Z**2 / n)
        half = spread * math.sqrt(mean * (1 - mean) / n + _Z**2 / (4 * n**2))
        middle = (mean + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    else:
        variance = sum((value - mean) ** 2 for value in values) / max(1, n - 1)
        half, middle = _Z * math.sqrt(variance / n), mean
    return max(0.0, middle - half), min(1.0, middle + half)
