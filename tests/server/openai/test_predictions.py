"""`prediction`: a text that is tried as a draft."""

import openai
import pytest

from tests.server.asking import (
    ask,
    in_mode,
    refused,
)


def test_a_right_prediction_is_accepted_and_reported(client):
    plain = ask(client, max_tokens=24)
    text = plain.choices[0].message.content
    asked = {"prediction": {"type": "content", "content": text}, "max_tokens": 24}
    for mode in ("auto", "linear"):
        found = ask(client, extra_body={"decoding": {"mode": mode}}, **asked)
        assert found.choices[0].message.content == text
        details = found.usage.completion_tokens_details
        assert details.accepted_prediction_tokens >= 0
        assert details.rejected_prediction_tokens >= 0
    assert plain.usage.completion_tokens_details.accepted_prediction_tokens is None
    with pytest.raises(openai.BadRequestError, match="prediction"):
        ask(client, extra_body={"decoding": {"mode": "ar"}}, **asked)


@pytest.mark.parametrize("parts", [False, True])
def test_a_prediction_is_a_draft(plain, parts):
    """As text or as parts; a wrong one costs nothing but time."""
    text = ask(plain, max_tokens=24).choices[0].message.content
    for content, right in ((text, True), ("0123456789", False)):
        given = [{"type": "text", "text": content}] if parts else content
        asked = {"prediction": {"type": "content", "content": given}, "max_tokens": 24}
        answer = ask(plain, extra_body=in_mode("auto"), **asked)
        assert answer.choices[0].message.content == text
        details = answer.usage.completion_tokens_details
        assert right or details.accepted_prediction_tokens == 0
        chunks = ask(plain, stream=True, stream_options={"include_usage": True}, **asked,
                     extra_body=in_mode("auto"))  # fmt: skip
        assert [*chunks][-1].usage.completion_tokens_details.rejected_prediction_tokens is not None
    for mode in ("ar", "diffusion"):
        assert refused(plain, extra_body=in_mode(mode), **asked) == "prediction"
