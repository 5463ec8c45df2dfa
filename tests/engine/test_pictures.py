"""Pictures in prompts: where they stand, who shares them, and that every mode sees them."""

from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import vision as reference
from tests.reference.options import readable
from tests.reference.pictures import processed, prompt
from tests.reference.tiny import random_adapter
from trimode.checkpoints import LoadedModel
from trimode.checkpoints.hf_config import from_hf
from trimode.config import GenerationOptions
from trimode.engine import Engine, drain
from trimode.engine.pictures import PromptImage
from trimode.errors import InputError
from trimode.model import KVCache, build_runner
from trimode.testing import tiny_config, tiny_tensors, tiny_vision, tiny_vision_model
from trimode.vision import ImageTokens, Vision, VisionModel

MODES = ("ar", "linear", "quadratic", "auto", "diffusion")
LOSSLESS = ("linear", "quadratic", "auto")


@pytest.fixture(scope="module")
def model():
    return tiny_vision_model(eos_token_ids=())


def run(engine, asked, **options):
    tokens, images = asked
    sequence = engine.add(tokens, GenerationOptions(**options), images=images)
    for _ in drain(engine):
        pass
    return sequence


def answer(model, asked, **options):
    return run(Engine(model), asked, **{"max_tokens": 16, **options}).tokens


def chunked(model, asked, rows, **options):
    return run(Engine(model, max_rows=rows), asked, **{"max_tokens": 16, **options}).tokens


def quantised(dtype):
    """A model whose passes are exact: int8 or int4 by the C++ pass."""
    config = tiny_config(
        hidden_size=64, intermediate_size=128, num_heads=4, head_dim=32, num_kv_heads=2,
        vocab_size=264, eos_token_ids=(),
    )  # fmt: skip
    tensors = tiny_tensors(config)
    plain = tiny_vision_model()
    return replace(
        plain,
        config=config,
        runner=build_runner(config, tensors.__getitem__, dtype=dtype),
        vision=tiny_vision(config),
    )


def mistral3_pair():
    """transformers' model, and ours with its weights."""
    theirs = reference.mistral3()
    config = from_hf(theirs.config.to_dict())
    state = {
        name.removeprefix("model.language_model."): tensor
        for name, tensor in theirs.state_dict().items()
        if "language_model" in name or name.startswith("lm_head")
    }
    vision_config = reference.our_config(projector_norm_eps=config.rms_norm_eps)
    tower = VisionModel(vision_config).requires_grad_(False)
    tower.load_state_dict(reference.vision_state(theirs))
    tokens = ImageTokens(reference.IMAGE_TOKEN, 8, 9)
    ours = LoadedModel(
        name="pair",
        config=replace(config, eos_token_ids=(), mask_token_id=None),
        runner=build_runner(config, state.__getitem__, dtype="fp32"),
        tokenizer=tiny_vision_model().tokenizer,
        chat_template=None,
        adapter_scope=None,
        vision=Vision(config=vision_config, tokens=tokens, layout="mistral3", model=tower),
    )
    return theirs, ours


def numbered(model, *parts):
    """A prompt of token ids and pictures."""
    vision = model.require_vision("image")
    tokens, images = [], []
    for part in parts:
        if isinstance(part, int):
            tokens.append(part)
        else:
            images.append(PromptImage(part, len(tokens)))
            tokens += vision.prompt_tokens(part)
    return tuple(tokens), images


PLACES = {
    "start": lambda a, b: (a, 20, 21, 22),
    "middle": lambda a, b: (20, 21, a, 22, 23),
    "end": lambda a, b: (20, 21, 22, a),
    "two sizes": lambda a, b: (20, a, 21, b, 22),
    "side by side": lambda a, b: (20, a, b, a, 22),
}


@pytest.fixture(scope="module")
def pair():
    return mistral3_pair()


