"""Outlines: its OpenAI and its vLLM model; text, types, choices, regular expressions, grammars."""

import re
from typing import Literal

import outlines
from common import KEY, MODEL, PET, PROMPT, Pet, openai_url
from openai import OpenAI
from outlines.types import CFG, Regex


def client(name):
    return OpenAI(base_url=openai_url(name), api_key=KEY)


for of in (outlines.from_openai, outlines.from_vllm):
    real = of(client("real"), MODEL)
    assert real(PROMPT, max_tokens=12)
    assert "".join(real.stream(PROMPT, max_tokens=12))
    assert Pet.model_validate_json(of(client("typed"), MODEL)(PROMPT, Pet)) == PET
vllm = outlines.from_vllm(client("real"), MODEL)
assert vllm(PROMPT, Literal["sun", "rain"]) in ("sun", "rain")
assert re.fullmatch(r"\d{2}:\d{2}", vllm(PROMPT, Regex(r"\d{2}:\d{2}")))
assert vllm(PROMPT, CFG('start: "sun" | "rain"')) in ("sun", "rain")
