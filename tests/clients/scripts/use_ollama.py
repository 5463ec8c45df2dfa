"""The official client of Ollama: list, show, chat, generate, streams, tools, typed answers."""

from common import ANSWER, MODEL, PET, PROMPT, URLS, Pet, called, weather
from ollama import Client

MESSAGES = [{"role": "user", "content": PROMPT}]
FEW = {"temperature": 0, "num_predict": 12}
real, caller = Client(URLS["real"]), Client(URLS["caller"])
assert MODEL in [model.model for model in real.list().models]
assert "tools" in real.show(MODEL).capabilities
assert real.ps().models
whole = real.chat(MODEL, MESSAGES, options=FEW)
assert (whole.eval_count, whole.done_reason) == (12, "length")
parts = real.chat(MODEL, MESSAGES, options=FEW, stream=True)
assert "".join(part.message.content for part in parts) == whole.message.content
assert real.generate(MODEL, PROMPT, options=FEW).response == whole.message.content
assert real.generate(MODEL, "Paris is", raw=True, options=FEW).response

first = caller.chat(MODEL, MESSAGES, tools=[weather])
(call,) = first.message.tool_calls
result = weather(**call.function.arguments)
assert called()
turns = [*MESSAGES, first.message, {"role": "tool", "tool_name": "weather", "content": result}]
assert caller.chat(MODEL, turns, tools=[weather]).message.content == ANSWER
streamed = list(caller.chat(MODEL, MESSAGES, tools=[weather], stream=True))
assert [c.function.name for p in streamed for c in p.message.tool_calls or ()] == ["weather"]
typed = Client(URLS["typed"]).chat(MODEL, MESSAGES, format=Pet.model_json_schema())
assert Pet.model_validate_json(typed.message.content) == PET
