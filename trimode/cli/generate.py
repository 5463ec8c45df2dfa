"""`trimode generate`: one prompt, or a file of prompts."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimode.cli import options as opt
from trimode.cli.trace import Trace
from trimode.errors import InputError

if TYPE_CHECKING:
    from trimode.checkpoints import LoadedModel
    from trimode.config import GenerationOptions
    from trimode.engine import Update


def generate(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL] PROMPT", help="`-` reads stdin.")
    ] = None,
    model: opt.Model = opt.DEFAULT_MODEL,
    mode: opt.Mode = "ar",
    max_tokens: opt.MaxTokens = 256,
    temperature: opt.Temperature = 0.0,
    top_p: opt.TopP = 1.0,
    top_k: opt.TopK = 0,
    min_p: opt.MinP = 0.0,
    repetition_penalty: opt.RepetitionPenalty = 1.0,
    seed: opt.Seed = 0,
    block_length: opt.BlockLength = None,
    threshold: opt.Threshold = None,
    commit_rule: opt.CommitRule = None,
    max_denoising_steps: opt.MaxDenoisingSteps = None,
    revision_threshold: opt.RevisionThreshold = None,
    stop: opt.Stop = None,
    ignore_eos: opt.IgnoreEos = False,
    logprobs: opt.Logprobs = None,
    seed_block: opt.SeedBlock = None,
    draft_tree: opt.DraftTree = None,
    rolling_block: opt.RollingBlock = None,
    max_thinking_tokens: opt.MaxThinkingTokens = None,
    enable_thinking: opt.EnableThinking = False,
    system: opt.System = None,
    raw: opt.Raw = False,
    force: opt.Force = False,
    dtype: opt.Dtype = "auto",
    device: opt.Device = "auto",
    adapter: opt.Adapter = None,
    offline: opt.Offline = False,
    show_drafts: Annotated[
        bool, typer.Option("--show-drafts", help="Repaint the open block in place.")
    ] = False,
    trace: Annotated[
        Path | None,
        typer.Option("--trace", help="JSONL of every draft and commit; the playground opens it."),
    ] = None,
    json_output: opt.Json = False,
    quiet: opt.Quiet = False,
    no_progress: opt.NoProgress = False,
    input_file: Annotated[
        Path | None,
        typer.Option("--input", help="JSONL: prompt or messages, optional id and options a line."),
    ] = None,
    output_file: Annotated[
        Path | None, typer.Option("--output", help="JSONL of results; resumes if interrupted.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --output.")] = False,
    concurrency: Annotated[int, typer.Option("--concurrency", help="Prompts at a time.")] = 8,
) -> None:
    """Generate text from a prompt, stdin, or a JSONL file of prompts."""
    parameters = dict(locals())
    from trimode.config import GenerationOptions

    options = GenerationOptions.from_mapping(opt.generation_values(parameters))
    if input_file is not None:
        from trimode.cli.batch import run_batch

        if trace is not None:
            raise InputError("trace", str(trace), "goes with one prompt, not with --input")
        if words and len(words) > 1:
            raise InputError("prompt", "given with --input", "prompts come from the file")
        run_batch(parameters, words[0] if words else model, options)
        return
    if output_file is not None:
        raise InputError("output", str(output_file), "goes with --input; redirect stdout instead")
    model, prompt = opt.model_and_prompt(model, words)
    loaded = opt.load_model(parameters, model)
    _one(loaded, opt.as_messages(prompt, system), options, parameters)


def _one(
    model: "LoadedModel", prompt: Any, options: "GenerationOptions", parameters: dict[str, Any]
) -> None:
    """Decode one prompt and print it."""
    from trimode.cli.render import UNTRAINED_NOTE, figures, note, printer
    from trimode.engine import Engine, GenerationResult, drain, encode_prompt

    ids = encode_prompt(
        model, prompt, raw=parameters["raw"], enable_thinking=parameters["enable_thinking"]
    )
    trace_path = parameters["trace"]
    engine = Engine(model, max_sequences=1)
    sequence = engine.add(ids, replace(options, show_drafts=True) if trace_path else options)
    trace = Trace(trace_path, model) if trace_path else None
    if not model.can_draft and sequence.options.mode != "ar" and not parameters["quiet"]:
        note(UNTRAINED_NOTE)
    updates = drain(engine) if trace is None else _traced(drain(engine), trace)
    if parameters["json_output"]:
        for _ in updates:
            pass
        sys.stdout.write(json.dumps(GenerationResult.of(sequence, model.name).to_json()) + "\n")
        return
    try:
        with printer(show_drafts=options.show_drafts) as out:
            for update in updates:
                out.show(update)
    finally:  # also after Ctrl-C: what was printed stays, on a line of its own
        sys.stdout.write("\n")
        sys.stdout.flush()
    if not parameters["quiet"]:
        sys.stderr.write(figures(sequence.stats, sequence.options.mode, len(ids)))


def _traced(updates: "Iterator[Update]", trace: Trace) -> "Iterator[Update]":
    """The updates, each written to the trace as it passes."""
    with trace:
        for update in updates:
            trace.show(update)
            yield update
