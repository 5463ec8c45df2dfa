"""Train the learned commit rule on blocks that the model itself denoises.

Source: arXiv 2607.05722, section 3.2 and appendix A. Two passes over the prompts:

1. Decode answers with the slowest diffusion, one token a pass. They are what the model settles on.
   In a rolling block that is AR's answer.
2. Decode the same answers again. Each pass commits every candidate that already is what the block
   settles on. Each pass is an example: what the block looks like, and which candidates are final.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from trimode.checkpoints import LoadedModel
from trimode.config import GenerationOptions
from trimode.decoding import BlockView, DecodingContext
from trimode.engine import Engine, drain
from trimode.model.commit_scorer import CommitScorerNet, ScorerConfig, block_features

_ONE_A_PASS = 2.0
"""A threshold that no confidence reaches: each pass commits its best candidate only."""


@dataclass(frozen=True, slots=True)
class Example:
    """A block in one pass: what a scorer reads and what it should say."""

    tokens: Tensor
    """`[B, 1 + CANDIDATES]`."""
    scalars: Tensor
    masked: Tensor
    """bool `[B]`."""
    final: Tensor
    """Whether the best candidate of a mask is what the block settles on, fp32 `[B]`."""


class _Oracle:
    """Commits the candidates that are already right, and records each pass as an example."""

    def __init__(self, answer: dict[int, int], examples: list[Example], *, rolling: bool) -> None:
        """`answer`: settled token by absolute position."""
        self._answer, self._examples, self._rolling = answer, examples, rolling
        self._lost = False
        """Whether a block has left the settled answer."""

    def __call__(self, view: BlockView) -> Tensor:
        best = view.probabilities.max(-1)
        settled = [self._answer.get(view.start + i, -1) for i in view.masked]
        right = (best.indices.cpu() == torch.tensor(settled)).float()
        if not self._lost and all(token >= 0 for token in settled):
            self._write(view, right)
            # If none is right, a fixed block commits a wrong one, and the rest is another text. A
            # rolling block commits none.
            self._lost = not self._rolling and not bool(right.any())
        return right.to(best.values.device) + 1e-3 * best.values

    def _write(self, view: BlockView, right: Tensor) -> None:
        tokens, scalars = block_features(view.tokens, view.masked, view.probabilities)
        masked = torch.zeros(len(view.tokens), dtype=torch.bool)
        final = torch.zeros(len(view.tokens))
        masked[list(view.masked)] = True
        final[list(view.masked)] = right
        self._examples.append(Example(tokens, scalars, masked, final))


class _RecordingEngine(Engine):
    """An engine in which each sequence has a scorer of its own."""

    scorers: dict[tuple[int, ...], _Oracle]

    def _resolve(self, prompt: tuple[int, ...], options: GenerationOptions) -> DecodingContext:
        return replace(super()._resolve(prompt, options), commit_scorer=self.scorers[prompt])


def collect(
    model: LoadedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    block_length: int,
    advance: Callable[[], None] = lambda: None,
) -> list[Example]:
    """Examples from the model's own blocks. Prompts that occur twice are used once.

    `advance` is called for each prompt, once in each of the two passes over the prompts.
    """
    unique = list(dict.fromkeys(tuple(prompt) for prompt in prompts))
    options = GenerationOptions(
        mode="diffusion", max_tokens=max_tokens, block_length=block_length, threshold=_ONE_A_PASS
    )
    engine = Engine(model)
    slow = [engine.add(prompt, options) for prompt in unique]
    _drain(engine, advance)
    examples: list[Example] = []
    never = replace(model, commit_scorer=lambda view: view.probabilities.max(-1).values)
    recording = _RecordingEngine(never)
    recording.scorers = {
        s.prompt: _Oracle(
            {len(s.prompt) + i: token for i, token in enumerate(s.tokens)},
            examples,
            rolling=s.context.rolling_block,
        )
        for s in slow
    }
    for sequence in slow:
        fast = replace(options, commit_rule="learned", threshold=0.5)
        recording.add(sequence.prompt, fast)
    _drain(recording, advance)
    return examples


def _drain(engine: Engine, advance: Callable[[], None]) -> None:
    for update in drain(engine):
        if update.sequence.finish_reason is not None:
            advance()


@dataclass(frozen=True, slots=True, kw_only=True)
class FitResult:
    """How training went."""

    auc: float
    """Chance that a final candidate scores above one that is not final, on held-out blocks."""
    confidence_auc: float
    """The same for the candidate's probability, which the threshold rule uses."""
    epochs: int


