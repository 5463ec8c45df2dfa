"""What tests of the server ask for, and how they wait."""

import http.client
import json
import time
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import openai
import pytest

from tests.reference.options import readable
from trimode.config import GenerationOptions

MODES = ("ar", "linear", "quadratic", "diffusion", "auto")
LOSSLESS = ("ar", "linear", "quadratic", "auto")
HI = [{"role": "user", "content": "hi"}]
LONG = GenerationOptions(max_tokens=900, ignore_eos=True)
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["n"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "add", "parameters": SCHEMA}}


def client_of(url, **fields):
    """The official client."""
    return openai.OpenAI(base_url=f"{url}/v1", **{"api_key": "none", "max_retries": 0, **fields})


def ask(client, **fields):
    fields = {"model": "tiny", "messages": HI, "temperature": 0, **fields}
    return client.chat.completions.create(**fields)


def complete(client, prompt, **fields):
    fields = {"model": "tiny", "temperature": 0, "max_tokens": 8, **fields}
    return client.completions.create(prompt=prompt, **fields)


def refused(client, **fields):
    """The field that a refusal of a chat request names."""
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **fields)
    return caught.value.param


def decoding(mode, block_length=4, **more):
    """The object `decoding`, with a block length if the mode reads one."""
    return {**readable(mode, block_length=block_length), **more}


def in_mode(mode, block_length=4, **more):
    """The extra body for a mode."""
    return {"decoding": decoding(mode, block_length, **more)}


def constant(text):
    """A response format that only one text fits."""
    schema = {"type": "object", "properties": {"t": {"const": text}}, "required": ["t"],
              "additionalProperties": False}  # fmt: skip
    return {"type": "json_schema", "json_schema": {"name": "t", "schema": schema, "strict": True}}


def text_of(chunks):
    """The text of a chat stream."""
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


def body(**fields):
    """A chat body as bytes."""
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], **fields}
    return json.dumps(asked).encode()


def get(url, **headers):
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
        return answer.read().decode()


def send(url, body=None, **headers):
    """The status and the JSON object of an answer, an error too; without a body it is a GET."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **headers}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers)) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def until(condition, seconds=20):
    """Wait for a condition."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)


def hang_up(url, server, *, stream):
    """Ask for an answer and leave while it is decoded."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc)
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", body(stream=stream), headers)
    until(lambda: server.worker.engine.live)
    connection.sock.close()
    connection.close()
