"""`trimode chat`: a conversation in the terminal, with the mode switched live."""

import json
import os
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimode.cli import options as opt
from trimode.cli.grouped import grouped
from trimode.config import DECODING_FIELDS
from trimode.errors import InputError, TrimodeError
from trimode.workload import ALIASES

if TYPE_CHECKING:
    from trimode.checkpoints import LoadedModel
    from trimode.config import GenerationOptions

_HELP = """/mode ar|diffusion|linear|quadratic|auto   switch the decoding mode
/set NAME VALUE                            set an option: /set threshold 0.8
/system TEXT                               system message (none: remove it)
/image PATH                                show a picture with the next message
/clear                                     forget the conversation
/save FILE                                 write the conversation as JSON
/quit                                      leave (also Ctrl-D)
\"\"\"                                        begin and end a message of several lines
"""


@dataclass(slots=True)
class Session:
    """A conversation and the options of its next answer."""

    model: "LoadedModel"
    options: "GenerationOptions"
    variables: dict[str, Any]
    system: str | None = None
    messages: list[dict[str, Any]] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    """Pictures that go with the next message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions(opt.DecodingOptions):
    """Decoding options that can be given at the start; /set knows all."""

    max_tokens: opt.MaxTokens = 512
    seed: opt.Seed = 0
    force: opt.Force = False
    show_drafts: opt.ShowDrafts = False


@grouped
def chat(
    model_argument: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="As --model.")
    ] = None,
    *,
    model: opt.ModelOptions,
    mode: opt.Mode = "ar",
    decoding: ChatOptions,
    system: opt.System = None,
    enable_thinking: opt.EnableThinking = False,
    no_progress: opt.NoProgress = False,
) -> None:
    """Talk to a model; type /help for commands."""
    options = decoding.for_mode(mode)
    _refuse_unread(options)
    loaded = opt.load_model(model.named(model_argument), progress=not no_progress)
    if loaded.chat_template is None:
        raise InputError("model", f"{loaded.name} has no chat template", "use trimode generate")
    session = Session(loaded, options, {"enable_thinking": enable_thinking}, system)
    if sys.stdin.isatty():
        import readline  # noqa: F401 - gives input() its line editing

        _say(f"{loaded.name}, mode {options.mode}. /help lists commands, Ctrl-D leaves.")
    _loop(session)


def _loop(session: Session) -> None:
    while True:
        try:
            message = _read_message()
            if message is None or _react(session, *message) == "quit":
                return
        except KeyboardInterrupt:
            _say("\n(Ctrl-D or /quit leaves)")


def _react(session: Session, text: str, quoted: bool) -> str | None:
    """Carry out a command and return its name, or answer a message; print errors."""
    try:
        if text.startswith("/") and not quoted:
            return _command(session, text)
        if text.strip():
            _answer(session, text)
    except TrimodeError as error:
        _say(f"error: {error}")
    return None


def _read_message() -> tuple[str, bool] | None:
    """A line, or the lines between triple quotes, and whether it was quoted; None at the end."""
    prompt = ">>> " if sys.stdin.isatty() else ""
    try:
        line = input(prompt)
        if not line.startswith('"""'):
            return line, False
        lines = [line[3:]]
        while not lines[-1].endswith('"""'):
            lines.append(input("... " if prompt else ""))
    except EOFError:
        return None
    except UnicodeDecodeError as error:
        raise InputError("stdin", f"byte {error.start} is not UTF-8", "must be UTF-8") from None
    lines[-1] = lines[-1].removesuffix('"""')
    return "\n".join(lines), True


def _command(session: Session, line: str) -> str:
    """Carry out a slash command; returns its name."""
    name, _, rest = line[1:].partition(" ")
    rest = rest.strip()
    match name:
        case "mode":
            _switch(session, rest)
        case "set":
            key, _, raw = rest.partition(" ")
            _set(session, ALIASES.get(key, key), _value(raw))
        case "system":
            session.system = rest or None
        case "image":
            _show(session, rest)
        case "clear":
            session.messages.clear()
            session.images.clear()
        case "save":
            _save(session, Path(rest))
        case "help":
            _say(_HELP.rstrip())
        case "quit" | "exit" | "bye":
            return "quit"
        case _:
            raise InputError("command", f"/{name}", "/help lists the commands")
    return name