@torch.no_grad()
@pytest.mark.parametrize("place", PLACES)
def test_answers_equal_those_of_transformers(place, pair):
    theirs, ours = pair
    pictures = processed(ours, 1, (40, 24)), processed(ours, 2, (8, 64))
    parts = PLACES[place](*pictures)
    tokens, images = numbered(ours, *parts)
    config = ours.vision.config
    pixels, sizes = reference.padded([part.image.normalised(config) for part in images])
    found = run(Engine(ours), (tokens, images), max_tokens=12, logprobs=5)
    expected = theirs.generate(
        torch.tensor([tokens]), pixel_values=pixels, image_sizes=sizes, max_new_tokens=12,
        do_sample=False, eos_token_id=None, pad_token_id=0,
    )[0, len(tokens) :].tolist()  # fmt: skip
    assert found.tokens == expected
    whole = torch.tensor([[*tokens, *expected]])
    logits = theirs(whole, pixel_values=pixels, image_sizes=sizes).logits[0, len(tokens) - 1 : -1]
    scores = logits.log_softmax(-1)[range(12), expected]
    ours_ = torch.tensor([token.logprob for token in found.logprobs])
    torch.testing.assert_close(ours_, scores, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("mode", LOSSLESS)
@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.8, "seed": 3}], ids=["greedy", "sampled"]
)
def test_every_lossless_mode_equals_ar(mode, options, model):
    asked = prompt(
        model, "What is ", processed(model, 1), " beside ", processed(model, 2, (64, 8)), "?"
    )
    more = readable(mode, block_length=4) if mode != "auto" else {"mode": "auto"}
    assert answer(model, asked, **more, **options) == answer(model, asked, **options)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_quantised_modes_equal_ar_to_the_bit(dtype):
    model = quantised(dtype)
    asked = prompt(model, "What is ", processed(model, 1), "?")
    expected = run(Engine(model), asked, max_tokens=24, logprobs=0)
    for mode in LOSSLESS:
        found = run(Engine(model, max_rows=7), asked, max_tokens=24, logprobs=0, mode=mode)
        assert found.tokens == expected.tokens
        assert found.logprobs == expected.logprobs


@pytest.mark.parametrize("mode", MODES)
def test_a_picture_changes_the_answer_and_chunks_do_not(mode, model):
    first, second = (prompt(model, "See ", processed(model, seed), ": what?") for seed in (1, 2))
    assert first[0] == second[0]
    found = answer(model, first, mode=mode)
    assert found != answer(model, second, mode=mode)
    assert all(chunked(model, first, rows, mode=mode) == found for rows in (3, 5, 64))


def test_pictures_with_adapters_reach_drafts_too():
    config = tiny_config("llama", vocab_size=264)
    model = tiny_vision_model("llama", adapter=random_adapter(config), eos_token_ids=())
    asked = prompt(model, "What is ", processed(model, 1), "?")
    for mode in LOSSLESS:
        assert answer(model, asked, mode=mode) == answer(model, asked)


