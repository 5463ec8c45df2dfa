"""/v1/completions: prompts as text and as tokens, lists of them, streams."""

import openai
import pytest

from tests.server.asking import (
    complete,
)
from trimode import generate


def test_a_prompt_is_taken_as_it_is_text_or_tokens(client, model):
    expected = generate(model, "ab", raw=True, max_tokens=8).text
    assert complete(client, "ab").choices[0].text == expected
    assert complete(client, model.tokenizer.encode("ab")).choices[0].text == expected


def test_a_list_of_prompts_gives_choices_in_order(client):
    alone = [complete(client, prompt).choices[0].text for prompt in ("ab", "cd", "xyz")]
    together = complete(client, ["ab", "cd", "xyz"])
    assert [choice.text for choice in together.choices] == alone
    assert together.usage.prompt_tokens == 7


def test_a_stream_is_the_same_text(client):
    parts = [c.choices[0].text for c in complete(client, "ab", stream=True)]
    assert "".join(parts) == complete(client, "ab").choices[0].text


@pytest.mark.parametrize("prompt", ["", [], [""]])
def test_an_empty_prompt_is_refused(client, prompt):
    with pytest.raises(openai.BadRequestError) as caught:
        complete(client, prompt)
    assert caught.value.param == "prompt"
