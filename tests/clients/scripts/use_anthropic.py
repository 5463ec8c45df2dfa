"""The official client of Anthropic: messages, streams, counting, tool loops, typed answers."""

from anthropic import Anthropic, beta_tool
from common import ANSWER, KEY, MODEL, PET, PROMPT, URLS, Pet, called, weather

MESSAGES = [{"role": "user", "content": PROMPT}]
ASK = {"model": MODEL, "max_tokens": 200, "messages": MESSAGES}


def client(name):
    return Anthropic(base_url=URLS[name], api_key=KEY)


real, caller = client("real"), client("caller")
few = {**ASK, "max_tokens": 12, "system": "Be brief.", "extra_body": {"temperature": 0}}
whole = real.messages.create(**few)
assert whole.stop_reason == "max_tokens"
with real.messages.stream(**few) as stream:
    assert "".join(stream.text_stream) == whole.content[0].text
assert stream.get_final_message().usage.output_tokens == 12
assert real.messages.count_tokens(model=MODEL, messages=MESSAGES).input_tokens > 10
assert MODEL in [model.id for model in real.models.list()]

tool = {
    "name": "weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
first = caller.messages.create(**ASK, tools=[tool])
assert first.stop_reason == "tool_use"
assert first.content[-1].input == {"city": "Paris"}
result = {"type": "tool_result", "tool_use_id": first.content[-1].id, "content": "sun"}
turns = [
    *MESSAGES,
    {"role": "assistant", "content": first.content},
    {"role": "user", "content": [result]},
]
assert caller.messages.create(**{**ASK, "messages": turns}, tools=[tool]).content[0].text == ANSWER
with caller.messages.stream(**ASK, tools=[tool]) as stream:
    assert stream.get_final_message().content[-1].input == {"city": "Paris"}
for streamed in (False, True):
    runner = caller.beta.messages.tool_runner(**ASK, tools=[beta_tool(weather)], stream=streamed)
    messages = [m.get_final_message() if streamed else m for m in runner]
    assert messages[-1].content[0].text == ANSWER
    assert called()
assert client("typed").messages.parse(**ASK, output_format=Pet).parsed_output == PET
