"""From logits to tokens, with one meaning in every mode.

Sampling is Gumbel-max: token = argmax(logits / T + g), where the noise g is a function of
(request seed, absolute position) alone. A draft and its verifier share the noise, so with one
seed `ar`, `linear` and `quadratic` emit the same tokens at any temperature, and acceptance stays
high. Source: drafter-invariant speculative decoding (Daliri et al., arXiv 2408.07978).

Order of operations: mask id removed, grammar, least number of tokens, logit bias, repetition,
frequency and presence penalties, temperature, top-k, top-p, min-p.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from trimode.config import GenerationOptions
from trimode.decoding.events import TokenLogprob
from trimode.decoding.span import Asked, Logits
from trimode.errors import GrammarError, NotFiniteError

_GREEDY_BELOW = 1e-5
_FLATTEST = torch.finfo(torch.float32).max
"""Largest divisor of scores. Infinity would make NaN of the mask's -inf, and argmax picks NaN."""
_MOST = 1e30
"""Largest logit after a penalty: divided by the smallest temperature it is still a number."""
_GROUP = 64
"""Scores of which the highest is found at once."""
_MOST_UNIFORM = 1 - 2.0**-24
"""The largest fp32 number below 1: keeps noise finite."""


class Constraint(Protocol):
    """A constraint that an answer must fit."""

    def allowed(self, answer: Sequence[int]) -> np.ndarray | None:
        """Tokens that may follow the answer so far, bool `[vocab]`; None: it does not fit.

        Raises:
            GrammarError: the constraint cannot be followed here.
        """
        ...


