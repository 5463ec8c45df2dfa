"""The losses of one training step: place blocks, draw noise, run both passes, weigh the losses."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from trimode.config import DraftForm, check_range
from trimode.errors import InputError
from trimode.model import Transformer
from trimode.training.adapter import head_matrix
from trimode.training.autocast import in_autocast_dtype
from trimode.training.data import Batch
from trimode.training.masks import (
    PADDING,
    Blocks,
    CleanContext,
    grid_blocks,
    places_in_document,
    random_blocks,
)
from trimode.training.noise import Noise, NoiseConfig, draw_noise, keyed_generator
from trimode.training.objective import (
    ALIGNMENT_SAMPLED_SHARE,
    LossSum,
    ObjectiveConfig,
    accepted_and_first_rejected,
    alignment_loss,
    ar_loss,
    diffusion_loss,
    distillation_loss,
    head_loss,
)
from trimode.training.passes import clean_pass, noisy_pass
from trimode.training.pictures import given_rows
from trimode.vision import Vision


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockConfig:
    """Where noisy blocks lie. The defaults are NLD's: one copy of the whole sequence."""

    block_length: int = 32
    other_lengths: tuple[int, ...] = ()
    """Each step draws one length among these and `block_length`. Shorter blocks spend more of the
    compute on places that drafts reach."""
    placement: Literal["grid", "random"] = "grid"
    """Blocks that tile each document, or blocks that start at random trained tokens."""
    copies: int = 1
    """Grid: noisy copies for one clean pass."""
    noisy_tokens: int = 512
    """Random: noisy tokens of a row, a multiple of each block length."""
    random_offset: bool = False
    """Grid: shift the cuts by a random number of tokens each step."""
    context: CleanContext = "causal"
    token_shift: bool = False
    """The row before a token predicts it, as in AR decoding, instead of the token's own row. Then
    AR predicts a block's first token, and it is not trained on (docs/design/0011)."""
    draft_form: DraftForm | None = None
    """How the result drafts, saved with it (docs/design/0006). None: see `TrainConfig.draft_form`.
    """

    def __post_init__(self) -> None:
        for name in ("block_length", "copies"):
            check_range(name, getattr(self, name), 1, None)
        if any(length < 1 for length in self.other_lengths):
            raise InputError("other_lengths", str(self.other_lengths), "must be at least 1")
        lengths = (self.block_length, *self.other_lengths)
        if self.placement == "random" and any(self.noisy_tokens % length for length in lengths):
            allowed = f"must be a multiple of {', '.join(map(str, lengths))}"
            raise InputError("noisy_tokens", str(self.noisy_tokens), allowed)
        if self.context == "block" and self.other_lengths:
            allowed = "must be empty with context: block"
            raise InputError("other_lengths", str(self.other_lengths), allowed)
        if self.context == "block" and (self.placement == "random" or self.random_offset):
            raise InputError("context", "block", "needs placement: grid without random_offset")


