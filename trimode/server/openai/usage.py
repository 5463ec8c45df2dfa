"""The figures of an answer: OpenAI's `usage`, and `metrics` for what the decoding did."""

from typing import Any

from trimode.decoding import MODE_SPECS
from trimode.engine import FinishReason, Sequence
from trimode.server.choices import ModeReason
from trimode.server.runtime import token_counts

_TAIL = 4
"""Tokens at the end of a prompt or the start of an answer among which a thought may begin."""


def finish_reason_of(reason: FinishReason) -> str:
    """OpenAI's word for how a choice ended."""
    return "length" if reason == "length" else "stop"


def usage_object(prompt: int, completion: int, cached: int, reasoning: int = 0) -> dict[str, Any]:
    """OpenAI's `usage`; tokens of thoughts are completion tokens too."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
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
    reasoning = sum(map(_thought_tokens, sequences)) if sent is None else 0
    found = usage_object(counts.prompt, completion, counts.cached, reasoning)
    if counts.images:
        found["prompt_tokens_details"]["image_tokens"] = counts.images
    if sent is None and any(s.options.prediction for s in sequences):
        accepted = sum(s.stats.accepted_prediction_tokens for s in sequences)
        tried = sum(s.stats.predicted_tokens for s in sequences)
        found["completion_tokens_details"] |= {
            "accepted_prediction_tokens": accepted,
            "rejected_prediction_tokens": tried - accepted,
        }
    return found


def _thought_tokens(sequence: Sequence) -> int:
    """Tokens of the thought that an answer begins with, its marks included."""
    marks = sequence.context.sampler.think_token_ids
    if marks is None or marks[0] is None:
        return 0
    begin, end = marks
    tail = sequence.prompt[-_TAIL:]
    opened = begin in sequence.tokens[:_TAIL] or (begin in tail and end not in tail)
    if not opened:
        return 0
    return sequence.tokens.index(end) + 1 if end in sequence.tokens else len(sequence.tokens)


def timings(sequence: Sequence) -> dict[str, Any] | None:
    """The figures of one choice as llama-server's clients read them; None before its end."""
    stats = sequence.stats
    if stats.finished_at is None or stats.first_token_at is None or stats.admitted_at is None:
        return None
    prompt = len(sequence.prompt) - stats.cached_tokens
    prompt_ms = max(1e-3, (stats.first_token_at - stats.admitted_at) * 1e3)
    # From admission, as everywhere here: a first commit may hold the whole answer.
    predicted_ms = max(1e-3, stats.seconds * 1e3)
    found = {
        "cache_n": stats.cached_tokens,
        "prompt_n": prompt,
        "prompt_ms": round(prompt_ms, 3),
        "prompt_per_token_ms": round(prompt_ms / max(1, prompt), 3),
        "prompt_per_second": round(1e3 * prompt / prompt_ms, 2),
        "predicted_n": stats.completion_tokens,
        "predicted_ms": round(predicted_ms, 3),
        "predicted_per_token_ms": round(predicted_ms / max(1, stats.completion_tokens), 3),
        "predicted_per_second": round(stats.tokens_per_second, 2),
        "nfe": stats.nfe,
    }
    if stats.cycles:
        found["draft_n"] = stats.drafted_tokens
        found["draft_n_accepted"] = stats.cycle_tokens - stats.cycles
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
    if "block_length" in MODE_SPECS[sequences[0].options.mode].reads:
        found["decoding"]["block_length"] = sequences[0].context.block_length
    if stats.plans:
        found["decoding"]["plans"] = dict(stats.plans)
    if stats.acceptance_length is not None:
        found["speculative_decoding"] = {
            "num_drafts": stats.cycles,
            "num_draft_tokens": stats.drafted_tokens,
            "mean_acceptance_length": round(stats.acceptance_length, 4),
        }
    return found
