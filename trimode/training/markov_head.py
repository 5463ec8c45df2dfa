"""Train a Markov head on the drafts that its model makes along its own answers.

An example is a mask of a draft: its hidden state, its best candidates, and from the answer the
two tokens before it and the token that belongs there. The head learns to name that one among the
candidates. The others together are one more candidate, so that chances stay true.
Source: DSpark (arXiv 2607.05147).
"""

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimode.checkpoints import LoadedModel
from trimode.config import check_range
from trimode.decoding.markov import CANDIDATES, candidates_of
from trimode.decoding.span import Visibility, led_visibility
from trimode.errors import InputError
from trimode.model import KVCache, Segment
from trimode.model.markov_head import MarkovHeadConfig, MarkovHeadNet
from trimode.training.examples import batches, rms

LEAST_PLACES = 1000
"""Examples that training needs."""
MOST_BYTES = 2**30
"""Of the hidden states that are kept: a million examples if they have 512 numbers each."""
_TOKENS_AT_ONCE = 56
"""Of an answer in one pass."""
_DRAFTS_AT_ONCE = 5
"""After so many of them masks stand."""
_HELD_OUT = 0.04
"""Share of the examples that measure and do not train."""
_REPORTS = 12
_WARMUP = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkovHeadTraining:
    """How a Markov head is trained."""

    inner: int = 512
    rank: int = 128
    epochs: float = 4.0
    batch_size: int = 1024
    learning_rate: float = 1.5e-3
    dropout: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        MarkovHeadConfig(dim=1, inner=self.inner, rank=self.rank)  # says what is wrong with it
        check_range("batch_size", self.batch_size, 1, None)


@dataclass(slots=True)
class Places:
    """Masks of drafts along answers, those of one draft together."""

    states: list[Tensor] = field(default_factory=list)
    """fp16 `[n, dim]`."""
    candidates: list[Tensor] = field(default_factory=list)
    """Ids, int32 `[n, k]`."""
    scores: list[Tensor] = field(default_factory=list)
    """Logits of the candidates, and of all others together, fp16 `[n, k + 1]`."""
    before: list[Tensor] = field(default_factory=list)
    """The two tokens before each mask, `[n, 2]`."""
    right: list[Tensor] = field(default_factory=list)
    """Which candidate it should become; k: none of them. `[n]`."""
    count: int = 0

    def __len__(self) -> int:
        return self.count

    def add(self, states: Tensor, logits: Tensor, before: Tensor, right: Tensor) -> None:
        """Add the masks of a draft.

        Args:
            states: their hidden states, `[n, dim]`.
            logits: `[n, vocab]`.
            before: the two tokens before each, `[n, 2]`.
            right: the token that belongs at each, `[n]`.
        """
        found = candidates_of(logits, CANDIDATES)
        ids = found.ids.cpu()
        hit = ids == right[:, None]
        self.states.append(states.half().cpu())
        self.candidates.append(ids.int())
        self.scores.append(torch.cat((found.scores, found.others[:, None]), -1).half().cpu())
        self.before.append(before)
        number = hit.int().argmax(-1)
        self.right.append(torch.where(hit.any(-1), number, torch.full_like(number, ids.shape[1])))
        self.count += len(right)


