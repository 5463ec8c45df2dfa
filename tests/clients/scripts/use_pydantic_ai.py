"""Pydantic AI: chat, Responses and Anthropic, tools, streams, output by tool and natively."""

import asyncio

from anthropic import AsyncAnthropic
from common import ANSWER, KEY, MODEL, PET, PROMPT, URLS, Pet, called, openai_url, weather
from pydantic_ai import Agent, NativeOutput, PromptedOutput
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider


def of_openai(kind):
    return lambda name: kind(MODEL, provider=OpenAIProvider(openai_url(name), KEY))


def of_anthropic(name):
    client = AsyncAnthropic(base_url=URLS[name], api_key=KEY)
    return AnthropicModel(MODEL, provider=AnthropicProvider(anthropic_client=client))


async def main() -> None:
    for model in (of_openai(OpenAIChatModel), of_openai(OpenAIResponsesModel), of_anthropic):
        few = {"max_tokens": 12, "temperature": 0}
        assert (await Agent(model("real"), model_settings=few).run(PROMPT)).output
        caller = Agent(model("caller"), tools=[weather])
        assert (await caller.run(PROMPT)).output == ANSWER
        assert called()
        async with caller.run_stream(PROMPT) as streamed:
            assert await streamed.get_output() == ANSWER
        assert called()
        assert (await Agent(model("final_result"), output_type=Pet).run(PROMPT)).output == PET
        for wrapped in (NativeOutput(Pet), PromptedOutput(Pet)):
            if wrapped.__class__ is NativeOutput and model is of_anthropic:
                continue  # it knows which of Anthropic's models can
            assert (await Agent(model("typed"), output_type=wrapped).run(PROMPT)).output == PET


asyncio.run(main())