@dataclass(slots=True)
class Sampler:
    """Chooses tokens for one request. Rows of logits are `[n, vocab]`, fp32."""

    options: GenerationOptions
    mask_token_id: int | None
    prompt_length: int
    think_token_ids: tuple[int | None, int] | None = None
    """The tokens that begin and end a thought. Without the first, an answer begins with one."""
    constraint: Constraint | None = None
    stop_token_ids: frozenset[int] = frozenset()
    """Tokens that may not come before `min_tokens` others."""
    _noise: dict[int, Tensor] = field(default_factory=dict)

    @property
    def greedy(self) -> bool:
        """Whether tokens are argmaxes. A temperature as small as this would overflow the scores."""
        return self.options.temperature < _GREEDY_BELOW

    @property
    def sharpness(self) -> float:
        """By how much a score rises with its logit."""
        return 1.0 if self.greedy else 1 / min(self.options.temperature, _FLATTEST)

    @property
    def plain(self) -> bool:
        """Whether a choice is the argmax of its row, whatever came before."""
        asked = self.options
        changed = asked.frequency_penalty or asked.presence_penalty or asked.logit_bias
        return (
            self.greedy
            and asked.repetition_penalty == 1
            and not changed
            and self.constraint is None
            and not asked.min_tokens
        )

    def asks(self, rows: Sequence[int]) -> Asked:
        """What a span asks of the rows from which tokens are decided; see `decide`."""
        if self.plain and not self.reports_logprobs:
            return Asked(likeliest=rows, logits=())
        return Asked(likeliest=(), logits=rows)

    def exclude_mask(self, logits: Tensor) -> Tensor:
        """Take the mask id out of every later argmax and softmax, in place."""
        if self.mask_token_id is not None:
            logits[..., self.mask_token_id] = -torch.inf
        return logits

    def decide(self, found: Logits, row: int, position: int, history: Sequence[int]) -> int:
        """The token at an absolute position, by one of the rows that a span asked by `asks`.

        Raises:
            GrammarError: see `pick`.
            NotFiniteError: the logits are no numbers.
        """
        if found.likeliest is None:
            return self.pick(found.rows[row], position, history)
        forced = self.forced(position, history)
        return found.likeliest[row] if forced is None else forced

    def pick(self, row: Tensor, position: int, history: Sequence[int]) -> int:
        """The token at an absolute position, given logits `[vocab]` and all tokens before it.

        Raises:
            GrammarError: the answer cannot be held to its grammar any longer.
        """
        forced = self.forced(position, history)
        if forced is not None:
            return forced
        logits = row[None]
        if self.constraint is None:
            return int(self.sample(logits, position, history))
        answer = history[self.prompt_length :]
        allowed = self.constraint.allowed(answer)
        ended = allowed is None and not self.stop_token_ids.isdisjoint(answer)
        if not ended and (allowed is None or not allowed.any()):  # freedom would be wrong
            raise GrammarError("nothing that the grammar allows can follow")
        return int(_best(self._scores(logits, position, history, allowed)))

    def forced(self, position: int, history: Sequence[int]) -> int | None:
        """The token that ends a thought, once the thinking budget is spent in one."""
        budget = self.options.max_thinking_tokens
        if budget is None or self.think_token_ids is None:
            return None
        if position - self.prompt_length < budget:
            return None
        begin, end = self.think_token_ids
        if begin is None:
            return None if end in history[self.prompt_length :] else end
        last = next((token for token in reversed(history) if token in (begin, end)), end)
        return end if last == begin else None

    def sample(self, logits: Tensor, start: int, history: Sequence[int]) -> Tensor:
        """Independent choices `[n]`: row i is for absolute position start + i."""
        if self.constraint is not None and len(logits) > 1:  # a row depends on those before it
            chosen: list[int] = []
            for i, row in enumerate(logits):
                chosen.append(int(self.sample(row[None], start + i, [*history, *chosen])))
            return torch.tensor(chosen, device=logits.device)
        return _best(self.scores(logits, start, history))

    def scores(self, logits: Tensor, start: int, history: Sequence[int]) -> Tensor:
        """The scores to choose the best of, `[n, vocab]`; row i is for position start + i.

        They are for drafts: if `history` holds unverified tokens that do not fit the constraint,
        any token may follow.
        """
        allowed = None
        if self.constraint is not None:
            try:
                allowed = self.constraint.allowed(history[self.prompt_length :])
            except GrammarError:  # verification decides whether the answer fails
                allowed = None
            if allowed is not None and not allowed.any():
                allowed = None
        return self._scores(logits, start, history, allowed)

    def _scores(
        self, logits: Tensor, start: int, history: Sequence[int], allowed: np.ndarray | None
    ) -> Tensor:
        logits = self.exclude_mask(logits)
        if self.plain:
            return logits
        scores = self._adjusted(logits, start, history, allowed)
        if self.greedy:
            return scores
        scores = filter_scores(scores / min(self.options.temperature, _FLATTEST), self.options)
        for i, row in enumerate(scores):
            row += self._gumbel(start + i, len(row)).to(row.device)
        return scores

    def scores_among(
        self, ids: Tensor, logits: Tensor, vocab_size: int, history: Sequence[int]
    ) -> Tensor:
        """The scores of some tokens as the next one, for drafts.

        Args:
            ids: of the tokens, `[k]`; the mask is none of them.
            logits: theirs, `[k]`.
            vocab_size: the model's.
            history: all tokens before.

        Returns:
            `[k]`; see `scores`.
        """
        if self.plain:
            return logits
        row = logits.new_full((1, vocab_size), -torch.inf)
        row[0, ids] = logits
        return self.scores(row, len(history), history)[0, ids]

    def row_choices(self, logits: Tensor) -> list[int] | None:
        """The choice at each row of `[n, vocab]` if none depends on what came before, else None."""
        return _best(self.exclude_mask(logits)).tolist() if self.plain else None

    @property
    def reports_logprobs(self) -> bool:
        """Whether the request asked for log-probabilities."""
        return self.options.logprobs is not None

    def logprobs(
        self, logits: Tensor, tokens: Sequence[int], rows: Sequence[int] | None = None
    ) -> tuple[TokenLogprob, ...]:
        """AR log-probabilities of tokens `[n]` under logits `[n, vocab]`, before any filter.

        `rows`: the rows of `logits` that belong to the tokens, if there are more rows. The result
        is empty unless the request asked for log-probabilities.
        """
        count = self.options.logprobs
        if count is None:
            return ()
        if rows is not None:
            logits = logits[list(rows)]
        scores = torch.log_softmax(self.exclude_mask(logits), dim=-1)
        result = []
        for row, token in zip(scores, tokens, strict=True):
            values, ids = row.topk(count)
            top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
            result.append(TokenLogprob(float(row[token]), top))
        return tuple(result)

    def _adjusted(
        self, logits: Tensor, start: int, history: Sequence[int], allowed: np.ndarray | None
    ) -> Tensor:
        """Logits `[n, vocab]` after grammar, least number of tokens, logit bias and penalties."""
        options, answer = self.options, history[self.prompt_length :]
        if allowed is not None:
            forbidden = torch.from_numpy(~allowed).to(logits.device)
            logits = logits.masked_fill(forbidden, -torch.inf)
        early = self.prompt_length + options.min_tokens - start
        if early > 0 and self.stop_token_ids:
            stops = sorted(self.stop_token_ids)
            others = allowed is None or bool(np.delete(allowed, stops).any())
            if others:
                logits = logits.clone()
                logits[:early, stops] = -torch.inf
        if options.logit_bias:
            ids, biases = zip(*options.logit_bias, strict=True)
            logits = logits.clone()
            logits[:, list(ids)] += torch.tensor(biases, device=logits.device)
        scores = penalise_repetition(logits, history, options.repetition_penalty)
        return penalise_frequency(
            scores, answer, options.frequency_penalty, options.presence_penalty
        )

    def _gumbel(self, position: int, vocab: int) -> Tensor:
        """Gumbel noise `[vocab]` of a position; drafting and verifying ask for it twice."""
        if position not in self._noise:
            while len(self._noise) >= 64:  # two blocks' worth; older positions are committed
                del self._noise[next(iter(self._noise))]
            self._noise[position] = gumbel_noise(self.options.seed, position, vocab)
        return self._noise[position]


