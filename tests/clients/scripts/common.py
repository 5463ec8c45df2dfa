"""What the scripts of Python clients share: servers, a type, a tool, and what is expected."""

import json
import os
from enum import Enum

from pydantic import BaseModel

URLS = json.loads(os.environ["TRIMODE_URLS"])
"""Addresses of servers by what their models say; `real` is the built-in model."""
MODEL = "trimode-model"
KEY = "none"
PROMPT = "What is the weather in Paris?"
CAPITAL = "What is the capital of France?"
ANSWER = "It is sunny in Paris."


class Kind(Enum):
    CAT = "cat"
    DOG = "dog"


class Home(BaseModel):
    city: str
    rooms: int | None = None


class Pet(BaseModel):
    """A pet with its homes: a nested model, an enum, a list and an optional field."""

    name: str
    kind: Kind
    homes: list[Home]


PET = Pet(name="Ada", kind=Kind.CAT, homes=[Home(city="Paris", rooms=3)])

asked_for: list[str] = []
"""Cities that the tool was called with."""


def weather(city: str) -> str:
    """The weather in a city.

    Args:
        city: its name.
    """
    asked_for.append(city)
    return f"sunny in {city}"


def called() -> bool:
    """Whether the tool was called once, for Paris; forgets it."""
    found = asked_for == ["Paris"]
    asked_for.clear()
    return found


def openai_url(name: str) -> str:
    """The base URL of OpenAI's protocol."""
    return f"{URLS[name]}/v1"
