"""What `auto` does next: the plan with most tokens a second on this machine, for this text.

A plan is one or two passes. With c(r) the measured time of a pass of r rows over the KV caches of n
sequences, which are taken to do likewise, and A(k) the drafted tokens of k that are expected to be
accepted, the plans and their tokens a second for each sequence are

    ar           1               / c(n)
    lookup, k    (1 + A(k) / n)  / c(n + k)               the draft is text seen before: it is free
    linear, m    (2 + A(m - 1))  / (c(n (1 + m)) + c(n m))
    quadratic, m (1 + A(m - 1))  / c(n m (m + 1))

Sequences that draft are taken to do so together; what lookup finds, one finds and the others not.
m counts masks; the first stands where the pass's own causal row decides. All emit AR's tokens, so
nothing but time hangs on the choice. To a pass comes what the decoders take between passes, as
observed. Diffusion does not emit AR's tokens, and is never chosen.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate

from trimode.decoding.events import PlanKind

MAX_TREE_NODES = 24
"""Most drafted tokens that a verify pass checks; how many pay is decided by what they cost."""
MAX_TREE_MASKS = 8
"""A quadratic pass has m (m + 1) rows; more masks than these never paid anywhere."""
_DRAFT_SIZES = (3, 4, 5, 6, 8, 12, 16, 24, 32)
_PRIOR = 0.6
"""Chance that a drafted token is accepted, before anything is known."""
_PRIOR_WEIGHT = 4.0
_EXPLORE_AFTER = 64
"""Tokens of each request in a batch after which one of them tries what would be best if drafts were
better than thought. All learn from it."""


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
    """Seconds that each further sequence adds to a pass, whose rows see another KV cache."""

    @property
    def efficient_rows(self) -> int:
        """From how many rows on a larger pass hardly costs less a row: a quarter at most."""
        bar = 1.25 * self.plain[-1] / self.rows[-1]
        costs = zip(self.rows, self.plain, strict=True)
        return next(rows for rows, seconds in costs if seconds / rows <= bar)

    def rows_within(self, seconds: float, most: int) -> int:
        """Rows of the largest pass that takes no longer; at least 1, at most `most`."""
        return max(1, bisect_right(range(1, most + 1), seconds, key=self.seconds))

    def seconds(self, rows: int, *, sequences: int = 1, drafting: bool = False) -> float:
        """Time of a pass: linear between measured points, and beyond the last two."""
        return self._alone(rows, self.adapted if drafting else self.plain) + self.sequence * (
            sequences - 1
        )

    def _alone(self, rows: int, times: tuple[float, ...]) -> float:
        if len(self.rows) == 1:
            return times[0]
        i = min(max(bisect_left(self.rows, rows), 1), len(self.rows) - 1)
        low, high = self.rows[i - 1], self.rows[i]
        slope = (times[i] - times[i - 1]) / (high - low)
        return max(times[i - 1] + slope * (rows - low), 1e-9)


@dataclass(slots=True)
class Acceptance:
    """Chance that each drafted token is accepted once those before it were.

    Counts fade, so that a change of topic shows within a few drafts. What is unknown is taken from
    `prior`: a request begins with what its predecessors saw.
    """

    keep: float = 0.9
    """Share of the counts that stays when a new draft is judged."""
    prior: "Acceptance | None" = None
    _accepted: list[float] = field(default_factory=list)
    _judged: list[float] = field(default_factory=list)
    _count: int = 0

    @property
    def judgements(self) -> int:
        """Drafts judged so far, the prior's too."""
        return self._count + (self.prior.judgements if self.prior else 0)

    def chances(self, count: int) -> list[float]:
        """For each of the first `count` tokens of a draft."""
        before = self.prior.chances(count) if self.prior else []
        found: list[float] = []
        chance = _PRIOR
        for place in range(count):
            if before:  # without: a place that was never reached is taken to be like its neighbour
                chance = before[place]
            if place < len(self._judged):
                known = chance * _PRIOR_WEIGHT + self._accepted[place]
                chance = known / (_PRIOR_WEIGHT + self._judged[place])
            found.append(chance)
        return found

    def chance(self, place: int) -> float:
        """For the token `place` places behind the first of a draft."""
        return self.chances(place + 1)[place]

    def expected(self, drafted: int) -> float:
        """Tokens of a draft that are expected to be accepted."""
        return expected_run(self.chances(drafted))

    def judge(self, judged: int, accepted: int) -> None:
        """Learn from a draft: of its first `judged` places the first `accepted` were right.

        What stands behind the first wrong one is unknown, and so is what was never drafted.
        """
        self._count += 1
        judged = min(judged, accepted + 1)
        while len(self._judged) < judged:
            self._judged.append(0.0)
            self._accepted.append(0.0)
        for place in range(judged):
            self._judged[place] = self._judged[place] * self.keep + 1
            self._accepted[place] = self._accepted[place] * self.keep + (place < accepted)
        if self.prior is not None:
            self.prior.judge(judged, accepted)