@dataclass(frozen=True, slots=True)
class Task:
    """A batch with its noise: everything random about a step."""

    batch: Batch
    blocks: Blocks
    noise: Noise
    trained: Tensor
    """Masked tokens that the noisy pass predicts, bool `[R, N, B]`."""
    draft_seed: int
    """Seed of the drafts that the alignment loss samples."""

    @property
    def masked_blocks(self) -> int:
        """How many blocks have trained tokens."""
        return int(self.trained.any(-1).sum())

    @property
    def noisy_tokens(self) -> int:
        """How many tokens go through the noisy pass."""
        return self.blocks.index.numel()

    @property
    def masked_tokens(self) -> int:
        """How many tokens the noisy pass is trained on."""
        return int(self.trained.sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class StepConfig:
    """What a step computes."""

    blocks: BlockConfig = field(default_factory=BlockConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)

    def ar_only(self) -> "StepConfig":
        """The same without noisy blocks."""
        return replace(self, objective=self.objective.ar_only())

    def __post_init__(self) -> None:
        for name in ("draft_share", "seeded_share"):
            if self.objective.alignment_loss_weight and getattr(self.noise, name) < 1:
                found = str(getattr(self.noise, name))
                raise InputError(name, found, "must be 1 with alignment_loss_weight")
        if self.blocks.context == "block" and self.objective.ar_loss_weight:
            raise InputError(
                "ar_loss_weight",
                str(self.objective.ar_loss_weight),
                "must be 0 with context: block: clean tokens then see the ones to predict",
            )


def draw_task(batch: Batch, config: StepConfig, *, seed: int, step: int, first_row: int) -> Task:
    """Place the blocks of a batch and draw their noise.

    Args:
        batch: rows of the run, from number `first_row` on.
        config: what to draw.
        seed: of the run.
        step: number of the step. Block length and offset depend on it, so all its rows share them.
        first_row: number of the first row in the run. A row's noise depends on seed and number.
    """
    if not config.objective.needs_noise:
        blocks, noise = _no_blocks(len(batch.tokens))
        return Task(batch, blocks, noise, noise.masked, draft_seed=0)
    placing = config.blocks
    if batch.images and placing.context == "block":
        raise InputError("context", "block", "rows with pictures need context: causal")
    shared = keyed_generator(seed, "step", step)
    lengths = (placing.block_length, *placing.other_lengths)
    length = lengths[int(torch.randint(len(lengths), (), generator=shared))]
    offset = int(torch.randint(length, (), generator=shared)) if placing.random_offset else 0
    parts: list[tuple[Blocks, Noise]] = []
    runs = batch.runs
    for i in range(len(batch.tokens)):
        generator = keyed_generator(seed, "row", first_row + i)
        documents, learn = batch.documents[i : i + 1], batch.learn[i : i + 1]
        text = runs[i : i + 1]
        if placing.placement == "random":
            count = placing.noisy_tokens // length
            blocks = random_blocks(text, learn, length, count, generator)
        else:
            copies = placing.copies
            blocks = grid_blocks(documents, length, copies=copies, offset=offset, runs=text)
        parts.append((blocks, draw_noise(config.noise, blocks, learn, generator)))
    blocks, noise = _stack(parts, batch.tokens.shape[1])
    trained = noise.masked
    if placing.token_shift:
        trained = trained & (torch.arange(length) > 0)
    return Task(
        batch, blocks, noise, trained, keyed_generator(seed, "drafts", first_row).initial_seed()
    )


def _no_blocks(rows: int) -> tuple[Blocks, Noise]:
    """Empty blocks and noise, for a step without a noisy pass."""
    places = torch.zeros(rows, 0, 1, dtype=torch.long)
    starts, none = places[:, :, 0], places.bool()
    return Blocks(starts, places, none, starts), Noise(none, none.float())


def _stack(parts: Sequence[tuple[Blocks, Noise]], length: int) -> tuple[Blocks, Noise]:
    """Join single rows to a batch. Rows with fewer blocks get more that lie wholly outside."""
    count = max(blocks.starts.shape[1] for blocks, _ in parts)

    def stacked(tensors: list[Tensor], value: int) -> Tensor:
        short = [count - tensor.shape[1] for tensor in tensors]
        fillers = [tensor.new_full((1, n, *tensor.shape[2:]), value)
                   for tensor, n in zip(tensors, short, strict=True)]  # fmt: skip
        return torch.cat([torch.cat(pair, 1) for pair in zip(tensors, fillers, strict=True)])

    placed, noises = zip(*parts, strict=True)
    blocks = Blocks(
        starts=stacked([b.starts for b in placed], length - 1),
        index=stacked([b.index for b in placed], length - 1),
        inside=stacked([b.inside for b in placed], 0),
        groups=stacked([b.groups for b in placed], 0),
    )
    noise = Noise(stacked([n.masked for n in noises], 0), stacked([n.weights for n in noises], 0))
    return blocks, noise


def losses(
    transformer: Transformer,
    task: Task,
    config: StepConfig,
    *,
    train_base: bool,
    recompute: bool = False,
    vision: Vision | None = None,
) -> dict[str, LossSum]:
    """Loss sums of one task by name: `ar`, `diffusion`, `distillation`, `alignment`.

    A loss of weight 0 is left out.

    Args:
        transformer: with plain weights.
        task: what to run.
        config: what to compute.
        train_base: whether the base weights are trained. If not, the clean pass records no
            gradient, and the AR loss is left out: it would train nothing.
        recompute: keep only the inputs of the noisy pass's layers for the backward pass.
        vision: reads the batch's pictures. If some of its weights require a gradient, the clean
            pass records one for them, and the AR loss is computed, whatever `train_base` says.
    """
    objective, batch, blocks = config.objective, task.batch, task.blocks
    device = transformer.device
    tokens = batch.tokens.to(device)
    given = None
    if batch.images:
        assert vision is not None, "the batch has pictures"
        length = batch.tokens.shape[1]
        given = given_rows(batch.images, vision, length, device, recompute=recompute)
        train_base = train_base or given.embeddings.requires_grad
    hidden, clean = clean_pass(
        transformer,
        tokens,
        batch.documents,
        context=config.blocks.context,
        block_length=config.blocks.block_length,
        gradient=train_base,
        given=given,
    )
    head = head_matrix(transformer)  # read after a pass, which has gathered sharded weights
    found: dict[str, LossSum] = {}
    if train_base and objective.ar_loss_weight:
        found["ar"] = ar_losses(hidden, head, batch)
    if not objective.needs_noise:
        return found
    noisy = noisy_pass(
        transformer,
        _noisy_tokens(transformer, task),
        blocks,
        batch.documents,
        clean,
        recompute=recompute,
    )
    where = task.trained.nonzero(as_tuple=True)
    student = noisy[where[0], where[1], where[2] - int(config.blocks.token_shift)]
    weights = _weights(task, objective, where).to(device)
    if objective.diffusion_loss_weight:
        targets = _original(task)[where].to(device)
        total = head_loss(
            student, head, lambda z, t, w: diffusion_loss(z, t, w).total, targets, weights
        )
        found["diffusion"] = _sum(total, len(weights))
    if objective.alignment_loss_weight or objective.distillation_loss_weight:
        teacher, taught = _teacher(hidden, task, where)
        matrix = in_autocast_dtype(head.detach())
        if objective.alignment_loss_weight:
            found["alignment"] = _alignment(student, teacher, matrix, task)
        else:
            weights = torch.where(taught, weights, torch.zeros_like(weights))
            temperature = objective.distillation_temperature
            found["distillation"] = _distillation(
                student, teacher, weights, head, matrix, temperature
            )
    return found


Places = tuple[Tensor, ...]
"""Row, block and offset of each trained token, three `[m]`."""


def _original(task: Task) -> Tensor:
    """The clean tokens of the blocks, `[R, N, B]`."""
    index = task.blocks.index
    return task.batch.tokens.gather(1, index.flatten(1)).view_as(index)


def _noisy_tokens(transformer: Transformer, task: Task) -> Tensor:
    """Tokens of the blocks `[R, N, B]`, with the mask token in place of hidden ones."""
    mask_id = transformer.config.mask_token_id
    assert mask_id is not None
    hide = task.noise.masked | ~task.blocks.inside
    tokens = torch.where(hide, torch.tensor(mask_id), _original(task))
    return tokens.to(transformer.device)


def _weights(task: Task, objective: ObjectiveConfig, where: Places) -> Tensor:
    """Weight of each trained token, `[m]`: its noise weight, decayed by its place in the block."""
    distance = (where[2] - 1).clamp(min=0)
    return task.noise.weights[where] * objective.distance_decay ** distance.float()


def _teacher(hidden: Tensor, task: Task, where: Places) -> tuple[Tensor, Tensor]:
    """The clean hidden state that predicts each trained token, `[m, D]`, and whether there is one.

    AR predicts a token from the position before it, so a document's first token has none.
    """
    at = task.blocks.index[where] - 1
    first = places_in_document(task.batch.documents)[where[0], at + 1] == 0
    return hidden[where[0], at.clamp(min=0)].detach(), ~first.to(hidden.device)


def _distillation(
    student: Tensor,
    teacher: Tensor,
    weights: Tensor,
    head: Tensor,
    matrix: Tensor,
    temperature: float,
) -> LossSum:
    """Divergence of the noisy rows `[m, D]` from AR's; `matrix`: the head without a gradient."""

    def divergence(logits: Tensor, taught: Tensor, weights: Tensor) -> Tensor:
        with torch.no_grad():
            reference = F.linear(taught, matrix).float()
        return distillation_loss(logits, reference, weights, temperature).total

    return _sum(head_loss(student, head, divergence, teacher, weights), len(weights))


def _alignment(student: Tensor, teacher: Tensor, head: Tensor, task: Task) -> LossSum:
    """NLD's draft alignment, a mean over the active rows of each block, summed over blocks."""
    masked = task.trained
    with torch.no_grad():
        generator = torch.Generator().manual_seed(task.draft_seed)
        sampled = torch.rand(masked.shape[:2], generator=generator) < ALIGNMENT_SAMPLED_SHARE
        heated = sampled[:, :, None].expand_as(masked)[masked].to(student.device)
        agreed = []
        for rows in torch.arange(len(student)).split(256):
            logits = F.linear(student[rows], head).float()
            uniform = torch.rand(logits.shape, generator=generator).to(logits.device)
            gumbel = -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))
            drafted = (logits + gumbel * heated[rows, None]).argmax(-1)
            agreed.append(drafted == F.linear(teacher[rows], head).argmax(-1))
        matches = torch.zeros_like(masked)
        matches[masked] = torch.cat(agreed).cpu()
        active = accepted_and_first_rejected(matches, masked)
        weights = (active / active.sum(-1, keepdim=True).clamp(min=1))[masked]
        chosen = weights.nonzero()[:, 0]
        weights = weights[chosen].to(student.device)

    def aligned(logits: Tensor, taught: Tensor, weights: Tensor) -> Tensor:
        return alignment_loss(logits, F.linear(taught, head).float(), weights)

    total = head_loss(student[chosen], head, aligned, teacher[chosen], weights)
    return _sum(total, task.masked_blocks)


def ar_losses(hidden: Tensor, head: Tensor, batch: Batch) -> LossSum:
    """AR loss of a clean pass: `hidden` `[R, L, D]`, `head` `[vocab, D]`."""
    rows, columns = ar_positions(batch)
    targets = batch.tokens[rows, columns + 1].to(hidden.device)
    total = head_loss(hidden[rows, columns], head, lambda z, t: ar_loss(z, t).total, targets)
    return _sum(total, len(targets))


def ar_positions(batch: Batch) -> tuple[Tensor, Tensor]:
    """Row and column of each token whose successor, in the same document, is trained on."""
    same = batch.documents[:, :-1] == batch.documents[:, 1:]
    wanted = same & batch.learn[:, 1:] & (batch.documents[:, 1:] != PADDING)
    rows, columns = wanted.nonzero(as_tuple=True)
    return rows, columns


def _sum(total: Tensor, count: int) -> LossSum:
    return LossSum(total, torch.tensor(float(count), device=total.device))
