"""Haystack: chat and Responses; streams, tools, an agent, a typed answer."""

from common import ANSWER, KEY, MODEL, PET, PROMPT, Pet, called, openai_url, weather
from haystack.components.agents import Agent
from haystack.components.generators.chat import (
    OpenAIChatGenerator,
    OpenAIResponsesChatGenerator,
)
from haystack.dataclasses import ChatMessage
from haystack.tools import create_tool_from_function
from haystack.utils import Secret

MESSAGES = [ChatMessage.from_user(PROMPT)]
TOOL = create_tool_from_function(weather)
for kind in (OpenAIChatGenerator, OpenAIResponsesChatGenerator):

    def generator(name, kind=kind, **more):
        key = Secret.from_token(KEY)
        return kind(api_key=key, model=MODEL, api_base_url=openai_url(name), **more)

    assert generator("real").run(MESSAGES)["replies"][0].text
    seen = []
    streamed = generator("real", streaming_callback=seen.append)
    assert streamed.run(MESSAGES)["replies"][0].text == "".join(c.content for c in seen)
    for more in ({}, {"streaming_callback": seen.append}):
        agent = Agent(chat_generator=generator("caller", **more), tools=[TOOL])
        assert agent.run(messages=MESSAGES)["last_message"].text == ANSWER
        assert called()
    field = "response_format" if kind is OpenAIChatGenerator else "text_format"
    typed = generator("typed", generation_kwargs={field: Pet})
    assert Pet.model_validate_json(typed.run(MESSAGES)["replies"][0].text) == PET
