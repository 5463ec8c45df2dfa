"""smolagents: text, and an agent that calls a tool and then gives its final answer."""

from common import KEY, MODEL, PROMPT, called, openai_url
from common import weather as function
from smolagents import OpenAIServerModel, ToolCallingAgent, tool

weather = tool(function)


def model(name):
    return OpenAIServerModel(MODEL, api_base=openai_url(name), api_key=KEY, max_tokens=400)


message = [{"role": "user", "content": [{"type": "text", "text": PROMPT}]}]
assert model("real")(message, max_tokens=12).content
assert "".join(d.content or "" for d in model("real").generate_stream(message, max_tokens=12))
for stream in (False, True):
    agent = ToolCallingAgent([weather], model("agent"), stream_outputs=stream, verbosity_level=0)
    assert agent.run(PROMPT) == "sunny"
    assert called()
