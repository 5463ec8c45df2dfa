"""Training data that a model writes itself: no data set is needed to convert it.

The user turn is taken from a file of prompts, or the model samples it: the model continues the
beginning of its chat template until it ends the turn. The answer is the model's greedy (or sampled)
one, exactly the text whose tokens its verifier will accept.
"""

import json
import os
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from trimode.checkpoints import LoadedModel
from trimode.config import GenerationOptions, check_range
from trimode.engine import Engine
from trimode.engine import Sequence as EngineSequence
from trimode.errors import InputError
from trimode.journal import locked
from trimode.rows import near_miss, read_rows
from trimode.shard import Shard
from trimode.text import ChatTemplate

DEFAULT_SAMPLED_SHARE = 0.3
_ENOUGH = 32
"""Conversations after which a run ends early if nearly all of them are unusable."""
_UNUSABLE_SHARE = 0.95
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
    sampled_share: float = DEFAULT_SAMPLED_SHARE
    """Share of conversations whose user turn is sampled although prompts are given."""
    concurrency: int = 64
    """Conversations in one forward pass."""
    kv_cache_bytes: int = 6 * 2**30
    shard: Shard | None = None
    """The share of the conversations that this process writes; None is all of them."""

    @property
    def ids(self) -> Sequence[int]:
        """Of the conversations that this process writes."""
        every = range(self.conversations)
        return every if self.shard is None else self.shard.of(every)

    def __post_init__(self) -> None:
        names = ("conversations", "user_max_tokens", "answer_max_tokens", "concurrency")
        for name in names:
            check_range(name, getattr(self, name), 1, None)
        check_range("sampled_share", self.sampled_share, 0, 1)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A user turn of a file."""

    text: str
    columns: Mapping[str, Any] = field(default_factory=dict)
    """The other columns of its row."""


def read_prompt_rows(path: Path) -> list[Prompt]:
    """User turns from a file of rows with a column `prompt` each, or from lines of a `.txt` file.

    Raises:
        InputError: names the line.
    """
    prompts = []
    for row in read_rows(path, line_column="prompt"):
        prompt = row.fields.get("prompt")
        if not isinstance(prompt, str) or not prompt.strip():
            meant = [name for name in row.fields if near_miss(name, ("prompt",))]
            found = f"missing beside {meant[0]!r}" if meant and prompt is None else repr(prompt)
            raise InputError(f"{row.where}: prompt", found, "must be text, not empty")
        others = {name: value for name, value in row.fields.items() if name != "prompt"}
        prompts.append(Prompt(prompt, others))
    if not prompts:
        raise InputError(str(path), "no prompts", "needs rows with a column prompt")
    return prompts


def read_prompts(path: Path) -> list[str]:
    """The texts of `read_prompt_rows`."""
    return [prompt.text for prompt in read_prompt_rows(path)]


def user_turns(path: Path, count: int) -> list[str]:
    """The user turns of the first usable conversations that `self_generate` wrote."""
    usable = (row.fields for row in read_rows(path) if "messages" in row.fields)
    return [fields["messages"][0]["content"] for fields in islice(usable, count)]


def self_generate(
    model: LoadedModel,
    config: SelfGenerationConfig,
    output: Path,
    *,
    prompts: Sequence[Prompt] = (),
    progress: bool = True,
) -> int:
    """Write conversations to a JSONL file, one a line, until it holds as many as asked for.

    An existing file is continued. Each line has the `id` of its conversation. The id determines the
    seed, and whether the user turn is one of the prompts or sampled. The other columns of a prompt
    are kept under `prompt_row`.

    Returns:
        Tokens generated in this run.

    Raises:
        InputError: the model has no chat template, a line of the file has no id, or nearly every
            conversation is unusable, or another process is writing the file.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with locked(output, by="process", instead="give each its share (--shard)"):
        return _self_generate(model, config, output, prompts, progress=progress)


def _self_generate(
    model: LoadedModel,
    config: SelfGenerationConfig,
    output: Path,
    prompts: Sequence[Prompt],
    *,
    progress: bool,
) -> int:
    done = _done(output)
    unusable = Counter(reason for reason in done.values() if reason is not None)
    writer = _Writer(model, config, prompts)
    todo = [i for i in config.ids if i not in done]
    _refuse_hopeless(len(done), unusable, model.name, output)
    console = Console(stderr=True)
    console.quiet = not (progress and console.is_terminal)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with (
        output.open("a", encoding="utf-8") as file,
        Progress(*columns, TimeRemainingColumn(), console=console) as bar,
    ):
        task = bar.add_task(
            "self-generation",
            total=len(config.ids),
            completed=len(config.ids) - len(todo),
        )
        for count, reason in enumerate(writer.run(todo, file), len(done) + 1):
            bar.advance(task)
            if reason is not None:
                unusable[reason] += 1
            _refuse_hopeless(count, unusable, model.name, output)
    return writer.tokens


def _refuse_hopeless(count: int, unusable: Counter[str], model: str, output: Path) -> None:
    """Raise InputError if nearly all conversations so far are unusable, and say why they are."""
    lost = unusable.total()
    if count >= _ENOUGH and lost >= _UNUSABLE_SHARE * count:
        reasons = ", ".join(f"{reason} {n}" for reason, n in unusable.most_common())
        found = f"{lost} of {count} conversations of {model} unusable: {reasons}"
        allowed = f"is it a chat model? give prompts, or remove {output} to begin again"
        raise InputError("conversations", found, allowed)


