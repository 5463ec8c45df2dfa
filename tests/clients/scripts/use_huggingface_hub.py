"""huggingface_hub's InferenceClient: chat without a model's name, streams, tools, typed answers."""

import json

from common import KEY, PET, PROMPT, URLS, Pet
from huggingface_hub import InferenceClient

MESSAGES = [{"role": "user", "content": PROMPT}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def client(name):
    return InferenceClient(base_url=URLS[name], api_key=KEY)


real = client("real")
assert real.chat_completion(MESSAGES, max_tokens=12).choices[0].message.content
parts = real.chat_completion(MESSAGES, max_tokens=12, stream=True)
assert "".join(part.choices[0].delta.content or "" for part in parts)
(call,) = client("caller").chat_completion(MESSAGES, tools=[TOOL]).choices[0].message.tool_calls
assert json.loads(call.function.arguments) == {"city": "Paris"}
schema = Pet.model_json_schema()
for form in (
    {"type": "json", "value": schema},
    {"type": "json_object", "value": schema},
    {"type": "json_schema", "json_schema": {"name": "pet", "schema": schema}},
):
    text = client("typed").chat_completion(MESSAGES, response_format=form).choices[0]
    assert Pet.model_validate_json(text.message.content) == PET, form
