"""Costs that are doubted are measured while the server is idle, and never while a request runs."""

import time

import pytest

from tests.server.asking import client_of, until
from tests.server.conftest import serving
from trimode.decoding import CostCurve
from trimode.engine import Engine, costs
from trimode.engine.costs import Measurement

STEP = 0.05
STEPS = 20


class Measuring:
    """Takes the place of timing passes."""

    def __init__(self):
        self.begun = self.abandoned = self.done = 0
        self.waited = 0.0

    def __call__(self, _):
        self.begun += 1
        try:
            for _ in range(STEPS):
                time.sleep(STEP)
                yield
        except GeneratorExit:
            self.abandoned += 1
            raise
        self.done += 1
        return Measurement(CostCurve((1, 9), (1.0, 2.0), (1.0, 2.0)), 0.0, self.waited, 2)


@pytest.fixture
def measuring(monkeypatch, tmp_path):
    monkeypatch.setenv("TRIMODE_CACHE", str(tmp_path))
    found, worker = Measuring(), "trimode.server.runtime.worker"
    monkeypatch.setattr(costs, "measuring", found)
    monkeypatch.setattr(f"{worker}._IDLE_SECONDS", 0.2)
    monkeypatch.setattr(f"{worker}._MEASURE_PAUSE", 0.3)
    return found


@pytest.fixture
def doubt(monkeypatch):
    """Has engines doubt what they decide by until something else is measured."""
    monkeypatch.setattr(
        Engine, "doubts_costs", property(lambda engine: getattr(engine, "_costs", None) is None)
    )


def test_an_idle_server_measures_once(model, measuring, doubt):
    with serving(model) as (url, service):
        until(lambda: not service.worker.engine.doubts_costs)
        time.sleep(1.0)
        assert (measuring.begun, measuring.done, measuring.abandoned) == (1, 1, 0)
        assert client_of(url).completions.create(model="tiny", prompt="a", max_tokens=2).choices


def test_a_request_ends_the_measuring_after_one_step(model, measuring, doubt):
    with serving(model) as (url, _):
        client = client_of(url)
        client.completions.create(model="tiny", prompt="b", max_tokens=2)  # connect, first pass
        until(lambda: measuring.begun == 1)
        began = time.monotonic()
        assert client.completions.create(model="tiny", prompt="a", max_tokens=2).choices
        assert time.monotonic() - began < STEP * STEPS / 2
        assert (measuring.abandoned, measuring.done) == (1, 0)
        until(lambda: measuring.done == 1)


def test_nothing_is_measured_while_a_request_runs(model, measuring, doubt):
    with serving(model) as (url, service):
        client = client_of(url)
        fields = {"max_tokens": 600, "stream": True, "extra_body": {"ignore_eos": True}}
        answer = client.completions.create(model="tiny", prompt="a", **fields)
        next(iter(answer))
        before, looks = measuring.begun, 0
        while service.worker.engine.busy:
            assert measuring.begun == before
            looks += 1
            time.sleep(0.01)
        assert looks > 20, "it ran for longer than a server must be idle"
        answer.close()


def test_a_busy_machine_is_tried_again_later_and_seldom(model, measuring, doubt):
    measuring.waited = 0.9
    with serving(model):
        until(lambda: measuring.done == 2)
        measuring.waited = 0.0
        until(lambda: measuring.done == 3)


def test_a_server_that_measures_stops_at_once(model, measuring, doubt):
    with serving(model):
        until(lambda: measuring.begun == 1)
        began = time.monotonic()
    assert time.monotonic() - began < STEP * STEPS / 2


def test_a_server_without_doubts_measures_nothing(model, measuring):
    with serving(model):
        time.sleep(0.6)
    assert measuring.begun == 0
