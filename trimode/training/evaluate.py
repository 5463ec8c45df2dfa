"""What is measured while training: losses on held-out text, decoding of held-out prompts."""

from collections.abc import Sequence
from typing import Any

import torch

from trimode.checkpoints import LoadedModel
from trimode.decoding import Stats
from trimode.engine import generate_batch
from trimode.training.adapter import head_matrix
from trimode.training.data import Batch
from trimode.training.objective import ar_loss, head_loss
from trimode.training.passes import clean_pass
from trimode.training.step import StepConfig, ar_positions, draw_task, losses

_EVALUATION_SEED = -1
"""Evaluations share their noise, so that their losses can be compared."""


def decode(model: LoadedModel, prompts: Sequence[str], **options: Any) -> Stats:
    """Decode prompts together and add up their figures; `options` as for `generate_batch`."""
    return Stats.pooled(result.stats for result in generate_batch(model, prompts, **options))


@torch.no_grad()
def held_out_losses(
    model: LoadedModel, batches: Sequence[Batch], config: StepConfig
) -> dict[str, float]:
    """Mean loss per token of each kind on held-out rows, by name; `ar` always."""
    transformer = model.transformer
    device = transformer.device
    totals: dict[str, float] = {}
    counts: dict[str, float] = {}
    row = 0
    for number, batch in enumerate(batches):
        task = draw_task(batch, config, seed=_EVALUATION_SEED, step=number, first_row=row)
        row += len(batch.tokens)
        found = losses(transformer, task, config, train_base=False)
        for name, loss in found.items():
            totals[name] = totals.get(name, 0.0) + float(loss.total)
            counts[name] = counts.get(name, 0.0) + float(loss.count)
        rows, columns = ar_positions(batch)
        tokens = batch.tokens.to(device)
        hidden, _ = clean_pass(transformer, tokens, batch.documents, gradient=False)
        head = head_matrix(transformer)
        targets = tokens[rows, columns + 1]
        total = head_loss(hidden[rows, columns], head, lambda z, t: ar_loss(z, t).total, targets)
        totals["ar"] = totals.get("ar", 0.0) + float(total)
        counts["ar"] = counts.get("ar", 0.0) + len(targets)
    return {name: totals[name] / max(1.0, counts[name]) for name in totals}
