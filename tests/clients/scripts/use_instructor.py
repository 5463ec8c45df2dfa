"""Instructor: a nested type in every mode that this server can serve, whole and partial."""

import instructor
from anthropic import Anthropic
from common import KEY, MODEL, PET, PROMPT, URLS, Pet, openai_url
from instructor import Mode
from openai import OpenAI


def same(found):
    """Instructor gives subclasses."""
    return found.model_dump() == PET.model_dump()


ASK = {"model": MODEL, "messages": [{"role": "user", "content": PROMPT}], "max_retries": 0}
BY_CALL = (Mode.TOOLS, Mode.TOOLS_STRICT, Mode.RESPONSES_TOOLS)
BY_TEXT = (Mode.JSON, Mode.JSON_SCHEMA, Mode.MD_JSON)
for mode in (*BY_CALL, *BY_TEXT):
    url = openai_url("Pet" if mode in BY_CALL else "typed")
    client = instructor.from_openai(OpenAI(base_url=url, api_key=KEY), mode=mode)
    assert same(client.create(response_model=Pet, **ASK)), mode
    if mode in (Mode.TOOLS, Mode.JSON, Mode.JSON_SCHEMA):
        url = openai_url("PartialPet" if mode in BY_CALL else "typed")
        client = instructor.from_openai(OpenAI(base_url=url, api_key=KEY), mode=mode)
        *_, last = client.create_partial(response_model=Pet, strict=False, **ASK)
        assert same(last), mode
for mode in (Mode.ANTHROPIC_TOOLS, Mode.ANTHROPIC_JSON):
    url = URLS["Pet" if mode is Mode.ANTHROPIC_TOOLS else "typed"]
    client = instructor.from_anthropic(Anthropic(base_url=url, api_key=KEY), mode=mode)
    assert same(client.create(response_model=Pet, max_tokens=300, **ASK)), mode
