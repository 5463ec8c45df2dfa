"""What `auto` does next: the plan with most tokens a second on this machine, for this text.

A plan is one or two passes. Its rate is the tokens it is expected to make over the time it takes:

    ar           1               / c(n)
    lookup, k    (1 + A(k) / n)  / c(n + k)
    head, k      (1 + H)         / c(n (1 + k))
    linear, m    (2 + A(m - 1))  / (c(n (1 + m)) + c(n m))
    quadratic, m (1 + A(m - 1))  / c(n m (m + 1))

c(r) is the measured time of a pass of r rows over the KV caches of n sequences. A(k) is how many of
k drafted tokens are expected to be accepted. k counts drafted tokens and m counts masks; the first
mask stands where the pass's own causal row decides. A draft head's drafts have as many nodes as
pay; k and H, the tokens accepted of one, are means of those before. Two simplifications: all n
sequences draft in the same pass, and only one of them finds something by lookup. The time that
decoders take before a pass is observed and added.

Every plan emits AR's tokens, so a wrong choice costs time and nothing else. Diffusion does not emit
AR's tokens, and is never chosen.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate, pairwise

from trimode.decoding.auto.acceptance import (
    Acceptance,
    DraftRecord,
    expected_run,
    expected_runs,
)
from trimode.decoding.auto.costs import CostCurve
from trimode.decoding.events import PlanKind

MAX_TREE_NODES = 24
"""Most drafted tokens that a verify pass checks; the policy decides how many of them pay."""
MAX_TREE_MASKS = 8
"""A quadratic pass has m (m + 1) rows; more masks than these never paid anywhere."""
MAX_HEAD_NODES = 8
"""Most nodes of a draft head's draft; a head knows little of what comes later."""
_DRAFT_SIZES = (3, 4, 5, 6, 8, 12, 16, 24, 32)
_EXPLORE_AFTER = 64
"""Tokens of each request in a batch after which one of them explores: it takes the plan that would
be best if drafts were better than they are thought to be. All learn from it."""
_MOST_PATIENCE = 8
"""The same counts for so many times as many tokens at most, if exploring has not paid."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do next, and how many tokens a second that is expected to make."""

    kind: PlanKind
    size: int
    """Masks of `linear` and `quadratic`, draft tokens of `lookup`, nodes of `head`, 0 of `ar`."""
    rate: float
    accepted: float = 0.0
    """Tokens of its draft that are expected to be accepted."""


@dataclass(frozen=True, slots=True)
class NodeWorth:
    """When a further node of a draft is worth its row.

    It must add relatively more to the tokens of the pass than to its time.
    """

    shares: tuple[float, ...]
    """By how much a pass with 0, 1, 2, ... nodes takes longer with one more, relatively."""
    trust: float
    """Tokens accepted for each that the draft's chances promise."""

    def least_chance(self, chances: Sequence[float]) -> float:
        """The chance that the node after these needs."""
        tokens = 1 + self.trust * sum(chances)
        return tokens * self.shares[len(chances)] / self.trust


@dataclass(slots=True)
class BatchLoad:
    """What is known of the batch; the engine and all policies share it."""

    sequences: int = 1
    """How many share a pass."""
    unexplored: int = 0
    """Tokens of all requests since one of them explored."""
    patience: int = 1
    """Doubles whenever a draft of passes was explored and did not pay."""
    explored: PlanKind | None = None
    """The plan explored last."""
    decoder_seconds: dict[PlanKind, float] = field(default_factory=dict)
    """Time that a sequence's decoder takes before a pass of a plan: sampling, drafting."""

    def observe_decoder(self, kind: PlanKind, seconds: float) -> None:
        """Learn how long a decoder took; a single disturbance, the first one too, counts little."""
        before = self.decoder_seconds.get(kind, seconds)
        share = 0.3 if seconds < before else 0.05
        self.decoder_seconds[kind] = before + share * (min(seconds, 4 * before) - before)


