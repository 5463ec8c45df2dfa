"""What AR thinks of an answer, and figures of several answers together."""

import torch
import torch.nn.functional as F

from trimode import LoadedModel
from trimode.decoding import Stats
from trimode.engine import GenerationResult
from trimode.evaluation.lossless import prefill_logits


@torch.inference_mode()
def score(model: LoadedModel, prompt: list[int], answer: list[int]) -> tuple[float, int]:
    """Negative log-likelihood of an answer under AR, and how many of its tokens AR would choose."""
    logits = prefill_logits(model, prompt + answer[:-1], first=len(prompt) - 1)
    targets = torch.tensor(answer, device=logits.device)
    loss = float(F.cross_entropy(logits, targets, reduction="sum"))
    return loss, int((logits.argmax(-1) == targets).sum())


def together(results: list[GenerationResult]) -> Stats:
    """Figures of all results together."""
    return Stats.pooled(result.stats for result in results)
