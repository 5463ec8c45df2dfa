"""LlamaIndex: OpenAILike; completion, chat, streams, an agent with a tool, typed answers."""

import asyncio

from common import ANSWER, KEY, MODEL, PET, PROMPT, Pet, called, openai_url, weather
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.llms.openai_like import OpenAILike


def model(name, **more):
    return OpenAILike(
        model=MODEL,
        api_base=openai_url(name),
        api_key=KEY,
        is_chat_model=True,
        is_function_calling_model=True,
        max_tokens=400,
        **more,
    )


async def main() -> None:
    real = model("real", additional_kwargs={"max_tokens": 12})
    messages = [ChatMessage(role="user", content=PROMPT)]
    assert real.complete(PROMPT).text
    assert "".join(part.delta or "" for part in real.stream_chat(messages))
    agent = FunctionAgent(tools=[weather], llm=model("caller"))
    assert str(await agent.run(PROMPT)) == ANSWER
    assert called()
    template = PromptTemplate(PROMPT)
    assert model("Pet").structured_predict(Pet, template) == PET
    native = model("typed", should_use_structured_outputs=True)
    assert native.structured_predict(Pet, template) == PET


asyncio.run(main())
