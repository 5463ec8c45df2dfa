"""A simulated machine: how many tokens a second a plan or a policy would make on it.

Used to test `auto` against the best fixed plan, and to plan for machines that are not at hand.
"""

import random
from collections.abc import Sequence

from trimode.decoding import Acceptance, BatchLoad, CostCurve, Plan, Policy


def fixed_rate(costs: CostCurve, chances: Sequence[float], plan: Plan, sequences: int = 1) -> float:
    """Expected tokens a second of one of `sequences` requests that keep to one plan.

    Args:
        costs: of the machine.
        chances: of each drafted token to be accepted once those before it were.
        plan: `ar`, `linear` or `quadratic` with its size.
        sequences: requests in the batch.
    """
    accepted = _known(chances)
    policy = Policy(costs, accepted, accepted, BatchLoad(sequences))
    drafted = max(0, plan.size - 1)  # `ar` has none
    return policy.rate(plan.kind, plan.size, accepted.expected(drafted))


def best_fixed(costs: CostCurve, chances: Sequence[float], masks: int, sequences: int = 1) -> Plan:
    """The fixed plan with the highest expected rate."""
    accepted = _known(chances)
    return Policy(costs, accepted, accepted, BatchLoad(sequences)).choose(lookup=0, masks=masks)


class _Known(Acceptance):
    """Chances that are given, not learned."""

    given: Sequence[float]

    def chances(self, count: int) -> list[float]:
        return [*self.given[:count], *[0.0] * (count - len(self.given))]


def _known(chances: Sequence[float]) -> Acceptance:
    known = _Known()
    known.given = chances
    return known


def simulate(
    policy: Policy, chances: Sequence[float], tokens: int, *, masks: int = 32, seed: int = 0
) -> float:
    """Tokens a second of a request whose every step the policy chooses.

    Args:
        policy: learns as it goes; `policy.load` says how many requests do likewise.
        chances: of each drafted token to be accepted; the policy has to learn them.
        tokens: length of the answer.
        masks: most masks of a draft.
        seed: decides which tokens are accepted.
    """
    draw = random.Random(seed)
    made, seconds = 0, 0.0
    while made < tokens:
        plan = policy.choose(lookup=0, masks=masks)
        seconds += policy.seconds(plan.kind, plan.size)
        accepted = 0
        if plan.kind != "ar":
            drafted = plan.size - 1
            while accepted < drafted and draw.random() < _known(chances).chance(accepted):
                accepted += 1
            policy.drafts.judge(drafted, accepted)
        gained = accepted + (2 if plan.kind == "linear" else 1)
        policy.committed(gained * policy.load.sequences)  # the others did likewise
        made += gained
    return made / seconds
