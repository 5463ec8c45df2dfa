"""`trimode generate`: one prompt, or a file of prompts."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trimode.cli import options as opt
from trimode.cli.batch import BatchOptions, run_batch
from trimode.cli.grouped import grouped
from trimode.cli.trace import Trace
from trimode.errors import InputError

if TYPE_CHECKING:
    from trimode.checkpoints import LoadedModel
    from trimode.config import GenerationOptions
    from trimode.engine import EncodedPrompt, Update


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateOptions(opt.DecodingOptions):
    """All decoding options."""

    top_k: Annotated[int, opt.option("--top-k", help="Keep the k best tokens; 0 keeps all.")] = 0
    min_p: Annotated[
        float, opt.option("--min-p", help="Drop tokens below this share of the best.")
    ] = 0.0
    repetition_penalty: Annotated[float, opt.option("--repetition-penalty", help="1 is none.")] = (
        1.0
    )
    seed: opt.Seed = 0
    commit_rule: Annotated[str | None, opt.option("--commit-rule")] = None
    max_denoising_steps: Annotated[
        int | None, opt.option("--max-denoising-steps", hidden=("--steps",))
    ] = None
    revision_threshold: Annotated[float | None, opt.option("--revision-threshold")] = None
    seed_block: Annotated[bool | None, opt.option("--seed-block/--all-mask-start")] = None
    draft_tree: Annotated[bool | None, opt.option("--draft-tree/--draft-line")] = None
    rolling_block: Annotated[bool | None, opt.option("--rolling-block/--fixed-block")] = None
    spare_drafts: Annotated[int | None, opt.option("--spare-drafts")] = None
    stop: Annotated[
        list[str] | None,
        opt.option("--stop", help="Stop string; repeat for several.", variable=False),
    ] = None
    ignore_eos: Annotated[
        bool, opt.option("--ignore-eos", help="Do not stop at the model's end token.")
    ] = False
    logprobs: Annotated[
        int | None,
        opt.option("--logprobs", help="Report log-probabilities and this many alternatives."),
    ] = None
    max_thinking_tokens: Annotated[
        int | None,
        opt.option("--max-thinking-tokens", help="Force </think> after this many tokens."),
    ] = None
    force: opt.Force = False
    show_drafts: opt.ShowDrafts = False


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """What is printed of an answer, and where."""

    trace: Annotated[
        Path | None,
        typer.Option("--trace", help="JSONL of every draft and commit; the playground opens it."),
    ] = None
    json_output: opt.Json = False
    quiet: Annotated[bool, opt.option("--quiet", "-q", help="No figures on stderr.")] = False


@grouped
def generate(
    words: opt.Words = None,
    *,
    model: opt.ModelOptions,
    mode: opt.Mode = "ar",
    decoding: GenerateOptions,
    prompt: opt.PromptOptions,
    image: opt.Image = None,
    output: OutputOptions,
    batch: BatchOptions,
    no_progress: opt.NoProgress = False,
) -> None:
    """Generate text from a prompt, stdin, or a file of prompts."""
    options = decoding.for_mode(mode)
    if batch.input_file is not None:
        if output.trace is not None:
            raise InputError("trace", str(output.trace), "goes with one prompt, not with --input")
        if image:
            raise InputError("image", str(image[0]), "goes with one prompt; rows have `images`")
        if words and len(words) > 1:
            raise InputError("prompt", "given with --input", "prompts come from the file")
        model = model.named(words[0] if words else None)
        run_batch(batch, model, prompt, options, progress=not no_progress)
        return
    if batch.shard is not None:
        raise InputError("shard", repr(batch.shard), "goes with --input")
    if batch.output_file is not None:
        found = str(batch.output_file)
        raise InputError("output", found, "goes with --input; redirect stdout instead")
    for path in image or ():
        opt.existing_file(path, "image")
    name, text = opt.model_and_prompt(model.model, words)
    loaded = opt.load_model(model.named(name), progress=not no_progress, asked=[options])
    _one(loaded, prompt.encoded(loaded, text, image or ()), options, output)


def _one(
    model: "LoadedModel",
    prompt: "EncodedPrompt",
    options: "GenerationOptions",
    output: OutputOptions,
) -> None:
    """Decode one prompt and print it."""
    from trimode.cli.render import UNTRAINED_NOTE, figures, note, printer
    from trimode.engine import Engine, GenerationResult, drain

    engine = Engine(model, max_sequences=1)
    asked = replace(options, show_drafts=True) if output.trace else options
    sequence = engine.add(prompt.tokens, asked, images=prompt.images)
    trace = Trace(output.trace, model) if output.trace else None
    if not model.can_draft and sequence.options.mode != "ar" and not output.quiet:
        note(UNTRAINED_NOTE)
    updates = drain(engine) if trace is None else _traced(drain(engine), trace)
    if output.json_output:
        for _ in updates:
            pass
        sys.stdout.write(json.dumps(GenerationResult.of(sequence, model.name).to_json()) + "\n")
        return
    try:
        with printer(show_drafts=options.show_drafts) as out:
            for update in updates:
                out.show(update)
    finally:  # also after Ctrl-C: what was printed stays, on its own line
        sys.stdout.write("\n")
        sys.stdout.flush()
    if not output.quiet:
        sys.stderr.write(figures(sequence.stats, sequence.options.mode, len(prompt.tokens)))


def _traced(updates: "Iterator[Update]", trace: Trace) -> "Iterator[Update]":
    """The updates, each written to the trace as it passes."""
    with trace:
        for update in updates:
            trace.show(update)
            yield update
