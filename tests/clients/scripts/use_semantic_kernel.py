"""Semantic Kernel: chat, a stream, functions that it calls by itself, a typed answer."""

import asyncio

from common import ANSWER, KEY, MODEL, PET, PROMPT, Pet, called, openai_url
from common import weather as function
from openai import AsyncOpenAI
from semantic_kernel import Kernel
from semantic_kernel.connectors.ai import FunctionChoiceBehavior
from semantic_kernel.connectors.ai.open_ai import (
    OpenAIChatCompletion,
    OpenAIChatPromptExecutionSettings,
)
from semantic_kernel.contents import ChatHistory
from semantic_kernel.functions import kernel_function

weather = kernel_function(function, name="weather")


def service(name):
    client = AsyncOpenAI(base_url=openai_url(name), api_key=KEY)
    return OpenAIChatCompletion(ai_model_id=MODEL, async_client=client)


async def main() -> None:
    history = ChatHistory()
    history.add_user_message(PROMPT)
    few = OpenAIChatPromptExecutionSettings(max_tokens=12)
    assert (await service("real").get_chat_message_content(history, few)).content
    stream = service("real").get_streaming_chat_message_content(history, few)
    assert "".join([str(part) async for part in stream])
    kernel = Kernel()
    kernel.add_function("here", weather)
    behaviour = FunctionChoiceBehavior.Auto()
    settings = OpenAIChatPromptExecutionSettings(function_choice_behavior=behaviour)
    found = await service("kernel").get_chat_message_content(history, settings, kernel=kernel)
    assert found.content == ANSWER
    assert called()
    history = ChatHistory()
    history.add_user_message(PROMPT)
    settings = OpenAIChatPromptExecutionSettings(response_format=Pet)
    found = await service("typed").get_chat_message_content(history, settings)
    assert Pet.model_validate_json(found.content) == PET


asyncio.run(main())
