"""Answers that a run has already: on disk, so that an interrupted one goes on."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trimode.checkpoints import LoadedModel
from trimode.config import GenerationOptions
from trimode.errors import InputError
from trimode.evaluation.likelihood import Likelihood


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished request and what it took."""

    text: str
    tokens: int
    nfe: int
    seconds: float
    """Time of the engine since the answer that was finished before it: their sum is the run's."""
    finish_reason: str


@dataclass(frozen=True, slots=True)
class Usage:
    """What several answers took together."""

    answers: int
    tokens: int
    nfe: int
    seconds: float

    @classmethod
    def of(cls, answers: Iterable[Answer]) -> "Usage":
        """The sum."""
        all_ = list(answers)
        return cls(
            answers=len(all_),
            tokens=sum(each.tokens for each in all_),
            nfe=sum(each.nfe for each in all_),
            seconds=sum(each.seconds for each in all_),
        )

    @property
    def tokens_per_forward(self) -> float | None:
        """Completion tokens / NFE."""
        return self.tokens / self.nfe if self.nfe else None

    @property
    def tokens_per_second(self) -> float | None:
        """Completion tokens of all requests together / seconds."""
        return self.tokens / self.seconds if self.seconds else None


class AnswerFile:
    """Answers and likelihoods by key, in a file that grows by a line each.

    Args:
        path: the file; None keeps answers in memory only.

    Raises:
        InputError: the file cannot be read.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._known: dict[str, Answer] = {}
        self._likelihoods: dict[str, Likelihood] = {}
        self._torn = False
        if path is not None and path.exists():
            self._read(path)

    def _read(self, path: Path) -> None:
        try:
            lines = path.read_bytes().split(b"\n")
        except OSError as error:
            raise InputError(str(path), f"not readable ({error.strerror})", "a file") from None
        self._torn = lines[-1] != b""
        for line in lines:
            try:
                fields = json.loads(line)
                key = fields.pop("key")
                if "text" in fields:
                    self._known[key] = Answer(**fields)
                else:
                    self._likelihoods[key] = Likelihood(**fields)
            except (ValueError, TypeError, KeyError, AttributeError):
                continue  # a line that a kill has cut off: its request is run again

    def get(self, key: str) -> Answer | None:
        """The answer of a key, if it is known."""
        return self._known.get(key)

    def likelihood(self, key: str) -> Likelihood | None:
        """The likelihood of a key, if it is known."""
        return self._likelihoods.get(key)

    def add(self, key: str, found: Answer | Likelihood) -> None:
        """Keep an answer or a likelihood, on disk before this returns."""
        if isinstance(found, Answer):
            self._known[key] = found
        else:
            self._likelihoods[key] = found
        if self._path is None:
            return
        with self._path.open("ab") as file:
            line = json.dumps({"key": key, **asdict(found)}).encode()
            file.write(b"\n" * self._torn + line + b"\n")
        self._torn = False


def key_of(model: LoadedModel, prompt: Sequence[int], options: GenerationOptions) -> str:
    """What an answer depends on, as one name."""
    return _name(model, prompt=list(prompt), options=asdict(options))


def likelihood_key(model: LoadedModel, context: Sequence[int], continuation: Sequence[int]) -> str:
    """What a likelihood depends on, as one name."""
    return _name(model, context=list(context), continuation=list(continuation))


def _name(model: LoadedModel, **asked: Any) -> str:
    facts: dict[str, Any] = {
        "model": [model.name, str(model.path), model.runner.format.name, model.adapter_scope],
        "config": repr(model.config),
        **asked,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
