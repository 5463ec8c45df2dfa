"""Mirascope: a call, a stream, a tool loop, a typed answer."""

from common import ANSWER, KEY, MODEL, PET, PROMPT, Pet, called, openai_url
from common import weather as function
from mirascope import llm

weather = llm.tool(function)


def call(name, **more):
    llm.register_provider(
        "openai:completions", scope="openai/", base_url=openai_url(name), api_key=KEY
    )
    return llm.call(f"openai/{MODEL}", **more)(lambda: PROMPT)


assert call("real", max_tokens=12)().text()
assert "".join(call("real", max_tokens=12).stream().text_stream())
response = call("caller", tools=[weather])()
assert response.resume(response.execute_tools()).text() == ANSWER
assert called()
assert call("typed", format=llm.format(Pet, mode="strict"))().parse() == PET
