"""Prompts for models that fill in between a prefix and a suffix."""

import openai
import pytest

from tests.server.asking import client_of
from tests.server.conftest import serving
from trimode.server.dialogue.infill import infill
from trimode.testing import byte_tokenizer, saying_model
from trimode.text import Tokenizer

KINDS = {
    "qwen": ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    "starcoder": ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    "deepseek": ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
}


def model_with(tokens):
    backend = byte_tokenizer().backend
    backend.add_special_tokens(list(tokens))
    return saying_model("middle", tokenizer=Tokenizer(backend))


@pytest.mark.parametrize("tokens", KINDS.values(), ids=KINDS)
def test_the_prompt_is_prefix_suffix_and_then_the_middle(tokens):
    model = model_with(tokens)
    encode, (before, after, middle) = model.tokenizer.encode, map(model.tokenizer.token_id, tokens)
    expected = (before, *encode("def f():"), after, *encode("\nreturn"), middle)
    assert infill(model, "def f():", "\nreturn") == expected
    assert infill(model, encode("def f():"), "\nreturn") == expected


def test_it_is_asked_for_by_suffix(client):
    with serving(model_with(KINDS["qwen"])) as (url, service):
        prompts = []
        add = service.worker.engine.add
        service.worker.engine.add = lambda prompt, *rest, **more: (
            prompts.append(prompt) or add(prompt, *rest, **more)
        )
        client_of(url).completions.create(model="tiny", prompt="a", suffix="b", max_tokens=9)
        assert prompts == [infill(service.model, "a", "b")]
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="tiny", prompt="a", suffix="b")
    assert caught.value.param == "suffix"
