"""Answers as OpenAI's objects: whole, or chunk by chunk with draft frames.

Wire format of drafts: an ordinary chunk with an empty `delta` and one extra root key, `trimode`.
See docs/streaming.md.
"""

import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from trimode import __version__
from trimode.checkpoints import LoadedModel
from trimode.decoding import Drafted, TokenLogprob
from trimode.engine import FinishReason, Sequence
from trimode.server.worker import Step
from trimode.text import Detokenizer

Kind = Literal["chat", "text"]
ModeReason = Literal["request", "model_suffix", "server_default", "prediction"]
"""What chose the mode: the field `decoding.mode`, the model's name, nothing, or a prediction."""
_OBJECTS = {
    ("chat", True): "chat.completion.chunk",
    ("chat", False): "chat.completion",
    ("text", True): "text_completion",
    ("text", False): "text_completion",
}


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt that is part of the answer."""

    text: str
    logprobs: dict[str, Any] | None


@dataclass(slots=True)
class Place:
    """Where a choice stands in its own decoding."""

    detokenizer: Detokenizer
    """Of what frames say; the engine's is ahead of its client."""
    block: int = 0
    """Commits so far."""
    step: int = 0
    """Drafts since the last commit."""
    tokens: int = 0
    """Committed so far."""
    cycles: int = 0
    """Draft-verify cycles so far."""
    offset: int = 0
    """Characters of those tokens."""


