"""Measuring a server that speaks OpenAI's protocol: raw times of chunks, and what goes wrong."""

import itertools
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx

from trimode.bench.answers import Answer, shares
from trimode.bench.settings import AS_IT_IS, Setting
from trimode.config import GenerationOptions
from trimode.errors import InputError
from trimode.workload import Prompt

MOST_FAILURES = 5
"""Failures in succession to reach a server after which it counts as gone."""
_SENT_OPTIONS = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "frequency_penalty",
    "presence_penalty", "seed", "stop", "ignore_eos", "min_tokens",
)  # fmt: skip
"""Options of a request that servers know by the same name; sent if they are not the default."""
_PLAIN = GenerationOptions()


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt as a server is asked it."""

    prompt: Prompt
    raw: bool
    options: GenerationOptions
    form: Mapping[str, Any] | None = None
    """The `response_format`."""


def _never() -> bool:
    return False


class RemoteTarget:
    """A server. What fails is recorded with the request, and the run goes on."""

    def __init__(
        self,
        url: str,
        asked: Mapping[int, Asked],
        *,
        api_key: str | None = None,
        timeout: float = 120.0,
    ) -> None:
        """Ask the server for its model.

        Args:
            url: of the API, with /v1.
            asked: prompts by number.
            api_key: sent as a bearer token.
            timeout: seconds of silence after which a request has failed.

        Raises:
            InputError: nothing answers there, or it is no such server.
        """
        self.url, self._asked = url.rstrip("/"), asked
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.Client(
            headers=headers, timeout=timeout, limits=httpx.Limits(max_connections=None)
        )
        self._failures, self._why = 0, ""
        self._lock = threading.Lock()
        self.model, self.is_ours = self._first_model()
        modes = self._modes() if self.is_ours else {}
        self.unavailable = {mode for mode, facts in modes.items() if facts.get("unavailable")}
        """Modes that a server of ours cannot run."""
        drafting = modes.get("linear", {}).get("defaults", {})
        self.block_length: int | None = drafting.get("block_length")
        """The model's own, of a server of ours."""

    @property
    def gone(self) -> str | None:
        """See `Target.gone`: it could not be reached several times in succession."""
        return self._why if self._failures >= MOST_FAILURES else None

    def _first_model(self) -> tuple[str, bool]:
        """The name of the served model, and whether the server is trimode's."""
        try:
            answer = self._client.get(f"{self.url}/models", timeout=10.0)
            answer.raise_for_status()
            first = answer.json()["data"][0]
            return str(first["id"]), first.get("owned_by") == "trimode"
        except httpx.HTTPStatusError as error:
            found = f"{self.url}/models answers {error.response.status_code}"
            raise InputError("url", found, "must be an OpenAI-compatible API, with /v1") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            found = f"{self.url} does not answer ({_in_words(error)})"
            raise InputError("url", found, "start the server, or give another URL") from None
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            found = f"{self.url}/models lists no model"
            raise InputError("url", found, "must be an OpenAI-compatible API, with /v1") from None

    def _modes(self) -> dict[str, dict[str, Any]]:
        """What a server of ours says of each mode."""
        try:
            return self._client.get(f"{self.url.removesuffix('/v1')}/props").json()["modes"]
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return {}

    def warm_up(self, setting: Setting, prompt: int) -> float:
        """See `Target.warm_up`."""
        began = time.perf_counter()
        self._ask(setting, prompt, began)
        return time.perf_counter() - began

    def measure(
        self, setting: Setting, prompts: Sequence[int], round_: int, longest: float = math.inf
    ) -> list[Answer] | None:
        """See `Target.measure`; each of `concurrency` clients asks its next prompt at once."""
        del round_
        waiting, fillers = iter(prompts), itertools.cycle(prompts)
        lock, began = threading.Lock(), time.perf_counter()
        measured: list[Answer] = []
        others: list[Answer] = []
        left = len(prompts)

        def late() -> bool:
            return time.perf_counter() - began > longest

        def over() -> bool:
            return left == 0 or late()

        def client() -> None:
            nonlocal left
            while True:
                with lock:
                    number = next(waiting, None)
                    if late() or (number is None and left == 0):
                        return
                    filler = number is None
                    number = next(fillers) if number is None else number
                give_up = over if filler else late
                answer = self._ask(setting, number, began, give_up)
                with lock:
                    (others if filler else measured).append(answer)
                    left -= not filler

        if setting.concurrency == 1:
            in_time = itertools.takewhile(lambda _: not late(), prompts)
            measured += [self._ask(setting, number, began, late) for number in in_time]
        else:
            with ThreadPoolExecutor(setting.concurrency) as pool:
                for future in [pool.submit(client) for _ in range(setting.concurrency)]:
                    future.result()
        if late():
            return None
        end = max(answer.finished for answer in measured)
        everything = [*measured, *(answer for answer in others if answer.sent < end)]
        parts = shares([(answer.sent, min(answer.finished, end)) for answer in everything])
        for answer, part in zip(everything, parts, strict=True):
            answer.share = part
        return sorted(measured, key=lambda answer: prompts.index(answer.prompt))

    def forget(self, setting: Setting) -> None:
        """Nothing is held for a setting."""

    def _ask(
        self, setting: Setting, number: int, began: float, give_up: Callable[[], bool] = _never
    ) -> Answer:
        """Ask one prompt; whatever happens becomes an answer."""
        sent = time.perf_counter() - began
        answer = Answer(prompt=number, sent=sent, finished=sent)
        if self.gone:
            answer.error = f"not asked: the server failed {MOST_FAILURES} times in succession"
            return answer
        reached = True
        try:
            self._stream(setting, number, answer, began, give_up)
            if answer.error is None and not answer.tokens:
                answer.error = "empty answer"
        except httpx.HTTPStatusError as error:
            answer.error = _refusal(error.response)
        except httpx.HTTPError as error:
            answer.error = _in_words(error)
            reached = isinstance(error, httpx.TimeoutException)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            answer.error = f"not OpenAI's protocol ({type(error).__name__}: {error})"
        answer.finished = time.perf_counter() - began
        with self._lock:
            self._failures = 0 if reached else self._failures + 1
            self._why = self._why if reached else str(answer.error)
        return answer

    def _stream(
        self,
        setting: Setting,
        number: int,
        answer: Answer,
        began: float,
        give_up: Callable[[], bool],
    ) -> None:
        """Send a request and read its answer as it comes.

        Raises:
            httpx.HTTPError: it fails.
        """
        asked = self._asked[number]
        place, body = self._body(setting, asked)
        metrics: dict[str, Any] = {}
        with self._client.stream("POST", f"{self.url}/{place}", json=body) as response:
            if response.status_code != 200:
                response.read()
                response.raise_for_status()
            for chunk in _events(response):
                now = time.perf_counter() - began
                if give_up():
                    answer.error = "given up"
                    return
                if "error" in chunk:
                    answer.error = f"error in the stream: {json.dumps(chunk['error'])[:300]}"
                    return
                for choice in chunk.get("choices") or ():
                    delta = choice.get("delta") or {}
                    text = choice.get("text") or delta.get("content") or ""
                    text = (delta.get("reasoning_content") or "") + text
                    if text:
                        answer.chunks.append((now - answer.sent, None))
                        answer.text += text
                    answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
                if chunk.get("usage"):
                    answer.tokens = chunk["usage"].get("completion_tokens")
                    answer.prompt_tokens = chunk["usage"].get("prompt_tokens")
                metrics |= chunk.get("metrics") or {}
        if answer.tokens is None:
            answer.tokens, answer.counted = len(answer.chunks), "by chunks"
        _take_metrics(answer, metrics)

    def _body(self, setting: Setting, asked: Asked) -> tuple[str, dict[str, Any]]:
        """Where a request goes, and what it says."""
        options = asked.options
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": options.max_tokens,
            "temperature": options.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        for name in _SENT_OPTIONS:
            value = getattr(options, name)
            if value != getattr(_PLAIN, name):
                body[name] = list(value) if isinstance(value, tuple) else value
        if setting.mode != AS_IT_IS:
            decoding = {"mode": setting.mode, "block_length": setting.block_length,
                        "threshold": setting.threshold}  # fmt: skip
            body["decoding"] = {name: v for name, v in decoding.items() if v is not None}
        if asked.form is not None:
            body["response_format"] = asked.form
        if asked.raw:
            return "completions", body | {"prompt": asked.prompt}
        prompt = asked.prompt
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        return "chat/completions", body | {"messages": messages}


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """The objects of a stream of server-sent events."""
    for line in response.iter_lines():
        data = line.removeprefix("data:").strip()
        if line.startswith("data:") and data and data != "[DONE]":
            found = json.loads(data)
            if isinstance(found, dict):
                yield found


def _take_metrics(answer: Answer, metrics: Mapping[str, Any]) -> None:
    """What our server says of the decoding."""
    decoding = metrics.get("decoding") or {}
    drafts = metrics.get("speculative_decoding") or {}
    answer.nfe = decoding.get("nfe")
    answer.plans = decoding.get("plans") or {}
    answer.cycles = drafts.get("num_drafts") or 0
    answer.cycle_tokens = round(answer.cycles * (drafts.get("mean_acceptance_length") or 0))


def _refusal(response: httpx.Response) -> str:
    text = " ".join(response.text.split())[:300]
    wait = response.headers.get("retry-after")
    later = f" (retry after {wait})" if wait else ""
    return f"{response.status_code}{later}: {text}" if text else f"{response.status_code}{later}"


def _in_words(error: Exception) -> str:
    """A failure of the connection as a person would say it."""
    kinds = {
        httpx.ConnectTimeout: "no connection in time",
        httpx.TimeoutException: "timeout",
        httpx.ConnectError: "no connection",
        httpx.RemoteProtocolError: "the server broke off",
    }
    what = next((words for kind, words in kinds.items() if isinstance(error, kind)), "failed")
    detail = str(error)
    return f"{what}: {detail}" if detail else what
