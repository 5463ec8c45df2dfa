"""Grammars: what may follow, going back, and answers that fit in every lossless mode."""

import json
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference.options import readable
from trimode import generate
from trimode.config import GenerationOptions
from trimode.decoding import CostCurve, Sampler
from trimode.engine import Engine, drain
from trimode.errors import GrammarError, InputError
from trimode.testing import tiny_model
from trimode.text import GrammarMatcher, json_grammar, regex_grammar
from trimode.text.grammar_check import GrammarCheck

SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"type": "integer", "maximum": 99, "minimum": 0},
        "b": {"enum": ["x", "yy"]},
    },
    "required": ["a", "b"],
    "additionalProperties": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def matcher(model, grammar):
    config = model.config
    return GrammarMatcher(
        grammar,
        model.tokenizer,
        vocab_size=config.vocab_size,
        stop_token_ids=config.eos_token_ids,
    )


def test_only_what_fits_may_follow(model):
    found = matcher(model, regex_grammar("ab?c"))
    a, b, c = (model.tokenizer.encode(letter)[0] for letter in "abc")
    (stop,) = model.config.eos_token_ids
    assert set(found.allowed([]).nonzero()[0]) == {a}
    assert set(found.allowed([a]).nonzero()[0]) == {b, c}
    assert set(found.allowed([a, b]).nonzero()[0]) == {c}
    assert set(found.allowed([a, c]).nonzero()[0]) == {stop}
    assert found.allowed([b]) is None
    assert set(found.allowed([a]).nonzero()[0]) == {b, c}, "it must find back"


@given(st.lists(st.lists(st.sampled_from("abc"), max_size=5), max_size=8))
@settings(max_examples=40)
def test_it_says_the_same_whatever_it_was_asked_before(questions):
    model = tiny_model()
    used = matcher(model, regex_grammar("(ab|ac)*b"))
    for letters in questions:
        ids = [model.tokenizer.encode(letter)[0] for letter in letters]
        ours, fresh = used.allowed(ids), matcher(model, regex_grammar("(ab|ac)*b")).allowed(ids)
        assert (ours is None) == (fresh is None)
        assert ours is None or (ours == fresh).all()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("mode", ["linear", "quadratic", "auto"])
def test_constrained_answers_fit_and_are_those_of_ar(model, mode, temperature):
    grammar = json_grammar(SCHEMA)
    costs = CostCurve((1, 64), (1.0, 1.1), (1.0, 1.1))
    for seed in range(4):
        texts = []
        for name in ("ar", mode):
            engine = Engine(model, costs=costs)
            asked = readable(
                name, grammar=grammar, temperature=temperature, seed=seed, block_length=6,
                max_tokens=60,
            )  # fmt: skip
            options = GenerationOptions(**asked)
            sequence = engine.add([seed + 1, 5], options)
            for _ in drain(engine):
                pass
            texts.append(sequence.text_stream.text)
            assert sequence.finish_reason == "stop"
        assert texts[0] == texts[1]
        value = json.loads(texts[0])
        assert value["b"] in ("x", "yy")
        assert 0 <= value["a"] <= 99


def test_drafts_are_constrained_too(model):
    """A grammar that leaves one choice at each place: every draft is right."""
    text = "abcabcabc"
    result = generate(
        model, [3], mode="linear", block_length=8, grammar=regex_grammar(text), max_tokens=20
    )
    assert result.text == text
    assert result.stats.acceptance_length > 3


def test_diffusion_refuses_a_grammar_and_names_both(model):
    with pytest.raises(InputError, match=r"grammar.*diffusion"):
        generate(model, [3], mode="diffusion", grammar=json_grammar())


@pytest.mark.parametrize("grammar", ["no grammar", json_grammar({"type": "nonsense"})])
def test_a_grammar_that_is_none_is_refused(model, grammar):
    with pytest.raises(InputError, match=re.escape("grammar: ")):
        generate(model, [3], grammar=grammar)


def test_a_matcher_that_failed_finds_back(model):
    """What cannot be followed is an error; elsewhere the matcher says what a new one says."""
    endless = json_grammar({"type": "array", "minItems": 1, "items": {"$ref": "#"}})
    used, bracket = matcher(model, endless), model.tokenizer.encode("[")
    for _ in range(2):
        assert (used.allowed([]) == matcher(model, endless).allowed([])).all()
        with pytest.raises(GrammarError):
            used.allowed(bracket)


def test_nothing_that_fits_is_an_error_and_not_freedom(model):
    """For the verified answer; a draft may be anything."""

    class Nothing:
        def allowed(self, _):
            return None

    options = GenerationOptions()
    sampler = Sampler(options, None, 0, constraint=Nothing())
    logits = torch.zeros(8)
    with pytest.raises(GrammarError):
        sampler.pick(logits, 0, [1])
    assert int(sampler.sample(logits[None], 0, [1])) == 0


def test_special_tokens_are_text_only_if_they_are_shown(model):
    tokenizer = model.tokenizer
    think = tokenizer.token_id("<think>")
    grammar = regex_grammar("<think>a|b")
    config = model.config
    fields = {"vocab_size": config.vocab_size, "stop_token_ids": config.eos_token_ids}
    shown = GrammarMatcher(grammar, tokenizer, shown_special_ids=[think], **fields)
    hidden = GrammarMatcher(grammar, tokenizer, **fields)
    assert shown.allowed([])[think]
    assert not hidden.allowed([])[think]
    assert set(shown.allowed([think]).nonzero()[0]) == {tokenizer.encode("a")[0]}


def test_strangers_grammars_are_tried_in_a_process_that_can_be_killed():
    check = GrammarCheck(seconds=2, megabytes=128)
    try:
        assert check.check(json_grammar({"type": "object"})) == []
        lenient = {"uniqueItems": True, "x-guidance": {"lenient": True}}
        assert "uniqueItems" in check.check(json_grammar(lenient))[0]
        for wrong, word in (
            (json_grammar({"not": {}}), "not"),
            (regex_grammar("("), "regex"),
            (json_grammar({"type": "integer", "multipleOf": 99999989}), "seconds"),
        ):
            with pytest.raises(InputError, match=word):
                check.check(wrong)
        assert check.check(regex_grammar("a")) == [], "it goes on after one that was killed"
    finally:
        check.close()
