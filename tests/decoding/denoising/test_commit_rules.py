"""Each commit rule against a brute-force reading of its definition."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.reference.scripted import peaked, scripted
from tests.reference.tiny import MASK, run_alone
from trimode.decoding.denoising.commit_rules import RULES, Proposal, quota_schedule, select

distributions = st.lists(
    st.lists(st.integers(1, 1000), min_size=4, max_size=4), min_size=1, max_size=9
).map(lambda rows: torch.tensor(rows, dtype=torch.float64) / torch.tensor(rows).sum(-1, True))
bars = st.floats(0.01, 1.5)


def propose(probabilities, quota=1):
    sure = probabilities.max(-1).values
    return Proposal(sure, probabilities, quota, scores=1 - sure)


def chosen(rule, proposal, bar=None):
    bar = RULES[rule].threshold if bar is None else bar
    return {i for i, taken in enumerate(select(rule, proposal, bar).tolist()) if taken}


def by_falling(values):
    return sorted(range(len(values)), key=lambda i: (-values[i], i))


@given(probabilities=distributions, bar=bars)
def test_threshold_takes_all_that_reach_the_bar_and_the_surest(probabilities, bar):
    sure = probabilities.max(-1).values.tolist()
    expected = {i for i, c in enumerate(sure) if c >= bar} | {by_falling(sure)[0]}
    assert chosen("threshold", propose(probabilities), bar) == expected


@given(probabilities=distributions, quota=st.integers(0, 9))
def test_quota_takes_the_surest_of_its_number_and_at_least_one(probabilities, quota):
    sure = probabilities.max(-1).values.tolist()
    expected = set(by_falling(sure)[: max(quota, 1)])
    assert chosen("quota", propose(probabilities, quota), None) == expected


@given(probabilities=distributions, bar=bars)
def test_factor_takes_the_longest_prefix_above_its_rising_bar(probabilities, bar):
    sure = probabilities.max(-1).values.tolist()
    assume(all(abs(c - 1 + bar / (i + 2)) > 1e-9 for c in sure for i in range(len(sure))))
    expected = set()
    for rank, i in enumerate(by_falling(sure)):
        if sure[i] < 1 - bar / (rank + 2) and rank > 0:
            break
        if sure[i] < 1 - bar / (rank + 2):
            expected.add(i)  # the surest is always taken, and nothing after it
            break
        expected.add(i)
    assert chosen("factor", propose(probabilities), bar) == expected


@given(probabilities=distributions, bar=bars)
def test_cumulative_error_takes_the_longest_prefix_whose_product_holds(probabilities, bar):
    sure = probabilities.max(-1).values.tolist()
    ordered = by_falling(sure)
    products = [math.prod(sure[i] for i in ordered[: n + 1]) for n in range(len(sure))]
    assume(all(abs(product - bar) > 1e-9 for product in products))
    count = sum(product >= bar for product in products)
    assert chosen("cumulative_error", propose(probabilities), bar) == set(ordered[: max(count, 1)])


@given(probabilities=distributions, bar=bars)
def test_margin_takes_all_whose_lead_reaches_the_bar_and_the_widest(probabilities, bar):
    leads = []
    for row in probabilities.tolist():
        best, second, *_ = sorted(row, reverse=True)
        leads.append(best - second)
    expected = {i for i, lead in enumerate(leads) if lead >= bar} | {by_falling(leads)[0]}
    assert chosen("margin", propose(probabilities), bar) == expected


@given(probabilities=distributions, bar=bars)
def test_entropy_takes_all_that_stay_below_the_bar_and_the_lowest(probabilities, bar):
    nats = [-sum(p * math.log(p) for p in row) for row in probabilities.tolist()]
    lowest = min(nats)
    assume(sum(n < lowest + 1e-9 for n in nats) == 1)
    assume(all(abs(n - bar) > 1e-9 for n in nats))
    expected = {i for i, n in enumerate(nats) if n <= bar} | {nats.index(lowest)}
    assert chosen("entropy", propose(probabilities), bar) == expected


@given(probabilities=distributions, bar=bars)
def test_learned_takes_what_the_scorer_takes_for_final(probabilities, bar):
    scores = propose(probabilities).scores.tolist()
    expected = {i for i, score in enumerate(scores) if score >= bar} | {by_falling(scores)[0]}
    assert chosen("learned", propose(probabilities), bar) == expected


@pytest.mark.parametrize("rule", RULES)
@given(probabilities=distributions)
def test_every_rule_commits_something_even_where_it_trusts_nothing(rule, probabilities):
    assert len(chosen(rule, propose(probabilities, 0), RULES[rule].unreachable)) == 1


@pytest.mark.parametrize("rule", ["threshold", "factor", "cumulative_error", "margin", "entropy"])
def test_a_rule_without_a_bar_uses_its_documented_default(rule):
    defaults = {"threshold": 0.9, "factor": 1.0, "margin": 0.8, "entropy": 0.3}
    bar = defaults.get(rule, 0.8)
    best = torch.linspace(0.26, 0.99, 30, dtype=torch.float64)
    rest = (1 - best) / 3
    probabilities = torch.stack([best, rest, rest, rest], dim=-1)
    expected = chosen(rule, propose(probabilities), bar)
    assert 1 < len(expected) < 30 or rule == "factor"
    assert chosen(rule, propose(probabilities), None) == expected


@given(masks=st.integers(0, 64), passes=st.integers(1, 64))
def test_the_quota_schedule_is_even_and_complete_and_gives_the_first_the_rest(masks, passes):
    schedule = quota_schedule(masks, passes)
    assert len(schedule) == passes
    assert sum(schedule) == masks
    assert max(schedule) - min(schedule) <= 1
    assert schedule == sorted(schedule, reverse=True)


PROMPT = [9, 8, 11]


def graded(probabilities, first=10):
    """A model that is as sure of the n-th block token as the list says, whatever was committed."""

    def script(row):
        if row.token != MASK:
            return peaked(first, 0.95)
        return peaked(first, probabilities[row.position - len(PROMPT)])

    return scripted(script)


def passes(probabilities, **options):
    sequence = run_alone(
        graded(probabilities),
        PROMPT,
        mode="diffusion",
        block_length=len(probabilities),
        max_tokens=len(probabilities),
        seed_block=False,
        **options,
    )
    assert len(sequence.tokens) == len(probabilities)
    return sequence.stats.passes["denoise"]


SURE = [0.99, 0.95, 0.92, 0.85, 0.75, 0.65, 0.55, 0.45]


def test_denoising_takes_as_many_passes_as_the_rule_implies():
    assert passes(SURE, threshold=0.9) == 1 + 5
    assert passes(SURE, threshold=0.5) == 1 + 1
    assert passes(SURE, threshold=0.0) == 1
    assert passes(SURE, commit_rule="quota", max_denoising_steps=3) == 3
    assert passes(SURE, commit_rule="quota") == 8
    assert passes(SURE, commit_rule="margin", threshold=0.9) == 1 + 5  # leads 0.989, 0.947, 0.916
    # rank bars of factor 1: 0.5, 0.67, 0.75, 0.8, 0.83: four pass; then one a pass
    assert passes(SURE, commit_rule="factor", threshold=1.0) == 5
    # 0.99 * 0.95 * 0.92 = 0.865, * 0.85 = 0.735 < 0.8; then one a pass
    assert passes(SURE, commit_rule="cumulative_error", threshold=0.8) == 6


def test_confidence_is_the_untempered_probability():
    """At this temperature every draw is the best token, whose tempered probability is near 1."""
    assert passes([0.6] * 5, threshold=0.9, temperature=0.05) == 5


def test_max_denoising_steps_bounds_the_passes_of_a_block():
    assert passes(SURE, threshold=0.999, max_denoising_steps=3) == 3


def test_the_threshold_rule_ignores_the_quota_schedule_before_the_last_pass():
    """Five of eight pass the bar at once; the other three never do and fill one, one and the
    rest: pass 2 must not take all three only because an even split of 8 over 3 passes is 3."""
    sure = [0.99, 0.98, 0.97, 0.96, 0.95, 0.5, 0.4, 0.3]
    assert passes(sure, threshold=0.9, max_denoising_steps=3) == 3
