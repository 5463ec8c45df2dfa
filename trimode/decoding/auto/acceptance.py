"""How likely drafted tokens are to be accepted, learned from the drafts that were verified."""

from collections.abc import Sequence
from dataclasses import dataclass, field

_PRIOR_WEIGHT = 4.0
_RECORD_WEIGHT = 24.0
"""Drafts of a head that what is known before counts as. With few, a run of places where the head
is not sure ends its drafts, and while there are none nothing is learned about them."""


@dataclass(slots=True)
class Trust:
    """Accepted tokens for each that was expected of a draft. Counts fade."""

    _hoped: float = 0.0
    _accepted: float = 0.0

    def value(self, known: float) -> float:
        """The ratio; `known` before anything is counted."""
        return (known * _PRIOR_WEIGHT + self._accepted) / (_PRIOR_WEIGHT + self._hoped)

    def count(self, hoped: float, accepted: int, keep: float) -> None:
        """Take note of a draft; `keep` is the share of the earlier counts that stays."""
        self._hoped = self._hoped * keep + hoped
        self._accepted = self._accepted * keep + accepted


@dataclass(slots=True)
class Acceptance:
    """Chance that each drafted token is accepted once those before it were.

    Counts fade, so that a change of topic shows within a few drafts. A place without counts takes
    its chance from `prior`: a request begins with what its predecessors saw.
    """

    keep: float = 0.9
    """Share of the counts that stays when a new draft is judged."""
    first: float = 0.6
    """The chance before anything is known."""
    known: Sequence[float] = ()
    """Chances of the first places, measured before; a place after them is like the last."""
    prior: "Acceptance | None" = None
    _accepted: list[float] = field(default_factory=list)
    _judged: list[float] = field(default_factory=list)
    _count: int = 0
    _trust: Trust = field(default_factory=Trust)

    @property
    def trust(self) -> float:
        """Accepted tokens for each that was expected when a draft was decided on.

        A draft that was made and not worth verifying was expected to bring something too.
        """
        return self._trust.value(self.prior.trust if self.prior else 1.0)

    def settle(self, hoped: float, accepted: int) -> None:
        """Compare what a draft was expected to bring with what it brought."""
        self._trust.count(hoped, accepted, self.keep)
        if self.prior is not None:
            self.prior.settle(hoped, accepted)

    @property
    def judgements(self) -> int:
        """Drafts judged so far, the prior's too."""
        return self._count + (self.prior.judgements if self.prior else 0)

    def chances(self, count: int) -> list[float]:
        """The chance of each of the first `count` tokens of a draft."""
        before = self.prior.chances(count) if self.prior else []
        found: list[float] = []
        chance = self.first
        for place in range(count):
            if before:  # without a prior, an unreached place is taken to be like the one before it
                chance = before[place]
            elif place < len(self.known):
                chance = self.known[place]
            if place < len(self._judged):
                known = chance * _PRIOR_WEIGHT + self._accepted[place]
                chance = known / (_PRIOR_WEIGHT + self._judged[place])
            found.append(chance)
        return found

    def chance(self, place: int) -> float:
        """The chance of the token `place` places after the first of a draft."""
        return self.chances(place + 1)[place]

    def expected(self, drafted: int) -> float:
        """Tokens of a draft that are expected to be accepted."""
        return expected_run(self.chances(drafted))

    def judge(self, judged: int, accepted: int) -> None:
        """Learn from a draft: of its first `judged` places the first `accepted` were right.

        Nothing is learned about places after the first wrong one, or about what was never drafted.
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


@dataclass(slots=True)
class DraftRecord:
    """What the drafts of a draft head have brought. Such a draft has as many nodes as pay.

    Means fade, as in `Acceptance`, and begin with those of `prior`, or with the given ones.
    """

    keep: float = 0.98
    prior: "DraftRecord | None" = None
    first_nodes: float = 1.5
    """Nodes of a draft before anything is known."""
    first_accepted: float = 0.6
    """Tokens accepted of a draft before anything is known."""
    _drafts: float = 0.0
    _nodes: float = 0.0
    _accepted: float = 0.0
    _trust: Trust = field(default_factory=Trust)

    @property
    def nodes(self) -> float:
        """Nodes of a draft."""
        return self._mean(self._nodes, self.prior.nodes if self.prior else self.first_nodes)

    @property
    def accepted(self) -> float:
        """Tokens accepted of a draft."""
        known = self.prior.accepted if self.prior else self.first_accepted
        return self._mean(self._accepted, known)

    @property
    def trust(self) -> float:
        """Accepted tokens for each that the head's own chances promised."""
        return self._trust.value(self.prior.trust if self.prior else 1.0)

    def judge(self, nodes: int, hoped: float, accepted: int) -> None:
        """Learn from a draft: its nodes, the sum of their chances, the tokens accepted."""
        self._drafts = self._drafts * self.keep + 1
        self._nodes = self._nodes * self.keep + nodes
        self._accepted = self._accepted * self.keep + accepted
        self._trust.count(hoped, accepted, self.keep)
        if self.prior is not None:
            self.prior.judge(nodes, hoped, accepted)

    def _mean(self, total: float, known: float) -> float:
        return (known * _RECORD_WEIGHT + total) / (_RECORD_WEIGHT + self._drafts)


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
