"""`auto` on machines that exist on paper: its choices against the best fixed plan."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimode.decoding import (
    Acceptance,
    BatchLoad,
    CostCurve,
    DraftRecord,
    Plan,
    Policy,
    break_even,
)
from trimode.decoding.auto.acceptance import expected_run
from trimode.engine.simulation import best_fixed, fixed_rate, simulate

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def machine(milliseconds_at_128: float, floor: float = 10.0) -> CostCurve:
    """A pass takes `floor` ms until arithmetic takes longer."""
    times = tuple(max(floor, milliseconds_at_128 * rows / 128) / 1e3 for rows in ROWS)
    return CostCurve(ROWS, times, times)


MACHINES = {
    "memory-bound": machine(10.0),
    "laptop": machine(80.0),
    "compute-bound": machine(400.0),
}
TEXTS = {
    "sure": [0.95] * 32,
    "ordinary": [0.8 * 0.9**i for i in range(32)],
    "poor": [0.2] * 32,
}


def policy(costs: CostCurve, sequences: int = 1) -> Policy:
    return Policy(costs, Acceptance(prior=Acceptance()), Acceptance(), BatchLoad(sequences))


@pytest.mark.parametrize("sequences", [1, 4, 16])
@pytest.mark.parametrize("chances", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("costs", MACHINES.values(), ids=MACHINES)
def test_auto_is_never_much_slower_than_the_best_fixed_plan(costs, chances, sequences):
    best = best_fixed(costs, chances, 32, sequences)
    rates = [simulate(policy(costs, sequences), chances, 2000, seed=s) for s in range(5)]
    assert sum(rates) / 5 >= 0.95 * best.rate


def test_the_best_plan_is_what_the_machine_suggests():
    flat, steep = MACHINES["memory-bound"], MACHINES["compute-bound"]
    assert best_fixed(flat, TEXTS["ordinary"], 32).kind == "quadratic"
    assert best_fixed(steep, TEXTS["ordinary"], 32, 4).kind == "ar"
    assert best_fixed(MACHINES["laptop"], TEXTS["sure"], 32, 64).kind == "ar"
    assert best_fixed(steep, TEXTS["sure"], 32, 16).kind == "ar"


def test_rates_are_those_of_the_table():
    costs, chances = MACHINES["laptop"], [0.5, 0.5, 0.5]
    assert fixed_rate(costs, chances, Plan("ar", 0, 0)) == pytest.approx(100)
    linear = (2 + 0.5 + 0.25) / (costs.seconds(4) + costs.seconds(3))
    assert fixed_rate(costs, chances, Plan("linear", 3, 0)) == pytest.approx(linear)
    tree = (1 + 0.5 + 0.25) / costs.seconds(12)
    assert fixed_rate(costs, chances, Plan("quadratic", 3, 0)) == pytest.approx(tree)


def test_a_draft_is_verified_as_far_as_it_is_worth():
    chooser = policy(MACHINES["compute-bound"])
    sure, unsure = [0.99**i for i in range(1, 8)], [0.99, 0.98, 0.05, 0.05, 0.04, 0.04, 0.03]
    assert chooser.worth_checking(sure, 8) == 7
    assert chooser.worth_checking(unsure, 8) == 2
    assert chooser.worth_checking([], 8) == 0


def test_lookup_is_taken_where_it_was_right_and_left_where_it_was_not():
    chooser = policy(MACHINES["laptop"])
    assert chooser.choose(lookup=12, masks=0).kind == "lookup"
    for _ in range(30):
        chooser.lookups.judge(12, 0)
    steep = policy(machine(4000.0))
    steep.lookups = chooser.lookups
    assert steep.choose(lookup=12, masks=0).kind == "ar"


def test_a_model_that_cannot_draft_is_never_asked_to():
    chooser = Policy(MACHINES["memory-bound"], Acceptance(), Acceptance(), can_draft=False)
    assert {chooser.choose(lookup=k, masks=32).kind for k in (0, 3)} == {"ar", "lookup"}


def test_where_no_draft_can_pay_none_is_tried():
    chooser = policy(MACHINES["compute-bound"], sequences=16)
    for _ in range(500):
        assert chooser.choose(lookup=0, masks=32).kind == "ar"
        chooser.committed(1)


def test_a_change_of_text_is_noticed():
    costs = MACHINES["laptop"]
    chooser = policy(costs)
    simulate(chooser, TEXTS["poor"], 1500)
    assert simulate(chooser, TEXTS["sure"], 1500) >= 0.8 * best_fixed(costs, TEXTS["sure"], 32).rate


@given(st.lists(st.floats(0, 1), max_size=12))
def test_expected_run_is_the_mean_over_all_outcomes(chances):
    total, reached = 0.0, 1.0
    for i, chance in enumerate(chances):
        total += i * reached * (1 - chance)
        reached *= chance
    assert expected_run(chances) == pytest.approx(total + len(chances) * reached)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=60))
def test_chances_stay_chances(drafts):
    learned = Acceptance(prior=Acceptance())
    for drafted, accepted in drafts:
        learned.judge(drafted, min(drafted, accepted))
    assert all(0 <= learned.chance(i) <= 1 for i in range(12))
    assert learned.expected(3) <= learned.expected(9) <= 9


def test_chances_follow_what_was_accepted():
    learned = Acceptance()
    for _ in range(100):
        learned.judge(3, 1)
    assert learned.chance(0) > 0.8
    assert learned.chance(1) < 0.3
    assert learned.chance(2) == learned.chance(1), "what was never reached is taken to be alike"


def test_costs_between_and_beyond_measured_points():
    curve = CostCurve((1, 3, 5), (1.0, 2.0, 4.0), (1.0, 4.0, 6.0))
    found = [curve.seconds(rows) for rows in (1, 2, 3, 4, 5, 7)]
    assert found == pytest.approx([1, 1.5, 2, 3, 4, 6])
    assert curve.seconds(2, drafting=True) == pytest.approx(2.5)
    assert break_even(curve, 3) == pytest.approx(curve.seconds(4, drafting=True) + 2.0)


DEAR = CostCurve((1, 128), (1.0, 64.5), (1.0, 128.0))
"""A row costs half of what the first one does."""


def test_drafts_that_are_not_worth_verifying_lose_trust():
    """A chance by place is learned from verified drafts alone, and those are the better ones."""
    chooser = policy(MACHINES["laptop"])
    before = max(chooser._own_drafts(16), key=lambda plan: plan.rate)
    for _ in range(30):
        chooser.drafts.judge(1, 1)
        chooser.drafts.settle(before.accepted, 0)
    assert chooser.drafts.trust < 0.4
    assert chooser.drafts.prior.trust < 0.4, "and the next request knows"
    after = next(
        p for p in chooser._own_drafts(16) if (p.kind, p.size) == (before.kind, before.size)
    )
    assert after.accepted < 0.6 * before.accepted


def test_nodes_of_a_head_s_draft_are_added_as_long_as_they_pay():
    for costs, most in ((DEAR, 0.5), (MACHINES["memory-bound"], 0.0)):
        chooser = Policy(costs, Acceptance(), Acceptance(), heads=DraftRecord())
        worth = chooser.node_worth()
        assert worth.least_chance(()) == pytest.approx(most)
        # By definition: with the least chance, tokens a second are what they were.
        chances = (0.9, 0.5)
        least = worth.least_chance(chances)
        rate = (1 + sum(chances)) / costs.seconds(3)
        assert (1 + sum(chances) + least) / costs.seconds(4) == pytest.approx(rate)


def test_a_head_is_chosen_where_it_pays_and_explored_where_it_might():
    def chooser(accepted):
        heads = DraftRecord(first_nodes=2.0, first_accepted=accepted)
        return Policy(DEAR, Acceptance(), Acceptance(), heads=heads, can_draft=False)

    assert chooser(5.0).choose(lookup=0, masks=16).kind == "head"
    poor = chooser(0.1)
    kinds = []
    for _ in range(200):
        kinds.append(poor.choose(lookup=0, masks=16).kind)
        poor.committed(1)
    assert set(kinds) == {"ar", "head"}
    assert kinds.count("head") <= 4


def test_a_few_places_where_a_head_is_not_sure_do_not_end_its_drafts():
    record = DraftRecord(prior=DraftRecord(keep=0.99, first_nodes=1.5, first_accepted=0.65))
    for _ in range(6):
        record.judge(0, 0.0, 0)
    assert record.accepted > 0.4
    for _ in range(200):  # but a text in which it is never sure does
        record.judge(0, 0.0, 0)
    assert record.accepted < 0.1


def test_a_record_of_drafts_begins_with_its_prior_and_learns():
    shared = DraftRecord(first_nodes=2.0, first_accepted=1.0)
    record = DraftRecord(prior=shared)
    assert (record.nodes, record.accepted, record.trust) == (2.0, 1.0, 1.0)
    for _ in range(200):
        record.judge(4, 2.0, 1)
    assert record.nodes == pytest.approx(4.0, abs=0.3)
    assert record.accepted == pytest.approx(1.0)
    assert record.trust == pytest.approx(0.5, abs=0.1)
    assert shared.trust < 0.8
