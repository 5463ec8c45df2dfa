"""The wire form that chat and completions share: one object, or a stream of chunks.

`Answer` follows the steps of its choices. `chat` and `completions` say what a choice looks like.
"""

import math
import secrets
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from fastapi import Request, Response

from trimode.checkpoints import LoadedModel
from trimode.decoding import Committed, Drafted, TokenLogprob
from trimode.engine import Sequence
from trimode.server.choices import ModeReason
from trimode.server.http.delivery import (
    DONE,
    PING,
    EventStream,
    event,
    send_object,
    too_late,
    warning_header,
)
from trimode.server.http.errors import error_object, fields_named
from trimode.server.observe.telemetry import Operation
from trimode.server.openai.fields import GenerationBody
from trimode.server.openai.frames import ChoiceProgress, commit_frame, draft_frame
from trimode.server.openai.usage import decoding_metrics, finish_reason_of, timings, usage
from trimode.server.runtime import ActiveRequest, Choice, EngineFailedError, Step
from trimode.server.service import Service
from trimode.text import Detokenizer
from trimode.version import __version__


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSettings:
    """How an answer is streamed."""

    include_usage: bool
    continuous_usage: bool
    show_drafts: bool
    timeout: float
    """Seconds for the whole answer."""
    draft_interval: float
    """Least seconds between two draft frames of a choice."""
    ping_interval: float
    """Seconds without an event after which a comment is sent."""


