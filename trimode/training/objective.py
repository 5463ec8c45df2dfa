"""The joint objective: AR loss on the clean copy, diffusion loss on the noisy one.

L = (sum L_AR + alpha * sum L_diff) / (n_AR + n_masked), sums and counts over the whole global
batch (NLD, arXiv 2607.05722 section 2.1; alpha 0.3 in its joint stages, 0 in its first).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trimode.config import check_range
from trimode.errors import InputError
from trimode.training.autocast import in_autocast_dtype

DIFFUSION_LOSS_WEIGHT = 0.3
"""NLD's alpha."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveConfig:
    """Weights of the losses. The defaults are NLD's joint stage."""

    ar_loss_weight: float = 1.0
    diffusion_loss_weight: float = DIFFUSION_LOSS_WEIGHT
    """Weight of the cross-entropy with the data; 0 in NLD's first stage."""
    distillation_loss_weight: float = 0.0
    """Weight of the divergence from the AR distribution of the same pass."""
    distillation_temperature: float = 1.0
    alignment_loss_weight: float = 0.0
    """Weight of NLD's draft alignment, instead of the two above; see `alignment_loss`."""
    distance_decay: float = 1.0
    """A masked token d places after its block's first counts decay^(d - 1): in a speculative draft
    a token matters only if all tokens before it are accepted."""

    def __post_init__(self) -> None:
        names = (
            "ar_loss_weight",
            "diffusion_loss_weight",
            "distillation_loss_weight",
            "alignment_loss_weight",
        )
        for name in names:
            check_range(name, getattr(self, name), 0, None)
        if self.alignment_loss_weight and any(getattr(self, name) for name in names[1:3]):
            found = str(self.alignment_loss_weight)
            raise InputError(names[3], found, f"needs {names[1]} and {names[2]} to be 0")
        for name in ("distillation_temperature", "distance_decay"):
            check_range(name, getattr(self, name), 0, None, exclusive_low=True)

    @property
    def needs_noise(self) -> bool:
        """Whether any loss uses noisy blocks. If none does, a step has no noisy pass."""
        return bool(
            self.diffusion_loss_weight
            or self.distillation_loss_weight
            or self.alignment_loss_weight
        )

    def ar_only(self) -> "ObjectiveConfig":
        """NLD's first stage: the AR loss and nothing else."""
        return ObjectiveConfig(ar_loss_weight=self.ar_loss_weight, diffusion_loss_weight=0.0)


@dataclass(frozen=True, slots=True)
class LossSum:
    """A sum of token losses and the number of its tokens. Add sums first, average them after."""

    total: Tensor
    count: Tensor

    def __add__(self, other: "LossSum") -> "LossSum":
        return LossSum(self.total + other.total, self.count + other.count)

    @property
    def mean(self) -> Tensor:
        """Average per token; 0 if there is no token."""
        return self.total / self.count.clamp(min=1)


def ar_loss(logits: Tensor, targets: Tensor) -> LossSum:
    """Cross-entropy of next tokens: sum of -log p(x[i+1]).

    Args:
        logits: clean rows whose next token counts, `[n, vocab]`.
        targets: those next tokens, `[n]`.
    """
    return LossSum(F.cross_entropy(logits, targets, reduction="sum"), _count(targets))


def diffusion_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> LossSum:
    """Weighted cross-entropy at masked positions, no shift: sum of -w log p(x[i]).

    Args:
        logits: masked noisy rows, `[m, vocab]`.
        targets: the tokens that the masks hide, `[m]`.
        weights: 1 / p of each, `[m]`.
    """
    losses = F.cross_entropy(logits, targets, reduction="none")
    return LossSum((losses * weights).sum(), _count(targets))


def distillation_loss(
    logits: Tensor, teacher_logits: Tensor, weights: Tensor, temperature: float = 1.0
) -> LossSum:
    """KL(AR || denoiser) at masked positions: trains drafts that the verifier accepts.

    Args:
        logits: masked noisy rows, `[m, vocab]`; row k stands at position i.
        teacher_logits: clean rows at position i - 1, the AR prediction of position i, `[m, vocab]`.
        weights: of each position, `[m]`.
        temperature: softens both; the loss is scaled by its square to keep the gradient's size.
    """
    if temperature != 1.0:
        logits, teacher_logits = logits / temperature, teacher_logits / temperature
    divergences = _Divergence.apply(logits, teacher_logits.detach())
    return LossSum((divergences * weights).sum() * temperature**2, _count(weights))


