"""The routes of vLLM and llama.cpp for tokens and templates."""

import httpx2 as httpx
import pytest

from tests.server.asking import HI, TOOL


def post(url, path, **fields):
    return httpx.post(f"{url}/{path}", json=fields)


def test_texts_become_tokens_and_the_reverse(url, model):
    text = "hé <|im_end|> \n"
    ids = model.tokenizer.encode(text)
    vllm = post(url, "tokenize", model="tiny", prompt=text, return_token_strs=True).json()
    assert vllm["tokens"] == ids
    assert (vllm["count"], vllm["max_model_len"]) == (len(ids), 1024)
    assert len(vllm["token_strs"]) == len(ids)
    assert post(url, "tokenize", content=text).json() == {"tokens": ids}
    pieces = post(url, "tokenize", content="é", with_pieces=True).json()["tokens"]
    assert [piece["piece"] for piece in pieces] == [[0xC3], [0xA9]]
    back = post(url, "detokenize", tokens=ids).json()
    assert back == {"prompt": text, "content": text}


def test_conversations_become_prompts(url, model):
    asked = {"messages": HI, "tools": [TOOL]}
    prompt = post(url, "apply-template", **asked).json()["prompt"]
    assert prompt.endswith("assistant\n")
    assert "add" in prompt
    assert post(url, "tokenize", **asked).json()["tokens"] == model.tokenizer.encode(prompt)


def test_the_tokenizer_describes_itself(url, model):
    info = httpx.get(f"{url}/tokenizer_info").json()
    assert info["eos_token"] == "<|im_end|>"
    assert info["chat_template"] == model.chat_template.source


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("tokenize", {}, "prompt"),
        ("tokenize", {"messages": "hi"}, "messages"),
        ("tokenize", {"messages": [{"role": "king"}]}, "messages[0].role"),
        ("detokenize", {"tokens": [5, 10**6]}, "tokens"),
        ("detokenize", {"tokens": ["a"]}, "tokens[0]"),
    ],
)
def test_bad_input_is_named(url, path, fields, param):
    found = post(url, path, **fields)
    assert (found.status_code, found.json()["error"]["param"]) == (400, param)
