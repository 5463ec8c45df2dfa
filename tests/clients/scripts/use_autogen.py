"""AutoGen: a client's create and stream, an agent with a tool, a typed answer."""

import asyncio

from autogen_agentchat.agents import AssistantAgent
from autogen_core.models import ModelFamily, UserMessage
from autogen_ext.models.openai import OpenAIChatCompletionClient
from common import ANSWER, KEY, MODEL, PET, PROMPT, Pet, called, openai_url, weather

INFO = {
    "vision": False,
    "function_calling": True,
    "json_output": True,
    "structured_output": True,
    "family": ModelFamily.UNKNOWN,
}


def client(name):
    return OpenAIChatCompletionClient(
        model=MODEL, base_url=openai_url(name), api_key=KEY, model_info=INFO, max_tokens=400
    )


async def main() -> None:
    messages = [UserMessage(content=PROMPT, source="user")]
    whole = await client("real").create(messages, extra_create_args={"max_tokens": 12})
    assert whole.content
    assert whole.usage.completion_tokens == 12
    stream = client("real").create_stream(messages, include_usage=True)
    parts = [part async for part in stream]
    assert parts[-1].usage.completion_tokens
    agent = AssistantAgent(
        "a", client("caller"), tools=[weather], reflect_on_tool_use=True, model_client_stream=True
    )
    assert (await agent.run(task=PROMPT)).messages[-1].content == ANSWER
    assert called()
    agent = AssistantAgent("a", client("typed"), output_content_type=Pet)
    assert (await agent.run(task=PROMPT)).messages[-1].content == PET


asyncio.run(main())