@given(
    asked=st.lists(
        st.tuples(
            st.sampled_from(MODES), st.lists(st.integers(0, 3), max_size=2), st.integers(0, 9)
        ),
        min_size=1, max_size=5,
    ),
    max_rows=st.sampled_from([5, 512]),
    kv_tokens=st.sampled_from([300, 4096]),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_batches_change_no_answer(asked, max_rows, kv_tokens):
    """Modes, pictures and texts in any mix, with little memory: sequences give way and go on."""
    model = _shared()
    sizes = [(8, 8), (24, 16), (64, 8), (16, 40)]
    token = KVCache.bytes_per_token(model.config, model.runner.kv_dtype)
    limits = {"max_rows": max_rows, "kv_cache_bytes": kv_tokens * token, "max_sequences": 3}
    engine = Engine(model, **limits)
    running = []
    for mode, pictures, number in asked:
        parts = ["Look: ", *(processed(model, n, sizes[n]) for n in pictures), f"{number}?"]
        whole = prompt(model, *parts)
        options = readable(mode, max_tokens=10, block_length=4)
        added = engine.add(whole[0], GenerationOptions(**options), images=whole[1])
        running.append((added, whole, options))
    for _ in drain(engine):
        pass
    for sequence, whole, options in running:
        assert sequence.tokens == run(Engine(model), whole, **options).tokens
        assert all(placed.embeddings is None for placed in sequence.images)


@pytest.mark.parametrize("mode", MODES)
def test_a_sequence_that_gives_way_reads_its_picture_again_from_what_it_became(mode, model, caplog):
    caplog.set_level("INFO", logger="trimode.engine.scheduler")
    token = KVCache.bytes_per_token(model.config, model.runner.kv_dtype)
    engine = Engine(model, kv_cache_bytes=256 * token)
    running = []
    with patch("trimode.engine.scheduler._LENT_AHEAD", 8):
        for seed in range(3):
            whole = prompt(model, f"{seed}: ", processed(model, seed, (64, 48)), "?")
            options = readable(mode, max_tokens=100, block_length=4)
            added = engine.add(whole[0], GenerationOptions(**options), images=whole[1])
            running.append((added, whole, options))
        for _ in drain(engine):
            pass
    assert "gives way" in caplog.text
    for sequence, whole, options in running:
        assert sequence.tokens == run(Engine(model), whole, **options).tokens


_models = []


def _shared():
    if not _models:
        _models.append(tiny_vision_model(eos_token_ids=()))
    return _models[0]


def test_a_second_turn_shares_the_picture_and_another_picture_shares_nothing(model):
    engine = Engine(model)
    first = prompt(model, processed(model, 1, (64, 64)), "What is it?")
    run(engine, first, max_tokens=4)
    again = run(
        engine, prompt(model, processed(model, 1, (64, 64)), "What is it? Say more."), max_tokens=4
    )
    assert again.stats.cached_tokens >= 64 + 8 + len("What is it?")
    other = prompt(model, processed(model, 2, (64, 64)), "What is it?")
    found = run(engine, other, max_tokens=4)
    assert found.stats.cached_tokens == 0
    assert found.tokens == answer(model, other, max_tokens=4)


def test_a_picture_and_the_same_tokens_without_one_share_nothing(model):
    engine = Engine(model)
    asked = prompt(model, processed(model, 1, (64, 64)), "What?")
    run(engine, asked, max_tokens=4)
    assert run(engine, (asked[0], ()), max_tokens=4).stats.cached_tokens == 0


def test_a_picture_that_comes_again_is_not_read_again(model):
    engine = Engine(model)
    asked = prompt(model, "A", processed(model, 1), "?")
    run(engine, asked, max_tokens=2)
    held = engine.images.bytes_held
    assert held == 6 * model.config.hidden_size * 4
    sequence = engine.add(*asked[:1], GenerationOptions(max_tokens=2), images=asked[1])
    engine.step()
    assert sequence.stats.nfe or sequence.rows_done  # admitted at once
    for _ in drain(engine):
        pass
    assert engine.images.bytes_held == held


def test_memory_of_pictures_is_bounded_and_reused(model):
    each = 6 * model.config.hidden_size * 4
    engine = Engine(model, image_bytes=2 * each)
    running = []
    for seed in range(5):
        tokens, images = prompt(model, "A", processed(model, seed), "?")
        running.append(engine.add(tokens, GenerationOptions(max_tokens=3), images=images))
    while engine.busy:
        engine.step()
        assert engine.images.bytes_held <= 2 * each
    assert all(len(sequence.tokens) == 3 for sequence in running)
    many = prompt(model, *(processed(model, seed) for seed in range(3)))
    with pytest.raises(InputError, match="images: pictures whose embeddings take 0 MiB"):
        engine.add(many[0], GenerationOptions(), images=many[1])


def test_a_request_that_is_cancelled_while_its_picture_is_read_leaves_nothing(model):
    engine = Engine(model)
    tokens, images = prompt(model, "A", processed(model, 1), "?")
    sequence = engine.add(tokens, GenerationOptions(max_tokens=3), images=images)
    engine.images.run(0.0)
    engine.cancel(sequence)
    assert not engine.busy
    assert engine.images.bytes_held == 0
    assert run(engine, (tokens, images), max_tokens=3).tokens == answer(
        model, (tokens, images), max_tokens=3
    )


def test_texts_go_on_while_a_large_picture_is_read(model):
    """A pass runs after each share of the picture, so text streams on all the while."""
    engine = Engine(model)
    text = engine.add(model.tokenizer.encode("Hello"), GenerationOptions(max_tokens=200))
    engine.step()
    tokens, images = prompt(model, "A", processed(model, 1, (64, 64)), "?")
    sequence = engine.add(tokens, GenerationOptions(max_tokens=3), images=images)
    engine._pass_seconds = 0.0
    steps = 0
    while engine.images.waiting:
        before = len(text.tokens)
        engine._pass_seconds = 0.0  # as if passes took no time: one slice a step
        engine.step()
        steps += 1
        assert len(text.tokens) == before + 1
    assert steps > 5
    for _ in drain(engine):
        pass
    assert sequence.finish_reason == "length"


def test_a_picture_that_cannot_be_read_ends_its_own_request_only(model):
    broken = tiny_vision_model(eos_token_ids=())
    broken.vision.model.multi_modal_projector.forward = None
    broken.vision.model.multi_modal_projector.project = None
    engine = Engine(broken)
    tokens, images = prompt(broken, "A", processed(broken, 1), "?")
    failing = engine.add(tokens, GenerationOptions(max_tokens=3), images=images)
    other = engine.add(broken.tokenizer.encode("Hi"), GenerationOptions(max_tokens=3))
    while engine.busy:
        engine.step()
    assert failing.finish_reason == "error"
    assert len(other.tokens) == 3


def test_a_prompt_that_does_not_hold_its_pictures_is_refused(model):
    engine = Engine(model)
    image = processed(model, 1)
    tokens, images = prompt(model, "A", image, "?")
    for wrong in (
        [PromptImage(image, 0)],
        [PromptImage(processed(model, 1, (64, 8)), images[0].start)],
        [images[0], images[0]],
        [PromptImage(image, 10**6)],
    ):
        with pytest.raises(InputError, match=r"images\[\d\]: no \d+ tokens of a picture"):
            engine.add(tokens, GenerationOptions(), images=wrong)


def test_a_text_model_refuses_pictures_before_any_work(model):
    engine = Engine(replace(model, vision="it has no vision part"))
    tokens, images = prompt(model, "A", processed(model, 1), "?")
    with pytest.raises(InputError, match=r"images: a picture; .* reads none"):
        engine.add(tokens, GenerationOptions(), images=images)
    assert not engine.busy
