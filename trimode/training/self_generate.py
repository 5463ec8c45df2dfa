"""Training data that a model writes itself: no data set is needed to convert it.

The user turn is taken from a file of prompts, or the model samples it: the model continues the
beginning of its chat template until it ends the turn. The answer is the model's greedy (or sampled)
one, exactly the text whose tokens its verifier will accept.
"""

import json
import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from trimode.checkpoints import LoadedModel
from trimode.config import GenerationOptions, check_range
from trimode.engine import Engine
from trimode.engine import Sequence as EngineSequence
from trimode.errors import InputError
from trimode.training.conversations import read_jsonl

_MARK = "\N{BLACK DIAMOND}user turn\N{BLACK DIAMOND}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfGenerationConfig:
    """How conversations are made."""

    conversations: int = 1000
    """How many the file holds in the end."""
    seed: int = 0
    user_temperature: float = 0.9
    user_top_p: float = 0.95
    user_max_tokens: int = 128
    answer_temperature: float = 0.0
    answer_max_tokens: int = 256
    sampled_share: float = 0.3
    """Share of conversations whose user turn is sampled although prompts are given."""
    concurrency: int = 64
    """Conversations in one forward pass."""
    kv_cache_bytes: int = 6 * 2**30

    def __post_init__(self) -> None:
        names = ("conversations", "user_max_tokens", "answer_max_tokens", "concurrency")
        for name in names:
            check_range(name, getattr(self, name), 1, None)
        check_range("sampled_share", self.sampled_share, 0, 1)


def read_prompts(path: Path) -> list[str]:
    """User turns from a JSONL file with `prompt` in each row.

    Raises:
        InputError: names the line.
    """
    prompts = []
    for where, row in read_jsonl(path):
        prompt = row.get("prompt")
        if not isinstance(prompt, str) or not prompt.strip():
            raise InputError(f"{where}: prompt", repr(prompt), "must be text, not empty")
        prompts.append(prompt)
    if not prompts:
        raise InputError(str(path), "no prompts", "needs one JSON object a line")
    return prompts


def self_generate(
    model: LoadedModel,
    config: SelfGenerationConfig,
    output: Path,
    *,
    prompts: Sequence[str] = (),
    progress: bool = True,
) -> int:
    """Write conversations to a JSONL file, one a line, until it holds as many as asked for.

    An existing file is continued. Each line has the `id` of its conversation. The id determines the
    seed, and whether the user turn is one of the prompts or sampled.

    Returns:
        Tokens generated in this run.

    Raises:
        InputError: the model has no chat template, or a line of the file has no id.
    """
    writer = _Writer(model, config, prompts)
    output.parent.mkdir(parents=True, exist_ok=True)
    done = _ids_done(output)
    todo = [i for i in range(config.conversations) if i not in done]
    console = Console(stderr=True)
    console.quiet = not (progress and console.is_terminal)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with (
        output.open("a", encoding="utf-8") as file,
        Progress(*columns, TimeRemainingColumn(), console=console) as bar,
    ):
        task = bar.add_task(
            "self-generation",
            total=config.conversations,
            completed=config.conversations - len(todo),
        )
        for _ in writer.run(todo, file):
            bar.advance(task)
    return writer.tokens