class _Writer:
    """Keeps an engine full of user turns and answers; each user turn becomes an answer request."""

    def __init__(
        self, model: LoadedModel, config: SelfGenerationConfig, prompts: Sequence[Prompt]
    ) -> None:
        self.model, self.config = model, config
        opening = user_turn_opening(model.chat_template, model.name)
        self._opening = model.tokenizer.encode(opening, add_bos=False)
        self._prompt_of = _assign(config, prompts)
        self.engine = Engine(
            model, max_sequences=config.concurrency, kv_cache_bytes=config.kv_cache_bytes
        )
        self.tokens = 0

    def run(self, ids: Iterable[int], file: TextIO) -> Iterable[str | None]:
        """Write the conversations `ids`; yields for each why it is unusable, None if it is not."""
        waiting = iter(ids)
        users: dict[EngineSequence, int] = {}
        answers: dict[EngineSequence, tuple[int, Prompt]] = {}
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
                    turn = Prompt(sequence.text_stream.text.strip())
                    reason = self._unusable_turn(sequence, turn.text)
                    if reason is None:
                        answers[self._answer(i, turn)] = (i, turn)
                        continue
                    row: dict[str, Any] = {"id": i, "skipped": reason}
                else:
                    i, turn = answers.pop(sequence)
                    row = self._row(i, turn, sequence)
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                file.flush()
                yield row.get("skipped")

    def _user_turn(self, i: int) -> EngineSequence:
        config = self.config
        options = GenerationOptions(
            max_tokens=config.user_max_tokens,
            temperature=config.user_temperature,
            top_p=config.user_top_p,
            seed=config.seed + 2 * i,
        )
        return self.engine.add(self._opening, options)

    def _answer(self, i: int, turn: Prompt) -> EngineSequence:
        config = self.config
        template = self.model.chat_template
        assert template is not None
        options = GenerationOptions(
            max_tokens=config.answer_max_tokens,
            temperature=config.answer_temperature,
            seed=config.seed + 2 * i + 1,
        )
        prompt = self.model.tokenizer.encode(template.render([_user(turn.text)]), add_bos=False)
        return self.engine.add(prompt, options)

    def _unusable_turn(self, sequence: EngineSequence, turn: str) -> str | None:
        """Why a sampled user turn cannot be answered; None if it can."""
        if not turn:
            return "empty user turn"
        if sequence.finish_reason != "stop":
            return "user turn without an end"
        return "special token in the user turn" if self._has_special(sequence) else None

    def _has_special(self, sequence: EngineSequence) -> bool:
        special = self.model.tokenizer.special_ids
        return any(token in special for token in sequence.tokens[:-1])

    def _row(self, i: int, turn: Prompt, sequence: EngineSequence) -> dict[str, Any]:
        answer = sequence.text_stream.text
        if not answer.strip():
            return {"id": i, "skipped": "empty answer"}
        if self._has_special(sequence):
            return {"id": i, "skipped": "special token in the answer"}
        assistant = {"role": "assistant", "content": answer}
        row: dict[str, Any] = {"id": i, "messages": [_user(turn.text), assistant]}
        if turn.columns:
            row["prompt_row"] = dict(turn.columns)
        return {**row, "finish_reason": sequence.finish_reason}


def user_turn_opening(template: ChatTemplate | None, name: str) -> str:
    """What a chat template writes before a user's turn, which a model then writes itself.

    Args:
        template: the model's.
        name: of the model, for errors.

    Raises:
        InputError: there is no template, or it does not show the user's turn.
    """
    if template is None:
        raise InputError("model", f"{name} has no chat template", "needs a chat template")
    before, _, after = template.render([_user(_MARK)]).partition(_MARK)
    if not before or not after:
        raise InputError("chat_template", "does not repeat the user turn", "must contain it")
    return before


def _assign(config: SelfGenerationConfig, prompts: Sequence[Prompt]) -> dict[int, Prompt]:
    """Which conversations take which prompt. A longer run begins like a shorter one."""
    drawn = random.Random(config.seed)
    takers = (i for i in range(config.conversations) if drawn.random() >= config.sampled_share)
    return dict(zip(takers, prompts, strict=False))


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def planned(config: SelfGenerationConfig, prompts: Sequence[Prompt]) -> str:
    """Which conversations begin with a given prompt, in words."""
    share = (
        "" if config.shard is None else f"; --shard {config.shard} has {len(config.ids)} of them"
    )
    if not prompts:
        all_sampled = "every user turn sampled from the model"
        return f"{config.conversations} conversations, {all_sampled}{share}"
    used = len(_assign(config, prompts))
    setting = f"--sampled-share {config.sampled_share:g}"
    return (
        f"{config.conversations} conversations: {used} of {len(prompts)} prompts, "
        f"{config.conversations - used} user turns sampled from the model ({setting}){share}"
    )


def count_written(path: Path, ids: Sequence[int]) -> int:
    """How many conversations of these a file of `self_generate` holds, unusable ones included.

    Raises:
        InputError: a line has no id, or one that an earlier line has.
    """
    done = _done(path)
    return sum(i in done for i in ids)


def _done(path: Path) -> dict[int, str | None]:
    """Conversations a file holds, and why each of them is unusable (None: it is not).

    A last line that a killed run left unfinished is cut off.
    """
    if not path.exists():
        return {}
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with path.open("r+b") as file:
            file.truncate(len(whole))
            os.fsync(file.fileno())
    done: dict[int, str | None] = {}
    for row in read_rows(path):
        number = row.fields.get("id")
        if type(number) is not int:
            raise InputError(row.where, "has no id", "the file must be one that this command began")
        if number in done:
            raise InputError(f"{row.where}: id", f"{number} once more", "each conversation once")
        done[number] = row.fields.get("skipped")
    return done
