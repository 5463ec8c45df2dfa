"""OpenAI's Agents SDK: Responses (its default) and chat, a tool loop, streams, typed output."""

import asyncio

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from common import ANSWER, CAPITAL, KEY, MODEL, PET, PROMPT, Pet, called, openai_url, weather
from openai import AsyncOpenAI

set_tracing_disabled(True)


async def main() -> None:
    for kind in (OpenAIResponsesModel, OpenAIChatCompletionsModel):

        def agent(name, kind=kind, **more):
            client = AsyncOpenAI(base_url=openai_url(name), api_key=KEY)
            return Agent("a", instructions="Help.", model=kind(MODEL, client), **more)

        greedy = agent("real", model_settings=ModelSettings(temperature=0))
        assert "Paris" in (await Runner.run(greedy, CAPITAL)).final_output
        caller = agent("caller", tools=[function_tool(weather)])
        assert (await Runner.run(caller, PROMPT)).final_output == ANSWER
        assert called()
        streamed = Runner.run_streamed(caller, PROMPT)
        kinds = {event.type async for event in streamed.stream_events()}
        assert "run_item_stream_event" in kinds
        assert streamed.final_output == ANSWER
        assert called()
        typed = agent("typed", output_type=Pet)
        assert (await Runner.run(typed, PROMPT)).final_output == PET


asyncio.run(main())