@torch.inference_mode()
def collect(
    model: LoadedModel,
    conversations: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> Places:
    """Let the model draft after some tokens of its own answers.

    Args:
        model: with its adapter; its own weight format is what the head will see.
        conversations: the tokens of each prompt and of its answer.
        seed: of the tokens after which it drafts.
        advance: called after each conversation.

    Raises:
        InputError: the answers are too few or too short.
    """
    found, draw = Places(), random.Random(seed)
    most = MOST_BYTES // (2 * model.config.hidden_size)
    for prompt, answer in conversations:
        if len(answer) > 2 and len(found) < most:
            _collect(model, prompt, answer, draw, found)
        advance()
    if len(found) < LEAST_PLACES:
        allowed = f"a Markov head needs at least {LEAST_PLACES}"
        raise InputError("data", f"{len(found)} places of drafts", allowed)
    return found


def _collect(
    model: LoadedModel,
    prompt: Sequence[int],
    answer: Sequence[int],
    draw: random.Random,
    found: Places,
) -> None:
    """The drafts of one answer."""
    runner, config = model.runner, model.config
    masks, text = config.block_length - 1, torch.tensor([*prompt, *answer])
    room = len(text) + _DRAFTS_AT_ONCE * masks + _TOKENS_AT_ONCE
    cache = KVCache(config, room, dtype=runner.kv_dtype, device=runner.device)

    def run(tokens: Tensor, positions: Tensor, visibility: Visibility, rows: Tensor) -> Tensor:
        segment = Segment(0, len(tokens), cache, visibility)
        device = runner.device
        return runner.run(tokens.to(device), positions.to(device), [segment], rows.to(device))

    start = len(prompt)
    run(text[:start], torch.arange(start), "causal", torch.empty(0, dtype=torch.long))
    cache.keep(range(start))
    # The token after a draft's lead is AR's, so the draft needs one more behind it.
    while (lead := min(_TOKENS_AT_ONCE, len(text) - 2 - start)) > 0:
        drafts = min(_DRAFTS_AT_ONCE, lead)
        ends = (lead, *sorted(draw.sample(range(1, lead), drafts - 1)))
        visibility, is_mask = led_visibility(*ends, masks=masks)
        last = config.max_position_embeddings - 1
        places = torch.cat([torch.arange(start + end, start + end + masks) for end in ends])
        tokens = torch.cat(
            (text[start : start + lead], places.new_full(places.shape, _mask(model)))
        )
        positions = torch.cat((torch.arange(start, start + lead), places.clamp(max=last)))
        hidden = run(tokens, positions, visibility, is_mask.nonzero()[:, 0])
        cache.keep(range(lead))
        for number, end in enumerate(ends):
            first = start + end + 1  # the place of the draft's second mask
            count = min(masks - 1, len(text) - first)
            if count < 1:
                continue
            row = lead + number * masks + 1 - config.token_shift
            states = hidden[row : row + count]
            logits = runner.logits(states)
            logits[:, _mask(model)] = -torch.inf
            before = text[first - 2 : first - 1 + count].unfold(0, 2, 1)
            found.add(states, logits, before, text[first:][:count])
        start += lead


def _mask(model: LoadedModel) -> int:
    mask = model.config.mask_token_id
    assert mask is not None
    return mask


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far training is."""

    step: int
    steps: int
    loss: float
    """On held-out places."""
    hits: float
    """Share of the held-out places at which the head's best candidate is right."""
    hits_before: float
    """The same without the head."""
    seconds: float


def fit(
    model: LoadedModel,
    places: Places,
    asked: MarkovHeadTraining,
    *,
    report: Callable[[Progress], None] = lambda _: None,
) -> tuple[MarkovHeadNet, Progress]:
    """Train a Markov head; what measured best on held-out places is returned."""
    torch.manual_seed(asked.seed)
    task = _Task(model, places)
    config = MarkovHeadConfig(
        dim=model.config.hidden_size,
        inner=asked.inner,
        rank=asked.rank,
        state_scale=rms(task.states[: 2**14].float()),
        embedding_scale=rms(task.embedding),
    )
    net = MarkovHeadNet(config)
    nn.init.zeros_(net.leave.weight)
    optimiser = torch.optim.AdamW(
        net.parameters(), lr=asked.learning_rate, weight_decay=0.1, betas=(0.9, 0.98)
    )
    steps = max(1, math.ceil(len(task.train) * asked.epochs / asked.batch_size))
    every = max(1, steps // _REPORTS)
    began, hits_before = time.monotonic(), task.measure(None)[1]
    best: tuple[dict[str, Tensor], Progress] | None = None
    for step, chosen in enumerate(batches(task.train, steps, asked.batch_size), 1):
        rate = min(1.0, step / _WARMUP) * (0.02 + 0.98 * (1 - step / steps))
        for group in optimiser.param_groups:
            group["lr"] = asked.learning_rate * rate
        loss = F.cross_entropy(task.scores_of(net, chosen, asked.dropout), task.right[chosen])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        if step % every and step != steps:
            continue
        seconds = time.monotonic() - began
        held_out, hits = task.measure(net)
        now = Progress(
            step=step,
            steps=steps,
            loss=held_out,
            hits=hits,
            hits_before=hits_before,
            seconds=seconds,
        )
        report(now)
        if best is None or held_out < best[1].loss:
            best = {name: tensor.clone() for name, tensor in net.state_dict().items()}, now
    assert best is not None
    net.load_state_dict(best[0])
    return net.eval(), best[1]


class _Task:
    """Places to learn from, and those to measure on."""

    def __init__(self, model: LoadedModel, places: Places) -> None:
        self.embedding = model.transformer.embedding.matrix().float().cpu()
        self.states = torch.cat(places.states)
        self.candidates = torch.cat(places.candidates)
        self.scores = torch.cat(places.scores)
        self.before, self.right = torch.cat(places.before), torch.cat(places.right)
        cut = round(len(self.right) * (1 - _HELD_OUT))
        self.train, self.held_out = torch.arange(cut), torch.arange(cut, len(self.right))

    def scores_of(self, net: MarkovHeadNet | None, places: Tensor, dropout: float = 0) -> Tensor:
        """Scores of the candidates and of all others together, `[n, k + 1]`."""
        scores = self.scores[places].float()
        if net is None:
            return scores
        added = net(
            self.states[places].float(),
            self.embedding[self.before[places]],
            self.embedding[self.candidates[places]],
            dropout,
        )
        return scores + F.pad(added, (0, 1))

    @torch.no_grad()
    def measure(self, net: MarkovHeadNet | None) -> tuple[float, float]:
        """The loss and the share of right guesses on held-out places."""
        loss, hits = 0.0, 0
        for places in self.held_out.split(4096):
            scores, right = self.scores_of(net, places), self.right[places]
            loss += float(F.cross_entropy(scores, right, reduction="sum"))
            hits += int((scores[:, :-1].argmax(-1) == right).sum())
        return loss / len(self.held_out), hits / len(self.held_out)