def fit(
    examples: Sequence[Example],
    embedding: Tensor,
    config: ScorerConfig,
    *,
    epochs: int = 30,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    patience: int = 4,
    seed: int = 0,
) -> tuple[CommitScorerNet, FitResult]:
    """Train on nine tenths of the examples; stop when the AUC on the last tenth rises no more."""
    order = list(range(len(examples)))
    random.Random(seed).shuffle(order)
    cut = max(1, len(order) // 10)
    held_out, train = [examples[i] for i in order[:cut]], [examples[i] for i in order[cut:]]
    torch.manual_seed(seed)
    network = CommitScorerNet(config, embedding)
    optimiser = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=0.01)
    best, best_auc, epochs_without_gain, done = network.state_dict(), 0.0, 0, 0
    for epoch in range(epochs):
        network.train()
        picked = random.Random(f"{seed} {epoch}").sample(train, len(train))
        for start in range(0, len(picked), batch_size):
            tokens, scalars, masked, final = _collate(picked[start : start + batch_size])
            logits = network(tokens, scalars)
            loss = F.binary_cross_entropy_with_logits(logits[masked], final[masked])
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
        done = epoch + 1
        score = auc(*_scores(network, held_out))
        if score > best_auc:
            best_auc, epochs_without_gain = score, 0
            best = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        else:
            epochs_without_gain += 1
            if epochs_without_gain == patience:
                break
    network.load_state_dict(best)
    confidence = torch.cat([e.scalars[:, 0][e.masked] for e in held_out])
    labels = torch.cat([e.final[e.masked] for e in held_out])
    result = FitResult(auc=best_auc, confidence_auc=auc(confidence, labels), epochs=done)
    return network.eval(), result


def auc(scores: Tensor, labels: Tensor) -> float:
    """Area under the ROC curve; ties count half. 0.5 if one class is missing.

    Args:
        scores: `[n]`.
        labels: 0 or 1, `[n]`.
    """
    positives, negatives = float(labels.sum()), float((1 - labels).sum())
    if not positives or not negatives:
        return 0.5
    _, index, counts = scores.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0)
    ranks = (last - (counts - 1) / 2)[index]  # mean rank of a tie, from 1
    return float(
        (ranks[labels > 0].sum() - positives * (positives + 1) / 2) / positives / negatives
    )


@torch.no_grad()
def _scores(network: CommitScorerNet, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    network.eval()
    scores, labels = [], []
    for start in range(0, len(examples), 256):
        tokens, scalars, masked, final = _collate(examples[start : start + 256])
        scores.append(network(tokens, scalars)[masked])
        labels.append(final[masked])
    return torch.cat(scores), torch.cat(labels)


def _collate(examples: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Stacked tensors; a shorter block is padded with empty positions that are not masked."""
    length = max(len(e.masked) for e in examples)

    def stack(tensors: list[Tensor], value: float) -> Tensor:
        filled = [
            torch.cat((t, t.new_full((length - len(t), *t.shape[1:]), value))) for t in tensors
        ]
        return torch.stack(filled)

    return (
        stack([e.tokens for e in examples], -1),
        stack([e.scalars for e in examples], 0),
        stack([e.masked for e in examples], 0),
        stack([e.final for e in examples], 0),
    )
