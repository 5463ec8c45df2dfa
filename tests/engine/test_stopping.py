"""How an answer ends: budget, EOS, stop tokens, stop strings, in every mode."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference.scripted import peaked, scripted, speculative, word
from tests.reference.tiny import ALPHABET, MASK, run_alone, tiny
from trimode.config import GenerationOptions
from trimode.decoding import Committed
from trimode.engine import Engine, drain

MODES = {
    "ar": {"mode": "ar"},
    "linear": {"mode": "linear", "block_length": 4},
    "linear-all-masks": {"mode": "linear", "block_length": 4, "seed_block": False},
    "quadratic": {"mode": "quadratic", "block_length": 4},
    "diffusion": {"mode": "diffusion", "block_length": 4},
    "diffusion-all-masks": {"mode": "diffusion", "block_length": 4, "seed_block": False},
}
PROMPT = [9, 8, 11]
each_mode = pytest.mark.parametrize("options", MODES.values(), ids=MODES)


def fixed(answer, *, drafts_right=True, eos=()):
    """A model whose answer to PROMPT is given, whatever the mode; it goes on with token 19."""

    def at(position):
        i = position - len(PROMPT)
        return answer[i] if 0 <= i < len(answer) else 19

    def script(row):
        if row.token != MASK:
            return peaked(at(row.position + 1), 0.95)
        return peaked(at(row.position) if drafts_right else 18, 0.95)

    return scripted(script, eos=eos)


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 4, 5, 7, 8, 11, 16])
@each_mode
def test_max_tokens_is_met_exactly(options, max_tokens):
    model = scripted(speculative(lambda position: position % 7 > 0))
    sequence = run_alone(model, PROMPT, max_tokens=max_tokens, **options)
    assert len(sequence.tokens) == max_tokens == sequence.stats.completion_tokens
    assert sequence.finish_reason == "length"


@pytest.mark.parametrize(
    ("options", "right"),
    [
        pytest.param(options, right, id=f"{name}-{'right' if right else 'wrong'}-drafts")
        for name, options in MODES.items()
        for right in (True, False)
        if right or "diffusion" not in name  # diffusion's drafts are its answer
    ],
)
@pytest.mark.parametrize("at", range(9))
def test_an_eos_ends_the_answer_with_the_eos_itself(options, at, right):
    answer = [10, 11, 12, 13, 14, 15, 16, 17, 10, 11, 12]
    answer[at] = 2
    model = fixed(answer, drafts_right=right, eos=(2,))
    sequence = run_alone(model, PROMPT, max_tokens=11, **options)
    assert sequence.tokens == answer[: at + 1]
    assert sequence.finish_reason == "stop"
    assert sequence.text_stream.text == "".join(ALPHABET[token] for token in answer[:at])


@pytest.mark.parametrize("mode", ["linear", "quadratic"])
def test_an_eos_inside_an_accepted_draft_cuts_the_draft_there(mode):
    """Drafts are all right, so tokens after the EOS were accepted too and must not come out."""
    answer = [10, 11, 12, 2, 14, 15, 16]
    engine = Engine(fixed(answer, eos=(2,)))
    sequence = engine.add(PROMPT, GenerationOptions(mode=mode, block_length=6, max_tokens=20))
    events = [u.event for u in drain(engine) if isinstance(u.event, Committed)]
    assert [e.tokens for e in events] == [(10,), (11, 12, 2)]
    assert events[-1].drafted == 5
    assert sequence.stats.cycle_tokens == 3


@each_mode
def test_an_eos_as_the_last_token_of_the_budget_is_a_stop(options):
    sequence = run_alone(fixed([10, 11, 2], eos=(2,)), PROMPT, max_tokens=3, **options)
    assert sequence.finish_reason == "stop"


@each_mode
def test_every_eos_of_the_model_counts(options):
    for eos in (2, 3):
        model = fixed([10, 11, eos, 12], eos=(2, 3))
        assert run_alone(model, PROMPT, max_tokens=9, **options).tokens == [10, 11, eos]


@each_mode
def test_an_eos_in_the_prompt_ends_nothing(options):
    model = scripted(speculative(lambda _: True, avoid=(2,)), eos=(2,))
    sequence = run_alone(model, [9, 2, 2], max_tokens=9, **options)
    assert len(sequence.tokens) == 9


@each_mode
def test_ignore_eos_goes_on_to_the_budget(options):
    answer = [10, 2, 12, 2, 14, 15, 16, 17, 18]
    model = fixed(answer, eos=(2,))
    sequence = run_alone(model, PROMPT, max_tokens=9, ignore_eos=True, **options)
    assert sequence.tokens == answer
    assert sequence.finish_reason == "length"


@each_mode
def test_stop_token_ids_end_the_answer_even_where_eos_is_ignored(options):
    answer = [10, 2, 12, 13, 14, 15]
    model = fixed(answer, eos=(2,))
    sequence = run_alone(
        model, PROMPT, max_tokens=6, ignore_eos=True, stop_token_ids=(14, 15), **options
    )
    assert sequence.tokens == [10, 2, 12, 13, 14]
    assert sequence.finish_reason == "stop"


ANSWER = [10, 11, 12, 13, 14, 15, 16, 17, 8, 9, 10, 11]
TEXT = "".join(ALPHABET[token] for token in ANSWER)


@pytest.mark.parametrize("at", range(9))
@each_mode
def test_a_stop_string_ends_the_answer_wherever_it_lies_across_blocks(options, at):
    engine = Engine(fixed(ANSWER))
    stop = TEXT[at : at + 3]
    sequence = engine.add(PROMPT, GenerationOptions(max_tokens=12, stop=(stop, "zz"), **options))
    shown = "".join(update.text for update in drain(engine))
    assert shown == sequence.text_stream.text == TEXT[: TEXT.index(stop)]
    assert sequence.finish_reason == "stop"
    assert sequence.tokens == ANSWER[: TEXT.index(stop) + 3]


@each_mode
def test_text_that_only_begins_a_stop_string_is_shown_in_the_end(options):
    stop = TEXT[-2:] + "z"
    sequence = run_alone(fixed(ANSWER), PROMPT, max_tokens=12, stop=(stop,), **options)
    assert sequence.text_stream.text == TEXT
    assert sequence.finish_reason == "length"


@given(
    answer=st.lists(st.integers(8, 12), min_size=12, max_size=12),
    stop=st.text(alphabet=ALPHABET[8:13], min_size=1, max_size=4),
    options=st.sampled_from(list(MODES.values())),
)
@settings(max_examples=60)
def test_any_stop_string_cuts_the_text_at_its_first_occurrence(answer, stop, options):
    text = "".join(ALPHABET[token] for token in answer)
    sequence = run_alone(fixed(answer), PROMPT, max_tokens=12, stop=(stop,), **options)
    found = text.find(stop)
    assert sequence.text_stream.text == (text if found < 0 else text[:found])
    assert sequence.tokens == (answer if found < 0 else answer[: found + len(stop)])


@pytest.mark.parametrize("mode", ["linear", "quadratic"])
def test_a_stop_string_with_random_weights_cuts_speculation_where_it_cuts_ar(mode):
    model = tiny("llama", 5, common=0.05, eos=())
    whole = model.generate(PROMPT, max_tokens=30).text_stream.text
    stop = whole[13:16]
    expected = model.generate(PROMPT, max_tokens=30, stop=(stop,))
    got = model.generate(PROMPT, max_tokens=30, stop=(stop,), mode=mode, block_length=6)
    assert (got.tokens, got.text_stream.text) == (expected.tokens, expected.text_stream.text)


def test_diffusion_stops_denoising_a_block_at_an_eos_with_no_mask_before_it():
    """The EOS is certain at once, the masks after it never are: one pass, then the closing one."""

    def script(row):
        if row.token != MASK:
            return peaked(word(row.history, avoid=(2,)), 0.9)
        return peaked(2, 0.95) if row.position == len(PROMPT) + 1 else peaked(12, 0.2)

    model = scripted(script, eos=(2,))
    sequence = run_alone(model, PROMPT, mode="diffusion", block_length=8, max_tokens=20)
    assert sequence.tokens[1:] == [2]
    assert dict(sequence.stats.passes) == {"prefill": 1, "denoise": 1, "close": 1}


def test_diffusion_goes_on_denoising_before_an_eos_that_came_early():
    """The third token is an EOS from the first pass on; the mask before it must still be filled."""

    def script(row):
        if row.token != MASK:
            return peaked(10, 0.9)
        offset = row.position - len(PROMPT)
        return peaked(2, 0.95) if offset == 2 else peaked(12, 0.3 if offset == 1 else 0.2)

    sequence = run_alone(
        scripted(script, eos=(2,)), PROMPT, mode="diffusion", block_length=8, max_tokens=20
    )
    assert sequence.tokens == [10, 12, 2]
    assert sequence.stats.passes["denoise"] == 2
