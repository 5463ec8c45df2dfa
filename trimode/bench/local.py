"""Measuring in this process: groups of prompts through an engine, under a constant load."""

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from trimode.bench.answers import Answer, shares
from trimode.bench.settings import Setting
from trimode.checkpoints import LoadedModel
from trimode.config import GenerationOptions
from trimode.decoding import Committed, CostCurve
from trimode.engine import DEFAULT_KV_CACHE_BYTES, Engine, Update
from trimode.engine import Sequence as EngineSequence
from trimode.errors import InputError
from trimode.model import KVCache

_KV_SPARE = 8
"""How many times the tokens in flight the KV cache holds: freed caches are remembered, as a server
does, and an engine for each setting must not fill the memory."""


class LocalTarget:
    """Our engine. Each setting keeps one engine for a round, so `auto` learns as in a server."""

    def __init__(
        self,
        model: LoadedModel,
        prompts: Mapping[int, Sequence[int]],
        options: Mapping[int, GenerationOptions],
        costs: CostCurve | None,
    ) -> None:
        """Nothing runs yet.

        Args:
            model: what decodes.
            prompts: token ids by number.
            options: of each prompt.
            costs: of a pass; as in a server, they are known in every mode.
        """
        self._model, self._prompts, self._options, self._costs = model, prompts, options, costs
        self._engines: dict[Setting, tuple[int, Engine]] = {}

    def refusals(self, setting: Setting) -> dict[int, InputError]:
        """The prompts that cannot be answered in a setting, and why."""
        engine, found = self._new_engine(setting), {}
        for number, prompt in self._prompts.items():
            try:
                options = setting.options(self._options[number])
                engine.cancel(engine.add(tuple(prompt), options))
            except InputError as error:
                found[number] = error
        return found

    @property
    def gone(self) -> str | None:
        """See `Target.gone`."""
        return None

    def warm_up(self, setting: Setting, prompt: int) -> float:
        """Answer one prompt, alone."""
        alone = replace(setting, concurrency=1)
        answers = self._run(self._new_engine(setting), alone, [prompt], math.inf)
        assert answers is not None
        return answers[0].finished

    def measure(
        self, setting: Setting, prompts: Sequence[int], round_: int, longest: float = math.inf
    ) -> list[Answer] | None:
        """See `Target.measure`."""
        kept = self._engines.get(setting)
        if kept is None or kept[0] != round_:  # a prompt must not find its own keys and values
            kept = round_, self._new_engine(setting)
            self._engines[setting] = kept
        return self._run(kept[1], setting, prompts, longest)

    def forget(self, setting: Setting) -> None:
        """See `Target.forget`."""
        self._engines.pop(setting, None)

    def _new_engine(self, setting: Setting) -> Engine:
        config, runner = self._model.config, self._model.runner
        longest = max(
            min(len(p) + self._options[i].max_tokens, config.max_position_embeddings)
            for i, p in self._prompts.items()
        )
        tokens = _KV_SPARE * setting.concurrency * (longest + 1200)
        needed = tokens * KVCache.bytes_per_token(config, runner.kv_dtype)
        return Engine(
            self._model,
            max_sequences=setting.concurrency,
            kv_cache_bytes=min(needed, DEFAULT_KV_CACHE_BYTES),
            costs=self._costs,
            interactive=True,
        )

    def _run(
        self, engine: Engine, setting: Setting, prompts: Sequence[int], longest: float
    ) -> list[Answer] | None:
        """Keep as many requests in flight as the setting says until all prompts are answered.

        Once none waits, prompts of the group are asked again to keep the load; they are not
        recorded, and are cancelled at the end.
        """
        waiting = list(reversed(prompts))
        fillers = itertools.cycle(prompts)
        running: dict[EngineSequence, Answer] = {}
        measured: list[Answer] = []
        everything: list[Answer] = []
        began, now = time.perf_counter(), 0.0
        while waiting or any(answer.finish_reason is None for answer in measured):
            if now > longest:
                for sequence in running:
                    engine.cancel(sequence)
                return None
            while len(running) < setting.concurrency and (waiting or setting.concurrency > 1):
                number = waiting.pop() if waiting else next(fillers)
                is_measured = len(measured) < len(prompts)
                now = time.perf_counter() - began
                answer = Answer(prompt=number, sent=now, finished=now)
                everything.append(answer)
                if is_measured:
                    measured.append(answer)
                options = setting.options(self._options[number])
                running[engine.add(tuple(self._prompts[number]), options)] = answer
            updates = engine.step()
            now = time.perf_counter() - began
            for update in updates:
                _note(running[update.sequence], update, now)
                if update.sequence.finish_reason is not None:
                    del running[update.sequence]
        end = time.perf_counter() - began
        for sequence, answer in running.items():
            engine.cancel(sequence)
            answer.finished = end
        parts = shares([(answer.sent, answer.finished) for answer in everything])
        for answer, part in zip(everything, parts, strict=True):
            answer.share = part
        return measured


def _note(answer: Answer, update: Update, now: float) -> None:
    """Record what an update brought."""
    sequence = update.sequence
    if isinstance(update.event, Committed) and update.event.tokens:
        answer.chunks.append((now - answer.sent, len(update.event.tokens)))
    if sequence.finish_reason is None:
        return
    stats = sequence.stats
    answer.finished = now
    answer.text = sequence.text_stream.text
    answer.token_ids = list(sequence.tokens)
    answer.tokens = stats.completion_tokens
    answer.prompt_tokens = len(sequence.prompt)
    answer.finish_reason = sequence.finish_reason
    answer.nfe = stats.nfe
    answer.passes = dict(stats.passes)  # type: ignore[arg-type]
    answer.plans = dict(stats.plans)
    answer.cycles, answer.cycle_tokens = stats.cycles, stats.cycle_tokens
    if sequence.error is not None:
        answer.error = f"{type(sequence.error).__name__}: {sequence.error}"
