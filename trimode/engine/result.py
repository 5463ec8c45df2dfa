"""What a finished request is reported as."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from trimode.config import Mode
from trimode.decoding import Stats, TokenLogprob
from trimode.engine.request import settings_in_force
from trimode.engine.sequence import FinishReason, Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationResult:
    """A completion with its accounting."""

    id: str
    model: str
    mode: Mode
    text: str
    token_ids: tuple[int, ...]
    """Completion tokens, the stop token included."""
    prompt_tokens: int
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...]
    stats: Stats
    settings: Mapping[str, Any]
    """Options in force, defaults resolved; of those that only some modes read, the mode's own."""

    @classmethod
    def of(cls, sequence: Sequence, model: str) -> Self:
        """The result of a finished sequence."""
        assert sequence.finish_reason is not None
        return cls(
            id=sequence.id,
            model=model,
            mode=sequence.options.mode,
            text=sequence.text_stream.text,
            token_ids=tuple(sequence.tokens),
            prompt_tokens=len(sequence.prompt),
            finish_reason=sequence.finish_reason,
            logprobs=tuple(sequence.logprobs),
            stats=sequence.stats,
            settings=settings_in_force(sequence.options, sequence.context),
        )

    def to_json(self) -> dict[str, Any]:
        """The object `trimode generate --json` prints."""
        stats = self.stats
        fields: dict[str, Any] = {
            "model": self.model,
            "mode": self.mode,
            **self.settings,
            "text": self.text,
            "token_ids": list(self.token_ids),
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": stats.completion_tokens,
            "finish_reason": self.finish_reason,
            "nfe": stats.nfe,
            "tokens_per_forward": round(stats.tokens_per_forward, 4),
            "acceptance_length": _rounded(stats.acceptance_length),
            "seconds": round(stats.seconds, 4),
            "tokens_per_second": round(stats.tokens_per_second, 2),
        }
        if stats.plans:
            fields["plans"] = dict(stats.plans)
        if self.logprobs:
            fields["logprobs"] = [
                {"token": token, "logprob": entry.logprob, "top": [list(t) for t in entry.top]}
                for token, entry in zip(self.token_ids, self.logprobs, strict=True)
            ]
        return fields


RESULT_FIELDS = frozenset(
    (
        *("id", "model", "mode", "text", "token_ids", "prompt_tokens", "completion_tokens"),
        *("finish_reason", "nfe", "tokens_per_forward", "acceptance_length", "seconds"),
        *("tokens_per_second", "plans", "logprobs"),
        *("max_tokens", "temperature", "top_p", "seed"),
        *("block_length", "commit_rule", "threshold", "rolling_block"),
    )
)
"""Every field that `GenerationResult.to_json` may have, and the `id` of a line of a batch."""


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
