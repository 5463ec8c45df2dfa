"""The joint objective: AR loss on the clean copy, diffusion loss on the noisy one.

L = (sum L_AR + alpha * sum L_diff) / (n_AR + n_masked), sums and counts over the whole global
batch (NLD, arXiv 2607.05722 section 2.1; alpha 0.3 in its joint stages, 0 in its first).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

DIFFUSION_LOSS_WEIGHT = 0.3
"""NLD's alpha."""


@dataclass(frozen=True, slots=True)
class LossSum:
    """A sum of token losses and the number of tokens in it; sums of sums stay exact averages."""

    total: Tensor
    count: Tensor

    def __add__(self, other: "LossSum") -> "LossSum":
        return LossSum(self.total + other.total, self.count + other.count)

    @property
    def mean(self) -> Tensor:
        """Average per token; 0 where there is none."""
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
        targets: the tokens behind the masks, `[m]`.
        weights: 1 / p of each, `[m]`.
    """
    losses = F.cross_entropy(logits, targets, reduction="none")
    return LossSum((losses * weights).sum(), _count(targets))


def distillation_loss(
    logits: Tensor, teacher_logits: Tensor, weights: Tensor, temperature: float = 1.0
) -> LossSum:
    """KL(AR || denoiser) at masked positions: trains what the verifier will accept.

    Args:
        logits: masked noisy rows, `[m, vocab]`; row k stands at position i.
        teacher_logits: clean rows at position i - 1, the AR prediction of position i, `[m, vocab]`.
        weights: of each position, `[m]`.
        temperature: softens both; the loss is scaled by its square to keep the gradient's size.
    """
    teacher = torch.log_softmax(teacher_logits.detach() / temperature, dim=-1)
    student = torch.log_softmax(logits / temperature, dim=-1)
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
    return LossSum((divergence * weights).sum() * temperature**2, _count(weights))


def joint_loss(ar: LossSum, diffusion: LossSum, diffusion_loss_weight: float) -> Tensor:
    """NLD's global average over AR and masked tokens together."""
    count = (ar.count + diffusion.count).clamp(min=1)
    return (ar.total + diffusion_loss_weight * diffusion.total) / count


def _count(items: Tensor) -> Tensor:
    return torch.tensor(float(len(items)), device=items.device)
