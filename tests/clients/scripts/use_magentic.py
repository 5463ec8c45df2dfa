"""magentic: text, a stream, a tool, a nested type."""

from common import ANSWER, KEY, MODEL, PET, PROMPT, Pet, called, openai_url, weather
from magentic import StreamedStr, prompt, prompt_chain
from magentic.chat_model.openai_chat_model import OpenaiChatModel


def model(name):
    return OpenaiChatModel(MODEL, base_url=openai_url(name), api_key=KEY, max_tokens=400)


def asked(name, kind, decorator=prompt, **more):
    @decorator(PROMPT, model=model(name), **more)
    def ask() -> kind: ...

    return ask()


assert asked("real", str)
assert "".join(asked("real", StreamedStr))
assert asked("caller", str, prompt_chain, functions=[weather]) == ANSWER
assert called()
assert asked("return_pet", Pet) == PET