@dataclass(slots=True, kw_only=True)
class Answer:
    """One HTTP answer: what its choices have in common."""

    id: str
    kind: Kind
    model: LoadedModel
    name: str
    fingerprint: str = f"trimode-{__version__}"
    created: int = field(default_factory=lambda: int(time.time()))
    sent: int = 0
    """Draft and commit frames so far."""
    places: "defaultdict[int, Place]" = field(init=False)
    """Where each choice stands."""
    mode_reason: ModeReason = "request"
    may_call: bool = False
    """Whether an answer may turn out to be calls of tools."""
    echoes: dict[int, "Echo"] = field(default_factory=dict)
    """What choices begin with, where the request asked for its prompt back."""

    def __post_init__(self) -> None:
        self.places = defaultdict(lambda: Place(Detokenizer(self.model.tokenizer)))

    def shell(self, *, stream: bool) -> dict[str, Any]:
        """The object without choices."""
        return {
            "id": self.id,
            "object": _OBJECTS[self.kind, stream],
            "created": self.created,
            "model": self.name,
            "system_fingerprint": self.fingerprint,
        }

    def chunk(
        self,
        index: int,
        text: str = "",
        *,
        finish_reason: str | None = None,
        logprobs: dict | None = None,
        role: bool = False,
    ) -> dict[str, Any]:
        """A chunk of one choice."""
        choice: dict[str, Any] = {"index": index, "logprobs": logprobs}
        if self.kind == "text":
            choice["text"] = text
        else:
            choice["delta"] = {"role": "assistant", "content": ""} if role else {}
            if text:
                choice["delta"] = {"content": text}
        choice["finish_reason"] = finish_reason
        return {**self.shell(stream=True), "choices": [choice]}

    def usage_chunk(self, sequences: list[Sequence]) -> dict[str, Any]:
        """The last chunk: what all choices took, and what their decoding did."""
        done = metrics(sequences, self.mode_reason)
        counted = {"choices": [], "usage": usage(sequences), "metrics": done}
        return {**self.shell(stream=True), **counted}

    def call_chunks(self, index: int, calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Chunks of tool calls: each with its name, then its arguments."""
        chunks = []
        for number, call in enumerate(calls):
            function = call["function"]
            named = {**call, "function": {"name": function["name"], "arguments": ""}}
            rest = {"function": {"arguments": function["arguments"]}}
            for part in (named, rest):
                chunk = self.chunk(index)
                chunk["choices"][0]["delta"] = {"tool_calls": [{"index": number, **part}]}
                chunks.append(chunk)
        return chunks

    def step(self, index: int, step: Step, *, show_drafts: bool) -> dict[str, Any] | None:
        """The chunk of an update; None where it has nothing to say."""
        event, sequence = step.update.event, step.update.sequence
        place = self.places[index]
        place.step += 1
        if isinstance(event, Drafted):
            draft = self._draft(event, step, place)
            return self.frame(self.chunk(index), index, draft) if draft["tokens"] else None
        wanted = self.logprobs(index, event.tokens, event.logprobs) if event.logprobs else None
        place.block, place.step, passes = place.block + 1, 0, place.step
        start = len(sequence.prompt) + place.tokens
        place.tokens += len(event.tokens)
        if not step.update.text and wanted is None and not show_drafts:
            return None
        chunk = self.chunk(index, step.update.text, logprobs=wanted)
        if show_drafts:
            commit = {
                "type": "commit",
                "block": place.block - 1,
                "step": passes,
                "nfe": step.nfe,
                "start": start,
                "length": len(event.tokens),
                "texts": [place.detokenizer.push([token]) for token in event.tokens],
            }
            if event.plan is not None:
                commit["plan"] = event.plan
            if event.drafted is not None:
                place.cycles += event.new_cycle
                commit |= {
                    "drafted": event.drafted,
                    "accepted": max(0, len(event.tokens) - 1),
                    "cycle": place.cycles,
                }
            chunk = self.frame(chunk, index, commit)
        return chunk

    def logprobs(
        self, index: int, tokens: Iterable[int], logprobs: Iterable[TokenLogprob | None]
    ) -> dict[str, Any]:
        """A choice's next log-probabilities in the endpoint's form; None: nothing precedes it."""
        tokenizer = self.model.tokenizer

        def entry(token: int, logprob: float) -> dict[str, Any]:
            data = tokenizer.token_bytes(token)
            text = data.decode("utf-8", errors="replace") or tokenizer.token_text(token)
            return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(data)}

        rows = [
            {
                **entry(token, found.logprob if found else 0.0),
                "top_logprobs": [entry(other, value) for other, value in found.top]
                if found
                else None,
            }
            for token, found in zip(tokens, logprobs, strict=True)
        ]
        if self.kind == "chat":
            return {"content": rows, "refusal": None}
        place, offsets = self.places[index], []
        for row in rows:
            offsets.append(place.offset)
            place.offset += len(row["token"])
        tops = [row["top_logprobs"] for row in rows]
        return {
            "tokens": [row["token"] for row in rows],
            "token_logprobs": [
                None if top is None else row["logprob"] for row, top in zip(rows, tops, strict=True)
            ],
            "top_logprobs": [
                None if top is None else {t["token"]: t["logprob"] for t in top} for top in tops
            ],
            "text_offset": offsets,
        }

    def frame(self, chunk: dict[str, Any], index: int, body: dict[str, Any]) -> dict[str, Any]:
        """A chunk with a frame under our root key, numbered as sent."""
        numbers = {"type": body.pop("type"), "seq": self.sent, "choice": index}
        self.sent += 1
        return {**chunk, "trimode": {**numbers, **body}}

    def _draft(self, event: Drafted, step: Step, place: Place) -> dict[str, Any]:
        masked = self.model.config.mask_token_id
        # A block may begin with what AR has decided already.
        committed = len(step.update.sequence.prompt) + place.tokens
        known = max(0, committed - event.start)
        tokens = event.tokens[known:]
        texts = iter(place.detokenizer.preview([token for token in tokens if token != masked]))
        rows = zip(tokens, event.confidences[known:], event.states[known:], strict=True)
        return {
            "type": "draft",
            "block": place.block,
            "step": place.step,
            "nfe": step.nfe,
            "mode": step.update.sequence.options.mode,
            "start": event.start + known,
            "tokens": [
                ["" if token == masked else next(texts), round(sure, 4), state]
                for token, sure, state in rows
            ],
        }


def finish(reason: FinishReason) -> str:
    """OpenAI's word for how a request ended."""
    return "length" if reason == "length" else "stop"


def usage_object(prompt: int, completion: int, cached: int) -> dict[str, Any]:
    """OpenAI's `usage`. No token is hidden from the client, so none counts as reasoning."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def usage(sequences: list[Sequence], sent: int | None = None) -> dict[str, Any]:
    """Tokens of all choices; the prompt of several choices is counted once.

    `sent`: completion tokens so far, of an answer on its way. The engine is ahead of its client.
    """
    alike: dict[int, list[Sequence]] = {}
    for sequence in sequences:
        alike.setdefault(id(sequence.prompt), []).append(sequence)
    # The first of them finds what others left behind, the rest find what the first left as well.
    found = usage_object(
        sum(len(group[0].prompt) for group in alike.values()),
        sum(s.stats.completion_tokens for s in sequences) if sent is None else sent,
        sum(min(s.stats.cached_tokens for s in group) for group in alike.values()),
    )
    if sent is None and any(s.options.prediction for s in sequences):
        accepted = sum(s.stats.accepted_prediction_tokens for s in sequences)
        tried = sum(s.stats.predicted_tokens for s in sequences)
        found["completion_tokens_details"] |= {
            "accepted_prediction_tokens": accepted,
            "rejected_prediction_tokens": tried - accepted,
        }
    return found


def metrics(sequences: list[Sequence], mode_reason: ModeReason) -> dict[str, Any] | None:
    """What the decoding did, for `metrics` of an answer; None for several choices."""
    if len(sequences) != 1:
        return None
    stats = sequences[0].stats
    found: dict[str, Any] = {
        "decoding": {
            "mode": sequences[0].options.mode,
            "mode_reason": mode_reason,
            "nfe": stats.nfe,
            "tokens_per_forward": round(stats.tokens_per_forward, 4),
            "revisions": stats.revisions,
        }
    }
    if stats.plans:
        found["decoding"]["plans"] = dict(stats.plans)
    if stats.acceptance_length is not None:
        found["speculative_decoding"] = {
            "num_drafts": stats.cycles,
            "num_draft_tokens": stats.drafted_tokens,
            "mean_acceptance_length": round(stats.acceptance_length, 4),
        }
    return found
