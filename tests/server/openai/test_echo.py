"""`echo` of /v1/completions: the prompt as a part of the answer."""

import openai
import pytest

from trimode import generate


@pytest.mark.parametrize("stream", [False, True])
def test_echo_gives_the_prompt_back_with_its_logprobs(client, model, stream):
    asked = {"model": "tiny", "prompt": "abc", "max_tokens": 4, "temperature": 0, "echo": True}
    if stream:
        text = "".join(c.choices[0].text for c in client.completions.create(stream=True, **asked))
        assert text == "abc" + generate(model, "abc", raw=True, max_tokens=4).text
        return
    (choice,) = client.completions.create(logprobs=2, **asked).choices
    assert choice.text == "abc" + generate(model, "abc", raw=True, max_tokens=4).text
    found = choice.logprobs
    assert found.tokens[:3] == ["a", "b", "c"]
    assert found.token_logprobs[0] is None
    assert len(found.tokens) == len(found.token_logprobs) == len(found.text_offset) == 7
    assert found.text_offset[:4] == [0, 1, 2, 3]
    alone = client.completions.create(logprobs=2, **{**asked, "prompt": "ab", "max_tokens": 1})
    following = alone.choices[0].logprobs
    assert following.token_logprobs[:2] == [None, pytest.approx(found.token_logprobs[1], abs=1e-4)]


def test_echo_alone_scores_a_text(client):
    """What lm-evaluation-harness asks of local-completions."""
    found = client.completions.create(
        model="tiny", prompt=[[65, 66, 67], [70, 71]], max_tokens=0, echo=True, logprobs=1
    )
    assert [len(c.logprobs.tokens) for c in found.choices] == [3, 2]
    assert found.usage.completion_tokens == 0
    for choice in found.choices:
        tops = zip(choice.logprobs.token_logprobs, choice.logprobs.top_logprobs, strict=True)
        assert all(own is None or own <= max(top.values()) for own, top in tops)


def test_completions_check_the_tokens_they_only_echo(client):
    """Token ids that are none, prompts that are too long."""
    echo = {"model": "tiny", "echo": True, "max_tokens": 0}
    for prompt in ([999_999], [-5], [[]], [[65], [70_000]], [1] * 1025):
        for logprobs in (None, 1):
            with pytest.raises(openai.BadRequestError) as caught:
                client.completions.create(prompt=prompt, logprobs=logprobs, **echo)
            assert caught.value.param == "prompt"
    chunks = client.completions.create(prompt=["ab", "c"], stream=True, logprobs=1, **echo)
    assert "".join(c.choices[0].text for c in chunks) == "abc"
    with pytest.raises(openai.BadRequestError) as caught:  # never fits, so no 429
        client.completions.create(model="tiny", prompt=["a"] * 81)
    assert caught.value.param == "prompt"