def _best(scores: Tensor) -> Tensor:
    """The first of the highest of each row, `[n]`.

    Raises:
        NotFiniteError: it is no number: the weights are damaged.
    """
    if scores.device.type != "cpu":
        best = scores.argmax(-1)
        finite = bool(scores.gather(-1, best[:, None]).isfinite().all())
    else:  # four to ten times as fast as PyTorch's
        values = scores.numpy()
        found = values.argmax(-1)
        finite = bool(np.isfinite(values[np.arange(len(found)), found]).all())
        best = torch.from_numpy(found)
    if not finite:  # NaN is the highest of its row
        raise NotFiniteError("the model's logits are not finite: its weights may be damaged")
    return best


def gumbel_noise(seed: int, position: int, vocab: int) -> Tensor:
    """Standard Gumbel noise fp32 `[vocab]`, a function of (seed, position) alone.

    Philox is counter-based, so the noise of a position needs none of the positions before it.
    """
    bits = np.random.Philox(key=[seed, position]).random_raw(-(-vocab // 2)).view(np.uint32)
    uniform = torch.from_numpy(bits[:vocab].astype(np.float32)).add_(0.5).mul_(2.0**-32)
    uniform.clamp_(max=_MOST_UNIFORM)
    # -log(1 - u) is exponential. The winners lie near 0, where u is most precise.
    return uniform.neg_().log1p_().neg_().log_().neg_()


def penalise_repetition(logits: Tensor, history: Sequence[int], penalty: float) -> Tensor:
    """Divide positive and multiply negative logits of seen tokens (CTRL, arXiv 1909.05858)."""
    if penalty == 1 or not history:
        return logits
    seen = torch.tensor(sorted(set(history)), device=logits.device)
    values = logits[:, seen]
    result = logits.clone()
    changed = torch.where(values > 0, values / penalty, values * penalty)
    # A tiny penalty would make infinity of a logit; what a grammar forbids is that already.
    result[:, seen] = torch.where(values.isinf(), values, changed.clamp(-_MOST, _MOST))
    return result


def penalise_frequency(
    logits: Tensor, answer: Sequence[int], frequency: float, presence: float
) -> Tensor:
    """Lower the logits of tokens in the answer: by `presence`, and by `frequency` each time.

    Source: OpenAI's API reference.
    """
    if not answer or (frequency == 0 and presence == 0):
        return logits
    counts = Counter(answer)
    seen = torch.tensor(list(counts), device=logits.device)
    times = torch.tensor(list(counts.values()), device=logits.device, dtype=logits.dtype)
    result = logits.clone()
    result[:, seen] -= frequency * times + presence
    return result


def filter_scores(scores: Tensor, options: GenerationOptions) -> Tensor:
    """Set scores `[n, vocab]` outside top-k, top-p or min-p to -inf; the best always stays."""
    if 0 < options.top_k < scores.shape[-1]:
        bar = scores.topk(options.top_k).values[:, -1:]
        scores = scores.masked_fill(scores < bar, -torch.inf)
    if options.top_p < 1:
        ordered, order = scores.sort(dim=-1, descending=True, stable=True)
        probabilities = ordered.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities
        outside = before >= options.top_p
        outside[:, 0] = False  # a top_p that fp32 rounds to 0 keeps the best too
        dropped = torch.zeros_like(before, dtype=torch.bool)
        dropped.scatter_(-1, order, outside)
        scores = scores.masked_fill(dropped, -torch.inf)
    if options.min_p > 0:
        probabilities = scores.softmax(-1)
        bar = probabilities.max(-1, keepdim=True).values * options.min_p
        scores = scores.masked_fill(probabilities < bar, -torch.inf)
    return scores


class Highest(NamedTuple):
    """Of each row."""

    values: Tensor
    indices: Tensor


def highest(scores: Tensor, count: int) -> Highest:
    """The `count` highest of each row and where they are, highest first; both `[n, count]`.

    On a CPU this is four times as fast as `topk` over a large vocabulary. A group whose maximum is
    not among the `count` highest maxima can hold none of them.
    """
    n, vocab = scores.shape
    if vocab % _GROUP or vocab // _GROUP < count:
        return Highest(*scores.topk(count))
    groups = scores.view(n, -1, _GROUP)
    best = groups.amax(-1).topk(count).indices
    found = groups.gather(1, best[..., None].expand(-1, -1, _GROUP)).flatten(1).topk(count)
    where = best.gather(1, found.indices // _GROUP) * _GROUP + found.indices % _GROUP
    return Highest(found.values, where)
