"""The official client of OpenAI: chat, completions, responses, streams, tools, typed answers."""

from common import ANSWER, KEY, MODEL, PET, PROMPT, Pet, openai_url
from openai import OpenAI, pydantic_function_tool

MESSAGES = [{"role": "user", "content": PROMPT}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
FLAT = {"type": "function", **TOOL["function"], "strict": False}


def client(name):
    return OpenAI(base_url=openai_url(name), api_key=KEY)


real, caller = client("real"), client("caller")
assert MODEL in [model.id for model in real.models.list()]
whole = real.chat.completions.create(
    model=MODEL, messages=MESSAGES, temperature=0, max_tokens=12, logprobs=True, top_logprobs=2
)
text = whole.choices[0].message.content
assert len(whole.choices[0].logprobs.content) == 12
chunks = real.chat.completions.create(
    model=f"{MODEL}:linear", messages=MESSAGES, temperature=0, max_tokens=12, stream=True
)
assert "".join(c.choices[0].delta.content or "" for c in chunks) == text
assert real.completions.create(model=MODEL, prompt="Paris is", max_tokens=4).choices[0].text
response = real.responses.create(model=MODEL, input=PROMPT, temperature=0, max_output_tokens=12)
assert response.output_text == text
assert response.status == "incomplete"

message = caller.chat.completions.create(model=MODEL, messages=MESSAGES, tools=[TOOL]).choices[0]
assert message.finish_reason == "tool_calls"
(call,) = message.message.tool_calls
assert (call.function.name, call.function.arguments) == ("weather", '{"city": "Paris"}')
history = [*MESSAGES, message.message, {"role": "tool", "tool_call_id": call.id, "content": "sun"}]
last = caller.chat.completions.create(model=MODEL, messages=history, tools=[TOOL])
assert last.choices[0].message.content == ANSWER

with caller.responses.stream(model=MODEL, input=PROMPT, tools=[FLAT]) as events:
    (item,) = [one for one in events.get_final_response().output if one.type == "function_call"]
assert item.arguments == '{"city": "Paris"}'
output = {"type": "function_call_output", "call_id": item.call_id, "output": "sun"}
items = [{"role": "user", "content": PROMPT}, item.model_dump(), output]
assert caller.responses.create(model=MODEL, input=items, tools=[FLAT]).output_text == ANSWER

typed = client("typed")
parsed = typed.chat.completions.parse(model=MODEL, messages=MESSAGES, response_format=Pet)
assert parsed.choices[0].message.parsed == PET
assert typed.responses.parse(model=MODEL, input=PROMPT, text_format=Pet).output_parsed == PET
parsed = client("Pet").chat.completions.parse(
    model=MODEL, messages=MESSAGES, tools=[pydantic_function_tool(Pet)], tool_choice="required"
)
assert parsed.choices[0].message.tool_calls[0].function.parsed_arguments == PET
