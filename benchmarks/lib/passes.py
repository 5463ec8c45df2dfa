"""One pass of a model."""

import time

import torch

from benchmarks.lib.machine import ROOT
from trimode.checkpoints import LoadedModel
from trimode.model import KVCache, Runner, Segment


def text_tokens(model: LoadedModel) -> torch.Tensor:
    """Tokens of a text, `[n]`: how many words are likely has a say in what the head costs."""
    text = (ROOT / "docs" / "decoding.md").read_text(encoding="utf-8")
    return torch.tensor(model.tokenizer.encode(text))


def run(
    runner: Runner, cache: KVCache, rows: int, text: torch.Tensor | None = None
) -> tuple[torch.Tensor, float]:
    """Hidden states of a pass `[rows, dim]`, and seconds that the head took.

    The head does what greedy decoding asks for: likeliest tokens, from all logits if that is the
    faster way.

    Args:
        runner: runs it.
        cache: of the tokens before.
        rows: of the pass.
        text: the tokens before and those of the pass; by default any tokens.
    """
    start = cache.length
    tokens = torch.arange(100, 100 + rows) if text is None else text[start : start + rows]
    positions = torch.arange(start, start + rows)
    hidden = runner.run(tokens, positions, [Segment(0, rows, cache, "causal")])
    began = time.perf_counter()
    if runner.likeliest(hidden) is None:
        runner.logits(hidden).argmax(-1)
    return hidden, time.perf_counter() - began