class _Writer:
    """Keeps an engine full of user turns and answers; each user turn becomes an answer request."""

    def __init__(
        self, model: LoadedModel, config: SelfGenerationConfig, prompts: Sequence[str]
    ) -> None:
        if model.chat_template is None:
            raise InputError("model", f"{model.name} has no chat template", "needs a chat template")
        self.model, self.config = model, config
        before, _, after = model.chat_template.render([_user(_MARK)]).partition(_MARK)
        if not before or not after:
            raise InputError("chat_template", "does not repeat the user turn", "must contain it")
        self._opening = model.tokenizer.encode(before, add_bos=False)
        self._closing = after
        self._prompt_of = _assign(config, prompts)
        self.engine = Engine(
            model, max_sequences=config.concurrency, kv_cache_bytes=config.kv_cache_bytes
        )
        self.tokens = 0

    def run(self, ids: Iterable[int], file: TextIO) -> Iterable[int]:
        """Write the conversations `ids`; yields each id when it is finished, kept or not."""
        waiting = iter(ids)
        users: dict[EngineSequence, int] = {}
        answers: dict[EngineSequence, tuple[int, str]] = {}
        exhausted = False
        while True:
            while not exhausted and len(users) + len(answers) < self.config.concurrency:
                i = next(waiting, None)
                if i is None:
                    exhausted = True
                elif (prompt := self._prompt_of.get(i)) is not None:
                    answers[self._answer(i, prompt)] = (i, prompt)
                else:
                    users[self._user_turn(i)] = i
            if not self.engine.busy:
                return
            for update in self.engine.step():
                sequence = update.sequence
                if sequence.finish_reason is None:
                    continue
                self.tokens += len(sequence.tokens)
                if sequence in users:
                    i = users.pop(sequence)
                    turn = sequence.text_stream.text.strip()
                    if self._usable(sequence, turn):
                        answers[self._answer(i, turn)] = (i, turn)
                        continue
                    row: dict[str, Any] = {"id": i, "skipped": "unusable user turn"}
                else:
                    i, turn = answers.pop(sequence)
                    row = self._row(i, turn, sequence)
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                file.flush()
                yield i

    def _user_turn(self, i: int) -> EngineSequence:
        config = self.config
        options = GenerationOptions(
            max_tokens=config.user_max_tokens,
            temperature=config.user_temperature,
            top_p=config.user_top_p,
            seed=config.seed + 2 * i,
        )
        return self.engine.add(self._opening, options)

    def _answer(self, i: int, turn: str) -> EngineSequence:
        config = self.config
        template = self.model.chat_template
        assert template is not None
        options = GenerationOptions(
            max_tokens=config.answer_max_tokens,
            temperature=config.answer_temperature,
            seed=config.seed + 2 * i + 1,
        )
        prompt = self.model.tokenizer.encode(template.render([_user(turn)]), add_bos=False)
        return self.engine.add(prompt, options)

    def _usable(self, sequence: EngineSequence, turn: str) -> bool:
        """Whether a sampled user turn ended by itself and holds no special token inside."""
        special = self.model.tokenizer.special_ids
        return bool(
            turn
            and sequence.finish_reason == "stop"
            and not any(token in special for token in sequence.tokens[:-1])
        )

    def _row(self, i: int, turn: str, sequence: EngineSequence) -> dict[str, Any]:
        answer = sequence.text_stream.text
        special = self.model.tokenizer.special_ids
        if not answer.strip() or any(token in special for token in sequence.tokens[:-1]):
            return {"id": i, "skipped": "unusable answer"}
        assistant = {"role": "assistant", "content": answer}
        return {
            "id": i,
            "messages": [_user(turn), assistant],
            "finish_reason": sequence.finish_reason,
        }


def _assign(config: SelfGenerationConfig, prompts: Sequence[str]) -> dict[int, str]:
    """Which conversations take which prompt. A longer run begins like a shorter one."""
    drawn = random.Random(config.seed)
    takers = (i for i in range(config.conversations) if drawn.random() >= config.sampled_share)
    return dict(zip(takers, prompts, strict=False))


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def _ids_done(path: Path) -> set[int]:
    """Conversations a file holds; a last line that a killed run left unfinished is cut off."""
    if not path.exists():
        return set()
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with path.open("r+b") as file:
            file.truncate(len(whole))
            os.fsync(file.fileno())
    done = set()
    for where, row in read_jsonl(path):
        if type(row.get("id")) is not int:
            raise InputError(where, "has no id", "the file must be one that this command began")
        done.add(row["id"])
    return done
