"""Machines that are not here: what is computed of them is what was published."""

import json

import pytest

from trimode.bench.machines import (
    MACHINES,
    Demand,
    Machine,
    capacity,
    chance_of,
    expect,
    find_machine,
)
from trimode.decoding import CostCurve
from trimode.decoding.auto.acceptance import expected_run
from trimode.errors import InputError

LOADS = (1, 2, 4, 8, 16, 32, 64, 128)
AR = (222, 424, 834, 1599, 3027, 5317, 7906, 11774)
BLOCK_32 = (440, 777, 1317, 2204, 3069, 3651, 4024, 4230)
BLOCK_64 = (433, 738, 1248, 1784, 2223, 2451, 2510, 2602)
"""Tokens a second of the 8B on a B200, bf16, as published with SPEED-Bench."""
ACCEPTANCE_32, ACCEPTANCE_64 = 6.72, 6.98


def test_the_order_of_modes_by_load_on_a_b200_is_the_published_one():
    found = expect(MACHINES["b200-8b"], ACCEPTANCE_32, 32, LOADS)
    for row, ar, linear in zip(found, AR, BLOCK_32, strict=True):
        assert row["linear"] == pytest.approx(linear, rel=0.05), row
        if abs(ar / linear - 1) > 0.05:  # at 16 requests the published rates are 1 % apart
            assert row["best"] == ("ar" if ar > linear else "linear"), row
    assert [row["best"] for row in found][:4] == ["linear"] * 4
    assert [row["best"] for row in found][5:] == ["ar"] * 3


def test_the_curve_foretells_throughputs_that_it_was_not_made_from():
    """Block 64, and `ar` at 32 to 128 requests, are no points of the curve."""
    found = expect(MACHINES["b200-8b"], ACCEPTANCE_64, 64, LOADS)
    for row, linear, ar in zip(found, BLOCK_64, AR, strict=True):
        assert row["linear"] == pytest.approx(linear, rel=0.2), row
        if abs(ar / linear - 1) > 0.2:
            assert row["best"] == ("ar" if ar > linear else "linear"), row
        if row["load"] >= 64:
            assert row["ar"] == pytest.approx(ar, rel=0.1), row


@pytest.mark.parametrize(
    ("name", "ar", "linear"),
    [
        ("dgx-spark-8b-fp8", 24.7, 77.5),
        ("dgx-spark-8b-int4", 41.8, 112.5),
        ("gb200-8b-fp8", 256, 851),
        ("rtx-pro-6000-8b-fp8", 80, 277),
    ],
)
def test_one_request_makes_what_was_published(name, ar, linear):
    (row,) = expect(MACHINES[name], 8.69, 32, (1,))
    assert row["ar"] == pytest.approx(ar, rel=0.01)
    assert row["linear"] == pytest.approx(linear, rel=0.02)
    assert row["best"] == "linear"
    assert row["auto"] >= row["linear"]


def test_on_a_small_gpu_linear_pays_less_the_more_requests_there_are():
    found = expect(MACHINES["dgx-spark-8b-fp8"], 8.69, 32, LOADS)
    gains = [row["linear"] / row["ar"] for row in found]
    assert gains == sorted(gains, reverse=True)


@pytest.mark.parametrize("acceptance", [2.0, 3.3, 6.72, 33.0])
def test_the_chance_makes_the_acceptance(acceptance):
    chance = chance_of(acceptance, 32)
    assert 2 + expected_run([chance] * 31) == pytest.approx(acceptance)


@pytest.mark.parametrize("acceptance", [1.9, 33.1, float("nan")])
def test_an_acceptance_that_no_draft_has_is_refused(acceptance):
    with pytest.raises(InputError, match=r"acceptance: .*; must be 2 to 33"):
        chance_of(acceptance, 32)


def test_a_curve_may_come_from_a_file_of_tune(tmp_path):
    path = tmp_path / "curve.json"
    path.write_text(json.dumps({"rows": [1, 8], "plain": [1.0, 2.0], "adapted": [1.0, 3.0],
                                "sequence": 0.5, "spread": 0.1}))  # fmt: skip
    curve = find_machine(str(path)).curve
    assert (curve.rows, curve.adapted, curve.sequence) == ((1, 8), (1.0, 3.0), 0.5)


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", '{"rows": [2, 1], "plain": [1, 1]}', '{"rows": [1], "plain": [0]}',
     '{"rows": [1, 2], "plain": [1]}', '{"rows": "x", "plain": [1]}'],
)  # fmt: skip
def test_a_damaged_curve_is_refused(tmp_path, content):
    path = tmp_path / "curve.json"
    path.write_text(content)
    with pytest.raises(InputError, match="is no cost curve"):
        find_machine(str(path))


def test_an_unknown_machine_names_those_that_are_known():
    with pytest.raises(InputError, match=r"'h200-8b'; a file of .*b200-8b, dgx-spark-8b-fp8"):
        find_machine("h200-8b")


def test_an_h100_is_a_b200_slowed_down_by_its_memory():
    found, faster = MACHINES["h100-8b"], MACHINES["b200-8b"]
    assert "scaled" in found.source
    for rows in (1, 32, 4096):
        ratio = found.curve.seconds(rows) / faster.curve.seconds(rows)
        assert ratio == pytest.approx(8.0 / 3.35)


def test_replicas_are_what_the_passes_of_all_requests_take():
    """A machine whose passes take a millisecond, whatever is in them, in mode ar."""
    flat = Machine(CostCurve((1, 4096), (1e-3, 1e-3), (1e-3, 1e-3)), "flat")
    demand = Demand(requests_per_second=100, prompt_tokens=50, answer_tokens=100)
    rates = [{"load": n, "ar": 1000.0 * n, "auto": 2000.0 * n} for n in (1, 10)]
    alone, ten = capacity(flat, rates, demand)
    # A pass for the prompt; 100 passes alone, or a tenth of 100 passes. auto takes half of them.
    assert alone["answer_seconds"] == pytest.approx(0.001 + 0.050)
    assert alone["replicas_ar"] == 13  # 100 requests of 0.101 s, 80 % busy: 12.6
    assert alone["replicas"] == 7  # 6.4
    assert ten["answer_seconds"] == pytest.approx(10 * (0.001 + 0.005))
    assert ten["requests_per_second"] == pytest.approx(1 / 0.006)
    assert (ten["replicas"], ten["replicas_ar"]) == (1, 2)  # 0.75 and 1.4


def test_more_requests_at_a_time_need_fewer_replicas_and_take_longer():
    machine = MACHINES["b200-8b"]
    demand = Demand(requests_per_second=20, prompt_tokens=500, answer_tokens=300)
    rows = capacity(machine, expect(machine, ACCEPTANCE_32, 32), demand)
    for name, reverse in (("answer_seconds", False), ("replicas", True), ("replicas_ar", True)):
        values = [row[name] for row in rows]
        assert values == sorted(values, reverse=reverse)
    assert all(row["replicas"] <= row["replicas_ar"] for row in rows)


@pytest.mark.parametrize("field", ["requests_per_second", "prompt_tokens", "answer_tokens"])
def test_a_demand_of_nothing_is_refused(field):
    values = {"requests_per_second": 1.0, "prompt_tokens": 1, "answer_tokens": 1, field: 0}
    with pytest.raises(InputError, match=field):
        Demand(**values)
