"""The check of losslessness: it finds what differs, and a model whose rows are not alone."""

import pytest
import torch

from tests.reference.tiny import tiny
from trimode.config import GenerationOptions
from trimode.evaluation import lossless
from trimode.evaluation.lossless import MIXED, Flip, Run, runs

PROMPTS = [[3, 1, 4], [1, 5, 9, 2], [6, 5, 3]]


def runs_of(*names):
    wanted = runs(len(PROMPTS), max_tokens=8, temperature=0.0)
    return [run for run in wanted if run.name in names]


def test_runs_are_ar_each_mode_at_each_length_auto_all_mixed_and_each_alone():
    found = runs(20, max_tokens=8, temperature=0.5, block_lengths=(2, 16))
    names = ["ar", "linear 2", "linear 16", "quadratic 2", "auto", "all modes mixed", "each alone"]
    assert [run.name for run in found] == names, "16 is too long for a quadratic pass"
    assert {run.name: run.together for run in found} == {
        **dict.fromkeys(names, 16),
        "each alone": 1,
    }
    for run in found:
        assert [options.seed for options in run.options] == list(range(20))
        assert {(o.max_tokens, o.temperature) for o in run.options} == {(8, 0.5)}
    by_name = {run.name: run.options for run in found}
    assert {(o.mode, o.block_length) for o in by_name["linear 16"]} == {("linear", 16)}
    mixed = [(o.mode, o.block_length) for o in by_name["all modes mixed"]]
    assert mixed[: len(MIXED)] == list(MIXED)
    assert by_name["each alone"] == by_name["all modes mixed"]


def test_a_share_of_the_prompts_runs_in_quadratic_at_a_length():
    found = runs(10, max_tokens=8, temperature=0.0, block_lengths=(2,), tree_share=lambda _: 4)
    assert {run.name: len(run.options) for run in found}["quadratic 2"] == 3


def test_a_lossless_model_has_no_flips_and_all_its_answers_are_counted():
    model = tiny(eos=()).model
    wanted = runs(len(PROMPTS), max_tokens=8, temperature=0.0)
    done = []
    outcomes = list(lossless.check(model, PROMPTS, wanted, advance=done.append))
    assert [outcome.name for outcome in outcomes] == [run.name for run in wanted]
    for outcome in outcomes:
        assert (outcome.answers, outcome.tokens, outcome.flips) == (3, 24, ())
    assert done == [run.name for run in wanted for _ in PROMPTS]


def test_a_flip_is_reported_with_its_place_and_the_logit_gap_there(monkeypatch):
    model = tiny(eos=())
    answers = lossless._answers
    right = model.generate(PROMPTS[1], max_tokens=8).tokens

    def stumbling(loaded, prompts, run, advance):
        found = answers(loaded, prompts, run, advance)
        if run.name == "linear 5":
            found[1][3] = (found[1][3] + 1) % 31
        return found

    monkeypatch.setattr(lossless, "_answers", stumbling)
    outcomes = lossless.check(model.model, PROMPTS, runs_of("ar", "linear 5", "quadratic 5"))
    flips = {outcome.name: outcome.flips for outcome in outcomes}
    before = PROMPTS[1] + right[:3]
    mask = torch.ones(len(before), len(before), dtype=torch.bool).tril()
    logits = model.forward(before, list(range(len(before))), mask, set())[-1]
    first, second = logits.topk(2).values.tolist()
    expected = Flip(1, 3, pytest.approx(first - second, rel=1e-4))
    assert flips == {"ar": (), "linear 5": (expected,), "quadratic 5": ()}
    assert first - second > 0.01


def test_an_answer_that_ends_early_flips_at_its_end(monkeypatch):
    answers = lossless._answers

    def short(loaded, prompts, run, advance):
        found = answers(loaded, prompts, run, advance)
        return found if run.name == "ar" else [tokens[:5] for tokens in found]

    monkeypatch.setattr(lossless, "_answers", short)
    _, outcome = lossless.check(tiny(eos=()).model, PROMPTS, runs_of("ar", "auto"))
    assert [(flip.prompt, flip.token) for flip in outcome.flips] == [(0, 5), (1, 5), (2, 5)]
    assert (outcome.answers, outcome.tokens) == (3, 15)


def test_a_run_of_fewer_prompts_is_compared_with_the_answers_to_those():
    options = (GenerationOptions(mode="linear", max_tokens=8, seed=0),)
    wanted = [*runs_of("ar"), Run("first alone", 1, options)]
    *_, outcome = lossless.check(tiny(eos=()).model, PROMPTS, wanted)
    assert (outcome.answers, outcome.flips) == (1, ())


def test_rows_of_an_int8_model_are_independent():
    assert lossless.rows_are_independent(tiny(dtype="int8").model, list(range(8, 28)))


def test_a_model_whose_rows_depend_on_the_size_of_the_pass_is_found_out(monkeypatch):
    model = tiny(dtype="int8").model
    run = type(model.runner).run

    def dependent(self, tokens, *arguments, **more):
        return run(self, tokens, *arguments, **more) * (1 + 1e-6 * len(tokens))

    monkeypatch.setattr(type(model.runner), "run", dependent)
    assert not lossless.rows_are_independent(model, list(range(8, 28)))
