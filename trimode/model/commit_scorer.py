"""A small network that reads a whole block and tells which proposals are final.

Source: the learned sampler of arXiv 2607.05722 (section 3.2, appendix A), smaller.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

CANDIDATES = 3
"""Best tokens of each mask whose embeddings the network sees."""
_PROBABILITIES = 5
_SCALARS = _PROBABILITIES + 9


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerConfig:
    """Size of the network."""

    semantic: int = 32
    """Dimensions that token embeddings are projected to."""
    hidden: int = 96
    layers: int = 3
    heads: int = 4
    max_block_length: int = 64


class CommitScorerNet(nn.Module):
    """Transformer encoder over the positions of a block.

    Axis letters: B positions of a block, n blocks.
    """

    def __init__(self, config: ScorerConfig, embedding: Tensor) -> None:
        """`embedding` is the model's `[vocab, D]`; only a projection of it is learned."""
        super().__init__()
        self.config = config
        self.projection = nn.Linear(embedding.shape[1], config.semantic, bias=False)
        with torch.no_grad():
            self.projection.weight.copy_(principal_directions(embedding, config.semantic))
        self._embedding = embedding.detach()
        width = (CANDIDATES + 1) * config.semantic + _SCALARS
        self.enter = nn.Linear(width, config.hidden)
        self.positions = nn.Parameter(torch.zeros(config.max_block_length, config.hidden))
        layer = nn.TransformerEncoderLayer(
            config.hidden,
            config.heads,
            4 * config.hidden,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.encoder = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        self.leave = nn.Linear(config.hidden, 1)

    def forward(self, tokens: Tensor, scalars: Tensor) -> Tensor:
        """Logits `[n, B]` from tokens `[n, B, 1 + CANDIDATES]` (-1: none) and scalars."""
        meaning = self.projection(self._embedding[tokens.clamp(min=0)].float())
        meaning = meaning * (tokens >= 0)[..., None]
        x = self.enter(torch.cat((meaning.flatten(2), scalars), dim=-1))
        places = torch.arange(x.shape[1], device=x.device)
        x = x + self.positions[places.clamp(max=len(self.positions) - 1)]
        return self.leave(self.encoder(x))[..., 0]


def principal_directions(embedding: Tensor, count: int) -> Tensor:
    """Directions of largest variance of the embeddings, scaled to unit variance, `[count, D]`."""
    centred = embedding.float() - embedding.float().mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    best = vectors[:, -count:].T.flip(0)
    return best / values[-count:].flip(0).clamp(min=1e-12).sqrt()[:, None]


def block_features(
    tokens: tuple[int, ...], masked: tuple[int, ...], probabilities: Tensor
) -> tuple[Tensor, Tensor]:
    """The network's input for one block.

    Args:
        tokens: of the block, with the mask token at places that are not committed.
        masked: offsets of the masks.
        probabilities: un-tempered, `[masks, vocab]`.

    Returns:
        Tokens `[B, 1 + CANDIDATES]` (the committed one, then the best candidates; -1: none) and
        scalars `[B, 14]`: five best probabilities, margin, mass of three, entropy, log of the
        best, 1 - sum of squares, whether masked, share masked, log of their number, place.
    """
    length = len(tokens)
    where = torch.tensor(masked)
    ids = torch.full((length, 1 + CANDIDATES), -1)
    ids[:, 0] = torch.tensor(tokens)
    ids[where, 0] = -1
    count = min(_PROBABILITIES, probabilities.shape[-1])
    best = probabilities.topk(count)
    top = torch.zeros(len(masked), _PROBABILITIES)
    top[:, :count] = best.values.cpu()
    ids[where, 1:] = best.indices[:, :CANDIDATES].cpu()
    scalars = torch.zeros(length, _SCALARS)
    entropy = torch.special.entr(probabilities).sum(-1).cpu()
    spread = 1 - probabilities.square().sum(-1).cpu()
    log_best = top[:, 0].clamp(min=1e-9).log()
    rows = (top[:, 0] - top[:, 1], top[:, :3].sum(1), entropy, log_best, spread)
    scalars[where, :_PROBABILITIES] = top
    scalars[where, _PROBABILITIES : _PROBABILITIES + 5] = torch.stack(rows, dim=1)
    scalars[where, -4] = 1.0
    scalars[:, -3] = len(masked) / length
    scalars[:, -2] = torch.tensor(len(masked) + 1.0).log()
    scalars[:, -1] = torch.arange(length) / length
    return ids, scalars