class _Divergence(torch.autograd.Function):
    """KL(teacher || student) of each row, with its gradient softmax(student) - softmax(teacher).

    The gradient is written out because a step has tens of millions of logits. Autograd's own chain
    reads and writes them three times as often, which takes most of a step's time in bf16.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:  # type: ignore[override]
        log_q = torch.log_softmax(student, dim=-1)
        log_p = torch.log_softmax(teacher, dim=-1)
        p = log_p.exp()
        divergence = torch.linalg.vecdot(p, log_p - log_q)
        ctx.gradient = log_q.exp_().sub_(p)
        return divergence

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.gradient * outer[0][:, None], None


ALIGNMENT_TEMPERATURE = 3.0
ALIGNMENT_SUPPORT = 200
ALIGNMENT_SAMPLED_SHARE = 0.9
"""NLD samples its drafts at temperature 1 in this share of the blocks; the rest are greedy."""


def alignment_loss(logits: Tensor, teacher_logits: Tensor, weights: Tensor) -> Tensor:
    """NLD's draft alignment: KL and total variation, plus cross-entropy with AR's choice.

    Both distributions are restricted to the union of their 200 best tokens and renormalised. At
    temperature 3, with p the verifier's and q the draft's: lambda KL(p || q) + (1 - lambda) TV,
    lambda = exp(-0.5 sum min(p, q)) without a gradient. The cross-entropy is at temperature 1.

    Args:
        logits: draft rows, `[m, vocab]`.
        teacher_logits: the verifier's rows for the same positions, `[m, vocab]`.
        weights: of each row, `[m]`.

    Returns:
        The weighted sum.

    Source: arXiv 2607.05722, section 3.3.
    """
    teacher_logits = teacher_logits.detach()
    count = min(ALIGNMENT_SUPPORT, logits.shape[-1])
    kept = torch.zeros_like(logits, dtype=torch.bool)
    kept.scatter_(1, logits.detach().topk(count).indices, True)
    kept.scatter_(1, teacher_logits.topk(count).indices, True)
    floor = torch.finfo(logits.dtype).min
    student = torch.where(kept, logits, floor)
    teacher = torch.where(kept, teacher_logits, floor)
    log_q = torch.log_softmax(student / ALIGNMENT_TEMPERATURE, dim=-1)
    log_p = torch.log_softmax(teacher / ALIGNMENT_TEMPERATURE, dim=-1)
    p, q = log_p.exp(), log_q.exp()
    divergence = (p * torch.where(kept, log_p - log_q, 0.0)).sum(-1)
    variation = 0.5 * (p - q).abs().sum(-1)
    share = torch.exp(-0.5 * torch.minimum(p, q).sum(-1)).detach()
    choice = F.cross_entropy(student, teacher.argmax(-1), reduction="none")
    return ((share * divergence + (1 - share) * variation + choice) * weights).sum()


def accepted_and_first_rejected(matches: Tensor, candidates: Tensor) -> Tensor:
    """The tokens of a draft to train on: the accepted prefix of each block and one token more.

    Args:
        matches: whether a drafted token is the verifier's, bool `[R, N, B]`.
        candidates: drafted tokens, bool `[R, N, B]`: none, or all from the second on.

    Returns:
        bool `[R, N, B]`.
    """
    alive = torch.ones_like(matches)
    alive[:, :, 2:] = matches[:, :, 1:-1].cumprod(-1).bool()
    return alive & candidates


def joint_loss(losses: Mapping[str, LossSum], weights: Mapping[str, float], count: float) -> Tensor:
    """NLD's average over AR and masked tokens together: weighted sum of totals / `count`.

    Args:
        losses: sums by name, of a batch or of a part of it.
        weights: of each name.
        count: AR and masked tokens of the whole global batch. A masked token counts once, even if
            it is in both the diffusion loss and the distillation loss.
    """
    return torch.stack([weights[name] * loss.total for name, loss in losses.items()]).sum() / count


_CHUNK_LOGITS = 2**23
"""Most logits of a chunk. A loss holds about eight times as many numbers."""

ChunkLoss = Callable[..., Tensor]
"""(logits `[c, vocab]`, slices of the arguments) -> sum of losses."""


def head_loss(
    hidden: Tensor, weight: Tensor, loss: ChunkLoss, *arguments: Tensor, chunk: int | None = None
) -> Tensor:
    """Sum of a loss over the output head, a few rows at a time.

    All logits of a step (rows x vocabulary) would take gigabytes. So each chunk's gradient is
    computed as soon as its logits are, and only the gradient of `hidden` (and `weight`) is kept.

    Args:
        hidden: `[m, D]`.
        weight: of the head, `[vocab, D]`.
        loss: loss of one chunk. Nothing else that it uses gets a gradient.
        arguments: `[m, ...]`, cut into chunks with `hidden`.
        chunk: rows of a chunk. None: 128, or fewer if the vocabulary is large.
    """
    if chunk is None:
        chunk = max(16, min(128, _CHUNK_LOGITS // len(weight)))
    if not torch.is_grad_enabled():  # a Function does not see this
        hidden, weight = hidden.detach(), weight.detach()
    return _HeadLoss.apply(hidden, weight, loss, chunk, *arguments)  # type: ignore[return-value]


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden: Tensor, weight: Tensor, loss: ChunkLoss, chunk: int, *arguments: Tensor
    ) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        hidden_gradient = torch.empty_like(hidden) if wants_hidden else None
        weight_gradient = None
        matrix = in_autocast_dtype(weight.detach()).requires_grad_(wants_weight)
        for start in range(0, len(hidden), chunk):
            rows = slice(start, start + chunk)
            part = hidden[rows].detach().requires_grad_(wants_hidden)
            inputs = [t for t in (part, matrix) if t.requires_grad]
            with torch.enable_grad():
                value = loss(F.linear(part, matrix).float(), *(a[rows] for a in arguments))
            total += value.detach()
            gradients = iter(torch.autograd.grad(value, inputs) if inputs else ())
            if hidden_gradient is not None:
                hidden_gradient[rows] = next(gradients)
            if wants_weight:
                found = next(gradients)
                if weight_gradient is None:
                    weight_gradient = found.to(weight.dtype)
                else:
                    weight_gradient += found
        ctx.gradients = hidden_gradient, weight_gradient
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        scaled = tuple(None if g is None else g * outer[0] for g in ctx.gradients)
        return (*scaled, *([None] * (len(ctx.needs_input_grad) - 2)))


def _count(items: Tensor) -> Tensor:
    return torch.tensor(float(len(items)), device=items.device)