@dataclass(kw_only=True)
class Answer:
    """One answer: what its choices have in common, and how far its client has got."""

    object_name: ClassVar[str]
    chunk_name: ClassVar[str]
    operation: ClassVar[Operation]

    id: str
    model: LoadedModel
    model_name: str
    """The name that the client asked for."""
    fingerprint: str = f"trimode-{__version__}"
    mode_reason: ModeReason = "request"
    created: int = field(default_factory=lambda: int(time.time()))
    progress: "defaultdict[int, ChoiceProgress]" = field(init=False)
    """Of each choice."""
    frames_sent: int = 0
    """Draft and commit frames so far."""

    def __post_init__(self) -> None:
        self.progress = defaultdict(lambda: ChoiceProgress(Detokenizer(self.model.tokenizer)))

    def begin(self, requests: list[ActiveRequest]) -> None:
        """Take note of what will answer: the text of an answer is what it adds to its prompt."""
        for request in requests:
            progress = self.progress[request.index]
            prompt = request.sequence.prompt
            progress.detokenizer = Detokenizer(self.model.tokenizer, prompt)

    def shell(self, *, stream: bool) -> dict[str, Any]:
        """The object, or a chunk of a stream, without its choices."""
        return {
            "id": self.id,
            "object": self.chunk_name if stream else self.object_name,
            "created": self.created,
            "model": self.model_name,
            "system_fingerprint": self.fingerprint,
        }

    def chunk_with(
        self,
        index: int,
        content: dict[str, Any],
        *,
        finish_reason: str | None = None,
        logprobs: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """A chunk of one choice; `content`: what the endpoint calls its text or delta."""
        choice = {"index": index, "logprobs": logprobs, **content, "finish_reason": finish_reason}
        return {**self.shell(stream=True), "choices": [choice]}

    def chunk(
        self,
        index: int,
        text: str = "",
        *,
        finish_reason: str | None = None,
        logprobs: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """A chunk of one choice."""
        raise NotImplementedError

    def opening(self, choices: int) -> Iterator[dict[str, Any]]:
        """The chunks that come before any text."""
        raise NotImplementedError

    def choice(
        self, index: int, text: str, finish_reason: str, logprobs: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """A choice of the complete object; `logprobs` are those of its commits."""
        raise NotImplementedError

    def logprobs(
        self, index: int, tokens: Iterable[int], logprobs: Iterable[TokenLogprob | None]
    ) -> dict[str, Any]:
        """The next log-probabilities of a choice; None for a token with nothing before it."""
        raise NotImplementedError

    def usage_chunk(self, sequences: list[Sequence]) -> dict[str, Any]:
        """The last chunk: the usage of all choices, and what their decoding did."""
        return {
            **self.shell(stream=True),
            "choices": [],
            "usage": usage(sequences),
            **self.figures(sequences),
        }

    def figures(self, sequences: list[Sequence]) -> dict[str, Any]:
        """What the decoding of an answer did."""
        found: dict[str, Any] = {"metrics": decoding_metrics(sequences, self.mode_reason)}
        if len(sequences) == 1:
            found["timings"] = timings(sequences[0])
        return found

    def step_chunk(self, index: int, step: Step, *, show_drafts: bool) -> dict[str, Any] | None:
        """The chunk of a step; None if there is nothing to say."""
        committed, progress = step.update.event, self.progress[index]
        progress.step += 1
        if isinstance(committed, Drafted):
            frame = draft_frame(committed, step, progress, self.model.config.mask_token_id)
            return None if frame is None else self._with_frame(self.chunk(index), index, frame)
        wanted = None
        if committed.logprobs:
            wanted = self.logprobs(index, committed.tokens, committed.logprobs)
        passes, progress.step = progress.step, 0
        progress.block += 1
        progress.tokens += len(committed.tokens)
        if not step.update.text and wanted is None and not show_drafts:
            return None
        chunk = self.chunk(index, step.update.text, logprobs=wanted)
        if show_drafts:
            frame = commit_frame(committed, step, progress, passes)
            chunk = self._with_frame(chunk, index, frame)
        return chunk

    def step_chunks(self, index: int, step: Step, *, show_drafts: bool) -> Iterator[dict[str, Any]]:
        """All chunks of a step: its text or draft, and at the end the finish reason."""
        chunk = self.step_chunk(index, step, show_drafts=show_drafts)
        if chunk is not None:
            yield chunk
        if step.finish_reason is not None:
            yield self.chunk(index, finish_reason=finish_reason_of(step.finish_reason))

    async def complete_object(
        self, requests: list[ActiveRequest], timeout: float
    ) -> dict[str, Any]:
        """The answer as one object.

        Raises:
            TimeoutError: it is not finished in time.
        """
        texts = ["" for _ in requests]
        scores: list[list[dict[str, Any]]] = [[] for _ in requests]
        reasons = ["" for _ in requests]
        async for index, step in requests[0].channel.follow_to_end(len(requests), timeout):
            committed = step.update.event
            texts[index] += step.update.text
            if isinstance(committed, Committed) and committed.logprobs:
                scores[index].append(self.logprobs(index, committed.tokens, committed.logprobs))
            if step.finish_reason is not None:
                reasons[index] = finish_reason_of(step.finish_reason)
        sequences = [request.sequence for request in requests]
        return {
            **self.shell(stream=False),
            "choices": [self.choice(i, texts[i], reasons[i], scores[i]) for i in range(len(texts))],
            "usage": usage(sequences),
            **self.figures(sequences),
        }

    async def events(
        self, requests: list[ActiveRequest], settings: StreamSettings
    ) -> AsyncIterator[bytes]:
        """Server-sent events. If the answer fails midway, the last one is an error object."""
        try:
            async for found in self._events(requests, settings):
                yield found
        except TimeoutError:
            yield event(error_object(408, too_late(settings.timeout)))
        except EngineFailedError as error:
            yield event(error_object(error.status, str(error)))

    async def _events(
        self, requests: list[ActiveRequest], settings: StreamSettings
    ) -> AsyncIterator[bytes]:
        sequences = [request.sequence for request in requests]

        def sent(chunk: dict[str, Any]) -> bytes:
            if settings.continuous_usage:
                tokens = sum(progress.tokens for progress in self.progress.values())
                chunk["usage"] = usage(sequences, tokens)
            elif settings.include_usage:
                chunk["usage"] = None
            return event(chunk)

        for chunk in self.opening(len(requests)):
            yield sent(chunk)
        async for found in _without_early_drafts(requests, settings):
            if found is None:
                yield PING
                continue
            index, step = found
            for chunk in self.step_chunks(index, step, show_drafts=settings.show_drafts):
                yield sent(chunk)
        if settings.include_usage:
            yield event(self.usage_chunk(sequences))
        yield DONE

    def _with_frame(
        self, chunk: dict[str, Any], index: int, frame: dict[str, Any]
    ) -> dict[str, Any]:
        """A chunk with a frame, which is numbered as it is sent."""
        numbers = {"type": frame.pop("type"), "seq": self.frames_sent, "choice": index}
        self.frames_sent += 1
        return {**chunk, "trimode": {**numbers, **frame}}


async def respond(
    service: Service,
    http: Request,
    body: GenerationBody,
    answer: Answer,
    choices: list[Choice],
    names: Mapping[str, str],
    warnings: Iterable[str] = (),
) -> Response:
    """Have the choices decoded, and send the answer as the body asks.

    Args:
        service: decodes.
        http: the request.
        body: of the request.
        answer: gives the wire form.
        choices: what the engine is asked for.
        names: what the body calls the options that the engine may refuse.
        warnings: what of the request is not enforced; they become a header.
    """
    with fields_named(names):
        requests = await service.submit(
            choices,
            operation=answer.operation,
            model_name=answer.model_name,
            answer_id=answer.id,
            headers=http.headers,
            stream=bool(body.stream),
        )
    answer.begin(requests)
    free = partial(service.cancel, requests)
    timeout = service.settings.request_timeout
    headers = warning_header(warnings)
    if not body.stream:
        complete = answer.complete_object(requests, timeout)
        return await send_object(http, complete, timeout, free, headers=headers)
    settings = StreamSettings(
        include_usage=body.include_usage,
        continuous_usage=body.continuous_usage,
        show_drafts=requests[0].sequence.options.show_drafts,
        timeout=timeout,
        draft_interval=1 / service.settings.draft_fps,
        ping_interval=service.settings.ping_interval,
    )
    events = answer.events(requests, settings)
    return EventStream(events, requests[0].channel, free, headers=headers)


def new_id(prefix: str) -> str:
    """An id for an answer, or a part of one."""
    return f"{prefix}{secrets.token_hex(12)}"


def token_rows(
    model: LoadedModel, tokens: Iterable[int], logprobs: Iterable[TokenLogprob | None]
) -> list[dict[str, Any]]:
    """Each token's text, bytes, log-probability and alternatives, as chat shows them."""
    tokenizer = model.tokenizer

    def entry(token: int, logprob: float) -> dict[str, Any]:
        data = tokenizer.token_bytes(token)
        text = data.decode("utf-8", errors="replace") or tokenizer.token_text(token)
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(data)}

    return [
        {
            **entry(token, found.logprob if found else 0.0),
            "top_logprobs": [entry(*other) for other in found.top] if found else None,
        }
        for token, found in zip(tokens, logprobs, strict=True)
    ]


def joined_logprobs(parts: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The log-probabilities of several commits as one object; None if there are none."""
    if not parts:
        return None
    lists = {
        name: [item for part in parts for item in part[name]]
        for name, value in parts[0].items()
        if isinstance(value, list)
    }
    return {**parts[0], **lists}


async def _without_early_drafts(
    requests: list[ActiveRequest], settings: StreamSettings
) -> AsyncIterator[tuple[int, Step] | None]:
    """The steps as they come, without drafts that come too soon or that newer steps overtook."""
    channel, last_draft_at = requests[0].channel, [-math.inf for _ in requests]
    async for found in channel.follow(len(requests), settings.timeout, settings.ping_interval):
        if found is not None and isinstance(found[1].update.event, Drafted):
            index, now = found[0], time.monotonic()
            if channel.overtaken(index) or now - last_draft_at[index] < settings.draft_interval:
                continue
            last_draft_at[index] = now
        yield found
