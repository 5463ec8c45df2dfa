"""Agno: chat, Responses and Anthropic; streams, a tool loop, a typed answer."""

from agno.agent import Agent
from agno.models.anthropic import Claude
from agno.models.openai import OpenAIResponses
from agno.models.openai.like import OpenAILike
from anthropic import Anthropic
from common import ANSWER, KEY, MODEL, PET, PROMPT, URLS, Pet, called, openai_url, weather


def chat(name):
    return OpenAILike(id=MODEL, base_url=openai_url(name), api_key=KEY)


def responses(name):
    return OpenAIResponses(id=MODEL, base_url=openai_url(name), api_key=KEY)


def anthropic(name):
    return Claude(id=MODEL, client=Anthropic(base_url=URLS[name], api_key=KEY), max_tokens=300)


for kind in (chat, responses, anthropic):
    assert Agent(model=kind("real")).run(PROMPT).content
    agent = Agent(model=kind("caller"), tools=[weather])
    assert agent.run(PROMPT).content == ANSWER
    assert called()
    parts = [event.content or "" for event in agent.run(PROMPT, stream=True)]
    assert "".join(parts).endswith(ANSWER), parts
    assert called()
    assert Agent(model=kind("typed"), output_schema=Pet).run(PROMPT).content == PET
