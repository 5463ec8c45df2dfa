"""LangChain: OpenAI's chat and Responses, Anthropic, Ollama; streams, tools, typed answers."""

from common import ANSWER, KEY, MODEL, PET, PROMPT, URLS, Pet, called, openai_url, weather
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_ollama import ChatOllama
from langchain_openai import ChatOpenAI, OpenAI


def chat(name, **more):
    return ChatOpenAI(base_url=openai_url(name), api_key=KEY, model=MODEL, **more)


def responses(name, **more):
    return chat(name, use_responses_api=True, **more)


def anthropic(name, **more):
    return ChatAnthropic(base_url=URLS[name], api_key=KEY, model=MODEL, **more)


def ollama(name, **more):
    return ChatOllama(base_url=URLS[name], model=MODEL, **more)


for kind in (chat, responses, anthropic, ollama):
    limit = {"num_predict" if kind is ollama else "max_tokens": 12}
    few = limit if kind is anthropic else {**limit, "temperature": 0}
    real = kind("real", **few)
    assert real.invoke(PROMPT).text
    assert "".join(part.text for part in real.stream(PROMPT))
    caller = kind("caller").bind_tools([weather])
    first = caller.invoke(PROMPT)
    (asked,) = first.tool_calls
    assert (asked["name"], asked["args"]) == ("weather", {"city": "Paris"})
    result = ToolMessage(weather(**asked["args"]), tool_call_id=asked["id"])
    assert called()
    assert caller.invoke([HumanMessage(PROMPT), first, result]).text == ANSWER
    whole = None
    for part in caller.stream(PROMPT):
        whole = part if whole is None else whole + part
    assert whole.tool_calls[0]["args"] == {"city": "Paris"}
    methods = {
        chat: ("json_schema", "function_calling", "json_mode"),
        responses: ("json_schema", "function_calling"),
        anthropic: ("function_calling",),
        ollama: ("json_schema", "function_calling", "json_mode"),
    }
    for method in methods[kind]:
        model = kind("Pet" if method == "function_calling" else "typed")
        assert model.with_structured_output(Pet, method=method).invoke(PROMPT) == PET
completion = OpenAI(base_url=openai_url("real"), api_key=KEY, model=MODEL, max_tokens=4)
assert completion.invoke("Paris is")