def _show(session: Session, given: str) -> None:
    """Keep a picture for the next message; whether it can be read is seen now."""
    from trimode.vision import read_source

    session.model.require_vision("/image")
    path = str(Path(given).expanduser().resolve()) if given else ""
    image = read_source(path, name="/image")
    session.images.append(path)
    _say(f"{path}: {image.width} x {image.height}, goes with the next message")


def _switch(session: Session, mode: object) -> None:
    """Change the mode; options that the new one does not read are forgotten, and named."""
    from trimode.decoding import inherited

    options = session.options.updated({"mode": mode})
    forgotten = "".join(f", without {name}" for name in _unread(options))
    session.options = inherited(options, options.mode)
    _say(f"mode {options.mode}{forgotten}")


def _set(session: Session, name: str, value: object) -> None:
    """Change an option of the next answers.

    Raises:
        InputError: it is wrong, or the present mode does not read it.
    """
    if name == "mode":
        _switch(session, value)
        return
    options = session.options.updated({name: value})
    _refuse_unread(options)
    session.options = options
    _say(f"{name} {getattr(options, name)}")


def _refuse_unread(options: "GenerationOptions") -> None:
    for name in _unread(options):
        found = str(getattr(options, name))
        raise InputError(name, found, f"the mode {options.mode} does not read it")


def _unread(options: "GenerationOptions") -> list[str]:
    """Names of the options that are set and that their mode does not read."""
    from trimode.decoding import inherited

    read = inherited(options, options.mode)
    return [name for name in DECODING_FIELDS if getattr(read, name) != getattr(options, name)]


def _value(raw: str) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        return {"none": None, "None": None}.get(raw, raw)


def _save(session: Session, path: Path) -> None:
    """Write the conversation, whole or not at all."""
    if not path.name:
        raise InputError("/save", "no file name", "give one: /save chat.json")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps({"messages": _conversation(session)}, indent=1) + "\n")
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise TrimodeError(f"/save: {error}") from None
    _say(f"saved {path}")


def _conversation(session: Session) -> list[dict[str, Any]]:
    first = [] if session.system is None else [{"role": "system", "content": session.system}]
    return [*first, *session.messages]


def _answer(session: Session, message: str) -> None:
    """Decode one answer; Ctrl-C ends it and keeps the part that is there."""
    from trimode.cli.render import printer, summary
    from trimode.engine import Engine, drain, read_prompt

    content: Any = message
    if session.images:
        shown = [{"type": "image", "image": path} for path in session.images]
        content = [*shown, {"type": "text", "text": message}]
    session.messages.append({"role": "user", "content": content})
    try:
        prompt = read_prompt(session.model, _conversation(session), **session.variables)
        engine = Engine(session.model, max_sequences=1)
        sequence = engine.add(prompt.tokens, session.options, images=prompt.images)
    except TrimodeError:
        session.messages.pop()
        raise
    session.images.clear()
    written = 0
    try:
        with printer(show_drafts=session.options.show_drafts) as out:
            for update in drain(engine):
                written += len(update.text)
                out.show(update)
    except KeyboardInterrupt:
        engine.cancel(sequence)
        sys.stdout.write(
            sequence.text_stream.text[written:]
        )  # it may have come in the middle of a pass
        _say(" (stopped)")
    sys.stdout.write("\n")
    sys.stdout.flush()
    session.messages.append({"role": "assistant", "content": sequence.text_stream.text})
    stats = sequence.stats
    rate = f"{stats.tokens_per_second:.1f} tok/s"
    figures = f"{summary(stats, sequence.options.mode)}, {stats.completion_tokens} tokens, {rate}"
    _say(f"\x1b[2m{figures}\x1b[0m" if sys.stderr.isatty() else figures)


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