@dataclass(slots=True)
class Policy:
    """The choices of one request."""

    costs: CostCurve
    drafts: Acceptance
    lookups: Acceptance
    load: BatchLoad = field(default_factory=BatchLoad)
    predictions: Acceptance = field(default_factory=Acceptance)
    """Of what lookup found in the request's prediction."""
    can_draft: bool = True
    """Whether the model's own drafts are worth anything."""
    heads: DraftRecord | None = None
    """What the draft head's drafts bring; None if there is no head."""
    _pass_seconds: dict[tuple[PlanKind, int, int], float] = field(default_factory=dict)
    """Time of the plans compared so far, by kind, size and load."""
    _row_seconds: dict[int, list[float]] = field(default_factory=dict)
    """Time of passes of 1, 2, 3, ... rows a sequence, by load."""
    _drafts_can_pay: dict[tuple[int, int], bool] = field(default_factory=dict)
    """Whether any draft could pay, by load and most masks."""
    _best_own: tuple[tuple[int, int, int] | None, Plan] = (None, Plan("ar", 0, 0.0))
    """The best of `ar` and the model's own drafts, and what it was chosen for: masks, load, and how
    many drafts had been judged."""

    def choose(self, *, lookup: int, masks: int, predicted: bool = False) -> Plan:
        """The best plan.

        Args:
            lookup: length of the draft that lookup has found; 0 for none.
            masks: most masks that fit.
            predicted: whether lookup found it in the request's prediction.
        """
        load = self.load
        copies = self._copies(lookup, self.predictions if predicted else self.lookups)
        if load.unexplored >= _EXPLORE_AFTER * load.sequences * load.patience:
            load.unexplored = 0
            plans = [
                *(self._plan("ar", 0, 0.0), *self._heads(), *copies),
                *self._own_drafts(masks),
            ]
            best = _fastest(plans)
            in_vain = best.kind in ("ar", "head") and load.explored not in (None, best.kind)
            load.patience = min(2 * load.patience, _MOST_PATIENCE) if in_vain else 1
            found = self._hopeful(best, plans)
            load.explored = found.kind
            return found
        situation = masks, load.sequences, self.drafts.judgements
        if self._best_own[0] != situation:
            plans = [self._plan("ar", 0, 0.0), *self._own_drafts(masks)]
            self._best_own = situation, _fastest(plans)
        return _fastest([self._best_own[1], *self._heads(), *copies])

    def paying_size(self, kind: PlanKind, most: int) -> int:
        """The size of `linear` or `quadratic`, up to `most`, that makes most tokens a second."""
        drafted = self._drafted(most)
        plans = [self._plan(kind, m, drafted[m - 1]) for m in _sizes(most, least=2)]
        return _fastest(plans).size if plans else most

    def _heads(self) -> list[Plan]:
        """The plan that drafts with the draft head, if there is one."""
        heads = self.heads
        if heads is None:
            return []
        # A draft ends where no further node pays, so the mean of its nodes is what matters.
        n, nodes = self.load.sequences, heads.nodes
        seconds = self.costs.seconds(n * (1 + nodes), sequences=n)
        seconds += self.load.decoder_seconds.get("head", 0.0) * n
        return [Plan("head", round(nodes), (1 + heads.accepted) / seconds)]

    def node_worth(self) -> "NodeWorth":
        """When a further node of a draft head's draft is worth its row, at this load."""
        assert self.heads is not None
        n = self.load.sequences
        if n not in self._row_seconds:
            rows = range(1, MAX_HEAD_NODES + 2)
            self._row_seconds[n] = [self.costs.seconds(n * k, sequences=n) for k in rows]
        seconds = self._row_seconds[n]
        between = self.load.decoder_seconds.get("head", 0.0) * n
        more = [after - before for before, after in pairwise(seconds)]
        shares = [m / (before + between) for m, before in zip(more, seconds, strict=False)]
        return NodeWorth(tuple(shares), self.heads.trust)

    def _copies(self, most: int, known: Acceptance) -> list[Plan]:
        """Plans that check what stood in the text before."""
        if not most:
            return []
        copied = expected_runs(known.chances(most))
        return [self._plan("lookup", k, copied[k]) for k in _sizes(most, least=1)]

    def _own_drafts(self, masks: int) -> list[Plan]:
        """Plans that draft with the model itself."""
        plans: list[Plan] = []
        if self.can_draft and self._drafts_could_pay(masks):
            drafted = self._drafted(masks)
            for m in _sizes(masks, least=2):
                plans.append(self._plan("linear", m, drafted[m - 1]))
                if m <= MAX_TREE_MASKS:
                    plans.append(self._plan("quadratic", m, drafted[m - 1]))
        return plans

    def _drafts_could_pay(self, masks: int) -> bool:
        """Whether a draft of the model would beat `ar` if it were accepted whole."""
        situation = self.load.sequences, masks
        if situation not in self._drafts_can_pay:
            ar = self.rate("ar", 0, 0.0)
            sizes = _sizes(masks, least=2)
            rates = [self.rate("linear", m, m - 1) for m in sizes]
            rates += [self.rate("quadratic", m, m - 1) for m in sizes if m <= MAX_TREE_MASKS]
            self._drafts_can_pay[situation] = max(rates, default=0.0) > ar
        return self._drafts_can_pay[situation]

    def _hopeful(self, best: Plan, plans: Sequence[Plan]) -> Plan:
        """The plan that would be best if drafts were better than they are thought to be.

        Drafts that are not made are not judged. Without exploring, a run of bad luck would never
        be forgotten.
        """
        if best.kind in ("ar", "head"):
            # The shortest draft that would win if it were accepted whole: its first places decide.
            for plan in plans:
                if plan.kind == "head" and best.kind == "ar" and self.load.explored != "head":
                    return plan
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
        node adds a token if it and the path that leads to it are right.
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
        situation = kind, size, self.load.sequences
        if situation not in self._pass_seconds:
            self._pass_seconds[situation] = self._measured(kind, size, self.load.sequences)
        passes = 2 if kind == "linear" else 1
        between = self.load.decoder_seconds.get(kind, 0.0)
        return self._pass_seconds[situation] + passes * between * self.load.sequences

    def _measured(self, kind: PlanKind, size: int, n: int) -> float:
        def passes(rows: int, *, drafting: bool = False) -> float:
            return self.costs.seconds(n * rows, sequences=n, drafting=drafting)

        match kind:
            case "ar" | "lookup":
                return self.costs.seconds(n + size, sequences=n)
            case "head":
                return passes(1 + size)
            case "linear":
                return passes(1 + size, drafting=True) + passes(size)
            case "quadratic":
                return passes(size * (size + 1), drafting=True)

    def rate(self, kind: PlanKind, size: int, accepted: float) -> float:
        """Tokens a second of each sequence if so many tokens of the draft are accepted."""
        if kind == "lookup":
            return (1 + accepted / self.load.sequences) / self.seconds(kind, size)
        alone = 2 if kind == "linear" else 1
        return (alone + accepted) / self.seconds(kind, size)

    def _drafted(self, most: int) -> list[float]:
        """Tokens expected to be accepted of 0, 1, 2, ... drafted by the model."""
        trust = self.drafts.trust
        return [trust * run for run in expected_runs(self.drafts.chances(most))]

    def _plan(self, kind: PlanKind, size: int, accepted: float) -> Plan:
        return Plan(kind, size, self.rate(kind, size, accepted), accepted)


def _fastest(plans: Sequence[Plan]) -> Plan:
    return max(plans, key=lambda plan: plan.rate)


@lru_cache(maxsize=256)
def _sizes(most: int, *, least: int) -> list[int]:
    """Sizes worth comparing, up to `most`."""
    sizes = [size for size in (1, 2, *_DRAFT_SIZES) if least <= size <= most]
    return sizes if not sizes or sizes[-1] == most or most > _DRAFT_SIZES[-1] else [*sizes, most]
