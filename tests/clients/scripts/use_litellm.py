"""LiteLLM: OpenAI's chat, text and Responses, Anthropic, Ollama; streams, tools, long prompts."""

import litellm
from common import ANSWER, KEY, MODEL, PET, PROMPT, URLS, Pet, openai_url

litellm.telemetry = False
MESSAGES = [{"role": "user", "content": PROMPT}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
KINDS = {
    "openai": openai_url,
    "hosted_vllm": openai_url,
    "anthropic": URLS.__getitem__,
    "ollama_chat": URLS.__getitem__,
}
for kind, url in KINDS.items():

    def ask(name, kind=kind, url=url, **more):
        more = {"max_tokens": 300, "messages": MESSAGES, **more}
        return litellm.completion(f"{kind}/{MODEL}", api_base=url(name), api_key=KEY, **more)

    assert ask("real", max_tokens=12, temperature=0).choices[0].message.content
    parts = ask("real", max_tokens=12, stream=True)
    assert "".join(part.choices[0].delta.content or "" for part in parts)
    message = ask("caller", tools=[TOOL]).choices[0].message
    (call,) = message.tool_calls
    assert call.function.arguments == '{"city": "Paris"}', call
    result = {"role": "tool", "tool_call_id": call.id, "name": "weather", "content": "sun"}
    turns = [*MESSAGES, message, result]
    assert ask("caller", tools=[TOOL], messages=turns).choices[0].message.content == ANSWER
    streamed = litellm.stream_chunk_builder(list(ask("caller", tools=[TOOL], stream=True)))
    assert streamed.choices[0].message.tool_calls[0].function.arguments == '{"city": "Paris"}'
    if kind != "anthropic":  # it knows which of Anthropic's models can
        text = ask("typed", response_format=Pet).choices[0].message.content
        assert Pet.model_validate_json(text) == PET
try:
    long = [{"role": "user", "content": PROMPT * 3000}]
    litellm.completion(f"openai/{MODEL}", long, api_base=openai_url("real"), api_key=KEY)
    raise AssertionError("it is too long")
except litellm.ContextWindowExceededError:
    pass
answer = litellm.responses(PROMPT, f"openai/{MODEL}", api_base=openai_url("real"), api_key=KEY)
assert answer.output[0].content[0].text
text = litellm.text_completion(
    "Paris is",
    f"text-completion-openai/{MODEL}",
    api_base=openai_url("real"),
    api_key=KEY,
    max_tokens=4,
)
assert text.choices[0].text