def expected_runs(chances: Sequence[float]) -> list[float]:
    """Expected length of the leading run of successes among the first 0, 1, 2, ... trials."""
    totals, all_so_far = [0.0], 1.0
    for chance in chances:
        all_so_far *= chance
        totals.append(totals[-1] + all_so_far)
    return totals


def expected_run(chances: Sequence[float]) -> float:
    """Expected length of the leading run of successes."""
    return expected_runs(chances)[-1]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do next, and how many tokens a second that is expected to make."""

    kind: PlanKind
    size: int
    """Masks of `linear` and `quadratic`, draft tokens of `lookup`, 0 of `ar`."""
    rate: float


@dataclass(slots=True)
class Load:
    """What is known of the batch; the engine and all policies share it."""

    sequences: int = 1
    """How many share a pass."""
    unexplored: int = 0
    """Tokens of all requests since one of them explored."""
    work: dict[PlanKind, float] = field(default_factory=dict)
    """Seconds that a sequence's decoder takes between two passes of a plan: sampling, drafting."""

    def took(self, kind: PlanKind, seconds: float) -> None:
        """Learn how long a decoder took; what disturbs it once counts little."""
        before = self.work.get(kind, seconds)
        self.work[kind] = before + 0.05 * (min(seconds, 4 * before) - before)


