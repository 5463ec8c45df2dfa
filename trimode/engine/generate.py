"""The public API: one prompt, a stream of updates, or a batch. Each is an engine with sequences."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from trimode.checkpoints import LoadedModel
from trimode.config import GenerationOptions
from trimode.engine.engine import DEFAULT_MAX_SEQUENCES, Engine, Update, drain
from trimode.engine.prompts import Prompt, read_prompt
from trimode.engine.result import GenerationResult


def generate(
    model: LoadedModel,
    prompt: Prompt,
    *,
    images: Sequence[Any] = (),
    raw: bool = False,
    **options: Any,
) -> GenerationResult:
    """Decode one prompt.

    Args:
        model: what decodes.
        prompt: see `read_prompt`, as for `images` and `raw`.
        images: pictures before a string.
        raw: take a string as it is.
        options: fields of `GenerationOptions`.

    Raises:
        InputError: the prompt or an option cannot be honoured.
    """
    result = None
    for update in stream(model, prompt, images=images, raw=raw, **options):
        if update.sequence.finish_reason is not None:
            result = GenerationResult.of(update.sequence, model.name)
    assert result is not None
    return result


def stream(
    model: LoadedModel,
    prompt: Prompt,
    *,
    images: Sequence[Any] = (),
    raw: bool = False,
    **options: Any,
) -> Iterator[Update]:
    """Decode one prompt and yield drafts (with `show_drafts`) and committed text as they come."""
    asked = GenerationOptions.from_mapping(options)
    engine = Engine(model, max_sequences=1)
    read = read_prompt(model, prompt, images=images, raw=raw)
    engine.add(read.tokens, asked, images=read.images)
    yield from drain(engine)


def generate_batch(
    model: LoadedModel,
    prompts: Iterable[Prompt],
    *,
    concurrency: int = DEFAULT_MAX_SEQUENCES,
    raw: bool = False,
    **options: Any,
) -> list[GenerationResult]:
    """Decode many prompts, `concurrency` at a time, results in input order."""
    asked = GenerationOptions.from_mapping(options)
    engine = Engine(model, max_sequences=concurrency)
    read = [read_prompt(model, prompt, raw=raw) for prompt in prompts]
    sequences = [engine.add(one.tokens, asked, images=one.images) for one in read]
    for _ in drain(engine):
        pass
    return [GenerationResult.of(sequence, model.name) for sequence in sequences]
