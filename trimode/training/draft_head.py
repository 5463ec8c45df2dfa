"""Train a draft head on what its model itself says.

An example is a place in an answer that the model wrote greedily: the hidden state that chose the
token there, that token, and the tokens that followed. The head takes a few steps with the true
tokens. After each it learns the model's distribution of the next token, and the model's own hidden
state there. Source: EAGLE (arXiv 2401.15077).
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimode.checkpoints import LoadedModel
from trimode.config import check_range
from trimode.engine.score import prefill_hidden
from trimode.errors import InputError
from trimode.model.draft_head import DraftHeadConfig, DraftHeadNet, head_rows
from trimode.rows import read_rows
from trimode.training.examples import batches, rms

_HELD_OUT = 0.03
"""Share of the answers that measure and do not train."""
_MOST_HELD_OUT = 4000
"""Places that are measured."""
_LATER = 0.8
"""Weight of a step's loss, relative to the step before."""
_STATE_LOSS = 6.0
"""Weight of the distance from the model's hidden states, relative to the distributions' loss."""
_WARMUP = 50
LEAST_TOKENS = 1000
"""Tokens of answers that training needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftHeadTraining:
    """How a draft head is trained."""

    inner: int = 1024
    """Width of its hidden layer."""
    words: int = 8192
    """Tokens that it can guess: the most frequent ones of the answers."""
    epochs: float = 2.0
    steps: int = 3
    """Tokens that it guesses in a row."""
    batch_size: int = 512
    sampled_words: int = 1536
    """Words that a loss compares with besides those that follow in the batch; drawn for each."""
    learning_rate: float = 1.5e-3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("words", "steps", "batch_size", "sampled_words"):
            check_range(name, getattr(self, name), 1, None)
        DraftHeadConfig(dim=1, inner=self.inner)  # says what is wrong with it


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """Answers of a model, one after the other."""

    tokens: Tensor
    """`[N]`."""
    states: Tensor
    """The hidden state that chose each token, fp16 `[N, dim]`."""
    lengths: Sequence[int]
    """Tokens of each answer."""

    def places(self, answers: range) -> tuple[Tensor, Tensor]:
        """Places of some answers that a token follows, `[P]`; and how many follow it there."""
        starts = [0]
        for length in self.lengths:
            starts.append(starts[-1] + length)
        where = [torch.arange(starts[i], starts[i] + self.lengths[i] - 1) for i in answers]
        after = [torch.arange(self.lengths[i] - 1, 0, -1) for i in answers]
        return torch.cat(where), torch.cat(after)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far training is."""

    step: int
    steps: int
    loss: float
    hits: Sequence[float]
    """Share of the held-out places at which each step names the right token."""
    seconds: float


def collect(
    model: LoadedModel,
    conversations: Iterable[tuple[Sequence[int], Sequence[int]]],
    *,
    advance: Callable[[], None] = lambda: None,
) -> Answers:
    """Run the model over its own answers and keep the hidden states.

    Args:
        model: whose answers they are; its own weight format is what the head will see.
        conversations: the tokens of each prompt and of its answer.
        advance: called after each of them.
    """
    tokens, states, lengths = [], [], []
    for prompt, answer in conversations:
        text = [*prompt, *answer]
        if len(answer) > 1:
            hidden = prefill_hidden(model, text[:-1])
            states.append(hidden[len(prompt) - 1 :].half().cpu())
            tokens.append(torch.tensor(answer))
            lengths.append(len(answer))
        advance()
    if sum(lengths) < LEAST_TOKENS:
        found = f"{sum(lengths)} tokens of answers"
        raise InputError("data", found, f"a draft head needs at least {LEAST_TOKENS}")
    return Answers(torch.cat(tokens), torch.cat(states), lengths)


def fit(
    model: LoadedModel,
    answers: Answers,
    asked: DraftHeadTraining,
    *,
    start: tuple[DraftHeadNet, Tensor] | None = None,
    report: Callable[[Progress], None] = lambda _: None,
) -> tuple[DraftHeadNet, Tensor, Progress]:
    """Train a draft head.

    Args:
        model: that it will draft for.
        answers: what it learns from.
        asked: how it is trained.
        start: a head to continue from and its tokens; their sizes hold, not those of `asked`.
        report: called now and then.

    Returns:
        The head, the tokens that it can guess `[K]`, and how training ended.
    """
    torch.manual_seed(asked.seed)
    words = start[1] if start else _frequent(answers.tokens, asked.words, model.config.vocab_size)
    task = _Task(model, answers, words, asked)
    net = start[0] if start else _new_net(answers, task.embedding[words], asked)
    optimiser = torch.optim.AdamW(
        net.parameters(), lr=asked.learning_rate, weight_decay=0.01, betas=(0.9, 0.98)
    )
    steps = max(1, math.ceil(len(task.train[0]) * asked.epochs / asked.batch_size))
    began, smooth, last = time.monotonic(), 0.0, None
    for step, places in enumerate(task.batches(steps)):
        rate = min(1.0, (step + 1) / _WARMUP) * (0.02 + 0.98 * (1 - step / steps))
        for group in optimiser.param_groups:
            group["lr"] = asked.learning_rate * rate
        loss = task.loss(net, places)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        smooth = loss.item() if not step else 0.98 * smooth + 0.02 * loss.item()
        if step % 200 == 199 or step == steps - 1:
            seconds = time.monotonic() - began
            hits = task.hits(net)
            last = Progress(step=step + 1, steps=steps, loss=smooth, hits=hits, seconds=seconds)
            report(last)
    assert last is not None
    return net.eval(), words, last


