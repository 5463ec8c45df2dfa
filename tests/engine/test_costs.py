"""Costs that passes disagree with: said once, marked in the cache, measured again."""

import itertools
import json
import logging

import pytest

from trimode.config import GenerationOptions
from trimode.decoding import CostCurve
from trimode.engine import Engine, costs, drain
from trimode.engine.costs import Measurement, PassTime, cost_curve, is_kept, keep, kept_at, mark
from trimode.engine.forward import run
from trimode.testing import tiny_model

WRONG = CostCurve((1, 2, 3, 4, 6), (0.01, 0.01, 0.01, 0.3, 0.9), (0.01, 0.01, 0.01, 0.3, 0.9))
RIGHT = CostCurve((1, 64), (0.01, 0.02), (0.01, 0.02))


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setenv("TRIMODE_CACHE", str(tmp_path))
    monkeypatch.setattr("trimode.engine.cost_check.SECONDS", 0.0)
    found = tiny_model()
    assert keep(found, Measurement(WRONG, 0.0, 0.0, 14))
    return found


@pytest.fixture
def passes_cost(monkeypatch):
    """Has every pass take the time that a curve says, by the engine's clock."""

    rows = 0

    def count(runner, slices):
        nonlocal rows
        rows = sum(part.stop - part.start for part in slices)
        return run(runner, slices)

    def set_to(curve, scale=1.0):
        def timed(_, work):
            return work(), PassTime(scale * curve.seconds(rows), 0.0)

        monkeypatch.setattr("trimode.engine.engine.run", count)
        monkeypatch.setattr(costs, "timed", timed)

    return set_to


def serve(engine, requests=60, first=0):
    """Answer requests whose prompts begin differently, so that each is computed."""
    options = GenerationOptions(max_tokens=10, mode="auto", ignore_eos=True)
    for i in range(first, first + requests):
        engine.add([i, *range(3, 23)], options)
        list(drain(engine))


def test_a_curve_that_passes_disagree_with_is_warned_of_once_and_marked(model, passes_cost, caplog):
    engine = Engine(model)
    passes_cost(RIGHT)
    serve(engine)
    assert engine.doubts_costs
    (warning,) = [r for r in caplog.records if "passes disagree with" in r.getMessage()]
    assert warning.levelno == logging.WARNING
    assert json.loads(kept_at(model).read_text())["doubted"]
    assert not is_kept(model), "the next start measures"


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_a_curve_of_the_right_shape_is_left_alone(model, passes_cost, caplog, scale):
    engine = Engine(model)
    passes_cost(WRONG, scale)
    serve(engine)
    assert not engine.doubts_costs
    assert not caplog.records
    assert cost_curve(model) == WRONG


def test_the_mark_goes_when_passes_agree_again(model, passes_cost):
    engine = Engine(model)
    passes_cost(RIGHT)
    serve(engine)
    assert not is_kept(model)
    passes_cost(WRONG)
    serve(engine, first=100)
    assert not engine.doubts_costs
    assert is_kept(model)


def test_a_curve_that_another_program_has_kept_meanwhile_is_not_marked(model, passes_cost):
    engine = Engine(model)
    serve(engine, 1)
    keep(model, Measurement(RIGHT, 0.0, 0.0, 2))
    passes_cost(RIGHT)
    serve(engine)
    assert engine.doubts_costs
    assert cost_curve(model) == RIGHT


def measure_again(engine, monkeypatch, measured):
    def measuring(_):
        yield
        return measured

    monkeypatch.setattr(costs, "measuring", measuring)
    steps = engine.measure_again()
    next(steps)
    with pytest.raises(StopIteration) as end:
        next(steps)
    return end.value.value


def test_what_is_measured_again_is_kept_and_decides(model, passes_cost, monkeypatch):
    engine = Engine(model)
    passes_cost(RIGHT)
    serve(engine)
    assert measure_again(engine, monkeypatch, Measurement(RIGHT, 0.0, 0.0, 2))
    assert not engine.doubts_costs
    assert cost_curve(model) == RIGHT
    serve(engine)
    assert not engine.doubts_costs


def test_a_measurement_of_a_busy_machine_changes_nothing(model, passes_cost, monkeypatch):
    engine = Engine(model)
    passes_cost(RIGHT)
    serve(engine)
    assert not measure_again(engine, monkeypatch, Measurement(RIGHT, 0.9, 0.0, 2))
    assert engine.doubts_costs
    assert not is_kept(model)


def test_a_measurement_stops_after_each_pass(monkeypatch):
    """None is disturbed: each pass takes longer than the one before."""
    clock = itertools.count(1)
    monkeypatch.setattr(costs, "timed", lambda _, run: (run(), PassTime(1e-4 * next(clock), 0.0)))
    steps, count = costs.measuring(tiny_model()), 0
    try:
        while True:
            next(steps)
            count += 1
    except StopIteration as end:
        curve = end.value.curve
    assert count == 5 * (2 * len(curve.rows) + 1)


DAMAGE = [
    {"rows": []},
    {"rows": [1, 3, 2, 4, 6]},
    {"rows": [2, 3, 4, 5, 6]},
    {"plain": [1.0]},
    {"plain": [float("nan")] * 5},
    {"adapted": [0.0] * 5},
    {"sequence": float("inf")},
    {"sequence": -1.0},
    {"waited": "x"},
]


@pytest.mark.parametrize("damage", DAMAGE, ids=str)
def test_a_damaged_file_counts_as_absent(model, damage):
    path = kept_at(model)
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    assert not is_kept(model)
    mark(model, WRONG, doubted=True)
    assert "doubted" not in path.read_text()


def test_a_size_that_was_disturbed_is_timed_again(monkeypatch):
    """Else rows would look free between it and the next size."""
    seen = []

    def timed(_, work):
        work()
        rows = seen[-1]
        disturbed = rows == 12 and seen.count(12) <= 2 * costs._REPEATS
        return None, PassTime(0.001 * rows * (3 if disturbed else 1), 0.0)

    def noted(model, segments, *rest):
        seen.append(segments[-1].stop)
        ran(model, segments, *rest)

    ran = costs._run
    monkeypatch.setattr(costs, "timed", timed)
    monkeypatch.setattr(costs, "_run", noted)
    curve = costs.measure(tiny_model()).curve
    assert [curve.seconds(rows) for rows in (8, 12, 16)] == pytest.approx([0.008, 0.012, 0.016])
    assert curve.seconds(12, drafting=True) == pytest.approx(0.012)
    assert seen.count(12) == 2 * (1 + costs._AGAIN) * costs._REPEATS
