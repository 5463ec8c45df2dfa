"""The options that several commands share, and the `GenerationOptions` they make."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimode.errors import InputError

if TYPE_CHECKING:
    from trimode.checkpoints import LoadedModel

DEFAULT_MODEL = "smollm2-135m-instruct"


def _option(*names: str, help: str, hidden: tuple[str, ...] = ()) -> Any:
    """An option with an environment twin: --top-p is TRIMODE_TOP_P."""
    long = next(name for name in names if name.startswith("--")).split("/")[0]
    return typer.Option(
        *names, *hidden, help=help, envvar="TRIMODE_" + long[2:].replace("-", "_").upper()
    )


Model = Annotated[
    str, _option("--model", "-m", help="Name, path, hub:org/name or pypi:package==version.")
]
Mode = Annotated[str, _option("--mode", help="ar, diffusion, linear, quadratic or auto.")]
MaxTokens = Annotated[
    int,
    _option("--max-tokens", help="Most tokens to produce.",
            hidden=("--max-new-tokens", "--max-completion-tokens", "--n-predict")),
]  # fmt: skip
Temperature = Annotated[float, _option("--temperature", help="0 is greedy.", hidden=("--temp",))]
TopP = Annotated[float, _option("--top-p", help="Nucleus sampling.")]
TopK = Annotated[int, _option("--top-k", help="Keep the k best tokens; 0 keeps all.")]
MinP = Annotated[float, _option("--min-p", help="Drop tokens below this share of the best.")]
RepetitionPenalty = Annotated[float, _option("--repetition-penalty", help="1 is none.")]
Seed = Annotated[int, _option("--seed", help="Same seed, same text, in every lossless mode.")]
BlockLength = Annotated[
    int | None,
    _option("--block-length", help="Tokens of a draft or diffusion block [model's own: 32].",
            hidden=("--block-size", "--canvas-length")),
]  # fmt: skip
Threshold = Annotated[
    float | None,
    _option("--threshold", help="Confidence that commits a token [diffusion 0.9, linear 0].",
            hidden=("--confidence-threshold",)),
]  # fmt: skip
CommitRule = Annotated[
    str | None,
    _option(
        "--commit-rule",
        help="threshold, quota, factor, margin, entropy, cumulative_error, learned.",
    ),
]
MaxDenoisingSteps = Annotated[
    int | None,
    _option("--max-denoising-steps", help="Passes a block may take.", hidden=("--steps",)),
]
RevisionThreshold = Annotated[
    float | None,
    _option("--revision-threshold", help="Reopen committed tokens that fall below this."),
]
Stop = Annotated[list[str] | None, typer.Option("--stop", help="Stop string; repeat for several.")]
IgnoreEos = Annotated[bool, _option("--ignore-eos", help="Do not stop at the model's end token.")]
Logprobs = Annotated[
    int | None, _option("--logprobs", help="Report log-probabilities and this many alternatives.")
]
SeedBlock = Annotated[
    bool | None,
    _option("--seed-block/--all-mask-start", help="Start blocks with the AR seed token or not."),
]
DraftTree = Annotated[
    bool | None,
    _option(
        "--draft-tree/--draft-line",
        help="Verify the likeliest beginnings, or the one line of likeliest tokens.",
    ),
]
RollingBlock = Annotated[
    bool | None,
    _option(
        "--rolling-block/--fixed-block",
        help="Diffusion: move the block on after every pass, or keep it until it is full.",
    ),
]
MaxThinkingTokens = Annotated[
    int | None, _option("--max-thinking-tokens", help="Force </think> after this many tokens.")
]
Force = Annotated[bool, _option("--force", help="Diffusion on a checkpoint not trained for it.")]
Dtype = Annotated[str, _option("--dtype", help="fp32, bf16, int8 (CPU) or auto.")]
Device = Annotated[str, _option("--device", help="cpu, cuda:0, ... or auto.")]
Adapter = Annotated[
    str | None, _option("--adapter", help="Draft adapter directory (PEFT layout) or none.")
]
Offline = Annotated[bool, _option("--offline", help="Do not use the network.")]
NoProgress = Annotated[bool, _option("--no-progress", help="No progress on stderr.")]
System = Annotated[str | None, _option("--system", help="System message.")]
Raw = Annotated[bool, _option("--raw", help="Take the prompt as it is, without the chat template.")]
EnableThinking = Annotated[
    bool, _option("--enable-thinking", help="Let the chat template open a thinking section.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Quiet = Annotated[bool, _option("--quiet", "-q", help="No figures on stderr.")]

GENERATION_FIELDS = (
    "mode", "max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed",
    "stop", "ignore_eos", "logprobs", "block_length", "threshold", "commit_rule",
    "max_denoising_steps", "revision_threshold", "max_thinking_tokens", "show_drafts", "force",
    "seed_block", "draft_tree", "rolling_block",
)  # fmt: skip
"""Parameters of a command that are fields of `GenerationOptions` under the same name."""


def generation_values(parameters: dict[str, Any]) -> dict[str, Any]:
    """The fields of `GenerationOptions` among a command's parameters."""
    values = {name: parameters[name] for name in GENERATION_FIELDS if name in parameters}
    values["stop"] = list(values.get("stop") or ())
    return values


def model_and_prompt(model: str, words: list[str] | None) -> tuple[str, str]:
    """Split `[MODEL] PROMPT`; `-`, or a pipe instead of words, reads the prompt from stdin.

    Raises:
        InputError: no prompt, too many words, or stdin is not UTF-8.
    """
    words = words or []
    if len(words) > 2:
        found = f"{len(words)} words"
        raise InputError("prompt", found, "give [MODEL] PROMPT; put a prompt with spaces in quotes")
    if len(words) == 2:
        model, words = words[0], words[1:]
    if not words and (sys.stdin is None or sys.stdin.isatty()):
        raise InputError("prompt", "missing", "give a prompt, - for stdin, or --input FILE.jsonl")
    prompt = words[0] if words and words[0] != "-" else _read_stdin()
    if not prompt:
        raise InputError("prompt", "empty", "must have at least one character")
    return model, prompt


def _read_stdin() -> str:
    if sys.stdin is None:
        raise InputError("stdin", "closed", "must be open to read the prompt from it")
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            "stdin", f"byte {error.start} is not UTF-8", "must be UTF-8 text"
        ) from None


def as_messages(prompt: str, system: str | None) -> str | list[dict[str, Any]]:
    """The prompt as it is, or as a conversation that begins with the system message."""
    if system is None:
        return prompt
    return [{"role": "system", "content": system}, {"role": "user", "content": prompt}]


def load_model(parameters: dict[str, Any], model: str) -> "LoadedModel":
    """Fetch and load, with progress on stderr where it is a terminal."""
    from trimode.cli.render import spinner

    progress = not parameters.get("no_progress")
    with spinner("starting", enabled=progress):  # importing torch takes a second or two
        from trimode.checkpoints import load, resolve
    path = resolve(model, offline=parameters["offline"], progress=progress)
    with spinner(f"loading {path.name}", enabled=progress):
        return load(
            path,
            dtype=parameters["dtype"],
            device=parameters["device"],
            adapter=parameters["adapter"],
            offline=parameters["offline"],
            progress=False,
        )


def existing_file(path: Path, field: str) -> Path:
    """The path, if it is a readable file.

    Raises:
        InputError: it is not.
    """
    if not path.is_file():
        raise InputError(field, f"{path} is not a file", "must be a readable file")
    return path
