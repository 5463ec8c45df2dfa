"""Strands: chat and Anthropic; an agent with a tool, a typed answer."""

from common import ANSWER, KEY, MODEL, PET, PROMPT, Pet, called, openai_url
from common import weather as function
from strands import Agent, tool
from strands.models.openai import OpenAIModel

weather = tool(function)


def model(name):
    arguments = {"base_url": openai_url(name), "api_key": KEY}
    return OpenAIModel(client_args=arguments, model_id=MODEL, params={"max_tokens": 400})


def agent(name, **more):
    return Agent(model=model(name), callback_handler=None, **more)


assert str(agent("real")("Say hello in five words.")).strip()  # an answer that ends
assert str(agent("caller", tools=[weather])(PROMPT)).strip() == ANSWER
assert called()
assert agent("Pet")(PROMPT, structured_output_model=Pet).structured_output == PET
