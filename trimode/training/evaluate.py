"""What is measured while training: losses on held-out text, decoding of held-out prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from trimode.checkpoints import LoadedModel
from trimode.config import GenerationOptions
from trimode.engine import Engine, drain, encode_prompt
from trimode.training.adapter import head_matrix
from trimode.training.data import Batch
from trimode.training.objective import ar_loss, head_loss
from trimode.training.passes import clean_pass
from trimode.training.step import StepConfig, ar_positions, draw_task, losses

_EVALUATION_SEED = -1
"""Evaluations share their noise, so that their losses can be compared."""


@dataclass(frozen=True, slots=True)
class DecodingFigures:
    """Totals over all prompts of one mode."""

    tokens: int
    nfe: int
    acceptance_length: float | None

    @property
    def tokens_per_forward(self) -> float:
        """Completion tokens / NFE, over all prompts together."""
        return self.tokens / self.nfe


def decode(
    model: LoadedModel, prompts: Sequence[str], options: GenerationOptions
) -> DecodingFigures:
    """Decode prompts together and add up their figures."""
    engine = Engine(model)
    sequences = [engine.add(encode_prompt(model, prompt), options) for prompt in prompts]
    for _ in drain(engine):
        pass
    stats = [sequence.stats for sequence in sequences]
    cycles = sum(s.cycles for s in stats)
    return DecodingFigures(
        tokens=sum(s.completion_tokens for s in stats),
        nfe=sum(s.nfe for s in stats),
        acceptance_length=sum(s.cycle_tokens for s in stats) / cycles if cycles else None,
    )


@torch.no_grad()
def held_out_losses(
    model: LoadedModel, batches: Sequence[Batch], config: StepConfig
) -> dict[str, float]:
    """Mean loss per token of each kind on held-out rows, by name; `ar` always."""
    transformer = model.transformer
    device = transformer.embedding.device
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
