"""guidance: text and JSON by a schema."""

from common import KEY, MODEL, PET, PROMPT, Pet, openai_url
from guidance import assistant, gen, json, system, user
from guidance.models import OpenAI


def asked(name, wanted):
    model = OpenAI(MODEL, echo=False, base_url=openai_url(name), api_key=KEY)
    with system():
        model += "Help."
    with user():
        model += PROMPT
    with assistant():
        model += wanted
    return model["answer"]


assert asked("real", gen("answer", max_tokens=12, temperature=0))
assert Pet.model_validate_json(asked("typed", json("answer", schema=Pet))) == PET
