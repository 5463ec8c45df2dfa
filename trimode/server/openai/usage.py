"""The figures of an answer: OpenAI's `usage`, and `metrics` for what the decoding did."""

from typing import Any, Literal

from trimode.engine import FinishReason, Sequence
from trimode.server.runtime import token_counts

ModeReason = Literal["request", "model_suffix", "server_default", "prediction"]
"""What chose the mode: the field `decoding.mode`, the model's name, nothing, or a prediction."""


def finish_reason_of(reason: FinishReason) -> str:
    """OpenAI's word for how a choice ended."""
    return "length" if reason == "length" else "stop"


def usage_object(prompt: int, completion: int, cached: int) -> dict[str, Any]:
    """OpenAI's `usage`. Clients see all tokens, so none counts as reasoning."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def usage(sequences: list[Sequence], sent: int | None = None) -> dict[str, Any]:
    """The `usage` of an answer with these choices.

    Args:
        sequences: of the choices.
        sent: completion tokens sent so far, for an answer that goes on: the engine is ahead of
            its client. None: the answer is complete.
    """
    counts = token_counts(sequences)
    completion = counts.completion if sent is None else sent
    found = usage_object(counts.prompt, completion, counts.cached)
    if sent is None and any(s.options.prediction for s in sequences):
        accepted = sum(s.stats.accepted_prediction_tokens for s in sequences)
        tried = sum(s.stats.predicted_tokens for s in sequences)
        found["completion_tokens_details"] |= {
            "accepted_prediction_tokens": accepted,
            "rejected_prediction_tokens": tried - accepted,
        }
    return found


def decoding_metrics(sequences: list[Sequence], mode_reason: ModeReason) -> dict[str, Any] | None:
    """What the decoding did, for `metrics` of an answer; None if there are several choices."""
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
