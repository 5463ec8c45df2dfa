"""How a checkpoint writes thoughts and calls, as far as its chat template and vocabulary tell."""

from dataclasses import dataclass

from trimode.checkpoints import LoadedModel
from trimode.server.dialogue.call_formats import CallFormat, format_of
from trimode.server.dialogue.reader import END_THINK, THINK


@dataclass(frozen=True, slots=True)
class Dialect:
    """What a model's answers are written in."""

    thinks: bool
    """Whether answers may begin with a thought."""
    calls: CallFormat | None
    """How it writes calls of tools; None: in a form that is not known here."""
    shows_tools: bool
    """Whether the chat template shows tools to the model."""
    shown_special_ids: tuple[int, ...]
    """Special tokens that belong to thoughts and calls, so that text must show them."""


def dialect_of(model: LoadedModel) -> Dialect:
    """The dialect of a model."""
    chat = model.chat_template
    template = chat.tool_source if chat else ""
    calls = format_of(template)
    thinks = chat is not None and END_THINK in chat.source
    markers = (THINK, END_THINK, *(calls.markers if calls else ()))
    ids = (model.tokenizer.token_id(marker) for marker in markers)
    special = model.tokenizer.special_ids
    return Dialect(
        thinks=thinks,
        calls=calls,
        shows_tools="tools" in template,
        shown_special_ids=tuple(i for i in ids if i is not None and i in special),
    )
