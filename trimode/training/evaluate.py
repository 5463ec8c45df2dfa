"""Evaluation while training: losses on held-out text, and decoding of held-out prompts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from trimode.checkpoints import DraftPriors, LoadedModel
from trimode.config import GenerationOptions, Mode
from trimode.decoding import CostCurve, Stats
from trimode.engine import Engine, drain, encode_prompt, generate_batch
from trimode.training.adapter import head_matrix
from trimode.training.data import Batch
from trimode.training.objective import LossSum
from trimode.training.passes import clean_pass
from trimode.training.step import StepConfig, ar_losses, draw_task, losses


@dataclass(frozen=True, slots=True)
class ModeFigures:
    """One mode on some prompts, beside `ar`."""

    mode: Mode
    stats: Stats
    same: int
    """Answers that are token for token those of `ar`."""
    answers: int


def measure_modes(
    model: LoadedModel, prompts: Sequence[str], *, max_tokens: int
) -> list[ModeFigures]:
    """Decode prompts greedily in every mode that the model was trained for, `ar` first."""
    modes: list[Mode] = ["ar", "linear", "quadratic"]
    if model.can_denoise:
        modes.append("diffusion")
    found: list[ModeFigures] = []
    reference: list[tuple[int, ...]] = []
    for mode in modes:
        results = generate_batch(model, prompts, mode=mode, max_tokens=max_tokens)
        answers = [result.token_ids for result in results]
        reference = reference or answers
        same = sum(a == b for a, b in zip(answers, reference, strict=True))
        pooled = Stats.pooled(result.stats for result in results)
        found.append(ModeFigures(mode, pooled, same, len(answers)))
    return found


def measure_priors(model: LoadedModel, prompts: Sequence[str], *, max_tokens: int) -> DraftPriors:
    """How often the model's drafts, and its draft head's, are right on some prompts."""
    free = CostCurve((1, 128), (1.0, 1.01), (1.0, 1.01))  # so the longest drafts pay
    drafting = Engine(model, costs=free)
    _answer(drafting, prompts, GenerationOptions(mode="linear", max_tokens=max_tokens))
    found = drafting.draft_priors(model.config.block_length - 2)
    if model.draft_head is None:
        return found
    dear = CostCurve((1, 2, 128), (1.0, 1.15, 30.0), (1.0, 2.0, 60.0))  # so a head's drafts pay
    guessing = Engine(model, costs=dear)
    _answer(guessing, prompts, GenerationOptions(mode="auto", max_tokens=max_tokens))
    head = guessing.draft_priors(1)
    return replace(found, head_nodes=head.head_nodes, head_accepted=head.head_accepted)


def _answer(engine: Engine, prompts: Sequence[str], options: GenerationOptions) -> None:
    for prompt in prompts:
        engine.add(encode_prompt(engine.model, prompt), options)
        for _ in drain(engine):  # one after the other: the load is one
            pass


_EVALUATION_SEED = -1
"""Evaluations share their noise, so that their losses can be compared."""


def decode(model: LoadedModel, prompts: Sequence[str], **options: Any) -> Stats:
    """Decode prompts together and add up their figures; `options` as for `generate_batch`."""
    return Stats.pooled(result.stats for result in generate_batch(model, prompts, **options))


@torch.no_grad()
def held_out_losses(
    model: LoadedModel, batches: Sequence[Batch], config: StepConfig
) -> dict[str, float]:
    """Mean loss per token on held-out rows, by name of the loss; `ar` is always one of them.

    One clean pass serves all losses. A block-causal pass sees the tokens that the AR loss predicts,
    so the AR loss then gets a causal pass of its own.
    """
    transformer = model.transformer
    shared = config.blocks.context == "causal"
    if shared:
        config = replace(config, objective=replace(config.objective, ar_loss_weight=1.0))
    totals: dict[str, LossSum] = {}
    row = 0
    for number, batch in enumerate(batches):
        task = draw_task(batch, config, seed=_EVALUATION_SEED, step=number, first_row=row)
        row += len(batch.tokens)
        vision = model.vision_or_none
        found = losses(transformer, task, config, train_base=shared, vision=vision)
        if not shared:
            tokens = batch.tokens.to(transformer.device)
            hidden, _ = clean_pass(transformer, tokens, batch.documents, gradient=False)
            found["ar"] = ar_losses(hidden, head_matrix(transformer), batch)
        for name, loss in found.items():
            totals[name] = totals[name] + loss if name in totals else loss
    return {name: float(loss.mean) for name, loss in totals.items()}
