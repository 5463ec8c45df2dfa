"""Requests that cannot be honoured are refused before any work, with the field named."""

import sys

import pytest

from tests.reference.tiny import MASK, random_adapter, tiny
from trimode.config import GenerationOptions
from trimode.decoding import CostCurve
from trimode.engine import Engine, drain, generate
from trimode.errors import InputError

PROMPT = [3, 1, 4]


def refused(model, prompt=PROMPT, **options):
    engine = model.engine()
    with pytest.raises(InputError) as caught:
        engine.add(prompt, GenerationOptions(**options))
    assert not engine.busy, "a refused request must leave nothing behind"
    return caught.value


def test_an_empty_prompt_is_refused():
    assert refused(tiny(), []).field == "prompt"


@pytest.mark.parametrize("extra", [0, 1, 100])
def test_a_prompt_that_fills_the_context_is_refused(extra):
    error = refused(tiny(limit=20), [3] * (20 + extra))
    assert error.field == "prompt"
    assert "20" in error.allowed


@pytest.mark.parametrize("token", [-1, 31, 10**9])
def test_a_token_id_outside_the_vocabulary_is_refused(token):
    error = refused(tiny(), [3, token, 4])
    assert error.field == "prompt"
    assert str(token) in error.found
    assert "0..30" in error.allowed


def test_the_highest_token_id_is_accepted():
    assert len(tiny(eos=()).generate([30, 0], max_tokens=2).tokens) == 2


@pytest.mark.parametrize("mode", ["linear", "quadratic", "diffusion"])
def test_modes_that_need_masks_are_refused_without_a_mask_token(mode):
    assert refused(tiny(mask_token_id=None), mode=mode).field == "mode"


def test_ar_works_without_a_mask_token():
    assert len(tiny(mask_token_id=None, eos=()).generate(PROMPT, max_tokens=5).tokens) == 5


def test_diffusion_on_an_untrained_checkpoint_is_refused():
    error = refused(tiny(trained=False), mode="diffusion")
    assert error.field == "mode"
    assert "force" in error.allowed


def test_diffusion_on_an_untrained_checkpoint_runs_when_forced():
    model = tiny(trained=False, eos=())
    assert len(model.generate(PROMPT, mode="diffusion", max_tokens=5, force=True).tokens) == 5


def test_a_draft_adapter_does_not_make_diffusion_possible():
    adapter = random_adapter(tiny().config, scope="draft")
    assert refused(tiny(trained=False, adapter=adapter), mode="diffusion").field == "mode"


@pytest.mark.parametrize("mode", ["linear", "quadratic"])
def test_speculation_works_on_an_untrained_checkpoint(mode):
    model = tiny(trained=False, eos=())
    expected = model.generate(PROMPT, max_tokens=8).tokens
    assert model.generate(PROMPT, mode=mode, max_tokens=8).tokens == expected


def test_a_thinking_budget_without_an_end_of_thinking_token_is_refused():
    assert refused(tiny(thinks=False), max_thinking_tokens=5).field == "max_thinking_tokens"


@pytest.mark.parametrize(
    ("scope", "trained", "drafts"),
    [(None, True, True), ("draft", False, True), (None, False, False)],
)
def test_auto_drafts_where_the_model_can(scope, trained, drafts):
    adapter = random_adapter(tiny().config, scope=scope) if scope else None
    model = tiny(trained=trained, adapter=adapter, eos=())
    free = CostCurve((1, 128), (1.0, 1.01), (1.0, 1.01))
    engine = model.engine(costs=free)
    sequence = engine.add(PROMPT, GenerationOptions(mode="auto", max_tokens=8))
    for _ in drain(engine):
        pass
    assert bool({"linear", "quadratic"} & set(sequence.stats.plans)) == drafts


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", float("nan")),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("seed", -1),
        ("seed", 2**63),
        ("logprobs", 21),
        ("block_length", 0),
        ("threshold", -0.5),
        ("max_denoising_steps", 0),
        ("revision_threshold", 1.5),
        ("max_thinking_tokens", -1),
        ("mode", "fast"),
        ("commit_rule", "luck"),
        ("stop", ("",)),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(InputError) as caught:
        GenerationOptions(**{field: value})
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", "9"),
        ("max_tokens", True),
        ("max_tokens", 1.5),
        ("temperature", "hot"),
        ("ignore_eos", 1),
        ("stop", [1]),
        ("stop_token_ids", ["a"]),
        ("stop_token_ids", [True]),
        ("mode", 3),
        ("nonsense", 1),
    ],
)
def test_an_option_of_a_wrong_type_is_refused_by_name(field, value):
    with pytest.raises(InputError) as caught:
        GenerationOptions.from_mapping({field: value})
    assert caught.value.field == field


def test_options_from_json_equal_options_from_python():
    got = GenerationOptions.from_mapping(
        {"mode": "linear_spec", "stop": "end", "stop_token_ids": [3, 4], "temperature": 1}
    )
    assert got == GenerationOptions(
        mode="linear", stop=("end",), stop_token_ids=(3, 4), temperature=1
    )


@pytest.mark.parametrize("temperature", [3e38, 1e39, sys.float_info.max])
def test_the_largest_temperatures_never_emit_the_mask(temperature):
    model = tiny(eos=(), vocab=MASK + 1)
    tokens = model.generate(PROMPT, max_tokens=100, temperature=temperature).tokens
    assert set(tokens) == set(range(MASK)), "all others are about as likely"


@pytest.mark.parametrize("temperature", [1e-10, 1e-30, 1e-40])
def test_a_temperature_near_zero_is_greedy(temperature):
    model = tiny(eos=())
    greedy = model.generate(PROMPT, max_tokens=6).tokens
    found = model.generate(PROMPT, max_tokens=6, temperature=temperature, top_p=0.9)
    assert found.tokens == greedy


@pytest.mark.parametrize(("field", "value"), [("max_sequences", 0), ("max_rows", 0)])
def test_an_engine_without_room_is_refused(field, value):
    with pytest.raises(InputError) as caught:
        Engine(tiny().model, **{field: value})
    assert caught.value.field == field


def test_chat_messages_without_a_chat_template_are_refused():
    with pytest.raises(InputError, match="chat template"):
        generate(tiny().model, [{"role": "user", "content": "abc"}])


def test_an_empty_string_is_refused():
    with pytest.raises(InputError, match="empty"):
        generate(tiny().model, "")


def test_token_ids_are_taken_as_they_are():
    model = tiny(eos=())
    result = generate(model.model, PROMPT, max_tokens=6)
    assert list(result.token_ids) == model.generate(PROMPT, max_tokens=6).tokens
    assert result.prompt_tokens == 3


def test_a_whole_number_beyond_those_of_tensors_counts_as_a_float():
    options = {"max_tokens": 3, "repetition_penalty": 2**70, "temperature": 2**70}
    assert tiny(eos=()).generate(PROMPT, **options).tokens
