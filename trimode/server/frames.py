"""Answers as OpenAI's objects: whole, or chunk by chunk with draft frames.

Wire format of drafts: an ordinary chunk with an empty `delta` and one extra root key, `trimode`.
See docs/serving.md.
"""

import time
from dataclasses import dataclass, field
from typing import Any, Literal

from trimode import __version__
from trimode.checkpoints import LoadedModel
from trimode.decoding import Committed, Drafted
from trimode.engine import FinishReason, Sequence
from trimode.server.worker import Step

Kind = Literal["chat", "text"]
FINGERPRINT = f"trimode-{__version__}"
_OBJECTS = {
    ("chat", True): "chat.completion.chunk",
    ("chat", False): "chat.completion",
    ("text", True): "text_completion",
    ("text", False): "text_completion",
}


@dataclass(slots=True, kw_only=True)
class Answer:
    """One HTTP answer: what its choices have in common."""

    id: str
    kind: Kind
    model: LoadedModel
    name: str
    created: int = field(default_factory=lambda: int(time.time()))
    sent: int = 0
    """Draft and commit frames so far."""

    def shell(self, *, stream: bool) -> dict[str, Any]:
        """The object without choices."""
        return {
            "id": self.id,
            "object": _OBJECTS[self.kind, stream],
            "created": self.created,
            "model": self.name,
            "system_fingerprint": FINGERPRINT,
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

    def step(self, index: int, step: Step, *, show_drafts: bool) -> dict[str, Any] | None:
        """The chunk of an update; None where it has nothing to say."""
        event, sequence = step.update.event, step.update.sequence
        if isinstance(event, Drafted):
            return self.frame(self.chunk(index), index, self._draft(event, sequence))
        wanted = logprobs_object(self, event) if event.logprobs else None
        if not step.update.text and wanted is None and not show_drafts:
            return None
        chunk = self.chunk(index, step.update.text, logprobs=wanted)
        if show_drafts:
            start = len(sequence.prompt) + sequence.stats.completion_tokens - len(event.tokens)
            commit = {"type": "commit", "start": start, "length": len(event.tokens)}
            if event.drafted is not None:
                commit |= {"drafted": event.drafted, "accepted": max(0, len(event.tokens) - 1)}
            chunk = self.frame(chunk, index, commit)
        return chunk

    def frame(self, chunk: dict[str, Any], index: int, body: dict[str, Any]) -> dict[str, Any]:
        """A chunk with a frame under our root key, numbered as sent."""
        numbers = {"type": body.pop("type"), "seq": self.sent, "choice": index}
        self.sent += 1
        return {**chunk, "trimode": {**numbers, **body}}

    def _draft(self, event: Drafted, sequence: Sequence) -> dict[str, Any]:
        tokenizer = self.model.tokenizer
        masked = self.model.config.mask_token_id
        rows = zip(event.tokens, event.confidences, event.states, strict=True)
        return {
            "type": "draft",
            "nfe": sequence.stats.nfe,
            "mode": sequence.options.mode,
            "start": event.start,
            "tokens": [
                ["" if token == masked else tokenizer.decode([token]), round(sure, 4), state]
                for token, sure, state in rows
            ],
        }


def finish(reason: FinishReason) -> str:
    """OpenAI's word for how a request ended."""
    return "length" if reason == "length" else "stop"


def logprobs_object(answer: Answer, event: Committed) -> dict[str, Any]:
    """Log-probabilities of committed tokens in the endpoint's form."""
    tokenizer = answer.model.tokenizer

    def entry(token: int, logprob: float) -> dict[str, Any]:
        data = tokenizer.token_bytes(token)
        text = data.decode("utf-8", errors="replace") or tokenizer.token_text(token)
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(data)}

    rows = [
        {
            **entry(token, found.logprob),
            "top_logprobs": [entry(other, value) for other, value in found.top],
        }
        for token, found in zip(event.tokens, event.logprobs, strict=True)
    ]
    if answer.kind == "chat":
        return {"content": rows, "refusal": None}
    return {
        "tokens": [row["token"] for row in rows],
        "token_logprobs": [row["logprob"] for row in rows],
        "top_logprobs": [{t["token"]: t["logprob"] for t in row["top_logprobs"]} for row in rows],
        "text_offset": [],
    }


def usage(sequences: list[Sequence]) -> dict[str, Any]:
    """Tokens of all choices; prompts of one request are counted once each."""
    prompt = sum(len(p) for p in {id(s.prompt): s.prompt for s in sequences}.values())
    completion = sum(s.stats.completion_tokens for s in sequences)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(s.stats.cached_tokens for s in sequences)},
    }


def metrics(sequences: list[Sequence]) -> dict[str, Any]:
    """What the decoding did, for `metrics` of an answer."""
    first = sequences[0]
    stats = type(first.stats).pooled(s.stats for s in sequences)
    found: dict[str, Any] = {
        "decoding": {
            "mode": first.options.mode,
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
