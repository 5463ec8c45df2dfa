"""Draft and commit frames: what a stream with `show_drafts` says about the decoding.

A frame travels in an ordinary chunk under the extra root key `trimode` (docs/streaming.md).
"""

from dataclasses import dataclass
from typing import Any

from trimode.decoding import Committed, Drafted
from trimode.server.runtime import Step
from trimode.text import Detokenizer


@dataclass(slots=True)
class ChoiceProgress:
    """How much of a choice its client has been sent. The engine is ahead of that."""

    detokenizer: Detokenizer
    """Makes the texts in frames."""
    block: int = 0
    """Commits so far."""
    step: int = 0
    """Steps since the last commit."""
    tokens: int = 0
    """Tokens committed so far."""
    cycles: int = 0
    """Draft-verify cycles so far."""
    characters: int = 0
    """Characters of the text of the tokens so far, for text offsets."""


def draft_frame(
    event: Drafted, step: Step, progress: ChoiceProgress, mask_token_id: int | None
) -> dict[str, Any] | None:
    """The open block; None if all of it has been committed already."""
    # A block may begin with tokens that AR has decided already.
    committed = len(step.update.sequence.prompt) + progress.tokens
    known = max(0, committed - event.start)
    tokens = event.tokens[known:]
    if not tokens:
        return None
    shown = [token for token in tokens if token != mask_token_id]
    texts = iter(progress.detokenizer.preview(shown))
    rows = zip(tokens, event.confidences[known:], event.states[known:], strict=True)
    return {
        "type": "draft",
        "block": progress.block,
        "step": progress.step,
        "nfe": step.nfe,
        "mode": step.update.sequence.options.mode,
        "start": event.start + known,
        "tokens": [
            ["" if token == mask_token_id else next(texts), round(confidence, 4), state]
            for token, confidence, state in rows
        ],
    }


def commit_frame(
    event: Committed, step: Step, progress: ChoiceProgress, passes: int
) -> dict[str, Any]:
    """Tokens that have become final; `progress` counts them already.

    `passes`: steps since the commit before, this one included.
    """
    frame = {
        "type": "commit",
        "block": progress.block - 1,
        "step": passes,
        "nfe": step.nfe,
        "start": len(step.update.sequence.prompt) + progress.tokens - len(event.tokens),
        "length": len(event.tokens),
        "texts": [progress.detokenizer.push([token]) for token in event.tokens],
    }
    if event.plan is not None:
        frame["plan"] = event.plan
    if event.drafted is not None:
        progress.cycles += event.new_cycle
        frame |= {
            "drafted": event.drafted,
            "accepted": max(0, len(event.tokens) - 1),
            "cycle": progress.cycles,
        }
    return frame