def _new_net(answers: Answers, embedded: Tensor, asked: DraftHeadTraining) -> DraftHeadNet:
    """A head that says nothing yet; `embedded`: the embeddings of its words, `[K, dim]`."""
    config = DraftHeadConfig(
        dim=embedded.shape[-1],
        inner=asked.inner,
        state_scale=rms(answers.states[: 2**14].float()),
        embedding_scale=rms(embedded),
    )
    net = DraftHeadNet(config)
    for weight in (net.enter.bias, net.leave.weight):
        nn.init.zeros_(weight)
    with torch.no_grad():
        net.enter.weight[: config.dim].zero_()
    return net


class _Task:
    """Places to learn from, and what a head is compared with there."""

    def __init__(
        self, model: LoadedModel, answers: Answers, words: Tensor, asked: DraftHeadTraining
    ) -> None:
        self.answers, self.asked = answers, asked
        self.embedding = model.transformer.embedding.matrix().float().cpu().clone()
        self.head = head_rows(model.runner, words.to(model.runner.device)).float().cpu().clone()
        """Output embeddings of the words, `[K, dim]`."""
        self.number = torch.full((model.config.vocab_size,), -1)
        """Of each token among the words; -1: it is none."""
        self.number[words] = torch.arange(len(words))
        count = len(answers.lengths)
        held_out = max(1, round(count * _HELD_OUT))
        self.train = answers.places(range(count - held_out))
        self.held_out = answers.places(range(count - held_out, count))

    def batches(self, count: int) -> Iterable[tuple[Tensor, Tensor]]:
        """So many batches of places and of how many tokens follow each; every place in turn."""
        places, after = self.train
        for chosen in batches(torch.arange(len(places)), count, self.asked.batch_size):
            yield places[chosen], after[chosen]

    def loss(self, net: DraftHeadNet, places: tuple[Tensor, Tensor]) -> Tensor:
        """How far a head is from the model: its distributions of the words, and its states.

        Distributions are compared over the words that follow in the batch and a sample of the
        others. Each drawn word stands for as many that were not drawn.
        """
        total = torch.zeros(())
        for k, (state, right, taught, valid) in enumerate(self._steps(net, places)):
            known = valid & (right >= 0)
            if not known.any():
                continue
            present = right[known].unique()
            absent = torch.ones(len(self.head), dtype=torch.bool)
            absent[present] = False
            others = absent.nonzero()[:, 0]
            drawn = others[torch.randperm(len(others))[: self.asked.sampled_words]]
            shown = self.head[torch.cat((present, drawn))]
            copies = torch.zeros(len(shown))
            if len(drawn):
                copies[len(present) :] = math.log(len(others) / len(drawn))
            guessed, true = state[known], taught[known].float()
            wanted = (true @ shown.T + copies).softmax(-1)
            loss = F.cross_entropy(guessed @ shown.T + copies, wanted)
            scale = net.config.state_scale
            loss = loss + _STATE_LOSS * F.smooth_l1_loss(guessed / scale, true / scale)
            total = total + _LATER**k * loss
        return total

    @torch.no_grad()
    def hits(self, net: DraftHeadNet) -> list[float]:
        """Share of the held-out places at which each step names the right token."""
        chosen = torch.randperm(len(self.held_out[0]), generator=torch.Generator().manual_seed(0))[
            :_MOST_HELD_OUT
        ]
        places = self.held_out[0][chosen], self.held_out[1][chosen]
        found = []
        for state, right, _, valid in self._steps(net, places):
            best = (state @ self.head.T).argmax(-1)
            found.append(float((best == right)[valid].float().mean()) if valid.any() else 0.0)
        return found

    def _steps(
        self, net: DraftHeadNet, places: tuple[Tensor, Tensor]
    ) -> Iterable[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """For each step: states `[n, dim]`, the right words, the model's states, where they are."""
        where, after = places
        last = len(self.answers.tokens) - 1
        state = self.answers.states[where].float()
        for k in range(self.asked.steps):
            token = self.answers.tokens[(where + k).clamp(max=last)]
            state = net(state, self.embedding[token])
            following = (where + k + 1).clamp(max=last)
            right = self.number[self.answers.tokens[following]]
            yield state, right, self.answers.states[following], after > k


def _frequent(tokens: Tensor, count: int, vocab_size: int) -> Tensor:
    """The most frequent tokens, ascending; a multiple of 16 of them, as products need."""
    often = torch.bincount(tokens, minlength=vocab_size)
    count = min(count, vocab_size) // 16 * 16
    return often.argsort(descending=True, stable=True)[:count].sort().values


def read_answers(
    model: LoadedModel, path: Path, *, skip: int = 0
) -> list[tuple[list[int], list[int]]]:
    """Tokens of prompts and answers from a file that `self_generate` wrote.

    Args:
        model: whose answers they are.
        path: the file.
        skip: usable conversations at its beginning that are left out.

    Raises:
        InputError: a row has no answer, or the model has no chat template.
    """
    template = model.chat_template
    if template is None:
        raise InputError("model", f"{model.name} has no chat template", "needs a chat template")
    ends = sorted(model.config.eos_token_ids)
    found = []
    for row in read_rows(path):
        if "skipped" in row.fields:
            continue
        messages = row.fields.get("messages")
        if (
            not isinstance(messages, list)
            or not messages
            or messages[-1].get("role") != "assistant"
        ):
            allowed = "needs messages whose last is the model's own answer"
            raise InputError(row.where, "has no answer", allowed)
        prompt = model.tokenizer.encode(template.render(messages[:-1]), add_bos=False)
        answer = model.tokenizer.encode(messages[-1]["content"], add_bos=False)
        ended = ends[:1] if row.fields.get("finish_reason") == "stop" else []
        found.append((prompt, [*answer, *ended]))
    return found[skip:]
