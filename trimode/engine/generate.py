"""The public API: one prompt, a stream of updates, or a batch. Each is an engine with sequences."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from trimode.checkpoints import LoadedModel
from trimode.config import GenerationOptions
from trimode.engine.engine import DEFAULT_MAX_SEQUENCES, Engine, Update, drain
from trimode.engine.result import GenerationResult
from trimode.errors import InputError

Prompt = str | Sequence[int] | Sequence[dict[str, Any]]
"""A user turn, token ids taken as they are, or chat messages."""


def encode_prompt(
    model: LoadedModel, prompt: Prompt, *, raw: bool = False, **template_variables: Any
) -> list[int]:
    """Token ids of a prompt.

    Args:
        model: the model whose tokenizer and chat template to use.
        prompt: a string becomes one user turn if the model has a chat template.
        raw: take a string as it is, without the chat template.
        template_variables: passed to the template (`enable_thinking`, `tools`).

    Raises:
        InputError: the prompt is empty or its messages are not well formed.
    """
    if isinstance(prompt, str):
        if not prompt:
            raise InputError("prompt", "empty", "must have at least one character")
        if raw or model.chat_template is None:
            return model.tokenizer.encode(prompt)
        prompt = [{"role": "user", "content": prompt}]
    if all(hasattr(item, "__index__") for item in prompt):  # int, numpy and torch integers
        return [int(item) for item in prompt]  # type: ignore[arg-type]
    if model.chat_template is None:
        raise InputError("messages", "given", f"{model.name} has no chat template; use a prompt")
    text = model.chat_template.render(list(prompt), **template_variables)  # type: ignore[arg-type]
    return model.tokenizer.encode(text, add_bos=False)


def generate(
    model: LoadedModel, prompt: Prompt, *, raw: bool = False, **options: Any
) -> GenerationResult:
    """Decode one prompt; `options` are the fields of `GenerationOptions`.

    Raises:
        InputError: the prompt or an option cannot be honoured.
    """
    result = None
    for update in stream(model, prompt, raw=raw, **options):
        if update.sequence.finish_reason is not None:
            result = GenerationResult.of(update.sequence, model.name)
    assert result is not None
    return result


def stream(
    model: LoadedModel, prompt: Prompt, *, raw: bool = False, **options: Any
) -> Iterator[Update]:
    """Decode one prompt and yield drafts (with `show_drafts`) and committed text as they come."""
    asked = GenerationOptions.from_mapping(options)
    engine = Engine(model, max_sequences=1)
    engine.add(encode_prompt(model, prompt, raw=raw), asked)
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
    sequences = [engine.add(encode_prompt(model, p, raw=raw), asked) for p in prompts]
    for _ in drain(engine):
        pass
    return [GenerationResult.of(sequence, model.name) for sequence in sequences]