@dataclass(slots=True)
class Policy:
    """The choices of one request."""

    costs: CostCurve
    drafts: Acceptance
    lookups: Acceptance
    load: Load = field(default_factory=Load)
    can_draft: bool = True
    """Whether the model's own drafts are worth anything."""
    _seconds: dict[tuple[PlanKind, int, int], float] = field(default_factory=dict)
    """Of the plans asked for so far, by kind, size and load."""
    _hopes: dict[tuple[int, int], bool] = field(default_factory=dict)
    """Whether any draft could pay, by load and most masks."""
    _known: tuple[tuple[int, int, int] | None, Plan] = (None, Plan("ar", 0, 0.0))
    """The best plan without lookup, and what it was chosen for: masks, load, and how many drafts
    had been judged."""

    def choose(self, *, lookup: int, masks: int) -> Plan:
        """The best plan.

        Args:
            lookup: length of the draft that lookup has found; 0 for none.
            masks: most masks that fit.
        """
        if self.load.unexplored >= _EXPLORE_AFTER * self.load.sequences:
            self.load.unexplored = 0
            plans = [self._plan("ar", 0, 0.0), *self._copies(lookup), *self._own_drafts(masks)]
            return self._hopeful(_fastest(plans), plans)
        asked = masks, self.load.sequences, self.drafts.judgements
        if self._known[0] != asked:
            self._known = asked, _fastest([self._plan("ar", 0, 0.0), *self._own_drafts(masks)])
        best = self._known[1]
        return _fastest([best, *self._copies(lookup)]) if lookup else best

    def _copies(self, most: int) -> list[Plan]:
        """Plans that check what stood in the text before."""
        copied = expected_runs(self.lookups.chances(most))
        return [self._plan("lookup", k, copied[k]) for k in _sizes(most, least=1)]

    def _own_drafts(self, masks: int) -> list[Plan]:
        """Plans that draft with the model itself."""
        plans: list[Plan] = []
        if self.can_draft and self._drafts_could_pay(masks):
            drafted = expected_runs(self.drafts.chances(masks))
            for m in _sizes(masks, least=2):
                plans.append(self._plan("linear", m, drafted[m - 1]))
                if m <= MAX_TREE_MASKS:
                    plans.append(self._plan("quadratic", m, drafted[m - 1]))
        return plans

    def _drafts_could_pay(self, masks: int) -> bool:
        """Whether a draft of the model would beat `ar` if it were accepted whole."""
        asked = self.load.sequences, masks
        if asked not in self._hopes:
            ar = self.rate("ar", 0, 0.0)
            sizes = _sizes(masks, least=2)
            rates = [self.rate("linear", m, m - 1) for m in sizes]
            rates += [self.rate("quadratic", m, m - 1) for m in sizes if m <= MAX_TREE_MASKS]
            self._hopes[asked] = max(rates, default=0.0) > ar
        return self._hopes[asked]

    def _hopeful(self, best: Plan, plans: Sequence[Plan]) -> Plan:
        """What would be best if drafts were better than they are thought to be.

        Drafts that are not made are not judged, so a run of bad luck would never be forgotten.
        """
        if best.kind == "ar":
            # The shortest draft that would win if it were accepted whole: its first places decide.
            for plan in plans:
                if plan.kind in ("lookup", "linear"):
                    drafted = plan.size - (plan.kind == "linear")
                    if self.rate(plan.kind, plan.size, drafted) > best.rate:
                        return plan
            return best
        first = self.drafts.chance(0)

        def hoped(plan: Plan) -> float:
            if plan.kind not in ("linear", "quadratic"):
                return plan.rate
            return self.rate(plan.kind, plan.size, expected_run([first] * (plan.size - 1)))

        return max(plans, key=hoped)

    def worth_checking(self, chances: Sequence[float], masks: int) -> int:
        """How many nodes of a linear draft to verify, given the chance of each path to be right.

        Maximises the tokens a second of the whole cycle, whose draft of `masks` masks is done. A
        node adds a token where the path that leads to it and it are right.
        """
        n = self.load.sequences
        spent = self.costs.seconds(n * (1 + masks), sequences=n, drafting=True)
        accepted = [0.0, *accumulate(chances)]

        def rate(k: int) -> float:
            return (2 + accepted[k]) / (spent + self.costs.seconds(n * (1 + k), sequences=n))

        return max(range(len(chances) + 1), key=rate)

    def committed(self, tokens: int) -> None:
        """Count tokens, for the next exploration."""
        self.load.unexplored += tokens

    def seconds(self, kind: PlanKind, size: int) -> float:
        """Time of a plan's passes for the whole batch."""
        asked = kind, size, self.load.sequences
        if asked not in self._seconds:
            self._seconds[asked] = self._measured(kind, size, self.load.sequences)
        passes = 2 if kind == "linear" else 1
        work = self.load.work.get(kind, 0.0)
        return self._seconds[asked] + passes * work * self.load.sequences

    def _measured(self, kind: PlanKind, size: int, n: int) -> float:
        def passes(rows: int, *, drafting: bool = False) -> float:
            return self.costs.seconds(n * rows, sequences=n, drafting=drafting)

        match kind:
            case "ar" | "lookup":
                return self.costs.seconds(n + size, sequences=n)
            case "linear":
                return passes(1 + size, drafting=True) + passes(size)
            case "quadratic":
                return passes(size * (size + 1), drafting=True)

    def rate(self, kind: PlanKind, size: int, accepted: float) -> float:
        """Tokens a second of each sequence, where so many tokens of the draft are accepted."""
        if kind == "lookup":
            return (1 + accepted / self.load.sequences) / self.seconds(kind, size)
        alone = 2 if kind == "linear" else 1
        return (alone + accepted) / self.seconds(kind, size)

    def _plan(self, kind: PlanKind, size: int, accepted: float) -> Plan:
        return Plan(kind, size, self.rate(kind, size, accepted))


def _fastest(plans: Sequence[Plan]) -> Plan:
    return max(plans, key=lambda plan: plan.rate)


@lru_cache(maxsize=256)
def _sizes(most: int, *, least: int) -> list[int]:
    """Sizes worth comparing, up to `most`."""
    sizes = [size for size in (1, 2, *_DRAFT_SIZES) if least <= size <= most]
    return sizes if not sizes or sizes[-1] == most or most > _DRAFT_SIZES[-1] else [*sizes, most]


def break_even(costs: CostCurve, masks: int) -> float:
    """Acceptance length from which `linear` with so many masks beats `ar` for one sequence."""
    cycle = costs.seconds(1 + masks, drafting=True) + costs.seconds(masks)
    ratio = cycle / costs.seconds(1)
    return ratio if math.isfinite(ratio) else math.inf
