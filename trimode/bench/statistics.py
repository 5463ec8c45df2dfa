"""Intervals by the bootstrap: what a figure would be if other prompts of the kind had come."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp
from statistics import NormalDist

import numpy as np

LEAST_UNITS = 4
"""Fewest prompts that an interval can be made of."""
LEAST_GROUPS = 8
"""Fewest groups that are drawn instead of prompts. A disturbance of the machine hits the prompts of
a group together, so groups are the safer unit."""
_DRAWS = 4000


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and the bounds that hold it with the given confidence."""

    estimate: float
    low: float | None
    """None if there are too few prompts for bounds."""
    high: float | None
    units: int
    """Prompts or groups that it was made of."""

    @property
    def known(self) -> bool:
        """Whether it has bounds."""
        return self.low is not None

    def exp(self) -> "Interval":
        """The interval of e to the power of the figure."""
        low, high = (None if bound is None else exp(bound) for bound in (self.low, self.high))
        return Interval(exp(self.estimate), low, high, self.units)


@dataclass(frozen=True, slots=True)
class Pair:
    """What the same prompt, or group of prompts, took with the baseline and with a setting."""

    base_tokens: float
    base_seconds: float
    tokens: float
    seconds: float


def speedup(pairs: Sequence[Pair], *, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Tokens a second of a setting over those of the baseline, on the same prompts.

    Args:
        pairs: one for each prompt or group.
        confidence: that the bounds hold the ratio.
        seed: of the draws.
    """
    table = np.array([[p.base_tokens, p.base_seconds, p.tokens, p.seconds] for p in pairs])

    def log_ratio(sums: np.ndarray) -> np.ndarray:
        base_tokens, base_seconds, tokens, seconds = np.moveaxis(sums, -1, 0)
        safe = np.maximum([base_tokens, base_seconds, tokens, seconds], 1e-12)
        return np.log(safe[2] / safe[3]) - np.log(safe[0] / safe[1])

    return _bootstrap(table, log_ratio, confidence, seed).exp()


def ratio_of_sums(
    numerators: Sequence[float], denominators: Sequence[float], *, confidence: float = 0.95
) -> Interval:
    """A ratio of two sums, such as tokens a second, over prompts."""
    table = np.array([numerators, denominators], dtype=float).T

    def log_ratio(sums: np.ndarray) -> np.ndarray:
        return np.log(np.maximum(sums[..., 0], 1e-12)) - np.log(np.maximum(sums[..., 1], 1e-12))

    return _bootstrap(table, log_ratio, confidence, 0).exp()


def mean(values: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """A mean over prompts, such as a score or a difference of scores."""
    table = np.array([values, [1.0] * len(values)]).T
    return _bootstrap(table, lambda sums: sums[..., 0] / sums[..., 1], confidence, 0)


def _bootstrap(
    table: np.ndarray, figure: Callable[[np.ndarray], np.ndarray], confidence: float, seed: int
) -> Interval:
    """The figure of all rows' sums, and of rows drawn again and again."""
    count = len(table)
    estimate = float(figure(table.sum(0)))
    if count < LEAST_UNITS:
        return Interval(estimate, None, None, count)
    drawn = np.random.default_rng(seed).multinomial(count, [1 / count] * count, size=_DRAWS)
    figures = figure(drawn @ table)
    tail = (1 - confidence) / 2
    low, high = np.quantile(figures, [tail, 1 - tail])
    # The bootstrap of few units is too narrow: by the first factor, and as much as a normal
    # distribution is beside Student's.
    wider = (count / (count - 1)) ** 0.5 * _student_over_normal(1 - tail, count - 1)
    return Interval(
        estimate,
        float(estimate - wider * (estimate - low)),
        float(estimate + wider * (high - estimate)),
        count,
    )


def _student_over_normal(quantile: float, freedom: int) -> float:
    """Student's quantile over the normal one, by Cornish and Fisher's expansion."""
    z = NormalDist().inv_cdf(quantile)
    first = (z**3 + z) / (4 * freedom)
    second = (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return (z + first + second) / z
