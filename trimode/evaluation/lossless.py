"""Checks that speculation emits AR's tokens, and that logits do not depend on other rows."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trimode.checkpoints import LoadedModel
from trimode.config import GenerationOptions
from trimode.decoding import LOSSLESS_MODES, modes_reading
from trimode.engine import Engine, drain
from trimode.engine.score import prefill_hidden

BLOCK_LENGTHS = (2, 5, 8, 16)
_TREE_LIMIT = 8
"""Longest block of a quadratic run; its passes have B (B + 1) rows."""
MIXED: tuple[tuple[str, int | None], ...] = (
    ("linear", 8), ("quadratic", 2), ("ar", None), ("auto", None), ("linear", 16),
    ("quadratic", 5), ("linear", 5),
)  # fmt: skip
"""Modes and block lengths that take turns if all modes share a batch."""


@dataclass(frozen=True, slots=True)
class Flip:
    """The first place at which an answer differs from AR's."""

    prompt: int
    """Number of the prompt."""
    token: int
    """Number of the first token that differs."""
    logit_gap: float
    """Distance of AR's two best logits there, by a fresh prefill."""


@dataclass(frozen=True, slots=True)
class Run:
    """One way to decode the prompts."""

    name: str
    together: int
    """Sequences in a batch."""
    options: tuple[GenerationOptions, ...]
    """One for each prompt; fewer if a run takes only the first ones."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a run."""

    name: str
    answers: int
    tokens: int
    flips: tuple[Flip, ...] = field(default=())


def runs(
    prompts: int,
    *,
    max_tokens: int,
    temperature: float,
    block_lengths: Sequence[int] = BLOCK_LENGTHS,
    tree_share: Callable[[int], int] = lambda length: 1 if length <= _TREE_LIMIT else 0,
) -> list[Run]:
    """AR first, then each lossless mode at each length that it reads, all mixed, and each alone.

    `tree_share(length)`: every how many-th prompt runs in `quadratic` at a block length; 0 is none.
    """

    def options(i: int, mode: str, block_length: int | None) -> GenerationOptions:
        fields = {"mode": mode, "max_tokens": max_tokens, "temperature": temperature,
                  "block_length": block_length, "seed": i}  # fmt: skip
        return GenerationOptions.from_mapping(fields)

    def all_in(mode: str, block_length: int | None, count: int = prompts) -> tuple:
        return tuple(options(i, mode, block_length) for i in range(count))

    found = [Run("ar", 16, all_in("ar", None))]
    for mode in LOSSLESS_MODES[1:]:
        by_length = mode != "auto" and mode in modes_reading("block_length")
        for length in block_lengths if by_length else (None,):
            share = tree_share(length) if mode == "quadratic" and length else 1
            if share:
                name = mode if length is None else f"{mode} {length}"
                found.append(Run(name, 16, all_in(mode, length, -(-prompts // share))))
    mixed = tuple(options(i, *MIXED[i % len(MIXED)]) for i in range(prompts))
    found.append(Run("all modes mixed", 16, mixed))
    found.append(Run("each alone", 1, mixed))
    return found


def check(
    model: LoadedModel,
    prompts: Sequence[Sequence[int]],
    wanted: Sequence[Run],
    *,
    advance: Callable[[str], None] = lambda _: None,
) -> Iterator[Outcome]:
    """Decode and compare. All runs must equal the first one.

    `advance` is called with the run's name whenever an answer is finished.
    """
    reference: list[list[int]] = []
    for run in wanted:
        found = _answers(model, prompts, run, advance)
        reference = reference or found
        flips = []
        for i, (ours, theirs) in enumerate(zip(found, reference, strict=False)):
            if ours != theirs:
                pairs = zip(ours, theirs, strict=False)
                shorter = min(len(ours), len(theirs))
                at = next((k for k, (a, b) in enumerate(pairs) if a != b), shorter)
                flips.append(Flip(i, at, gap_after(model, [*prompts[i], *theirs[:at]])))
        yield Outcome(run.name, len(found), sum(map(len, found)), tuple(flips))


def _answers(
    model: LoadedModel,
    prompts: Sequence[Sequence[int]],
    run: Run,
    advance: Callable[[str], None],
) -> list[list[int]]:
    engine = Engine(model, max_sequences=run.together)
    sequences = [engine.add(tuple(p), o) for p, o in zip(prompts, run.options, strict=False)]
    for update in drain(engine):
        if update.sequence.finish_reason is not None:
            advance(run.name)
    return [sequence.tokens for sequence in sequences]


@torch.inference_mode()
def prefill_logits(
    model: LoadedModel, tokens: Sequence[int], *, first: int = 0, chunk: int = 512
) -> Tensor:
    """AR logits `[len(tokens) - first, vocab]` from row `first` on, by a fresh prefill.

    `chunk`: rows of a pass.
    """
    return model.runner.logits(prefill_hidden(model, tokens, chunk)[first:])


def gap_after(model: LoadedModel, tokens: Sequence[int]) -> float:
    """Distance of the two best logits after `tokens`."""
    best = prefill_logits(model, tokens, first=len(tokens) - 1).topk(2).values[0]
    return float(best[0] - best[1])


def rows_are_independent(model: LoadedModel, tokens: Sequence[int]) -> bool:
    """Whether logits are the same bits prefilled at once, row by row and in uneven chunks."""
    whole = prefill_logits(model, tokens)
    return all(
        torch.equal(whole, prefill_logits(model, tokens, chunk=chunk)) for chunk in (1, 5, 16)
    )
